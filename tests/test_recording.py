"""What the recorder does when the journal's file or its disk fails: a real journal, a real disk."""

import contextlib
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from damage import damage
from verdicts import a_verdict

from inspectd.archive import Archive
from inspectd.errors import JournalDamaged, JournalError
from inspectd.journal import Journal
from inspectd.journal.ballast import BALLAST_BYTES
from inspectd.payload import StatePayload
from inspectd.recording import FULL_BYTES, Recorder
from inspectd.settings import ArchiveSettings, StorageSettings
from inspectd.state import StationState

PICTURE = "000001-000000001-FAIL"


@pytest.fixture
def state() -> StationState:
    first = StatePayload(
        state="starting",
        station="cell",
        program="block",
        settings_hash="0" * 12,
        versions={},
        journal_id="",
        boot_id="boot",
        clock_synchronised=True,
        since=datetime.now(UTC),
    )
    return StationState(first, lambda _payload, _available: None)


Make = Callable[[Path], tuple[Recorder, Journal]]


@pytest.fixture
def replaced() -> list[str]:
    """The id of each journal that was begun in place of a damaged one."""
    return []


@pytest.fixture
def make(state: StationState, replaced: list[str]) -> Iterator[Make]:
    opened: list[Journal] = []

    def made(folder: Path) -> tuple[Recorder, Journal]:
        journal = Journal.open(folder / "journal.db")
        opened.append(journal)
        archive = Archive(folder / "archive", ArchiveSettings(), lambda _words: None)
        recorder = Recorder(
            journal, archive, state, StorageSettings(), lambda: replaced.append(journal.id)
        )
        return recorder, journal

    yield made
    for journal in opened:
        journal.close()


def test_a_verdict_that_finds_the_journal_damaged_is_the_first_of_a_new_one(
    tmp_path: Path, make: Make, state: StationState, replaced: list[str]
):
    recorder, journal = make(tmp_path)
    before = journal.id
    damage(journal)
    stored = recorder.commit(a_verdict())
    assert (stored.seq, stored.journal_id) == (1, journal.id)
    assert journal.id != before
    assert replaced == [journal.id]
    assert state.payload.journal_id == journal.id
    (note,) = state.payload.notes
    assert str(journal.set_aside) in note


@pytest.mark.parametrize(
    "find",
    [
        lambda recorder: recorder.unsent(0, 1000),
        lambda recorder: recorder.read(1, 1000),  # Sparkplug's backlog
        lambda recorder: recorder.mark_unsent(1, 1000),
    ],
    ids=["unsent", "read", "mark_unsent"],
)
def test_whoever_else_finds_it_damaged_is_told_and_a_new_one_is_begun_once(
    tmp_path: Path, make: Make, replaced: list[str], find: Callable[[Recorder], object]
):
    recorder, journal = make(tmp_path)
    damage(journal)
    with pytest.raises(JournalDamaged):
        find(recorder)
    assert recorder.unsent(0, 1000) == []
    assert replaced == [journal.id]
    assert recorder.commit(a_verdict()).seq == 1


def test_rows_of_the_old_journal_mark_none_of_the_new_one(tmp_path: Path, make: Make):
    recorder, journal = make(tmp_path)
    damage(journal)
    before = recorder.id
    recorder.commit(a_verdict())
    recorder.mark_sent([1], before)  # acknowledged just before, marked after
    assert recorder.unsent_count() == 1
    recorder.mark_sent([1], recorder.id)
    assert recorder.unsent_count() == 0


def test_a_new_journal_that_cannot_be_begun_is_tried_again_with_the_next_verdict(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, replaced: list[str]
):
    recorder, journal = make(tmp_path)
    damage(journal)
    with monkeypatch.context() as patch:
        patch.setattr("inspectd.journal.database._TABLES", ("INSERT INTO nowhere VALUES (1)",))
        with pytest.raises(JournalError):
            recorder.commit(a_verdict())
    assert replaced == []
    assert recorder.commit(a_verdict()).seq == 1
    assert replaced == [journal.id]


def test_a_journal_that_was_set_aside_at_the_start_is_told(
    tmp_path: Path, make: Make, state: StationState
):
    (tmp_path / "journal.db").write_bytes(b"no database" * 1000)
    _, journal = make(tmp_path)
    (note,) = state.payload.notes
    assert str(journal.set_aside) in note


def test_by_a_clock_that_may_be_wrong_nothing_is_deleted_and_that_is_told(
    tmp_path: Path, make: Make, state: StationState, monkeypatch: pytest.MonkeyPatch
):
    recorder, journal = make(tmp_path)
    recorder.mark_sent([recorder.commit(a_verdict()).seq for _ in range(3)])
    monkeypatch.setattr("inspectd.recording.clock_synchronised", lambda: False)
    recorder.prune()
    assert state.payload.notes == ()
    with contextlib.closing(sqlite3.connect(journal.path)) as database:
        database.execute("UPDATE inspection SET committed_at = '2001-01-01T00:00:00.000+00:00'")
        database.commit()
    recorder.prune()
    assert len(journal.read(1, 3)) == 3
    (note,) = state.payload.notes
    assert "storage.keep_days are kept" in note
    monkeypatch.setattr("inspectd.recording.clock_synchronised", lambda: True)
    recorder.prune()
    assert journal.read(1, 3) == []
    assert state.payload.notes == ()


