"""What the picture archive keeps, what it deletes, and that its troubles stay its own."""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from broker import eventually
from verdicts import a_verdict

from inspectd import archive as archive_module
from inspectd.archive import MAP_LIMIT, Archive
from inspectd.records import Frame, Image, Inspection, Verdict
from inspectd.settings import ArchiveSettings

STOP_S = 30.0
DAY = "2024-05-17"  # of `a_verdict`
EVERY = ArchiveSettings(keep=("PASS", "FAIL", "NOT_JUDGED"))
_RNG = np.random.default_rng(5)


def noise(shape: tuple[int, ...] = (90, 100)) -> Image:
    """A picture that no encoder makes smaller."""
    return _RNG.integers(0, 256, shape, np.uint8)


def a_frame(pixels: Image | None = None, whole: Image | None = None) -> Frame:
    pixels = noise() if pixels is None else pixels
    return Frame(pixels, "1", datetime.now(UTC), 0, 0, whole=whole)


def an_inspection(values: list[list[float]] | None = None) -> Inspection:
    return Inspection(
        Verdict.FAIL, map=None if values is None else np.array(values, np.float32), score=1.5
    )


def failed(seq: int, part_id: str | None = None):
    return a_verdict(verdict="FAIL", seq=seq, score=1.5, margin=-0.5, part_id=part_id)


