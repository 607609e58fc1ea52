"""`inspectd backup` and `inspectd restore`: a station moves, and a bad file moves nothing."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from broker import eventually
from station import EXIT_S, NAME, PROGRAM, SIMULATED, Station
from verdicts import a_verdict

import inspectd.settings
from inspectd import station_copy
from inspectd.config import load
from inspectd.control import StatusRequest, ask
from inspectd.journal import Journal
from inspectd.payload import StatePayload
from inspectd.references import ReferenceStore

TRIGGER = "{source: interval, interval_s: 0.1}"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def station(tmp_path: Path) -> Station:
    station = Station(tmp_path / "s", camera=SIMULATED % 1000, trigger=TRIGGER)
    station.teach()
    return station


@pytest.fixture
def backup(run: Run, station: Station, tmp_path: Path) -> Path:
    target = tmp_path / "cell.tar.gz"
    code, _, err = run("backup", target, "-c", station.file)
    assert code == 0, err
    return target


def moved(station: Station, folder: Path) -> Station:
    """The same one elsewhere, its files not yet there."""
    twin = Station(folder, camera=SIMULATED % 1000, trigger=TRIGGER)
    shutil.rmtree(folder)
    return twin


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def contents(backup: Path) -> dict[str, bytes]:
    with tarfile.open(backup) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}


def rewritten(backup: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The same with other members; the manifest only as ``change`` has it."""
    members = contents(backup)
    change(members)
    with tarfile.open(backup, "w:gz") as tar:
        for name, content in members.items():
            add(tar, name, content)
    return backup


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for key, value in fields.items():
        setattr(header, key, value)
    tar.addfile(header, io.BytesIO(content))


