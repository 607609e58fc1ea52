"""How the journal's file is made, taken over from version 1, or refused and left alone."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from verdicts import a_verdict

from inspectd.errors import JournalUnusable
from inspectd.journal import Journal
from inspectd.journal import database as database_module
from inspectd.payload import encode


@pytest.fixture
def path(tmp_path):
    return tmp_path / "line1-cell3" / "journal.db"


VERSION_1 = """
    PRAGMA journal_mode = WAL;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE inspection (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        requester_transaction TEXT UNIQUE,
        program TEXT NOT NULL,
        verdict TEXT NOT NULL,
        committed_at TEXT NOT NULL,
        payload BLOB NOT NULL,
        sent INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX unsent ON inspection (seq) WHERE sent = 0;
    INSERT INTO meta VALUES ('journal_id', 'made-by-version-1');
    PRAGMA user_version = 1;
"""


def a_journal_of_version_1(path):
    """Rows 1 to 9, the odd ones sent; 10 was given and deleted."""
    path.parent.mkdir()
    verdicts = [a_verdict(seq=seq, transaction=f"T-{seq}") for seq in range(1, 11)]
    with closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_1)
        database.executemany(
            "INSERT INTO inspection VALUES (?, ?, ?, 'connector', 'PASS', ?, ?, ?)",
            [
                (
                    v.seq,
                    v.id,
                    v.transaction,
                    f"2024-05-17T06:30:{v.seq:02}.000+00:00",
                    encode(v),
                    v.seq % 2,
                )
                for v in verdicts
            ],
        )
        database.execute("DELETE FROM inspection WHERE seq = 10")
        database.commit()
    return verdicts[:9]


def test_a_journal_of_version_1_is_taken_over_whole(path):
    verdicts = a_journal_of_version_1(path)
    for _ in range(2):  # and once it is, it stays
        with Journal.open(path) as journal:
            assert (journal.id, journal.set_aside) == ("made-by-version-1", None)
            assert journal.last_seq() == 10
            assert [row.payload for row in journal.read(1, 99)] == [encode(v) for v in verdicts]
            assert [row.seq for row in journal.unsent(0, 99)] == [2, 4, 6, 8]
            assert journal.find_transaction("T-7") == verdicts[6]
    with Journal.open(path) as journal:
        assert journal.commit(a_verdict(lot="L 5")).seq == 11
        journal.keep_answer("lot", "T-1", b"{}")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
        assert database.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert database.execute("SELECT lot FROM inspection WHERE seq > 8").fetchall() == [
            (None,),
            ("L 5",),
        ]


def test_a_migration_that_fails_leaves_version_1_as_it_was(path, monkeypatch):
    a_journal_of_version_1(path)
    statements = (*database_module._FROM_VERSION_1, "INSERT INTO nowhere VALUES (1)")
    with monkeypatch.context() as patch:
        patch.setattr(database_module, "_FROM_VERSION_1", statements)
        with pytest.raises(JournalUnusable, match="no such table: nowhere"):
            Journal.open(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM inspection").fetchone() == (9,)
    with Journal.open(path) as journal:
        assert journal.last_seq() == 10


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
    database.execute("PRAGMA user_version = 2")
    database.close()
    Journal.open(path).close()


READS_FOR_EVER = """
import sqlite3, sys
from contextlib import closing
print(flush=True)
while True:
    try:
        with closing(sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)) as database:
            database.execute("SELECT seq FROM inspection").fetchall()
    except sqlite3.Error:
        pass
"""


@pytest.mark.parametrize("attempt", range(10))
def test_whoever_reads_it_while_it_is_begun_is_not_in_the_way(path, attempt):
    """Such as a backup: "database is locked" would end the service's start, every other time."""
    path.parent.mkdir()
    reader = subprocess.Popen([sys.executable, "-c", READS_FOR_EVER, path], stdout=subprocess.PIPE)
    try:
        assert reader.stdout is not None
        reader.stdout.readline()
        with Journal.open(path) as journal:
            assert journal.last_seq() == 0
    finally:
        reader.kill()
        reader.communicate()