def names(folder: Path) -> list[str]:
    """All files, relative to the folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def seqs(folder: Path) -> list[int]:
    return [int(name.split("-")[3]) for name in names(folder) if name.endswith(".json")]


def size_of(folder: Path) -> int:
    """Bytes that the files take of a disk of 4 KiB blocks."""
    return sum(-(-(folder / name).stat().st_size // 4096) * 4096 for name in names(folder))


@pytest.fixture
def make() -> Iterator[Callable[..., Archive]]:
    """Makes archives, and stops them at the end."""
    made: list[Archive] = []

    def make(
        folder: Path,
        settings: ArchiveSettings = EVERY,
        tell: Callable[[str], None] = lambda _trouble: None,
    ) -> Archive:
        made.append(Archive(folder, settings, tell))
        return made[-1]

    yield make
    for archive in made:
        archive.stop(STOP_S)


@pytest.fixture
def filled(tmp_path, make):
    """A folder with ten pictures of seq 1 to 10, each with map and verdict."""
    archive = make(tmp_path / "archive")
    for seq in range(1, 11):
        archive.offer(failed(seq), a_frame(), an_inspection([[0.5, 1.5]]))
    archive.start()
    archive.stop(STOP_S)
    assert seqs(tmp_path / "archive") == list(range(1, 11))
    return tmp_path / "archive"


@pytest.mark.parametrize(
    ("settings", "verdict", "margin", "wanted"),
    [
        (ArchiveSettings(), "FAIL", -0.2, True),
        (ArchiveSettings(), "NOT_JUDGED", None, True),
        (ArchiveSettings(), "PASS", 0.6, False),
        (ArchiveSettings(), "PASS", 0.05, True),
        (ArchiveSettings(margin=0.0), "PASS", 0.0, False),
        (ArchiveSettings(keep=()), "FAIL", -0.2, False),
        (ArchiveSettings(keep=()), "PASS", 0.05, True),
        (ArchiveSettings(keep=("PASS",)), "PASS", 0.6, True),
        (ArchiveSettings(max_mb=0.0), "FAIL", -0.2, False),
        (ArchiveSettings(max_mb=0.0), "PASS", 0.05, False),
    ],
)
def test_the_settings_choose_the_verdicts(tmp_path, make, settings, verdict, margin, wanted):
    archive = make(tmp_path, settings)
    assert archive.wanted(a_verdict(verdict=verdict, margin=margin)) is wanted


def test_whole_pictures_are_wanted_where_any_verdict_is(tmp_path, make):
    assert make(tmp_path, ArchiveSettings()).wants_whole
    assert make(tmp_path, ArchiveSettings(keep=())).wants_whole
    assert not make(tmp_path, ArchiveSettings(keep=(), margin=0.0)).wants_whole
    assert not make(tmp_path, ArchiveSettings(max_mb=0.0)).wants_whole


def test_picture_map_and_verdict_are_kept_under_one_name(tmp_path, make):
    archive = make(tmp_path / "archive")
    whole = noise((60, 80, 3))
    values = [[0.0, 0.1234], [1.0, 3.0]]
    archive.start()
    archive.offer(failed(1234, "A17"), a_frame(whole=whole), an_inspection(values))
    archive.stop(STOP_S)
    stem = f"{DAY}/063000-000001234-FAIL-A17"
    assert names(tmp_path / "archive") == [f"{stem}.json", f"{stem}.map.png", f"{stem}.png"]
    picture = cv2.imread(str(tmp_path / "archive" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(picture, whole)
    kept = cv2.imread(str(tmp_path / "archive" / f"{stem}.map.png"), cv2.IMREAD_UNCHANGED)
    assert np.allclose(kept / MAP_LIMIT, values, atol=0.5 / MAP_LIMIT)
    verdict = json.loads((tmp_path / "archive" / f"{stem}.json").read_bytes())
    assert (verdict["seq"], verdict["verdict"], verdict["part_id"]) == (1234, "FAIL", "A17")


def test_what_is_no_number_or_beyond_the_scale_is_the_brightest_of_the_map(tmp_path, make):
    archive = make(tmp_path)
    values = [[np.nan, np.inf, 1e30], [-np.inf, -1.0, 0.0]]
    archive.start()
    archive.offer(failed(1), a_frame(), an_inspection(values))
    archive.stop(STOP_S)
    (file,) = tmp_path.rglob("*.map.png")
    kept = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert kept.tolist() == [[65535, 65535, 65535], [0, 0, 0]]


def test_a_picture_that_was_not_judged_has_no_map_and_a_timeout_nothing(tmp_path, make):
    archive = make(tmp_path)
    archive.start()
    archive.offer(a_verdict(verdict="NOT_JUDGED", seq=1), a_frame(), an_inspection())
    archive.offer(a_verdict(verdict="NOT_JUDGED", seq=2), None, an_inspection())
    archive.stop(STOP_S)
    stem = f"{DAY}/063000-000000001-NOT_JUDGED"
    assert names(tmp_path) == [f"{stem}.json", f"{stem}.png"]
    assert archive.dropped == 0


def test_jpeg_from_the_next_picture_on(tmp_path, make):
    picture = cv2.GaussianBlur(noise((200, 300)), (0, 0), 5)
    archive = make(tmp_path)
    archive.start()
    archive.offer(failed(1), a_frame(picture), an_inspection())
    assert eventually(lambda: seqs(tmp_path) == [1])
    archive.adopt(ArchiveSettings(format="jpeg"))
    archive.offer(failed(2), a_frame(picture), an_inspection())
    archive.stop(STOP_S)
    pictures = [name for name in names(tmp_path) if not name.endswith(".json")]
    assert [Path(name).suffix for name in pictures] == [".png", ".jpg"]
    kept = cv2.imread(str(tmp_path / pictures[1]), cv2.IMREAD_UNCHANGED)
    assert np.abs(kept.astype(int) - picture).max() < 10


PART_IDS = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "a\0b",
    "a\nb",
    "x.map",
    "x.map.png",
    "Gehäuse 17",
    "部品",
    "Ü" * 256,
    "B" * 256,
    "WO-4711-12",
]


def test_a_part_id_from_anyone_makes_a_name_of_the_archive(tmp_path, make):
    folder = tmp_path / "archive"
    archive = make(folder)
    archive.start()
    for seq, part_id in enumerate(PART_IDS, start=1):
        archive.offer(failed(seq, part_id), a_frame(), an_inspection([[1.0]]))
    archive.stop(STOP_S)
    assert archive.dropped == 0
    assert names(tmp_path) == [f"archive/{name}" for name in names(folder)]
    assert {Path(name).parent.name for name in names(folder)} == {DAY}
    kept = [json.loads((folder / name).read_bytes()) for name in names(folder) if "json" in name]
    assert [verdict["part_id"] for verdict in kept] == PART_IDS
    assert len(names(folder)) == 3 * len(PART_IDS)
    # The next start knows each of them as its own.
    later = make(folder)
    later.start()
    later.stop(STOP_S)
    later.free_room(1 << 40)
    assert names(folder) == []


def test_beyond_the_quota_the_oldest_go_and_whole(tmp_path, make):
    archive = make(tmp_path, ArchiveSettings(max_mb=0.5))
    archive.start()
    for seq in range(1, 61):
        archive.offer(failed(seq), a_frame(), an_inspection([[1.5]]))
    archive.stop(STOP_S)
    left = seqs(tmp_path)
    assert 10 < len(left) < 60
    assert left == list(range(61 - len(left), 61))
    assert len(names(tmp_path)) == 3 * len(left)
    assert 400_000 < size_of(tmp_path) <= 500_000
    assert archive.dropped == 0
    assert archive.trouble == ""


def test_the_oldest_day_goes_first_and_its_folder_with_it(tmp_path, make):
    archive = make(tmp_path)
    archive.start()
    for day in (3, 1, 2):
        at = datetime(2026, 11, day, 23, 59, tzinfo=UTC)
        verdict = a_verdict(verdict="FAIL", seq=day, triggered_at=at)
        archive.offer(verdict, a_frame(), an_inspection())
    archive.stop(STOP_S)
    (tmp_path / "2026-11-01" / "note.txt").write_bytes(b"mine")
    assert archive.free_room(1) > 1
    assert archive.free_room(1) > 1
    assert seqs(tmp_path) == [3]
    assert archive.free_room(1 << 40) > 1
    assert archive.free_room(1) == 0
    assert names(tmp_path) == ["2026-11-01/note.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["2026-11-01"]


def test_a_lower_quota_holds_from_the_start(filled, make):
    archive = make(filled, ArchiveSettings(max_mb=0.1))
    archive.start()
    archive.stop(STOP_S)
    assert size_of(filled) <= 100_000
    assert seqs(filled)[-1] == 10


def test_without_a_quota_nothing_is_kept_and_nothing_deleted(filled, make):
    before = names(filled)
    archive = make(filled, ArchiveSettings(max_mb=0.0))
    archive.start()
    archive.offer(failed(11), a_frame(), an_inspection())
    archive.stop(STOP_S)
    assert names(filled) == before
    assert archive.dropped == 0


def test_nothing_wanted_makes_no_folder(tmp_path, make):
    archive = make(tmp_path / "archive", ArchiveSettings(max_mb=0.0))
    archive.start()
    archive.stop(STOP_S)
    assert archive.trouble == ""
    assert not (tmp_path / "archive").exists()


def test_what_a_person_put_there_stays(filled, make, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    foreign = elsewhere / "063000-000000001-FAIL.png"
    own = [
        filled / DAY / "note.txt",
        filled / DAY / "063000-000000001-FAIL (copy).png",
        filled / DAY / "063000-000000001-FAIL.txt",
        filled / "063000-000000001-FAIL.png",
        filled / "good ones" / "063000-000000001-FAIL.png",
        foreign,
    ]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    (filled / "2020-01-01").symlink_to(elsewhere)
    archive = make(filled)
    archive.start()
    archive.stop(STOP_S)
    archive.free_room(1 << 40)
    assert seqs(filled) == []
    assert all(path.read_bytes() == b"mine" for path in own)


def test_what_a_crash_left_half_written_is_swept(filled, make):
    (filled / ".writing-png").write_bytes(b"half")
    archive = make(filled)
    archive.start()
    archive.stop(STOP_S)
    assert not (filled / ".writing-png").exists()
    assert seqs(filled) == list(range(1, 11))


def test_room_is_made_at_once_and_no_more_than_asked_for(filled, make):
    archive = make(filled)
    archive.start()
    archive.stop(STOP_S)
    before = size_of(filled)
    freed = archive.free_room(20_000)
    assert freed == before - size_of(filled)
    assert 20_000 <= freed < 50_000
    assert seqs(filled)[-1] == 10


def test_pictures_that_a_person_deleted_count_no_longer(tmp_path, make):
    settings = ArchiveSettings(max_mb=0.5)
    archive = make(tmp_path, settings)
    archive.start()
    for seq in range(1, 21):
        archive.offer(failed(seq), a_frame(), an_inspection())
    assert eventually(lambda: len(seqs(tmp_path)) == 20)
    for path in (tmp_path / DAY).iterdir():
        path.unlink()
    for seq in range(21, 61):
        archive.offer(failed(seq), a_frame(), an_inspection())
    archive.stop(STOP_S)
    assert seqs(tmp_path)[-1] == 60
    assert 400_000 < size_of(tmp_path) <= 500_000


def test_the_oldest_that_wait_are_left_out_and_that_is_said_once(
    tmp_path, make, monkeypatch, caplog
):
    monkeypatch.setattr(archive_module, "WAITING_BYTES", 3 * 9000)
    archive = make(tmp_path)
    with caplog.at_level(logging.WARNING):
        for seq in range(1, 9):
            archive.offer(failed(seq), a_frame(), an_inspection())
        assert archive.dropped == 5
        assert len(caplog.records) == 1
        archive.start()
        archive.stop(STOP_S)
    assert seqs(tmp_path) == [6, 7, 8]
    assert [record.getMessage() for record in caplog.records][1:] == [
        "5 pictures were left out; all are written again"
    ]


def test_a_picture_larger_than_what_may_wait_is_kept(tmp_path, make, monkeypatch):
    monkeypatch.setattr(archive_module, "WAITING_BYTES", 10)
    archive = make(tmp_path)
    archive.offer(failed(1), a_frame(), an_inspection())
    archive.start()
    archive.stop(STOP_S)
    assert seqs(tmp_path) == [1]


def test_a_disk_that_hangs_holds_up_nobody(tmp_path, make):
    archive = make(tmp_path)
    archive.start()
    archive.offer(failed(1), a_frame(), an_inspection())
    assert eventually(lambda: seqs(tmp_path) == [1])
    pipe = tmp_path / ".writing-png"
    os.mkfifo(pipe)  # whoever writes into it waits for a reader
    for seq in range(2, 6):
        archive.offer(failed(seq), a_frame(), an_inspection())
    archive.stop(0.05)
    # The one that hangs may yet be written, the others not.
    assert archive.dropped in {3, 4}
    archive.offer(failed(6), a_frame(), an_inspection())
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    archive.stop(STOP_S)
    os.close(reader)
    assert 6 not in seqs(tmp_path)


def test_a_full_disk_costs_pictures_and_is_told_once(tmp_path, make, caplog):
    told: list[str] = []
    archive = make(tmp_path, tell=told.append)
    archive.start()
    archive.offer(failed(1), a_frame(), an_inspection([[1.5]]))
    assert eventually(lambda: seqs(tmp_path) == [1])
    # A device that is always full, in place of the last file of each picture.
    full = tmp_path / ".writing-json"
    for seq in (2, 3):
        full.symlink_to("/dev/full")
        archive.offer(failed(seq), a_frame(), an_inspection([[1.5]]))
        assert eventually(lambda expected=seq - 1: archive.dropped == expected)
        assert eventually(lambda: not full.is_symlink())
    assert told == [
        f"pictures are not kept: {os.strerror(errno.ENOSPC)}: {tmp_path}; make room on that disk"
    ]
    assert archive.trouble == told[0]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert names(tmp_path / DAY) == [
        f"063000-000000001-FAIL.{suffix}" for suffix in ("json", "map.png", "png")
    ]
    archive.offer(failed(4), a_frame(), an_inspection())
    archive.stop(STOP_S)
    assert seqs(tmp_path) == [1, 4]
    assert told[1:] == [""]
    assert [path.name for path in tmp_path.iterdir()] == [DAY]


def test_a_folder_that_cannot_be_made_is_told_at_the_start_and_tried_again(
    tmp_path, make, monkeypatch
):
    monkeypatch.setattr(archive_module, "RETRY_S", 0.01)
    blocked = tmp_path / "state"
    blocked.write_bytes(b"")  # a file where the folder should be
    told: list[str] = []
    archive = make(blocked / "archive", tell=told.append)
    archive.start()
    assert eventually(lambda: told)
    assert told[0].endswith("the folder must be writable for the user the service runs as")
    archive.offer(failed(1), a_frame(), an_inspection())
    assert eventually(lambda: archive.dropped == 1)
    blocked.unlink()
    assert eventually(lambda: told[1:] == [""])  # without another picture
    archive.offer(failed(2), a_frame(), an_inspection())
    archive.stop(STOP_S)
    assert seqs(blocked) == [2]


def test_a_disk_with_little_left_is_left_to_the_journal(filled, make, monkeypatch):
    monkeypatch.setattr(archive_module, "RESERVED_BYTES", 1 << 60)  # more than any disk has
    archive = make(filled)
    archive.start()
    archive.offer(failed(11), a_frame(), an_inspection())
    archive.stop(STOP_S)
    assert seqs(filled) == []
    assert os.strerror(errno.ENOSPC) in archive.trouble
    assert archive.dropped == 1


def test_a_picture_larger_than_the_quota_deletes_no_others(filled, make):
    before = names(filled)
    archive = make(filled, ArchiveSettings(max_mb=0.5))
    archive.start()
    archive.offer(failed(11), a_frame(noise((1000, 1000))), an_inspection())
    archive.stop(STOP_S)
    assert names(filled) == before
    assert archive.trouble.endswith("one takes 1.0 MB, archive.max_mb is 0.5; raise it")


def test_a_fault_of_whoever_is_told_does_not_end_the_archive(tmp_path, make, caplog):
    def fails(trouble: str) -> None:
        raise RuntimeError(trouble)

    archive = make(tmp_path, ArchiveSettings(max_mb=0.1), fails)
    archive.start()
    archive.offer(failed(1), a_frame(noise((1000, 1000))), an_inspection())
    archive.offer(failed(2), a_frame(), an_inspection())
    archive.stop(STOP_S)
    assert seqs(tmp_path) == [2]
    assert archive.dropped == 1
    assert "unexpected error in the picture archive" in caplog.text