def enlisted(members: dict[str, bytes], name: str, content: bytes) -> None:
    """Add a member, and have the manifest say so."""
    members[name] = content
    manifest = json.loads(members["manifest.json"])
    known = [one for one in manifest["members"] if one["name"] != name]
    entry = {"name": name, "length": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    members["manifest.json"] = json.dumps({**manifest, "members": [*known, entry]}).encode()


def state_of(station: Station) -> StatePayload:
    socket = load(station.file).control_socket
    replies = []

    def judging() -> bool:
        reply = ask(socket, StatusRequest())
        if reply is not None and reply.state is not None and reply.state.state == "judging":
            replies.append(reply.state)
        return bool(replies)

    assert eventually(judging, EXIT_S), station.started[-1].log
    return replies[0]


# ---- there and back ------------------------------------------------------------------------------


def test_a_running_station_moves_and_judges_by_the_same_references(
    run: Run, station: Station, tmp_path: Path
):
    service = station.start()
    before = state_of(station)
    assert eventually(lambda: len(station.rows()) >= 3, EXIT_S)
    code, out, err = run("backup", tmp_path / "b.tar.gz", "-c", station.file)
    assert code == 0, err
    assert "8 pictures" in out
    assert "not in it   the journal (--journal)" in out
    assert service.process.poll() is None
    service.stop()
    twin = moved(station, tmp_path / "t")
    code, out, err = run("restore", tmp_path / "b.tar.gz", "--config-dir", twin.folder)
    assert code == 0, err
    assert "new journal_id and seq from 1" in out
    assert not list(tmp_path.rglob(".restore-*"))
    twin.start()
    after = state_of(twin)
    assert after.references_hash == before.references_hash
    assert after.settings_hash == before.settings_hash
    assert after.journal_id != before.journal_id
    assert eventually(lambda: len(twin.rows()) >= 2, EXIT_S)
    assert twin.rows()[0][0] == 1


def test_the_journal_is_continued_and_what_was_not_sent_still_is_not(
    run: Run, station: Station, tmp_path: Path
):
    service = station.start()
    before = state_of(station)
    assert eventually(lambda: len(station.rows()) >= 5, EXIT_S)
    code, out, err = run("backup", tmp_path / "b.tar.gz", "--journal", "-c", station.file)
    assert code == 0, err
    assert "the service runs: what it judges from now on is not in it" in out
    service.stop()
    twin = moved(station, tmp_path / "t")
    code, out, err = run("restore", tmp_path / "b.tar.gz", "--config-dir", twin.folder)
    assert code == 0, err
    assert "the old station must not run any more" in out
    taken = twin.rows()
    assert taken == station.rows()[: len(taken)]
    assert len(taken) >= 5
    assert not any(sent for _, _, sent in taken)
    twin.start()
    assert state_of(twin).journal_id == before.journal_id
    assert eventually(lambda: len(twin.rows()) > len(taken), EXIT_S)
    numbers = [seq for seq, _, _ in twin.rows()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_journal_in_its_wal_is_taken_whole(run: Run, station: Station, tmp_path: Path):
    with Journal.open(station.journal) as journal:
        for number in range(50):
            journal.commit(a_verdict(id=f"id-{number}"))
        assert station.journal.with_name("journal.db-wal").stat().st_size > 0
        assert run("backup", tmp_path / "b.tar.gz", "--journal", "-c", station.file)[0] == 0
    (tmp_path / "copy.db").write_bytes(contents(tmp_path / "b.tar.gz")["state/journal.db"])
    with closing(sqlite3.connect(tmp_path / "copy.db")) as database:
        assert database.execute("SELECT count(*), max(seq) FROM inspection").fetchone() == (50, 50)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_everything_durable_goes_and_nothing_passing(run: Run, station: Station, tmp_path: Path):
    state = station.journal.parent
    (state / "chosen.json").write_text('{"program": null, "thresholds": []}')
    (state / "sparkplug.json").write_text("{}")
    (state / "journal.db.lock").write_text("process 1")
    (state / "references" / PROGRAM / ".lock").touch()
    (state / "note.txt").write_text("mine")
    (state / "archive" / "2026-01-01").mkdir(parents=True)
    (state / "archive" / "2026-01-01" / "000001-FAIL.png").write_bytes(b"picture")
    (station.folder / "programs" / "unsound.yaml").write_text("resolution: wide\n")
    code, out, err = run("backup", tmp_path / "b.tar.gz", "-c", station.file)
    assert code == 0
    assert "unsound.yaml:1: resolution" in err
    assert "the archive of pictures (--archive)" in out
    assert f"{state / 'note.txt'}: it is none of inspectd's own files" in out
    names = {name for name in contents(tmp_path / "b.tar.gz") if "references" not in name}
    assert names == {
        "config/cell.yaml",
        "config/programs/block.yaml",
        "config/programs/unsound.yaml",
        "state/chosen.json",
        "state/sparkplug.json",
        "manifest.json",
    }
    assert run("backup", tmp_path / "b.tar.gz", "--archive", "-c", station.file)[0] == 0
    assert "state/archive/2026-01-01/000001-FAIL.png" in contents(tmp_path / "b.tar.gz")
    code, out, _ = run("restore", tmp_path / "b.tar.gz", "--config-dir", tmp_path / "t")
    assert code == 0
    assert "b.tar.gz:config/programs/unsound.yaml:1: resolution" in out
    assert (tmp_path / "t/programs/unsound.yaml").read_text() == "resolution: wide\n"


# ---- secrets -------------------------------------------------------------------------------------


def test_secrets_go_only_when_asked_for(run: Run, station: Station, tmp_path: Path):
    text = station.file.read_text()
    station.file.write_text(
        text.replace("port: 1}", "port: 1, username: u, password_file: tls/password}")
    )
    (station.folder / "tls").mkdir()
    (station.folder / "tls" / "password").write_text("correct horse")
    (station.folder / "credentials").mkdir()
    (station.folder / "credentials" / "cell.mqtt-key").write_text("battery staple")
    (station.folder / "credentials" / "other.mqtt-key").write_text("of another station")
    target = tmp_path / "b.tar.gz"
    code, out, _ = run("backup", target, "-c", station.file)
    assert code == 0
    assert "tls/password" in out
    assert "cell.mqtt-key" in out
    raw = gzip.decompress(target.read_bytes())
    assert b"correct horse" not in raw
    assert b"battery staple" not in raw
    code, out, _ = run("backup", target, "--secrets", "-c", station.file)
    assert code == 0
    assert "keep it where nobody else can read it" in out
    assert target.stat().st_mode & 0o777 == 0o600
    assert b"of another station" not in gzip.decompress(target.read_bytes())
    before = os.umask(0)
    try:
        assert run("restore", target, "--config-dir", tmp_path / "t")[0] == 0
    finally:
        os.umask(before)
    for name, content in (
        ("tls/password", "correct horse"),
        ("credentials/cell.mqtt-key", "battery staple"),
    ):
        assert (tmp_path / "t" / name).read_text() == content
        assert (tmp_path / "t" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "t" / "credentials").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "t" / "cell.yaml").stat().st_mode & 0o777 == 0o644


def test_changes_of_the_unit_are_named_for_they_are_no_settings(
    run: Run, station: Station, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(station_copy, "UNITS", tmp_path / "system")
    named = []
    for unit in ("inspectd@.service", "inspectd@cell.service", "inspectd@other.service"):
        folder = tmp_path / "system" / f"{unit}.d"
        folder.mkdir(parents=True)
        (folder / "override.conf").write_text("[Service]\nReadWritePaths=/data\n")
        named.append(f"not in it   {folder / 'override.conf'}: it changes systemd's unit")
    code, out, err = run("backup", tmp_path / "b.tar.gz", "-c", station.file)
    assert code == 0, err
    assert "systemd's unit" not in out, "no unit runs this station file"
    monkeypatch.setattr(inspectd.settings, "INSTALLED", station.folder)
    assert run("backup", tmp_path / "b.tar.gz", "-c", station.file)[0] == 0
    out = run("restore", tmp_path / "b.tar.gz", "--config-dir", tmp_path / "t")[1]
    assert [words in out for words in named] == [True, True, False]
    assert b"ReadWritePaths" not in gzip.decompress((tmp_path / "b.tar.gz").read_bytes())


def test_what_systemd_has_handed_over_is_no_further_secret(
    run: Run, station: Station, tmp_path: Path, monkeypatch
):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(inspectd.settings, "INSTALLED", station.folder)
    for module in (inspectd.settings, station_copy):
        monkeypatch.setattr(module, "HANDED_OVER", tmp_path / "run")
    handed = tmp_path / "run" / "inspectd@cell.service" / "mqtt-password"
    source = station.folder / "credentials" / "cell.mqtt-password"
    for file in (handed, source):
        file.parent.mkdir(parents=True)
        file.write_text("correct horse")
    named = "port: 1, username: u, password_file: $CREDENTIALS_DIRECTORY/mqtt-password}"
    station.file.write_text(station.file.read_text().replace("port: 1}", named))
    out = run("backup", tmp_path / "b.tar.gz", "-c", station.file)[1]
    assert f"secrets ({source})" in out
    out = run("backup", tmp_path / "b.tar.gz", "--secrets", "-c", station.file)[1]
    assert str(handed.parent) not in out
    assert "config/credentials/cell.mqtt-password" in contents(tmp_path / "b.tar.gz")


def test_a_password_in_a_url_closes_the_backup(run: Run, station: Station, tmp_path: Path):
    camera = "{driver: opencv, device: 'rtsp://admin:hunter2@camera/1'}"
    other = Station(tmp_path / "o", camera=camera, trigger=TRIGGER)
    assert run("backup", tmp_path / "b.tar.gz", "-c", other.file)[0] == 0
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    assert run("backup", tmp_path / "c.tar.gz", "-c", station.file)[0] == 0
    assert (tmp_path / "c.tar.gz").stat().st_mode & 0o777 != 0o600
    assert run("restore", tmp_path / "b.tar.gz", "--config-dir", tmp_path / "t")[0] == 0
    assert (tmp_path / "t" / "cell.yaml").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_as_root_the_files_belong_to_the_owner_of_the_storage(
    run: Run, station: Station, backup: Path, tmp_path: Path
):
    (tmp_path / "t" / "state").mkdir(parents=True)
    os.chown(tmp_path / "t" / "state", 1234, 1235)
    assert run("restore", backup, "--config-dir", tmp_path / "t")[0] == 0
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in (tmp_path / "t/state").rglob("*")}
    assert owners == {(1234, 1235)}
    assert (tmp_path / "t" / "cell.yaml").stat().st_uid == 0


@pytest.mark.parametrize(
    ("mqtt", "start"),
    [
        ("host: broker.plant, tls: {}", "sudo systemctl enable --now inspectd@cell;"),
        ("host: localhost, tls: {}", "sudo sh deploy/install.sh --mosquitto --instance cell,"),
    ],
)
def test_a_broker_on_the_same_machine_is_to_be_set_up_for_the_station(
    run: Run, station: Station, tmp_path: Path, mqtt: str, start: str
):
    text = station.file.read_text()
    station.file.write_text(re.sub(r"(?m)^mqtt: .*", f"mqtt: {{{mqtt}}}", text))
    assert run("backup", tmp_path / "b.tar.gz", "-c", station.file)[0] == 0
    code, out, err = run("restore", tmp_path / "b.tar.gz", "--config-dir", tmp_path / "t")
    assert code == 0, err
    assert start in out
    assert f"then sudo -u inspectd inspectd doctor -c {tmp_path / 't' / 'cell.yaml'}" in out


# ---- what is in the way --------------------------------------------------------------------------


def test_restoring_twice_changes_nothing(run: Run, backup: Path, tmp_path: Path):
    assert run("restore", backup, "--config-dir", tmp_path / "t")[0] == 0
    first = tree(tmp_path / "t")
    assert run("restore", backup, "--config-dir", tmp_path / "t")[0] == 0
    assert tree(tmp_path / "t") == first


def test_an_interrupted_restore_is_completed(run: Run, backup: Path, tmp_path: Path):
    assert run("restore", backup, "--config-dir", tmp_path / "t")[0] == 0
    whole = tree(tmp_path / "t")
    (tmp_path / "t" / "cell.yaml").unlink()
    next((tmp_path / "t" / "state").rglob("*.png")).unlink()
    assert run("restore", backup, "--config-dir", tmp_path / "t")[0] == 0
    assert tree(tmp_path / "t") == whole


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cell.yaml", "station: another\n"),
        ("programs/block.yaml", "description: another\n"),
        ("state/cell/journal.db", "verdicts"),
        ("state/cell/journal.db-wal", "verdicts"),
        ("state/cell/references/block/index.json", "{}"),
        ("state/cell/note.txt", "mine"),
    ],
)
def test_another_station_is_refused_and_with_force_moved_aside(
    run: Run, backup: Path, tmp_path: Path, name: str, content: str
):
    there = tmp_path / "t" / name
    there.parent.mkdir(parents=True)
    there.write_text(content)
    before = tree(tmp_path / "t")
    code, _, err = run("restore", backup, "--config-dir", tmp_path / "t")
    assert code == 1
    assert str(there) in err
    assert "--force" in err
    assert tree(tmp_path / "t") == before
    code, out, err = run("restore", backup, "--config-dir", tmp_path / "t", "--force")
    assert code == 0, err
    aside = list((tmp_path / "t").rglob("*.before-restore-*"))
    assert len(aside) == 1
    assert f"moved aside {aside[0]}" in out
    kept = (
        aside[0] / there.relative_to(tmp_path / "t/state/cell") if aside[0].is_dir() else aside[0]
    )
    assert kept.read_text() == content
    assert load(tmp_path / "t/cell.yaml").station.station == NAME
    found = ReferenceStore(tmp_path / "t/state/cell/references/block").check()
    assert len(found.pictures) == 8
    assert not found.problems