def fill(folder: Path) -> None:
    with (folder / "others").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_full_disk_pictures_go_first_and_then_sent_verdicts(
    small_disk: Path, make: Make, state: StationState
):
    recorder, journal = make(small_disk)
    day = small_disk / "archive" / "2024-05-17"
    day.mkdir(parents=True)
    (day / f"{PICTURE}.png").write_bytes(b"0" * (FULL_BYTES + 1))
    recorder._archive._folder.survey()  # else its own thread does, which also makes room for more
    seqs = []

    def commit() -> None:
        seqs.append(recorder.commit(a_verdict(detail="x" * 1400)).seq)
        with contextlib.suppress(JournalError):  # the outbox tries again
            journal.mark_sent(seqs[-1:])

    def commit_until(words: str) -> None:
        fill(small_disk)
        for _ in range(5000):
            commit()
            if any(words in note for note in state.payload.notes):
                return
        pytest.fail(f"{words} were never given up")

    for _ in range(1000):
        commit()
    commit_until("the oldest pictures")
    assert not (day / f"{PICTURE}.png").exists()
    assert journal.read(1, 1)
    commit_until("verdicts that were sent")
    assert seqs == list(range(1, len(seqs) + 1))
    assert journal.read(seqs[-1], seqs[-1])
    assert not journal.read(1, 1)


def commit_until_it_fails(recorder: Recorder) -> None:
    def commit_for_ever() -> None:
        while True:
            recorder.commit(a_verdict(detail="x" * 1400))

    with pytest.raises(JournalError, match="full"):
        commit_for_ever()


def use_up(disk: Path, recorder: Recorder) -> int:
    """The broker is away and the disk full, until commits fail; the last number."""
    for _ in range(2000):
        recorder.commit(a_verdict(detail="x" * 1400))
    fill(disk)
    commit_until_it_fails(recorder)
    for _ in range(3):
        with pytest.raises(JournalError, match="full"):
            recorder.probe()
        fill(disk)
    return recorder.last_seq()


def test_on_a_full_disk_a_station_is_ready_again_by_itself_once_the_broker_is_back(
    small_disk: Path, make: Make
):
    recorder, journal = make(small_disk)
    last = use_up(small_disk, recorder)
    assert (small_disk / "journal.db.ballast").stat().st_size == BALLAST_BYTES
    assert recorder.unsent_count() == last  # nothing unsent was given up
    for first in range(1, last + 1, 50):
        recorder.mark_sent(range(first, min(first + 50, last + 1)), journal.id)
        fill(small_disk)  # whatever the journal gives back, others take
    assert recorder.unsent_count() == 0
    recorder.probe()  # as the judging thread does while it is idle
    for number in range(last + 1, last + 500):
        assert recorder.commit(a_verdict(detail="x" * 1400)).seq == number


def test_a_broker_that_takes_few_verdicts_at_a_time_does_not_cost_the_reserve(
    small_disk: Path, make: Make
):
    recorder, _ = make(small_disk)
    use_up(small_disk, recorder)
    for _ in range(60):  # whatever one of them gives back is used for another that stays
        recorder.mark_sent([row.seq for row in recorder.unsent(0, 20)])
        fill(small_disk)
        commit_until_it_fails(recorder)
    backlog = [row.seq for row in recorder.unsent(0, 9999)]
    last = recorder.last_seq()
    assert backlog == list(range(last + 1 - len(backlog), last + 1))
    for first in range(0, len(backlog), 50):
        recorder.mark_sent(backlog[first : first + 50])
        fill(small_disk)
    recorder.probe()
    assert recorder.commit(a_verdict()).seq == last + 1
    (small_disk / "others").unlink()


def test_a_station_that_is_started_on_a_full_disk_gets_rid_of_its_backlog(
    small_disk: Path, make: Make
):
    recorder, journal = make(small_disk)
    last = use_up(small_disk, recorder)
    with contextlib.suppress(JournalError):  # what cannot be written back stays in the WAL
        journal.close()
    fill(small_disk)
    recorder, journal = make(small_disk)
    fill(small_disk)
    assert recorder.unsent_count() == last
    for first in range(1, last + 1, 50):
        recorder.mark_sent(range(first, min(first + 50, last + 1)))
        fill(small_disk)
    recorder.probe()
    assert recorder.commit(a_verdict()).seq == last + 1
    (small_disk / "others").unlink()
