"""``inspectd tune`` as a user meets it."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from station import PROGRAM, SIMULATED, Station, cut_short, good_part, write_pictures

from inspectd.camera.simulated import render
from inspectd.imaging import histogram
from inspectd.records import Defect
from inspectd.settings import SimulatedCamera

Run = Callable[..., tuple[int, str, str]]
PARTS = SimulatedCamera(width=320, height=240, seed=3)


@pytest.fixture
def station(tmp_path: Path) -> Station:
    made = Station(tmp_path, camera=SIMULATED % 1000, trigger="{source: interval, interval_s: 1}")
    made.teach(range(10))
    return made


@pytest.fixture
def tune(run: Run, station: Station, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`inspectd tune`, in the station's folder."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(station.folder)
    return lambda *arguments: run("tune", PROGRAM, "-c", station.file, *arguments)


def bad_parts(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        picture, _ = render(PARTS, 200 + number, Defect.MISSING_PIN)
        assert cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def row(out: str, title: str) -> list[str]:
    """The cells of the table's row that begins so."""
    cells = [line for line in out.splitlines() if line.startswith("│")]
    (line,) = [line for line in cells if line.strip("│ ").startswith(title)]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_good_and_bad_parts_are_set_against_the_limit(tune: Run, station: Station):
    good = write_pictures(station.folder / "good", range(100, 108))
    bad = bad_parts(station.folder / "bad", 6)
    code, out, err = tune("--good", good, "--bad", bad, "-o", "drawn/margins.png")
    assert (code, err) == (0, "")
    assert row(out, "references")[1] == "10"
    assert row(out, "good parts")[1:3] == ["8", "8 (100 %)"]
    assert row(out, "bad parts")[1:3] == ["6", "6 (100 %)"]
    for title in ("good parts", "bad parts"):
        _, _, _, smallest, median, largest, margin, not_judged = row(out, title)
        assert float(smallest) <= float(median) <= float(largest)
        assert float(margin) > 0
        assert not_judged == "0"
    now = row(out, "1 now")
    assert now[1] == "2.0 %"
    assert now[4:] == ["0 of 8", "0 of 6"]
    assert "keep limit.threshold at 1: every score is on its right side" in out
    assert "that FAIL" not in out
    assert "that PASS" not in out
    drawn = cv2.imread(str(station.folder / "drawn" / "margins.png"))
    assert drawn.shape[1] == histogram.WIDTH
    assert (drawn[3, 3] == histogram.GOOD).all()


def test_wrong_ones_are_named_and_a_threshold_is_suggested(tune: Run, station: Station):
    program = station.folder / "programs" / f"{PROGRAM}.yaml"
    program.write_text("limit: {threshold: 0.3}\n")
    good = write_pictures(station.folder / "good", range(100, 106))
    bad = bad_parts(station.folder / "bad", 6)
    _, out, _ = tune("--good", good, "--bad", bad)
    assert "good parts that FAIL:\n  100.png: above limit: score " in out
    assert "set limit.threshold to 1: every score is then on its right side" in out
    assert row(out, "0.3 now")[4] == "6 of 6"
    assert row(out, "1 suggested")[4:] == ["0 of 6", "0 of 6"]
    assert (cv2.imread(str(station.folder / f"{PROGRAM}-tune.png"))[3, 3] == histogram.BAD).all()
    program.write_text("limit: {threshold: 50}\n")
    _, out, _ = tune("--good", good, "--bad", bad)
    assert "bad parts that PASS:\n  0.png: score " in out


def test_pictures_that_cannot_be_judged_are_listed_with_the_reason(tune: Run, station: Station):
    good = write_pictures(station.folder / "good", range(100, 104))
    cut_short(good / "100.png")
    assert cv2.imwrite(str(good / "dark.png"), good_part(105) // 64)
    assert cv2.imwrite(str(good / "small.png"), good_part(105)[:60, :80])
    code, out, _ = tune("--good", good)
    assert code == 0
    _, told = out.split("good parts that are NOT_JUDGED:\n")
    assert "  100.png: the file is cut short" in told
    assert "  dark.png: too dark: " in told
    assert "  small.png: wrong size: the picture is 80 x 60 pixels" in told
    assert row(out, "good parts")[1] == "3"
    assert row(out, "good parts")[-1] == "3"


def test_references_among_the_good_parts_do_not_count(tune: Run, station: Station):
    good = write_pictures(station.folder / "good", [0, 1, 100, 101])
    _, out, err = tune("--good", good)
    assert row(out, "good parts")[1] == "2"
    assert "2 of the 4 good pictures are references: they are left out here" in err


def test_without_folders_the_references_alone_are_told_of(tune: Run, station: Station):
    code, out, _ = tune()
    assert code == 0
    assert "good parts" not in out.replace("at least 5 good and 5 bad parts", "")
    assert "no threshold is suggested" in out
    drawn = cv2.imread(str(station.folder / f"{PROGRAM}-tune.png"))
    assert (drawn[3, 3] == histogram.NEUTRAL).all()


def test_a_reference_that_is_like_no_other_is_named_by_its_file(
    tune: Run, run: Run, station: Station
):
    odd = station.folder / "odd"
    odd.mkdir()
    assert cv2.imwrite(str(odd / "odd.png"), render(PARTS, 300, Defect.FOREIGN_OBJECT)[0])
    assert run("teach", PROGRAM, "--from-folder", odd, "-c", station.file)[0] == 0
    _, out, _ = tune()
    named = out.split("references above the limit")[1].splitlines()[1]
    assert named.startswith("  odd.png (")
    file = named.split("(")[1].split(")")[0]
    assert (station.references / file).is_file()


def test_few_references_and_repeats_are_warned_of(tune: Run, run: Run, station: Station):
    station.clean_up()
    few = Station(
        station.folder, camera=SIMULATED % 1000, trigger="{source: interval, interval_s: 1}"
    )
    few.teach(range(5))
    burst = station.folder / "burst"
    burst.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        noisy = good_part(0) + rng.normal(0, 1, (240, 320))
        assert cv2.imwrite(str(burst / f"{number}.png"), np.clip(noisy, 0, 255).astype(np.uint8))
    _, _, err = tune()
    assert "warning: from 5 good parts the limit for 2 % false rejects is only known" in err
    assert "repeats" not in err
    assert run("teach", PROGRAM, "--from-folder", burst, "-c", few.file)[0] == 0
    _, _, err = tune()
    assert "warning: 5 of the 9 references are repeats" in err
    assert "They show 5 different parts" in err


def test_what_cannot_be_done_is_told(tune: Run, station: Station):
    empty = station.folder / "empty"
    empty.mkdir()
    for folder in (empty, station.folder / "nowhere"):
        code, _, err = tune("--bad", folder)
        assert code == 1
        assert f"{folder}: no image files there" in err
    (station.folder / "file").touch()
    code, _, err = tune("-o", station.folder / "file" / "margins.png")
    assert code == 1
    assert "cannot write" in err
    (station.folder / "programs" / f"{PROGRAM}.yaml").write_text("references: {minimum: 40}\n")
    code, _, err = tune()
    assert code == 1
    assert f"program {PROGRAM} cannot judge: 10 usable references of the 40 needed" in err
