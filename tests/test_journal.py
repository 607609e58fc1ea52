"""The journal's commits and numbers, what it hands out again, and how it keeps to its space."""

import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from verdicts import a_verdict

from inspectd.errors import JournalError, JournalUnusable
from inspectd.journal import Journal
from inspectd.payload import decode_verdict, encode


@pytest.fixture
def path(tmp_path):
    return tmp_path / "line1-cell3" / "journal.db"


def seqs(rows):
    return [row.seq for row in rows]


def test_a_commit_gives_the_next_number_and_stores_what_is_sent(path):
    with Journal.open(path) as journal:
        verdict = a_verdict(part_id="A 17", detail="two regions")
        stored = journal.commit(verdict)
        second = journal.commit(a_verdict())
        assert (stored.seq, second.seq) == (1, 2)
        assert stored.journal_id == journal.id
        assert stored.part_id == "A 17"
        rows = journal.read(1, 2)
    assert [row.payload for row in rows] == [encode(stored), encode(second)]
    assert rows[0].id == verdict.id
    assert decode_verdict(rows[0].payload) == stored


def test_numbers_and_id_go_on_after_reopening(path):
    with Journal.open(path) as journal:
        first_id = journal.id
        journal.commit(a_verdict())
    with Journal.open(path) as journal:
        assert journal.id == first_id
        assert journal.last_seq() == 1
        assert journal.commit(a_verdict()).seq == 2


def test_a_new_journal_has_a_new_id(tmp_path):
    with Journal.open(tmp_path / "a.db") as first, Journal.open(tmp_path / "b.db") as second:
        assert first.id != second.id
        assert first.last_seq() == 0


def test_a_number_is_not_given_twice_when_rows_are_deleted(path):
    with Journal.open(path) as journal:
        for _ in range(3):
            journal.commit(a_verdict())
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM inspection WHERE seq > 1")
    database.close()
    with Journal.open(path) as journal:
        assert journal.commit(a_verdict()).seq == 4


def test_the_columns_serve_a_person_with_sqlite(path):
    before = datetime.now(UTC)
    with Journal.open(path) as journal:
        journal.commit(a_verdict(program="relay", verdict="FAIL", reason="above limit"))
    with sqlite3.connect(path) as database:
        program, verdict, committed_at = database.execute(
            "SELECT program, verdict, committed_at FROM inspection"
        ).fetchone()
    database.close()
    assert (program, verdict) == ("relay", "FAIL")
    committed = datetime.fromisoformat(committed_at)
    assert committed.utcoffset().total_seconds() == 0
    assert abs((committed - before).total_seconds()) < 60


def test_a_transaction_is_found_again_also_after_reopening(path):
    with Journal.open(path) as journal:
        stored = journal.commit(a_verdict(transaction="T-1"))
        journal.commit(a_verdict())
        journal.commit(a_verdict())  # any number of verdicts may come without a transaction
    with Journal.open(path) as journal:
        assert journal.find_transaction("T-1") == stored
        assert journal.find_transaction("T-2") is None


@pytest.mark.parametrize("edited", ["{}", 5, b'{"\xff": 1}'])
def test_a_transaction_whose_verdict_is_damaged_is_an_error(path, edited):
    with Journal.open(path) as journal:
        journal.commit(a_verdict(transaction="T-1"))
        journal._connection.execute("UPDATE inspection SET payload = ?", [edited])
        with pytest.raises(JournalError, match="verdict 1 of the journal could not be read"):
            journal.find_transaction("T-1")


def test_a_commit_that_fails_leaves_no_gap_and_nothing_behind(path):
    with Journal.open(path) as journal:
        journal.commit(a_verdict(transaction="T-1"))
        with pytest.raises(JournalError, match=r"could not be committed.*journal\.db"):
            journal.commit(a_verdict(transaction="T-1"))
        assert journal.commit(a_verdict(transaction="T-2")).seq == 2
        assert seqs(journal.read(1, 10)) == [1, 2]


