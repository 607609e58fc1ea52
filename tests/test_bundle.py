"""`inspectd bundle`: what is in it whatever is broken, and above all what is not."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from broker import eventually
from station import EXIT_S, PROGRAM, SIMULATED, Station
from verdicts import a_verdict

from inspectd.commands import bundle as bundle_command
from inspectd.commands.private_broker import PrivateBroker
from inspectd.journal import Journal

TRIGGER = "{source: interval, interval_s: 0.2}"
KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7"
Bundle = Callable[..., tuple[dict[str, str], str]]


@pytest.fixture
def station(tmp_path: Path) -> Station:
    station = Station(tmp_path / "s", camera=SIMULATED % 1000, trigger=TRIGGER)
    station.teach()
    return station


@pytest.fixture
def make(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Bundle:
    """Makes a bundle; its texts by name, and what was printed."""

    def make_it(station: Station, *arguments: str) -> tuple[dict[str, str], str]:
        target = tmp_path / "bundle.tar.gz"
        code, out, err = run("bundle", target, "-c", station.file, *arguments)
        assert code == 0, err
        texts = {}
        with tarfile.open(target) as tar:
            for one in tar:
                content = tar.extractfile(one).read()
                name = one.name.partition("/")[2]
                texts[name] = content.decode("latin-1" if name.endswith(".png") else "utf-8")
        return texts, out

    return make_it


def tool(folder: Path, name: str, said: str) -> None:
    """A system's command that prints its arguments and a text."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho \"$@\"\ncat <<'END'\n{said}\nEND\n")
    path.chmod(0o755)


