"""What a damaged journal costs: the file is set aside whole, and a new one begun."""

import sqlite3
from contextlib import closing

import pytest
from verdicts import a_verdict

from inspectd.errors import JournalDamaged, JournalError, JournalUnusable
from inspectd.journal import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "line1-cell3" / "journal.db"


def test_what_is_no_database_is_set_aside_whole_and_a_new_journal_begun(tmp_path, caplog):
    path = tmp_path / "journal.db"
    content = b"this is not a database, but what a power cut left of one\n" * 100
    path.write_bytes(content)
    with Journal.open(path) as journal:
        assert journal.set_aside.name.startswith("journal.db.damaged-")
        assert journal.set_aside.read_bytes() == content
        assert journal.commit(a_verdict()).seq == 1
    message = caplog.messages[0]
    assert f"{path} is damaged" in message
    assert f"set aside as {journal.set_aside}" in message
    with Journal.open(path) as again:  # no loop: the new one is sound
        assert (again.id, again.set_aside, again.last_seq()) == (journal.id, None, 1)


def overwrite(path, page, pages=1):
    with path.open("r+b") as file:
        file.seek(page * 1024)
        file.write(b"\xa5" * 1024 * pages)


def test_a_malformed_page_found_at_opening_sets_the_file_aside(path):
    with Journal.open(path) as journal:
        first_id = journal.id
        for _ in range(100):
            journal.commit(a_verdict(detail="x" * 1000))
    overwrite(path, 20, 30)
    with Journal.open(path) as journal:
        assert journal.id != first_id
        assert journal.last_seq() == 0
        assert journal.set_aside.exists()


def test_an_emptied_file_is_damage_and_its_wal_is_kept(path, caplog):
    with Journal.open(path) as journal:
        first_id = journal.id
        journal.commit(a_verdict())
        wal = path.with_name("journal.db-wal").read_bytes()
    path.write_bytes(b"")
    path.with_name("journal.db-wal").write_bytes(wal)
    with Journal.open(path) as journal:
        assert journal.id != first_id
        assert journal.commit(a_verdict()).seq == 1
        aside = journal.set_aside
        assert aside.stat().st_size == 0
        assert aside.with_name(aside.name + "-wal").read_bytes() == wal
    assert f"{path} is damaged (it is empty)" in caplog.messages[0]


def test_a_first_journal_that_could_not_be_begun_is_not_taken_for_an_emptied_one(path, monkeypatch):
    def fail(_connection, _path):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("inspectd.journal.database._refuse_other_databases", fail)
        with pytest.raises(JournalUnusable, match="full"):
            Journal.open(path)
    with Journal.open(path) as journal:
        assert (journal.set_aside, journal.last_seq()) == (None, 0)


def test_the_wal_of_a_damaged_file_goes_with_it(path):
    with Journal.open(path) as journal:
        journal.commit(a_verdict())
        with closing(sqlite3.connect(path)) as reader:  # else SQLite writes it back on closing
            reader.execute("SELECT count(*) FROM inspection").fetchone()
            journal.reopen()
        aside = journal.set_aside
        assert aside.with_name(aside.name + "-wal").exists()
        assert journal.commit(a_verdict()).seq == 1


def test_damage_found_by_a_commit_is_told_apart_and_a_new_journal_can_be_begun(path):
    with Journal.open(path) as journal:
        first_id = journal.id
        for _ in range(100):
            journal.commit(a_verdict(detail="x" * 1000))
        journal._write_back()
        size = path.stat().st_size
        overwrite(path, 3, size // 1024 - 3)
        journal._connection.execute("PRAGMA shrink_memory")  # or its cache would still be right
        with pytest.raises(JournalDamaged, match=r"could not be committed: .*malformed"):
            journal.commit(a_verdict())
        journal.reopen()
        assert journal.id != first_id
        assert journal.set_aside.stat().st_size == size
        stored = journal.commit(a_verdict())
        assert (stored.seq, stored.journal_id) == (1, journal.id)
    with Journal.open(path) as again:
        assert (again.id, again.last_seq()) == (journal.id, 1)


def test_a_new_journal_that_cannot_be_begun_can_be_tried_again(path, monkeypatch):
    with Journal.open(path) as journal:
        first_id = journal.id
        journal.commit(a_verdict())
        with monkeypatch.context() as patch:
            patch.setattr("inspectd.journal.database._TABLES", ("INSERT INTO nowhere VALUES (1)",))
            with pytest.raises(JournalError, match=r"could not be begun.*nowhere.*journal\.db"):
                journal.reopen()
        with pytest.raises(JournalError, match="closed"):
            journal.commit(a_verdict())
        journal.reopen()
        assert journal.id != first_id
        assert journal.commit(a_verdict()).seq == 1


def test_a_locked_journal_is_not_set_aside(path, monkeypatch):
    with Journal.open(path) as journal:
        journal.commit(a_verdict())
    monkeypatch.setattr("inspectd.journal.database.BUSY_TIMEOUT_S", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalUnusable, match="locked"):
            Journal.open(path)
    with Journal.open(path) as journal:
        assert (journal.set_aside, journal.last_seq()) == (None, 1)