def test_a_full_disk_is_an_error_and_the_journal_goes_on_when_there_is_room(path):
    with Journal.open(path) as journal:
        journal.commit(a_verdict())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        wal_bytes = path.with_name("journal.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal_bytes + 4096, limits[1]))
        try:
            with pytest.raises(JournalError, match="could not be committed"):
                journal.commit(a_verdict(detail="x" * 100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert seqs(journal.read(1, 10)) == [1]
        assert journal.commit(a_verdict()).seq == 2


def test_nothing_is_committed_to_a_file_that_was_removed(path):
    with Journal.open(path) as journal:
        path.unlink()
        with pytest.raises(JournalError, match=r"No such file or directory .*journal\.db"):
            journal.commit(a_verdict())


def test_a_probe_fails_while_the_disk_is_full_and_leaves_nothing_behind(path):
    with Journal.open(path) as journal:
        journal.commit(a_verdict())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        wal_bytes = path.with_name("journal.db-wal").stat().st_size
        # Room for a page, but not for a verdict.
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal_bytes + 3 * 4096, limits[1]))
        try:
            with pytest.raises(JournalError, match=r"cannot be written.*journal\.db"):
                journal.probe()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.probe()
        assert journal.commit(a_verdict()).seq == 2
        assert seqs(journal.read(1, 10)) == [1, 2]
        assert journal._connection.execute("SELECT key FROM meta").fetchall() == [("journal_id",)]


def test_unsent_rows_come_in_order_until_they_are_marked(path):
    with Journal.open(path) as journal:
        for _ in range(5):
            journal.commit(a_verdict())
        assert seqs(journal.unsent(0, 3)) == [1, 2, 3]
        assert seqs(journal.unsent(3, 10)) == [4, 5]
        journal.mark_sent([2, 4])
        assert seqs(journal.unsent(0, 10)) == [1, 3, 5]
        assert journal.unsent_count() == 3
    with Journal.open(path) as journal:
        assert journal.unsent_count() == 3
        journal.mark_sent([1, 3, 5])
        assert journal.unsent(0, 10) == []


def test_commits_and_marks_from_two_threads_do_not_lose_each_other(path):
    with Journal.open(path) as journal:
        done = threading.Event()
        marked = []

        def mark_as_they_come():
            while not done.is_set() or journal.unsent(0, 1):
                batch = seqs(journal.unsent(0, 7))
                journal.mark_sent(batch)
                marked.extend(batch)

        marker = threading.Thread(target=mark_as_they_come)
        marker.start()
        for _ in range(60):
            journal.commit(a_verdict())
        done.set()
        marker.join(30)
        assert marked == list(range(1, 61))
        assert journal.unsent_count() == 0


def test_commits_reach_the_disk_and_the_file_is_in_wal_mode(path):
    with Journal.open(path) as journal:
        journal.mark_sent([])
        journal.commit(a_verdict())
        assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not path.with_name("journal.db-wal").exists()


def test_with_sync_normal_commits_do_not_wait_for_the_disk(path):
    with Journal.open(path, "normal") as journal:
        journal.commit(a_verdict())
        assert journal._connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL


def test_a_second_process_is_refused_and_told_who_holds_it(path):
    opener = (
        "import sys; from pathlib import Path; from inspectd.journal import Journal\n"
        "journal = Journal.open(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", opener, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(JournalUnusable, match=rf"in use by process {other.pid} .*stop that"):
            Journal.open(path)
        other.kill()
    with Journal.open(path) as journal:  # the lock goes with its process
        assert journal.last_seq() == 0


def test_no_committed_verdict_is_lost_when_the_process_is_killed(path):
    committer = (
        "import sys; from pathlib import Path; from inspectd.journal import Journal\n"
        "from verdicts import a_verdict\n"
        "journal = Journal.open(Path(sys.argv[1]))\n"
        "while True:\n"
        "    print(journal.commit(a_verdict()).seq, flush=True)\n"
        "    journal.mark_sent([journal.last_seq()])\n"
        "    if journal.last_seq() % 10 == 0: journal.prune(365, 60_000)\n"
    )
    announced = 0
    for kill_after in (1, 7, 40, 90, 91):
        with subprocess.Popen(
            [sys.executable, "-c", committer, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        ) as child:
            for _ in range(kill_after):
                announced = int(child.stdout.readline())
            child.kill()
            announced = max([announced, *(int(line) for line in child.stdout.read().split())])
        with Journal.open(path) as journal:
            last = journal.last_seq()
            rows = journal.read(1, last)
            assert seqs(rows) == list(range(rows[0].seq, last + 1))
            assert journal.set_aside is None
            assert last >= announced
            assert all(decode_verdict(row.payload).seq == row.seq for row in rows)
            journal.mark_sent(seqs(rows))
    assert rows[0].seq > 1, "nothing was deleted meanwhile"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "journal.db"
    with pytest.raises(JournalUnusable, match=r"file/journal\.db cannot be opened.*writable"):
        Journal.open(path)


def test_an_answer_is_found_again_also_after_reopening(path):
    with Journal.open(path) as journal:
        journal.keep_answer("program", "T-1", b'{"ok":true}')
        with pytest.raises(JournalError, match="answer to request program could not be kept"):
            journal.keep_answer("program", "T-1", b"another")
    with Journal.open(path) as journal:
        answer = journal.find_answer("program", "T-1")
        assert answer is not None
        assert answer.response == b'{"ok":true}'
        assert abs(datetime.now(UTC) - answer.at) < timedelta(minutes=1)
        assert journal.find_answer("lot", "T-1") is None
        assert journal.find_answer("program", "T-2") is None


def test_the_oldest_answers_are_forgotten(path, monkeypatch):
    monkeypatch.setattr("inspectd.journal._ANSWERS_KEPT", 3)
    with Journal.open(path) as journal:
        for number in range(5):
            journal.keep_answer("lot", f"T-{number}", b"{}")
        found = [journal.find_answer("lot", f"T-{number}") for number in range(5)]
    assert [answer and answer.response for answer in found] == [None, None, b"{}", b"{}", b"{}"]


def make_old(path, last, days):
    """As if the rows up to ``last`` had been committed so many days ago."""
    with closing(sqlite3.connect(path)) as database:
        instant = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
        database.execute("UPDATE inspection SET committed_at = ? WHERE seq <= ?", (instant, last))
        database.execute("UPDATE answered SET at = ?", (instant,))
        database.commit()


def test_sent_rows_that_are_too_old_are_deleted_and_no_others(path):
    with Journal.open(path) as journal:
        for number in range(1, 101):
            journal.commit(a_verdict(transaction=f"T-{number}"))
        journal.mark_sent([seq for seq in range(1, 101) if seq not in {5, 40}])
        journal.keep_answer("lot", "T-1", b"{}")
        make_old(path, 60, days=10)
        assert journal.prune(11, 10**9).rows == 0
        pruned = journal.prune(9, 10**9)
        assert pruned.rows == 58
        assert pruned.bytes > 0
        assert seqs(journal.read(1, 100)) == [5, 40, *range(61, 101)]
        assert journal.find_transaction("T-4") is None  # forgotten with its row
        assert journal.find_transaction("T-5") is not None
        assert journal.find_answer("lot", "T-1") is None
        assert journal.commit(a_verdict()).seq == 101
    with Journal.open(path) as journal:
        assert journal.prune(float("inf"), 10**9).rows == 0
        journal.mark_sent(range(1, 102))
        make_old(path, 101, days=10)
        journal.prune(9, 10**9)
        assert journal.read(1, 999) == []
    with Journal.open(path) as journal:  # an empty one still knows its numbers
        assert journal.last_seq() == 101
        assert journal.commit(a_verdict()).seq == 102


def test_what_is_unsent_stays_and_what_is_sent_keeps_to_the_allowed_size(path):
    allowed = 400_000
    with Journal.open(path) as journal:
        for _ in range(1000):
            journal.commit(a_verdict(detail="x" * 1000))
        assert journal.prune(365, allowed).rows == 0
        journal._write_back()
        assert path.stat().st_size > 2 * allowed
        journal.mark_sent(range(301, 1001))  # the broker came back, live verdicts go first
        journal.prune(365, allowed)
        assert seqs(journal.unsent(0, 9999)) == list(range(1, 301))
        journal.mark_sent(range(1, 301))
        journal.prune(365, allowed)
        journal._write_back()
        assert 0.5 * allowed < path.stat().st_size <= allowed
        kept = seqs(journal.read(1, 9999))
        assert kept == list(range(kept[0], 301))  # the newest of those that could not go before
        for _ in range(20):
            for _ in range(5):
                journal.mark_sent([journal.commit(a_verdict(detail="x" * 1000)).seq])
            journal.prune(365, allowed)
        journal._write_back()
        assert path.stat().st_size <= allowed
        assert journal.size_bytes() <= allowed + 5 * 2**20  # with the WAL
        assert journal.last_seq() == 1100


def test_commits_go_on_while_old_rows_are_deleted(path):
    with Journal.open(path) as journal:
        for _ in range(400):
            journal.commit(a_verdict())
        journal.mark_sent(range(1, 401))
        pruned = []
        pruner = threading.Thread(target=lambda: pruned.append(journal.prune(365, 50_000)))
        pruner.start()
        while pruner.is_alive():
            journal.commit(a_verdict())
            pruner.join(0.001)  # two loops on one lock would starve each other
        assert pruned[0].rows > 300
        last = journal.last_seq()
        assert seqs(journal.unsent(0, 99999)) == list(range(401, last + 1))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 12 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs mount, to make a small disk")
    if mounted.returncode:
        pytest.skip(f"needs the rights to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    with (folder / "others").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def store(journal, rooms, size=1400, **changes):
    """Commit and mark as the service does, with room made when that fails."""
    verdict = a_verdict(detail="x" * size, **changes)
    try:
        stored = journal.commit(verdict)
    except JournalError:
        rooms.append(journal.make_room())
        stored = journal.commit(verdict)
    if stored.seq % 50:
        try:
            journal.mark_sent([stored.seq])
        except JournalError:
            rooms.append(journal.make_room())
            journal.mark_sent([stored.seq])


def test_on_a_full_disk_the_oldest_sent_rows_make_room_again_and_again(small_disk):
    rooms = []
    with Journal.open(small_disk / "journal.db") as journal:
        for _ in range(1500):
            store(journal, rooms)
        assert rooms == []
        for _ in range(3000):
            fill(small_disk)  # whatever the journal gives back, others take
            store(journal, rooms)
        assert len(rooms) > 1
        assert sum(rooms) > 1000
        assert (small_disk / "journal.db.ballast").stat().st_size == 2 * 2**20
        assert seqs(journal.unsent(0, 9999)) == list(range(50, 4501, 50))
        assert journal.last_seq() == 4500
    fill(small_disk)
    with Journal.open(small_disk / "journal.db") as journal:  # it starts on a full disk, too
        for _ in range(300):
            store(journal, rooms)
        assert journal.last_seq() == 4800


def test_on_a_full_disk_large_verdicts_make_room_too(small_disk):
    """Their deletion must not take more space than the ballast gave."""
    rooms = []
    with Journal.open(small_disk / "journal.db") as journal:
        for _ in range(80):
            store(journal, rooms, size=50_000)
        assert rooms == []
        for _ in range(120):
            fill(small_disk)
            store(journal, rooms, size=50_000)
        assert len(rooms) > 1
        assert journal.last_seq() == 200
        (small_disk / "others").unlink()


def test_on_a_full_disk_nothing_unsent_is_deleted_and_the_commit_fails(small_disk):
    with Journal.open(small_disk / "journal.db") as journal:
        fill(small_disk)

        def commit_for_ever():
            while True:
                journal.commit(a_verdict(detail="x" * 1400))

        with pytest.raises(JournalError, match="full"):
            commit_for_ever()
        last = journal.last_seq()
        assert journal.make_room() == 0
        assert (small_disk / "journal.db.ballast").stat().st_size == 2 * 2**20
        assert seqs(journal.unsent(0, 99999)) == list(range(1, last + 1))
        (small_disk / "others").unlink()
        assert journal.commit(a_verdict()).seq == last + 1


def test_a_closed_journal_answers_with_an_error(path):
    journal = Journal.open(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.commit(a_verdict())


def test_rows_that_were_sent_can_be_asked_for_once_more(path):
    with Journal.open(path) as journal:
        for _ in range(4):
            journal.commit(a_verdict())
        journal.mark_sent([1, 2, 3])
        assert journal.mark_unsent(2, 9) == 3
        assert [row.seq for row in journal.unsent(0, 9)] == [2, 3, 4]
        assert journal.mark_unsent(8, 9) == 0


def test_verdicts_are_committed_between_the_steps_of_marking_many_to_be_sent_again(
    path, monkeypatch
):
    with Journal.open(path) as journal:
        for _ in range(300):
            journal.commit(a_verdict())
        journal.mark_sent(range(1, 301))
        with closing(sqlite3.connect(path)) as database:
            database.execute("DELETE FROM inspection WHERE seq BETWEEN 30 AND 50")
            database.commit()
        steps = [0]

        def pause(_seconds):
            steps.append(journal.unsent_count())
            journal.commit(a_verdict())

        monkeypatch.setattr("inspectd.journal.time.sleep", pause)
        assert journal.mark_unsent(1, 300) == 279
        assert len(steps) > 4
        assert max(after - before for before, after in pairwise(steps)) <= 65
        assert steps[-1] == 279 + len(steps) - 2
        assert seqs(journal.unsent(0, 279)) == [*range(1, 30), *range(51, 301)]


def test_an_idle_journal_is_looked_after_without_a_write(path):
    """It is done each minute, for years; a card wears by what is written."""
    with Journal.open(path) as journal:
        for _ in range(3):
            journal.commit(a_verdict())
        journal.mark_sent([1, 2, 3])
        journal.prune(30.0, 10**9)
        before = _last_changes(path.parent)
        journal.prune(30.0, 10**9)
        assert _last_changes(path.parent) == before


def _last_changes(folder):
    return {
        entry.name: (entry.stat().st_size, entry.stat().st_mtime_ns) for entry in folder.iterdir()
    }
