"""The journal: the one durable record of what was judged, history and outbox in one.

An SQLite file in WAL mode. A verdict counts once it is committed here, with its sequence number;
`seq` runs 1, 2, 3 … without a gap for the life of the file, and a new file has a new id. A row
stays unsent until the broker has acknowledged it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import msgspec

from inspectd.errors import JournalError, JournalUnusable
from inspectd.payload import VerdictPayload, decode_verdict, encode

_VERSION = 1
_BUSY_TIMEOUT_S = 5.0  # others only read (a backup, a person with sqlite3), but may lock meanwhile
_PROBE_BYTES = 65536

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # AUTOINCREMENT keeps the last number in sqlite_sequence, in the same transaction as the row:
    # it rolls back with it, and is not given again when the newest rows are deleted.
    """CREATE TABLE inspection (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        requester_transaction TEXT UNIQUE,
        program TEXT NOT NULL,
        verdict TEXT NOT NULL,
        committed_at TEXT NOT NULL,
        payload BLOB NOT NULL,
        sent INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX unsent ON inspection (seq) WHERE sent = 0",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One committed inspection.

    Attributes:
        id: the inspection's own id.
        payload: JSON in UTF-8, as sent on topic `verdict`.
    """

    seq: int
    id: str
    payload: bytes


class Journal:
    """An open journal; safe to call from several threads.

    Only one process at a time may hold it open, which a lock on the file ``NAME.lock`` beside it
    ensures; others may read it with SQLite's tools.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock_file: TextIO) -> None:
        """Use `open`."""
        self.path = path
        self._connection = connection
        self._lock_file = lock_file
        self._guard = threading.Lock()
        self.id = _read_id(connection)
        """Made with the file; `seq` counts within it."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """The journal at ``path``, made if it is not there, with its folder.

        Raises:
            JournalUnusable: another process holds it, it cannot be written, is no journal, is
                damaged, or was written by a newer version.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock_file = _take_lock(path)
        except OSError as error:
            raise JournalUnusable(
                f"the journal {path} cannot be opened: {error.strerror}; "
                f"the folder {path.parent} must be writable for the user the service runs as"
            ) from error
        try:
            connection = _connect(path)
            try:
                return cls(path, connection, lock_file)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            lock_file.close()
            raise JournalUnusable(_words_on_opening(path, error)) from error
        except BaseException:
            lock_file.close()
            raise

    def commit(self, verdict: VerdictPayload) -> VerdictPayload:
        """Store a verdict for good and give it the next sequence number.

        Args:
            verdict: its ``seq`` and ``journal_id`` are set here.

        Returns:
            The verdict as stored; the power may fail from here on.

        Raises:
            JournalError: nothing was stored (disk full, read-only, transaction known already).
        """
        with self._transaction(f"verdict {verdict.id} could not be committed"):
            seq = self._last_seq() + 1
            stored = msgspec.structs.replace(verdict, seq=seq, journal_id=self.id)
            self._connection.execute(
                "INSERT INTO inspection (seq, id, requester_transaction, program, verdict, "
                "committed_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    seq,
                    stored.id,
                    stored.transaction,
                    stored.program,
                    stored.verdict,
                    datetime.now(UTC).isoformat(timespec="milliseconds"),
                    encode(stored),
                ),
            )
        return stored

    def probe(self) -> None:
        """Prove that verdicts can be committed, without committing one.

        Raises:
            JournalError: they cannot.
        """
        # Two transactions, both on the disk: what one of them writes and takes back never gets
        # there. The first is larger than a verdict, so that the last free page is no promise.
        for statement, values in (
            ("INSERT OR REPLACE INTO meta VALUES ('probe', ?)", ("0" * _PROBE_BYTES,)),
            ("DELETE FROM meta WHERE key = 'probe'", ()),
        ):
            with self._transaction("the journal cannot be written"):
                self._connection.execute(statement, values)

    def find_transaction(self, transaction: str) -> VerdictPayload | None:
        """The verdict that this requester's transaction was answered with, if it was.

        Raises:
            JournalError: the journal could not be read.
        """
        rows = self._query(
            "SELECT seq, payload FROM inspection WHERE requester_transaction = ?", transaction
        )
        if not rows:
            return None
        seq, payload = rows[0]
        try:
            return decode_verdict(payload)
        except msgspec.MsgspecError as error:
            raise JournalError(
                f"verdict {seq} of the journal could not be read: {error} ({self.path})"
            ) from error

    def read(self, first: int, last: int) -> list[Row]:
        """The rows ``first`` to ``last``, both included, in order.

        Raises:
            JournalError: the journal could not be read.
        """
        return [
            Row(*row)
            for row in self._query(
                "SELECT seq, id, payload FROM inspection WHERE seq BETWEEN ? AND ? ORDER BY seq",
                first,
                last,
            )
        ]

    def unsent(self, after: int, limit: int) -> list[Row]:
        """Up to ``limit`` rows that are not marked sent, those above ``after``, in order.

        Raises:
            JournalError: the journal could not be read.
        """
        return [
            Row(*row)
            for row in self._query(
                "SELECT seq, id, payload FROM inspection WHERE sent = 0 AND seq > ? "
                "ORDER BY seq LIMIT ?",
                after,
                limit,
            )
        ]

    def mark_sent(self, seqs: Sequence[int]) -> None:
        """Remember that the broker has acknowledged these rows.

        Raises:
            JournalError: none of them was marked.
        """
        # A mark that is lost with the power only makes its row go out once more, so it need not
        # wait for the disk, and the judging thread need not wait for it.
        with self._transaction("sent verdicts could not be marked", durable=False):
            self._connection.executemany(
                "UPDATE inspection SET sent = 1 WHERE seq = ?", [(seq,) for seq in seqs]
            )

    def unsent_count(self) -> int:
        """How many rows are not marked sent.

        Raises:
            JournalError: the journal could not be read.
        """
        count: int = self._query("SELECT count(*) FROM inspection WHERE sent = 0")[0][0]
        return count

    def last_seq(self) -> int:
        """The last sequence number given; 0 in a new journal.

        Raises:
            JournalError: the journal could not be read.
        """
        with self._guard, self._errors("the journal could not be read"):
            return self._last_seq()

    def close(self) -> None:
        """Write the WAL back into the file and let go of it. Closing it again does nothing.

        Raises:
            JournalError: closed, but the WAL stays beside the file until the next opening.
        """
        with self._guard:
            if self._lock_file.closed:
                return
            try:
                with self._errors("the journal could not be written back on closing"):
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self._connection.close()
                self._lock_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _last_seq(self) -> int:
        row = self._connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'inspection'"
        ).fetchone()
        return int(row[0]) if row else 0

    def _query(self, sql: str, *values: str | int) -> list[Any]:
        with self._guard, self._errors("the journal could not be read"):
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self, failure: str, *, durable: bool = True) -> Iterator[None]:
        """All of the block or nothing; on the disk afterwards if ``durable``."""
        with self._guard, self._errors(failure):
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # Some errors, a full disk among them, have rolled back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self, failure: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{failure}: {error} ({self.path})") from error