def test_a_running_service_is_left_alone(run: Run, station: Station, backup: Path):
    service = station.start()
    state_of(station)
    for force in ([], ["--force"]):
        code, _, err = run("restore", backup, "--config-dir", station.folder, *force)
        assert code == 1
        assert "the service of station cell runs" in err
        assert "systemctl stop inspectd@cell" in err
    # Neither may the one be whose file would be replaced.
    text = station.file.read_text()
    service.stop()
    station.file.write_text(text.replace("station: cell", "station: another"))
    station.start()
    assert eventually((station.folder / "state/another/control.sock").exists, EXIT_S)
    code, _, err = run("restore", backup, "--config-dir", station.folder, "--force")
    assert code == 1
    assert "the service of station another runs" in err


# ---- files that are not to be trusted ------------------------------------------------------------


def refused(run: Run, backup: Path, tmp_path: Path) -> str:
    """What is said; nothing is written, with --force neither."""
    around = tree(tmp_path)
    code, out, err = run("restore", backup, "--config-dir", tmp_path / "t" / "etc", "--force")
    assert code == 1, out
    assert "Traceback" not in err
    assert tree(tmp_path) == around
    return err


@pytest.mark.parametrize(
    "name",
    [
        "state/../../outside.json",
        "../outside",
        "/tmp/outside",
        "config//outside",
        "config/./outside",
        "config/a\\b",
        "config/a\nb",
    ],
)
def test_a_path_that_leads_elsewhere(run: Run, backup: Path, tmp_path: Path, name: str):
    rewritten(backup, lambda members: enlisted(members, name, b"harm"))
    assert "would be unpacked outside of its folder" in refused(run, backup, tmp_path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_no_plain_file(run: Run, backup: Path, tmp_path: Path, kind: bytes):
    members = contents(backup)
    with tarfile.open(backup, "w:gz") as tar:
        add(tar, "state/references", type=kind, linkname="/etc")
        for name, content in members.items():
            add(tar, name, content)
    assert "which is no plain file" in refused(run, backup, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "elsewhere/a.json",
        "state/system/evil.service",
        "state/run.sh",
        "config",
        "state/journal.db-wal",
    ],
)
def test_files_that_belong_to_no_station(run: Run, backup: Path, tmp_path: Path, name: str):
    rewritten(backup, lambda members: enlisted(members, name, b"harm"))
    told = refused(run, backup, tmp_path)
    assert "belongs to no station" in told or "both as a file and as a folder" in told