def test_of_a_running_station(
    broker: PrivateBroker, station: Station, make: Bundle, tmp_path: Path, monkeypatch
):
    text = station.file.read_text()
    station.file.write_text(text.replace("port: 1}", f"port: {broker.port}}}"))
    tool(tmp_path / "bin", "journalctl", "the last lines of the log")
    tool(tmp_path / "bin", "systemctl", "Result=success")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    service = station.start()
    assert eventually(lambda: any(sent for *_, sent in station.rows()), EXIT_S), service.log
    texts, out = make(station)
    assert service.process.poll() is None
    assert "not in it" not in out, out
    assert '"state": "judging"' in texts["status.txt"]
    assert json.loads(texts["mqtt/availability.json"].join('""')) == "online"
    assert json.loads(texts["mqtt/statistics.json"])["schema"] == 1
    assert "memory_available_bytes" in texts["mqtt/health.json"]
    assert "nothing wrong" in texts["check.txt"]
    assert "0 errors" in texts["doctor.txt"]
    assert "the service has it" in texts["doctor.txt"]
    assert "--unit=inspectd@cell.service" in texts["log.txt"]
    assert "the last lines of the log" in texts["log.txt"]
    assert "Result=success" in texts["systemd.txt"]
    assert texts["settings/cell.yaml"] == station.file.read_text()
    figures = json.loads(texts["journal.json"])
    assert figures["last_seq"] == sum(figures["rows"].values()) > 0
    lines = [json.loads(line) for line in texts["verdicts.jsonl"].splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(json.loads(texts[f"references/{PROGRAM}/index.json"])["entries"]) == 8
    assert json.loads(texts["machine.json"])["disk"]["free_bytes"] > 0
    assert json.loads(texts["kernels.json"])["folder"]
    assert json.loads(texts["versions.json"])["packages"]["numpy"]
    assert not [name for name in texts if name.endswith(".png")]
    assert set(texts) - {"contents.txt"} == {
        line.strip() for line in texts["contents.txt"].splitlines() if line.startswith("  ")
    }


@pytest.fixture
def without_doctor(monkeypatch):
    """It takes its time, and is in the other tests."""
    parts = tuple(part for part in bundle_command._PARTS if part[0] != "doctor")
    monkeypatch.setattr(bundle_command, "_PARTS", parts)


def plant(station: Station, tmp_path: Path, monkeypatch) -> list[str]:
    """Secrets wherever they may be; the station works none the less."""
    (station.folder / "password").write_text("correct horse battery\n")
    pem = f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n"
    (station.folder / "credentials").mkdir()
    (station.folder / "credentials" / "cell.mqtt-key").write_text(pem)
    (station.folder / "credentials" / "cell.mqtt-password").write_text("handed-over-9")
    text = station.file.read_text()
    text = text.replace(
        "port: 1}", "port: 1, username: cell3, password_file: password}  # correct horse battery"
    )
    text = text.replace(
        SIMULATED % 1000, "{driver: opencv, device: 'rtsp://admin:hun@ter2@127.0.0.1:9/1'}"
    )
    station.file.write_text(f"{text}# before: service:letmein7@camera\n# password: swordfish\n")
    program = station.folder / "programs" / f"{PROGRAM}.yaml"
    program.write_text(f"{program.read_text()}# token = tok-12345\n")
    logged = f"camera rtsp://admin:hun@ter2@127.0.0.1:9/1 is away\nhanded-over-9\n{pem}hun@ter2"
    tool(tmp_path / "bin", "journalctl", logged)
    tool(tmp_path / "bin", "systemctl", "Environment=MQTT_PASSWORD=open-sesame")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with Journal.open(station.journal) as journal:
        journal.commit(a_verdict(detail="no camera at rtsp://admin:hun@ter2@127.0.0.1:9/1"))
    return [
        "correct horse",
        KEY,
        "handed-over-9",
        "ter2",
        "letmein7",
        "swordfish",
        "tok-12345",
        "open-sesame",
    ]


def test_no_secret_is_in_it(station: Station, make: Bundle, tmp_path: Path, monkeypatch):
    secrets = plant(station, tmp_path, monkeypatch)
    texts, out = make(station, "--pictures")
    everything = "\n".join([*texts, *texts.values(), out])
    assert [secret for secret in secrets if secret in everything] == []
    # What was to be masked was there.
    assert "is away" in texts["log.txt"]
    assert "no camera at" in texts["verdicts.jsonl"]
    assert "driver: opencv" in texts["settings/cell.yaml"]
    assert "password_file: password}" in texts["settings/cell.yaml"]
    assert "rtsp://***@127.0.0.1:9/1" in texts["settings/cell.yaml"]
    assert "Environment=MQTT_PASSWORD=***" in texts["systemd.txt"]
    assert sum(name.endswith(".png") for name in texts) == 8
    assert "It has no passwords, keys or pictures of parts judged" in out


def test_nor_where_the_settings_are_wrong(
    station: Station, make: Bundle, tmp_path: Path, monkeypatch
):
    secrets = plant(station, tmp_path, monkeypatch)
    station.file.write_text(station.file.read_text() + "queue: none\n")
    texts, out = make(station)
    everything = "\n".join([*texts, *texts.values(), out])
    assert [secret for secret in secrets if secret in everything] == []
    assert "queue" in texts["check.txt"]
    assert "not checked: the settings are wrong" in texts["doctor.txt"]
    assert "not in it: journal: the settings are wrong: see check.txt" in out
    assert texts["versions.json"]


def test_a_part_that_fails_is_noted(station: Station, make: Bundle, monkeypatch, without_doctor):
    station.journal.write_bytes(b"no journal at all, " * 100)

    def fail(_folder: Path) -> None:
        raise ZeroDivisionError("by surprise")

    monkeypatch.setattr(bundle_command, "read_machine", fail)
    texts, out = make(station)
    assert "not in it: machine: ZeroDivisionError: by surprise" in out
    assert "not in it: journal: the journal" in out
    assert "is damaged or no journal" in out
    assert "not in it: broker: connection refused" in out
    assert texts["kernels.json"]


def test_without_any_settings(station: Station, make: Bundle, without_doctor):
    station.file.unlink()
    texts, _ = make(station)
    assert "there is no such file" in texts["check.txt"]
    assert texts["settings/cell.yaml"] == "# cannot be read: No such file or directory\n"


def test_links_and_pipes_are_left_out_and_told(
    station: Station, make: Bundle, tmp_path: Path, without_doctor
):
    state = station.journal.parent
    (tmp_path / "shadow").write_text("secret-of-root")
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "index.json").write_text("secret-of-root")
    (state / "x.json").symlink_to(tmp_path / "shadow")
    (state / "references" / "linked").symlink_to(tmp_path / "other")
    (state / "references" / PROGRAM / "secret.png").symlink_to(tmp_path / "shadow")
    (station.references.parent / "second").mkdir()
    (station.references.parent / "second" / "index.json").symlink_to(tmp_path / "shadow")
    os.mkfifo(state / "pipe.json")
    with (state / "huge.json").open("wb") as huge:
        huge.truncate(bundle_command.LARGEST_TEXT + 1)
    (state / "sound.json").write_text("{}")
    with Journal.open(tmp_path / "other.db") as journal:
        journal.commit(a_verdict(detail="secret-of-root"))
    station.journal.symlink_to(tmp_path / "other.db")
    texts, _ = make(station, "--pictures")
    assert "secret-of-root" not in "".join(texts.values())
    assert texts["state/sound.json"] == "{}"
    assert sum(name.endswith(".png") for name in texts) == 8
    for told in (
        f"not in it: {state}/x.json: it is a symbolic link",
        f"not in it: {state}/pipe.json: it is a pipe or a device",
        f"not in it: {state}/huge.json: larger than 16 MiB",
        f"not in it: {state}/references/second/index.json: it is a symbolic link",
        f"not in it: {state}/references/{PROGRAM}/secret.png: it is a symbolic link",
        f"not in it: journal: the journal {state}/journal.db cannot be read: it is a symbolic link",
    ):
        assert told in texts["contents.txt"], texts["contents.txt"]


