import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime

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


def test_a_transaction_whose_verdict_is_damaged_is_an_error(path):
    with Journal.open(path) as journal:
        journal.commit(a_verdict(transaction="T-1"))
        journal._connection.execute("UPDATE inspection SET payload = '{}'")
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
    )
    announced = 0
    for kill_after in (1, 7, 40):
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
            assert seqs(rows) == list(range(1, last + 1))
            assert last >= announced
            assert all(decode_verdict(row.payload).seq == row.seq for row in rows)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "journal.db"
    with pytest.raises(JournalUnusable, match=r"file/journal\.db cannot be opened.*writable"):
        Journal.open(path)


def test_what_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is not a database, but a note of a technician\n" * 100)
    content = path.read_bytes()
    with pytest.raises(JournalUnusable, match=r"journal\.db is damaged or no journal.*move it"):
        Journal.open(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(tmp_path):
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    database.close()
    with pytest.raises(JournalUnusable, match="something else"):
        Journal.open(path)


def test_a_journal_of_a_newer_version_is_refused_without_change(path):
    Journal.open(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(JournalUnusable, match=r"newer inspectd \(its schema is 99"):
        Journal.open(path)


def test_a_journal_that_was_refused_can_be_opened_once_it_is_put_right(path):
    Journal.open(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalUnusable):
        Journal.open(path)
    database.execute("PRAGMA user_version = 1")
    database.close()
    Journal.open(path).close()


def test_a_closed_journal_answers_with_an_error(path):
    journal = Journal.open(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.commit(a_verdict())