def test_a_name_twice(run: Run, backup: Path, tmp_path: Path):
    members = contents(backup)
    with tarfile.open(backup, "w:gz") as tar:
        add(tar, "config/cell.yaml", b"station: other\n")
        for name, content in members.items():
            add(tar, name, content)
    assert "twice" in refused(run, backup, tmp_path)


def test_a_member_is_missing(run: Run, backup: Path, tmp_path: Path):
    rewritten(backup, lambda members: members.pop("state/references/block/index.json"))
    told = refused(run, backup, tmp_path)
    assert "is not complete: state/references/block/index.json is missing" in told


def test_a_member_too_many(run: Run, backup: Path, tmp_path: Path):
    rewritten(backup, lambda members: members.update({"config/programs/x.yaml": b""}))
    assert "config/programs/x.yaml, of which its manifest.json knows nothing" in refused(
        run, backup, tmp_path
    )


def test_a_wrong_checksum(run: Run, backup: Path, tmp_path: Path):
    rewritten(backup, lambda members: members.update({"config/cell.yaml": b"station: other\n"}))
    assert "config/cell.yaml is not what it was" in refused(run, backup, tmp_path)


def test_a_newer_format(run: Run, backup: Path, tmp_path: Path):
    def make_newer(members: dict[str, bytes]) -> None:
        newer = {"format": station_copy.FORMAT + 1, "inspectd": "9.0", "all": "else"}
        members["manifest.json"] = json.dumps(newer).encode()

    rewritten(backup, make_newer)
    told = refused(run, backup, tmp_path)
    assert "made by a newer inspectd (9.0; its format is 2, this one knows 1)" in told