def test_only_its_owner_can_read_it(station: Station, make: Bundle, tmp_path, without_doctor):
    before = os.umask(0)
    try:
        texts, _ = make(station)
    finally:
        os.umask(before)
    assert (tmp_path / "bundle.tar.gz").stat().st_mode & 0o777 == 0o600
    assert "with their part ids" in texts["contents.txt"]


def test_the_working_directory_does_not_choose_what_runs(
    station: Station, make: Bundle, tmp_path: Path, monkeypatch, without_doctor
):
    trap = tmp_path / "trap"
    (trap / "inspectd").mkdir(parents=True)
    (trap / "inspectd" / "__init__.py").touch()
    (trap / "inspectd" / "__main__.py").write_text(
        f"import pathlib; pathlib.Path({str(trap / 'sprung')!r}).touch()\n"
    )
    monkeypatch.chdir(trap)
    texts, _ = make(station)
    assert not (trap / "sprung").exists()
    assert "nothing wrong" in texts["check.txt"]


def test_relative_paths_are_those_of_the_user(
    station: Station, run: Callable[..., tuple[int, str, str]], monkeypatch, without_doctor
):
    monkeypatch.chdir(station.folder)
    code, _, err = run("bundle", "here.tar.gz", "-c", station.file.name)
    assert code == 0, err
    with tarfile.open(station.folder / "here.tar.gz") as tar:
        (check,) = (one for one in tar if one.name.endswith("/check.txt"))
        assert b"nothing wrong" in tar.extractfile(check).read()


def test_a_command_that_hangs_is_left(station: Station):
    said = bundle_command._run("sh", "-c", "echo so far; exec sleep 60", limit_s=0.5)
    assert "so far" in said
    assert "no answer within 0.5 s" in said
    assert "there is no frobnicate here" in bundle_command._run("frobnicate")


def test_the_name_has_station_and_time(station: Station, without_doctor, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert bundle_command.bundle(station.file, None, pictures=False) == 0
    (made,) = tmp_path.glob("inspectd-bundle-cell-*Z.tar.gz")
    with tarfile.open(made) as tar:
        stems = {name.partition("/")[0] for name in tar.getnames()}
    assert stems == {made.name.removesuffix(".tar.gz")}
