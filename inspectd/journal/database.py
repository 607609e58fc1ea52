"""The database in the journal's file: its tables, made or migrated as it is opened."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path

from inspectd.errors import JournalUnusable
from inspectd.journal.damage import Damage, search_for_damage

BUSY_TIMEOUT_S = 5.0
"""Others only read (a backup, a person with sqlite3), but may lock meanwhile."""
PAGE_BYTES = 1024
"""A commit writes each page that it touches, whole. With pages of 1 KiB, and no index on `id`, that
is 40 % of what it is with SQLite's 4 KiB (docs/journal.md); the memory card wears that much less.
"""
_VERSION = 2
_SEARCH_AT_OPENING_S = 2.0
_WAL_BYTES = 1 << 20  # written back into the file when it is so long, then overwritten
_AUTO_VACUUM_INCREMENTAL = 2

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # AUTOINCREMENT keeps the last number in sqlite_sequence, in the same transaction as the row:
    # it rolls back with it, and is not given again when the newest rows are deleted. The payload
    # comes last: what lies behind it in a row is read through all of it. It is read by a CAST: a
    # person who edits a row leaves a text or a number there.
    """CREATE TABLE inspection (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        requester_transaction TEXT UNIQUE,
        program TEXT NOT NULL,
        verdict TEXT NOT NULL,
        lot TEXT,
        committed_at TEXT NOT NULL,
        sent INTEGER NOT NULL DEFAULT 0,
        payload BLOB NOT NULL
    )""",
    "CREATE INDEX unsent ON inspection (seq) WHERE sent = 0",
    """CREATE TABLE answered (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        request TEXT NOT NULL,
        requester_transaction TEXT NOT NULL,
        at TEXT NOT NULL,
        response BLOB NOT NULL,
        UNIQUE (request, requester_transaction)
    )""",
)
_FROM_VERSION_1 = (
    "ALTER TABLE inspection RENAME TO old_inspection",
    "DROP INDEX unsent",
    *_TABLES[1:],
    """INSERT INTO inspection
        SELECT seq, id, requester_transaction, program, verdict, NULL, committed_at, sent, payload
        FROM old_inspection ORDER BY seq""",
    "DELETE FROM sqlite_sequence WHERE name = 'inspection'",
    """INSERT INTO sqlite_sequence
        SELECT 'inspection', seq FROM sqlite_sequence WHERE name = 'old_inspection'""",
    "DROP TABLE old_inspection",
)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, made or brought to today's tables where it has to be.

    Raises:
        sqlite3.Error: it cannot be opened, or is damaged.
        JournalUnusable: where that would not say what is the matter.
    """
    is_new = not path.exists()
    # Transactions are written out in `Journal`; its guard keeps the threads apart.
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = read_text
    try:
        version = known_version(connection, path)
        if version == 0:
            _refuse_other_databases(connection, path)
            _choose_layout(connection)  # before the first page is written
        else:
            search_for_damage(connection, _SEARCH_AT_OPENING_S)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise JournalUnusable(
                f"the journal {path} lies on a file system without shared memory (a network "
                "share?); set storage.directory to a folder on a local disk"
            )
        if version < _VERSION:
            _create_or_migrate(connection, version)
        _lay_out(connection)
        # As Debian builds SQLite, what is deleted is written once more, as zeros: of a full disk's
        # last space nothing would be left by the first large rows, and the card wears by it.
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_BYTES // PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {4 * _WAL_BYTES}")
    except BaseException:
        connection.close()
        if is_new:
            _remove_if_empty(path)
        raise
    return connection


def read_text(raw: bytes) -> str:
    """For a connection: a byte that the card has spoilt must not hold up the other rows."""
    return raw.decode(errors="replace")


def _remove_if_empty(path: Path) -> None:
    """What SQLite left of a file it could not begin; later it would pass for an emptied one."""
    if path.exists() and not path.stat().st_size:
        path.unlink()


def known_version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of its tables, 0 in a new file; raises JournalUnusable for a later one."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > _VERSION:
        raise JournalUnusable(
            f"the journal {path} was written by a newer inspectd (its schema is {version}, "
            f"this one knows {_VERSION}); install that version again, or move the file away: "
            "a new journal is begun, with a new id"
        )
    return version


def _refuse_other_databases(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise JournalUnusable(
            f"{path} is a database of something else, not a journal of inspectd; "
            "move it away, or set storage.directory to another folder"
        )


def _choose_layout(connection: sqlite3.Connection) -> None:
    """The size of pages, and the means to become smaller: of a file when it is written anew."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute(f"PRAGMA auto_vacuum = {_AUTO_VACUUM_INCREMENTAL}")


def _lay_out(connection: sqlite3.Connection) -> None:
    """Write a file of version 1 anew where it has another layout; nobody may read it meanwhile."""
    page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    vacuum = connection.execute("PRAGMA auto_vacuum").fetchone()[0]
    if (page_bytes, vacuum) == (PAGE_BYTES, _AUTO_VACUUM_INCREMENTAL):
        return
    connection.execute("PRAGMA journal_mode = DELETE")  # in WAL mode the size of pages is fixed
    _choose_layout(connection)
    connection.execute("VACUUM")
    connection.execute("PRAGMA journal_mode = WAL")


def _create_or_migrate(connection: sqlite3.Connection, version: int) -> None:
    """From no tables (version 0) or those of version 1 to those of today, all or nothing."""
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES if version == 0 else _FROM_VERSION_1:
        connection.execute(statement)
    if version == 0:
        connection.execute("INSERT INTO meta VALUES ('journal_id', ?)", (uuid.uuid4().hex,))
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")


def read_id(connection: sqlite3.Connection) -> str:
    """The id that was made with the file; raises sqlite3.Error where there is none."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'journal_id'").fetchone()
    if row is None:
        raise Damage("its id is missing")
    return str(row[0])


def last_seq(connection: sqlite3.Connection) -> int:
    """The last sequence number given; 0 in a new journal."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'inspection'").fetchone()
    return int(row[0]) if row else 0


def words_on_opening(path: Path, error: sqlite3.Error) -> str:
    """What is wrong with a journal that could not be opened, and what to do."""
    if isinstance(error, sqlite3.OperationalError):
        return (
            f"the journal {path} cannot be opened: {error}; it and the folder {path.parent} must "
            "be writable for the user the service runs as, and the disk must not be full"
        )
    return (
        f"the journal {path} is damaged or no journal: {error}; the service sets it aside when it "
        "starts and begins a new one, with a new id"
    )