@pytest.mark.parametrize("manifest", [b"{", b"\xff", b"{}", b"[]", b'{"format": "one"}'])
def test_a_damaged_manifest(run: Run, backup: Path, tmp_path: Path, manifest: bytes):
    rewritten(backup, lambda members: members.update({"manifest.json": manifest}))
    assert "its manifest.json" in refused(run, backup, tmp_path)


def test_no_manifest(run: Run, backup: Path, tmp_path: Path):
    rewritten(backup, lambda members: members.pop("manifest.json"))
    assert "has no manifest.json" in refused(run, backup, tmp_path)


@pytest.mark.parametrize("station_file", ["../cell.yaml", "other.yaml", "", "programs"])
def test_a_station_file_that_is_not_there(
    run: Run, backup: Path, tmp_path: Path, station_file: str
):
    def rename(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        members["manifest.json"] = json.dumps({**manifest, "station_file": station_file}).encode()

    rewritten(backup, rename)
    assert "has no station file" in refused(run, backup, tmp_path)


def test_settings_that_are_wrong(run: Run, backup: Path, tmp_path: Path):
    wrong = b"station: cell\nprogram: block\ncamera: {driver: simulated, widht: 3}\n"
    rewritten(backup, lambda members: enlisted(members, "config/cell.yaml", wrong))
    assert "cell.tar.gz:config/cell.yaml:3: camera.widht" in refused(run, backup, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_file_cut_short(run: Run, backup: Path, tmp_path: Path, share: float):
    raw = backup.read_bytes()
    backup.write_bytes(raw[: int(len(raw) * share)])
    told = refused(run, backup, tmp_path)
    assert "is no backup, or it is damaged" in told or "has no manifest.json" in told


def test_flipped_bits(run: Run, backup: Path, tmp_path: Path):
    raw = backup.read_bytes()
    for place in range(20, len(raw), len(raw) // 7):
        damaged = bytearray(raw)
        damaged[place] ^= 0x10
        backup.write_bytes(damaged)
        assert str(backup) in refused(run, backup, tmp_path)


def test_no_archive_at_all(run: Run, tmp_path: Path):
    (tmp_path / "x").write_text("hello")
    assert "is no backup" in refused(run, tmp_path / "x", tmp_path)
    assert "No such file" in refused(run, tmp_path / "y", tmp_path)


def test_headers_that_announce_too_much(run: Run, tmp_path: Path):
    """Neither a header nor the content may fill the memory or the disk."""
    for kind, size in ((tarfile.XHDTYPE, 1 << 33), (tarfile.REGTYPE, 1 << 40)):
        header = tarfile.TarInfo("state/a.json")
        header.type, header.size = kind, size
        with gzip.open(tmp_path / "x", "wb") as packed:
            packed.write(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
        told = refused(run, tmp_path / "x", tmp_path)
        assert "is damaged" in told or "too large" in told


# ---- failures while it is written ----------------------------------------------------------------


def test_a_failed_backup_leaves_the_one_before(
    run: Run, station: Station, backup: Path, tmp_path: Path
):
    before = backup.read_bytes()
    station.journal.write_bytes(b"no journal at all, " * 100)
    code, _, err = run("backup", backup, "--journal", "-c", station.file)
    assert code == 1
    assert "is damaged or no journal" in err
    assert backup.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    code, _, err = run("backup", tmp_path / "none" / "b.tar.gz", "-c", station.file)
    assert code == 1
    assert "cannot be written: No such file or directory" in err


def test_a_disk_too_small(run: Run, backup: Path, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert "is too full" in refused(run, backup, tmp_path)


# ---- as root, against a service that was taken over ----------------------------------------------

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
SERVICE = (1234, 1235)


def test_links_and_pipes_are_not_in_a_backup(run: Run, station: Station, tmp_path: Path):
    state = station.journal.parent
    (tmp_path / "shadow").write_text("root:secret-of-root")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.json").write_text("secret-of-root")
    (state / "x.json").symlink_to(tmp_path / "shadow")
    (state / "references" / "linked").symlink_to(tmp_path / "other")
    os.mkfifo(state / "pipe.json")
    code, out, err = run("backup", tmp_path / "b.tar.gz", "-c", station.file)
    assert code == 0, err
    assert b"secret-of-root" not in gzip.decompress((tmp_path / "b.tar.gz").read_bytes())
    assert f"{state / 'x.json'}: it is a symbolic link" in out
    assert f"{state / 'references/linked'}: it is a symbolic link" in out
    assert f"{state / 'pipe.json'}: it is a pipe or a device" in out


def test_a_journal_that_is_a_link_is_refused(run: Run, station: Station, tmp_path: Path):
    with Journal.open(tmp_path / "other.db") as journal:
        journal.commit(a_verdict())
    station.journal.symlink_to(tmp_path / "other.db")
    code, _, err = run("backup", tmp_path / "b.tar.gz", "--journal", "-c", station.file)
    assert code == 1
    assert "journal.db cannot be read: it is a symbolic link" in err
    assert not (tmp_path / "b.tar.gz").exists()


def test_a_link_in_the_way_is_moved_aside_and_not_followed(run: Run, backup: Path, tmp_path: Path):
    for number, place in enumerate(("cell", "cell/references")):
        # Short, for the path of a socket is bounded.
        target, outside = tmp_path / str(number), tmp_path / "outside"
        outside.mkdir(exist_ok=True)
        link = target / "state" / place
        link.parent.mkdir(parents=True)
        link.symlink_to(outside)
        code, _, err = run("restore", backup, "--config-dir", target)
        assert code == 1
        assert str(link) in err
        code, _, err = run("restore", backup, "--config-dir", target, "--force")
        assert code == 0, err
        assert not list(outside.iterdir())
        assert not link.is_symlink()
        assert len(ReferenceStore(target / "state/cell/references/block").check().pictures) == 8


@AS_ROOT
@pytest.mark.parametrize("moment", ["before", "after", "sync"])
def test_who_renames_the_staging_folder_gains_nothing(
    run: Run, backup: Path, tmp_path: Path, monkeypatch, moment: str
):
    """The service's user moves it away, before or after a file is written there, or when all are,
    and puts a link to a folder of root's in its place that has files of the names expected.
    """
    storage, roots = tmp_path / "t" / "state", tmp_path / "roots"
    storage.mkdir(parents=True)
    os.chown(storage, *SERVICE)
    roots.mkdir(mode=0o700)
    for name in ("cell.yaml", *map(str, range(20))):
        (roots / name).write_text("root's")
        (roots / name).chmod(0o600)
    before = tree(roots)
    seen = []

    def take_over() -> None:
        for staging in storage.glob(".restore-*"):
            if staging.is_symlink():
                continue
            facts = staging.stat()
            seen.append((facts.st_uid, facts.st_mode & 0o777))
            staging.rename(storage / f"mine-{len(seen)}")
            staging.symlink_to(roots)

    def unpack(self, member, *rest, _real=station_copy.Reader.unpack) -> None:
        if moment == "before":
            take_over()
        _real(self, member, *rest)
        if moment == "after":
            take_over()

    def sync(_real=os.sync) -> None:
        take_over()
        _real()

    monkeypatch.setattr(station_copy.Reader, "unpack", unpack)
    monkeypatch.setattr(os, "sync", sync)
    code, _, err = run("restore", backup, "--config-dir", tmp_path / "t")
    assert tree(roots) == before
    assert roots.stat().st_mode & 0o777 == 0o700
    rights = {(one.stat().st_uid, one.stat().st_mode & 0o777) for one in roots.iterdir()}
    assert rights == {(0, 0o600)}
    assert seen[0] == (0, 0o700)
    assert code == 0, err
    found = ReferenceStore(storage / "cell/references/block").check()
    assert len(found.pictures) == 8
    owners = {(one.stat().st_uid, one.stat().st_gid) for one in (storage / "cell").rglob("*")}
    assert owners == {SERVICE}


@AS_ROOT
def test_the_service_reads_a_station_file_with_a_password_and_cannot_write_it(
    run: Run, tmp_path: Path
):
    camera = "{driver: opencv, device: 'rtsp://admin:hunter2@camera/1'}"
    station = Station(tmp_path / "o", camera=camera, trigger=TRIGGER)
    (station.folder / "credentials").mkdir()
    (station.folder / "credentials" / "cell.mqtt-password").write_text("hunter3")
    code, _, err = run("backup", tmp_path / "b.tar.gz", "--secrets", "-c", station.file)
    assert code == 0, err
    (tmp_path / "t" / "state").mkdir(parents=True)
    os.chown(tmp_path / "t" / "state", *SERVICE)
    assert run("restore", tmp_path / "b.tar.gz", "--config-dir", tmp_path / "t")[0] == 0
    for name, owner, mode in (
        ("cell.yaml", (0, SERVICE[1]), 0o640),
        ("programs/block.yaml", (0, 0), 0o644),
        ("credentials/cell.mqtt-password", (0, 0), 0o600),
    ):
        facts = (tmp_path / "t" / name).stat()
        assert ((facts.st_uid, facts.st_gid), facts.st_mode & 0o777) == (owner, mode), name


def test_a_disk_that_fills_up_leaves_no_backup(run: Run, station: Station, tmp_path, monkeypatch):
    """A failure of the backup's own disk is none of the file that is being added."""

    def full(*_arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    code, _, err = run("backup", tmp_path / "b.tar.gz", "-c", station.file)
    assert code == 1
    assert "cannot be written: No space left on device" in err