def _take_lock(path: Path) -> TextIO:
    """The open lock file; the lock goes with it, also when the process is killed.

    Raises:
        JournalUnusable: another process holds the lock.
        OSError: the file cannot be made.
    """
    lock_path = path.with_name(path.name + ".lock")
    lock_file = lock_path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock_file.seek(0)
        holder = lock_file.read().strip() or "another process"
        lock_file.close()
        raise JournalUnusable(
            f"the journal {path} is in use by {holder}; stop that one first, "
            "or give this station another name or storage.directory"
        ) from None
    lock_file.truncate(0)
    lock_file.write(f"process {os.getpid()} ({' '.join(sys.argv)})")
    lock_file.flush()
    return lock_file


def _connect(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error, or JournalUnusable where that would not say what is the matter."""
    # Transactions are written out in `Journal`; its guard keeps the threads apart.
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise JournalUnusable(
                f"the journal {path} was written by a newer inspectd (its schema is {version}, "
                f"this one knows {_VERSION}); install that version again, or move the file away: "
                "a new journal is begun, with a new id"
            )
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise JournalUnusable(
                f"the journal {path} lies on a file system without shared memory (a network "
                "share?); set storage.directory to a folder on a local disk"
            )
        if version == 0:
            _create(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise JournalUnusable(
            f"{path} is a database of something else, not a journal of inspectd; "
            "move it away, or set storage.directory to another folder"
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('journal_id', ?)", (uuid.uuid4().hex,))
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")


def _read_id(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT value FROM meta WHERE key = 'journal_id'").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("its id is missing")
    return str(row[0])


def _words_on_opening(path: Path, error: sqlite3.Error) -> str:
    if isinstance(error, sqlite3.OperationalError):
        return (
            f"the journal {path} cannot be opened: {error}; it and the folder {path.parent} must "
            "be writable for the user the service runs as, and the disk must not be full"
        )
    return (
        f"the journal {path} is damaged or no journal: {error}; keep a copy of it, then move it "
        "away with its -wal and -shm files: a new journal is begun, with a new id"
    )
