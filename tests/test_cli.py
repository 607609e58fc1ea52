"""The command line as a user meets it: what it prints, and with which code it ends."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from station import PROGRAM, SIMULATED, Station, cut_short, good_part, write_pictures

from inspectd import __version__, config, payload
from inspectd.camera.simulated import render
from inspectd.journal import Journal
from inspectd.settings import SimulatedCamera

HEAVY = ("numpy", "cv2", "numba", "paho", "msgspec", "yaml", "sqlite3")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """It finds no station file by itself, and has room for a line."""
    monkeypatch.delenv("INSPECTD_CONFIG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return run


@pytest.fixture
def station(tmp_path: Path) -> Station:
    return Station(
        tmp_path / "station", camera=SIMULATED % 1000, trigger="{source: interval, interval_s: 1}"
    )


# ---- the command itself --------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["teach", "--help"], ["wrong"]])
def test_what_needs_no_work_imports_nothing_heavy(arguments: list[str]):
    code = (
        "import sys; from inspectd.__main__ import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try: main()\n"
        f"finally: print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if arguments == ["wrong"] else 0), done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_names_every_command_and_a_wrong_one_is_told(run: Run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("run", "check", "schema", "status", "teach", "inspect", "demo", "bench"):
        assert f" {command} " in out
    assert run("--version")[:2] == (0, f"inspectd {__version__}\n")
    code, _, err = run("frobnicate")
    assert code == 2
    assert "frobnicate" in err
    code, _, err = run("teach", PROGRAM)
    assert code == 2
    assert "give one of --from-folder, --frames, --list and --remove" in err


def test_an_unexpected_error_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch):
    def fail(_path, **_options) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("inspectd.commands.check.check", fail)
    with pytest.raises(ZeroDivisionError):
        run("check")


def test_ctrl_c_says_so(run: Run, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_path, **_options) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("inspectd.commands.check.check", interrupt)
    assert run("check") == (130, "", "inspectd: interrupted\n")


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["check"], ["run"], ["status"], ["teach", PROGRAM, "--list"]])
def test_every_mistake_in_the_settings_is_told(run: Run, station: Station, command: list[str]):
    text = station.file.read_text()
    station.file.write_text(text.replace("station:", "stattion:") + "queue: 0\n")
    code, _, err = run(*command, "-c", station.file)
    assert code == 1
    assert "Traceback" not in err
    lines = err.splitlines()
    assert f"{station.file}:1: stattion: unknown key" in err
    assert any(f"{station.file}:7: queue:" in line for line in lines)


def test_check_and_where_the_settings_are_looked_for(
    run: Run, station: Station, monkeypatch: pytest.MonkeyPatch
):
    code, out, _ = run("check", "-c", station.file)
    assert code == 0
    assert "nothing wrong" in out
    code, _, err = run("check")
    assert code == 1
    assert err.startswith("/etc/inspectd/default.yaml: there is no such file")
    monkeypatch.setenv("INSPECTD_CONFIG", str(station.file))
    assert run("check")[:2] == (0, out)


def test_check_to_run_fails_only_where_the_station_would_not_start(run: Run, station: Station):
    draft = station.file.parent / "programs" / "draft.yaml"
    draft.write_text("resolutoin: 50\n")
    assert run("check", "-c", station.file)[0] == 1
    code, out, err = run("check", "--to-run", "-c", station.file)
    assert code == 0
    assert "it can run" in out
    assert f"left out, a program that is not judged by: {draft}:1: resolutoin" in err
    (station.file.parent / "programs" / f"{PROGRAM}.yaml").write_text("resolutoin: 50\n")
    code, _, err = run("check", "--to-run", "-c", station.file)
    assert code == 1
    assert f"{PROGRAM}.yaml:1: resolutoin" in err


def test_check_to_run_fails_where_a_newer_version_has_written_the_journal(
    run: Run, station: Station
):
    path = config.load(station.file).directory / "journal.db"
    Journal.open(path).close()
    assert run("check", "--to-run", "-c", station.file)[0] == 0
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    assert run("check", "-c", station.file)[0] == 0
    code, out, err = run("check", "--to-run", "-c", station.file)
    assert (code, out) == (1, "")
    assert f"the journal {path} was written by a newer inspectd" in err
    path.write_bytes(b"no journal" * 100)  # the service sets it aside
    assert run("check", "--to-run", "-c", station.file)[0] == 0


def test_schema(run: Run):
    code, out, _ = run("schema")
    assert code == 0
    assert {"station", "program", *payload.json_schemas()} == set(json.loads(out))
    code, out, _ = run("schema", "verdict")
    assert json.loads(out)["$ref"] == payload.json_schemas()["verdict"]["$ref"]
    code, _, err = run("schema", "verdikt")
    assert code == 2
    assert "verdict" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("state}", "/dev/null}"), "cannot be opened"),
        ((SIMULATED % 1000, "{driver: replay, path: nowhere}"), "no such folder or file"),
        (("state}", f"{'x' * 100}}}"), "path is too long"),
    ],
)
def test_what_keeps_the_service_from_starting_is_told(
    run: Run, station: Station, change: tuple[str, str], said: str
):
    station.file.write_text(station.file.read_text().replace(*change))
    code, _, err = run("run", "-c", station.file)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("inspectd: ")
    assert said in last


def test_status_does_not_mind_a_program_that_is_not_in_use(run: Run, station: Station):
    (station.folder / "programs" / "other.yaml").write_text("resolution: wide\n")
    assert "no service of station" in run("status", "-c", station.file)[2]


def test_status_without_a_service(run: Run, station: Station):
    code, out, err = run("status", "-c", station.file)
    assert (code, out) == (1, "")
    assert err.startswith("inspectd: no service of station cell runs here")


# ---- teach ---------------------------------------------------------------------------------------


def test_teach_the_empty_station_without_a_service(run: Run, station: Station, tmp_path: Path):
    settings = ("--empty", "-c", station.file)
    station.teach()
    pictures = tmp_path / "bare"
    pictures.mkdir()
    for number in range(2):
        nest, _ = render(SimulatedCamera(width=320, height=240), number, empty=True)
        assert cv2.imwrite(str(pictures / f"{number}.png"), nest)
    assert cv2.imwrite(str(pictures / "part.png"), good_part(3))

    code, out, err = run("teach", PROGRAM, "--from-folder", pictures, *settings)
    assert code == 1
    assert "2 pictures added, 1 refused, 2 pictures of the empty station now" in out
    assert "refused part.png: it hardly differs from a reference" in err
    (pictures / "part.png").unlink()
    code, out, err = run("teach", PROGRAM, "--from-folder", pictures, *settings)
    assert (code, err.count("already there: ")) == (0, 2)

    code, out, _ = run("teach", PROGRAM, "--list", *settings)
    assert code == 0
    assert f"Pictures of the empty station of {PROGRAM}" in out
    assert "2 pictures of the empty station in" in out
    assert "8 references in" in run("teach", PROGRAM, "--list", "-c", station.file)[1]
    (first, _) = sorted(file.name for file in (station.references / "empty").glob("*.png"))
    code, out, _ = run("teach", PROGRAM, "--remove", first, *settings)
    assert (code, "1 pictures of the empty station are left" in out) == (0, True)
    code, _, err = run("teach", PROGRAM, "--empty", "-c", station.file)
    assert (code, "give one of --from-folder" in err) == (2, True)


def test_teach_without_a_service(run: Run, station: Station, tmp_path: Path):
    settings = ("-c", station.file)
    pictures = write_pictures(tmp_path / "good", range(4))
    (pictures / "empty.png").touch()
    (pictures / "gone.png").symlink_to(tmp_path / "nowhere.png")
    cv2.imwrite(str(pictures / "dark.png"), np.zeros((240, 320), np.uint8))

    code, out, err = run("teach", PROGRAM, "--from-folder", pictures, *settings)
    assert code == 1
    assert out == f"{PROGRAM}: 4 pictures added, 3 refused, 4 references now\n"
    assert "refused empty.png: is empty" in err
    assert "refused gone.png: cannot be read: No such file or directory" in err
    assert "refused dark.png: too dark" in err
    assert "not ready to judge: 4 usable references of the 5 needed" in err
    assert "" not in err.splitlines()

    for name in ("empty.png", "gone.png", "dark.png"):
        (pictures / name).unlink()
    code, out, err = run("teach", PROGRAM, "--from-folder", pictures, *settings)
    assert code == 0
    assert "0 pictures added" in out
    assert err.count("already a reference: ") == 4

    code, out, err = run("teach", PROGRAM, "--frames", "2", *settings)
    assert code == 0
    assert err.startswith(
        "from 6 good parts the limit for 2 % false rejects is only known to within"
    )
    assert len(err.splitlines()) == 1
    assert "2 pictures added, 0 refused, 6 references now" in out

    code, out, err = run("teach", PROGRAM, "--list", *settings)
    assert (code, err) == (0, "")
    files = sorted(file.name for file in station.references.glob("*.png"))
    assert len(files) == 6
    assert all(file in out for file in files)

    code, out, _ = run("teach", PROGRAM, "--remove", files[0], "--remove", files[1], *settings)
    assert code == 0
    assert "4 references are left" in out
    code, _, err = run("teach", PROGRAM, "--remove", files[0], *settings)
    assert code == 1
    assert files[0] in err

    cut_short(station.references / files[2])
    code, out, err = run("teach", PROGRAM, "--list", *settings)
    assert code == 1
    assert files[2] in err


def test_teach_with_what_is_not_there(run: Run, station: Station, tmp_path: Path):
    settings = ("-c", station.file)
    code, _, err = run("teach", "blokc", "--list", *settings)
    assert (code, err) == (
        1,
        f"inspectd: there is no program 'blokc' beside {station.file}; there are: {PROGRAM}\n",
    )
    code, _, err = run("teach", PROGRAM, "--from-folder", tmp_path / "nowhere", *settings)
    assert (code, err) == (1, f"inspectd: {tmp_path / 'nowhere'} is no folder\n")
    (tmp_path / "empty").mkdir()
    code, _, err = run("teach", PROGRAM, "--from-folder", tmp_path / "empty", *settings)
    assert (code, err) == (1, f"inspectd: {tmp_path / 'empty'}: no image files there\n")


# ---- inspect -------------------------------------------------------------------------------------


def test_inspect(run: Run, station: Station, tmp_path: Path):
    station.teach()
    settings = ("-c", station.file)
    references = write_pictures(tmp_path / "references", range(2))
    output = tmp_path / "heatmaps"

    code, out, err = run("inspect", PROGRAM, references, "-o", output, *settings)
    assert (code, err) == (0, "")
    assert out.count("PASS") == 2
    assert sorted(file.name for file in output.iterdir()) == [
        "0.png.heatmap.png",
        "1.png.heatmap.png",
    ]
    assert cv2.imread(str(output / "0.png.heatmap.png")).shape[2] == 3

    others = tmp_path / "others"
    cut_short(write_pictures(others, [1]) / "1.png")
    cv2.imwrite(str(others / "dark.png"), np.zeros((240, 320), np.uint8))
    missing = tmp_path / "missing.png"
    code, out, err = run(
        "inspect", PROGRAM, references, others, missing, "--json", "-o", output, *settings
    )
    assert (code, err) == (3, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(Path(line["image"]), line["verdict"], line["reason"]) for line in lines] == [
        (references / "0.png", "PASS", None),
        (references / "1.png", "PASS", None),
        (others / "1.png", "NOT_JUDGED", None),
        (others / "dark.png", "NOT_JUDGED", "too dark"),
        (missing, "NOT_JUDGED", None),
    ]
    assert "is cut short" in lines[2]["detail"]
    assert "No such file" in lines[4]["detail"]
    assert [line["heatmap"] for line in lines][2::2] == [None, None]


def test_inspect_never_writes_two_heatmaps_to_one_file(run: Run, station: Station, tmp_path: Path):
    station.teach()
    first = write_pictures(tmp_path / "first", [20])
    second = write_pictures(tmp_path / "second", [20])
    _, out, _ = run(
        *("inspect", PROGRAM, first, second, first / "20.png", "--json", "-c", station.file),
        *("-o", tmp_path / "heatmaps"),
    )
    heatmaps = [json.loads(line)["heatmap"] for line in out.splitlines()]
    assert len(set(heatmaps)) == 3
    assert all(Path(heatmap).is_file() for heatmap in heatmaps)


def test_inspect_with_what_does_not_do(run: Run, station: Station, tmp_path: Path):
    picture = write_pictures(tmp_path / "parts", [20]) / "20.png"
    settings = ("-c", station.file)
    code, out, err = run("inspect", PROGRAM, picture, "-o", tmp_path / "heatmaps", *settings)
    assert code == 3
    assert "too few references" in out
    assert err.startswith("0 usable references of the 5 needed")
    code, _, err = run("inspect", PROGRAM, picture, "-o", picture, *settings)
    assert code == 1
    assert f"inspectd: cannot write {picture}" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run("inspect", PROGRAM, tmp_path / "empty", *settings)
    assert code == 1
    assert "there are no image files to inspect" in err
