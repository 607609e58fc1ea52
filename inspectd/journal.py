"""The journal: the one durable record of what was judged, history and outbox in one.

An SQLite file in WAL mode. A verdict counts once it is committed here, with its sequence number;
`seq` runs 1, 2, 3 … without a gap for the life of the file, and a new file has a new id. A row
stays unsent until the broker has acknowledged it; only sent rows are ever deleted.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import msgspec

from inspectd.errors import JournalDamaged, JournalError, JournalUnusable
from inspectd.payload import VerdictPayload, decode_verdict, encode

_logger = logging.getLogger(__name__)

_VERSION = 2
_BUSY_TIMEOUT_S = 5.0  # others only read (a backup, a person with sqlite3), but may lock meanwhile
_PROBE_BYTES = 65536
_PROGRESS_STEPS = 10_000  # of SQLite's machine, about a millisecond
_SEARCH_AT_OPENING_S = 2.0

# A commit writes each page that it touches, whole. With pages of 1 KiB, and no index on `id`, that
# is 40 % of what it is with SQLite's 4 KiB (docs/journal.md); the memory card wears that much less.
_PAGE_BYTES = 1024
_WAL_BYTES = 1 << 20  # written back into the file when it is so long, then overwritten
_AUTO_VACUUM_INCREMENTAL = 2
_BALLAST_BYTES = 2 << 20  # more than the pages of a WAL that the file may have to grow by
_ROOM_BYTES = 2 << 20  # about a thousand verdicts
_BATCH_ROWS = 16  # deleted at a time: a millisecond, and a few on a Raspberry Pi
_BATCH_PAGES = 64
_ROWS_PER_WRITE_BACK = 128
_HEADROOM = 20  # a twentieth of the allowed size is kept free, for the rows until the next pruning
_ANSWERS_KEPT = 1000

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # AUTOINCREMENT keeps the last number in sqlite_sequence, in the same transaction as the row:
    # it rolls back with it, and is not given again when the newest rows are deleted. The payload
    # comes last: what lies behind it in a row is read through all of it.
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


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request was answered, and when (UTC)."""

    at: datetime
    response: bytes


@dataclass(frozen=True, slots=True)
class Examined:
    """What a journal looks like from outside.

    Attributes:
        last_seq: the last sequence number given.
        unsent: rows that the broker has not acknowledged.
        searched: whether the time sufficed to search all of it for damage.
    """

    last_seq: int
    unsent: int
    searched: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, and the bytes in the file that became free by it."""

    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy of a journal, as it was at one moment."""

    id: str
    last_seq: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a journal holds.

    Attributes:
        counts: of the rows kept, by verdict.
        oldest: when the first row kept was committed (UTC, RFC 3339); None without rows.
        newest: the same of the last.
        last: the newest rows, in order.
    """

    id: str
    last_seq: int
    unsent: int
    counts: dict[str, int]
    oldest: str | None
    newest: str | None
    last: tuple[Row, ...]


class _Damage(sqlite3.DatabaseError):
    """What SQLite itself does not call an error."""


class Journal:
    """An open journal; safe to call from several threads.

    Only one process at a time may hold it open, which a lock on the file ``NAME.lock`` beside it
    ensures; others may read it with SQLite's tools. The file ``NAME.ballast`` beside it only
    occupies space, which `make_room` uses when the disk is full.

    Whatever finds the file damaged raises JournalDamaged; `reopen` begins a new one.
    """

    def __init__(
        self, path: Path, sync: Literal["full", "normal"], lock_file: TextIO, damaged: Path | None
    ) -> None:
        """Use `open`."""
        self.path = path
        self.set_aside = damaged
        """Where the damaged journal lies that this one replaces; None if there was none."""
        self._sync = sync
        self._lock_file = lock_file
        self._guard = threading.Lock()
        self._connection = _connect(path)
        try:
            self.id = _read_id(self._connection)
            """Made with the file; `seq` counts within it."""
        except BaseException:
            self._connection.close()
            raise
        self._make_ballast()

    @classmethod
    def open(cls, path: Path, sync: Literal["full", "normal"] = "full") -> Self:
        """The journal at ``path``, made if it is not there, with its folder.

        A damaged one is set aside (see `set_aside`) and a new one begun. For damage it is searched
        two seconds long at most; what that does not reach is found when it is read or written.

        Args:
            path: of the file.
            sync: what a commit outlives. ``full``: a power cut, since each commit waits for the
                disk. ``normal``: only the end of the process, however violent; a power cut may
                take the verdicts of about the last half minute, and their numbers are given again.

        Raises:
            JournalUnusable: another process holds it, it cannot be read or written at present, is
                a database of something else, or was written by a newer version.
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
            try:
                return cls(path, sync, lock_file, None)
            except sqlite3.Error as error:
                if _is_damage(error):
                    return cls(path, sync, lock_file, _put_aside(path, error))
                if not (_may_be_full(error) and _drop_ballast(path)):
                    raise
                return cls(path, sync, lock_file, None)
        except sqlite3.Error as error:
            lock_file.close()
            raise JournalUnusable(_words_on_opening(path, error)) from error
        except BaseException:
            lock_file.close()
            raise

    def reopen(self) -> None:
        """Set the file aside as damaged and go on with a new one: a new `id`, seq from 1.

        For whoever was told JournalDamaged. Verdicts not yet sent stay in the file set aside.

        Raises:
            JournalError: it did not succeed; it may be tried again.
            JournalUnusable: likewise, where a person must see to the folder.
        """
        with self._guard:
            if self._lock_file.closed:
                raise JournalError(f"the journal is closed ({self.path})")
            self._connection.close()
            with self._errors("a new journal could not be begun"):
                # Nothing is there to be set aside if the last attempt came so far.
                if self.path.exists():
                    self.set_aside = _put_aside(self.path, _Damage("found at work"))
                self._connection = _connect(self.path)
                self.id = _read_id(self._connection)

    def commit(self, verdict: VerdictPayload) -> VerdictPayload:
        """Store a verdict for good and give it the next sequence number.

        Args:
            verdict: its ``seq`` and ``journal_id`` are set here.

        Returns:
            The verdict as stored; what may happen from here on is told at `open`, under ``sync``.

        Raises:
            JournalError: nothing was stored (disk full, read-only, transaction known already).
        """
        with self._transaction(f"verdict {verdict.id} could not be committed"):
            seq = _last_seq(self._connection) + 1
            stored = msgspec.structs.replace(verdict, seq=seq, journal_id=self.id)
            self._connection.execute(
                "INSERT INTO inspection (seq, id, requester_transaction, program, verdict, lot, "
                "committed_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    seq,
                    stored.id,
                    stored.transaction,
                    stored.program,
                    stored.verdict,
                    stored.lot,
                    _written(datetime.now(UTC)),
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

    def find_answer(self, request: str, transaction: str) -> Answer | None:
        """The response that this request with this transaction was answered with, if it was.

        Raises:
            JournalError: the journal could not be read.
        """
        rows = self._query(
            "SELECT at, response FROM answered WHERE request = ? AND requester_transaction = ?",
            request,
            transaction,
        )
        return Answer(datetime.fromisoformat(rows[0][0]), bytes(rows[0][1])) if rows else None

    def keep_answer(self, request: str, transaction: str, response: bytes) -> None:
        """Remember how a request was answered, as durably as a verdict; the last 1000 are kept.

        Raises:
            JournalError: nothing was stored (disk full, read-only, transaction known already).
        """
        with self._transaction(f"the answer to request {request} could not be kept"):
            number = self._connection.execute(
                "INSERT INTO answered (request, requester_transaction, at, response) "
                "VALUES (?, ?, ?, ?)",
                (request, transaction, _written(datetime.now(UTC)), response),
            ).lastrowid
            self._connection.execute(
                "DELETE FROM answered WHERE number <= ?", ((number or 0) - _ANSWERS_KEPT,)
            )

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

    def mark_sent(self, seqs: Sequence[int], journal_id: str | None = None) -> None:
        """Remember that the broker has acknowledged these rows.

        ``journal_id``, where given, is that of the rows: those of one that was replaced meanwhile
        have nothing to do with rows of the same numbers here.

        Raises:
            JournalError: none of them was marked.
        """
        # A mark that is lost with the power only makes its row go out once more, so it need not
        # wait for the disk, and the judging thread need not wait for it.
        with self._transaction("sent verdicts could not be marked", durable=False):
            if journal_id not in {None, self.id}:
                return
            self._connection.executemany(
                "UPDATE inspection SET sent = 1 WHERE seq = ?", [(seq,) for seq in seqs]
            )

    def mark_unsent(self, first: int, last: int) -> int:
        """Have the rows ``first`` to ``last``, both included, sent once more.

        Returns:
            How many of them are kept.

        Raises:
            JournalError: none of them was marked.
        """
        with self._transaction("verdicts could not be marked to be sent again"):
            marked = self._connection.execute(
                "UPDATE inspection SET sent = 0 WHERE seq BETWEEN ? AND ?", (first, last)
            )
        return marked.rowcount

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
            return _last_seq(self._connection)

    def size_bytes(self) -> int:
        """What file and WAL occupy on the disk; without the ballast."""
        files = (self.path, _beside(self.path, "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def prune(self, keep_days: float, max_bytes: int) -> Pruned:
        """Delete sent rows, the oldest first: those too old, and what is too much.

        Rows that are not sent stay, whatever their age and number. It works in small steps with
        pauses, so that whoever commits meanwhile waits a few milliseconds at most; not for the
        judging thread itself. Transactions of deleted rows are forgotten.

        Args:
            keep_days: sent rows and answers older than this are deleted; infinite for none.
            max_bytes: the file's size that is aimed at: what lies in it is kept a little below,
                and a file that an outage made larger is made smaller again.

        Raises:
            JournalError: not all was done that was to be done.
        """
        cutoff = _days_ago(keep_days)
        with self._transaction("old answers could not be deleted", durable=False):
            self._connection.execute("DELETE FROM answered WHERE at < ?", (cutoff,))
        rows = pages = after = since_written_back = 0
        while True:
            with self._step("old verdicts could not be deleted"):
                free = self._pragma("freelist_count")
                over = self._used_bytes() > max_bytes - max_bytes // _HEADROOM
                batch = self._connection.execute(
                    "SELECT seq, sent, committed_at < ? FROM inspection WHERE seq > ? "
                    "ORDER BY seq LIMIT ?",
                    (cutoff, after, _BATCH_ROWS),
                ).fetchall()
                if not batch or not (over or any(old for _, _, old in batch)):
                    break
                after = batch[-1][0]
                doomed = [seq for seq, sent, old in batch if sent and (over or old)]
                self._delete(doomed)
                rows += len(doomed)
                pages += self._pragma("freelist_count") - free
            since_written_back += len(doomed)
            if since_written_back >= _ROWS_PER_WRITE_BACK:
                self._write_back_aside()
                since_written_back = 0
        self._shrink(max_bytes)
        self._write_back_aside()
        self._make_ballast()
        return Pruned(rows, pages * _PAGE_BYTES)

    def make_room(self) -> int:
        """Make room for about a thousand more verdicts when a commit failed on a full disk.

        The ballast is removed, which gives SQLite the space that deleting takes; the oldest sent
        rows are deleted; and the ballast is made anew of what the file gives back.

        Returns:
            The number of rows deleted; 0 also when the file had enough free space already, or when
            no row is sent. The commit is worth a new attempt in any case.

        Raises:
            JournalError: the disk does not even allow that, or it is not the disk that is wrong.
        """
        rows = 0
        with self._guard, self._errors("no room could be made in the journal"):
            _drop_ballast(self.path)
            try:
                self._write_back()
                while self._pragma("freelist_count") * _PAGE_BYTES < _BALLAST_BYTES + _ROOM_BYTES:
                    oldest = self._connection.execute(
                        "SELECT seq FROM inspection WHERE sent = 1 ORDER BY seq LIMIT ?",
                        (_ROWS_PER_WRITE_BACK,),
                    ).fetchall()
                    if not oldest:
                        break
                    with self._all_or_nothing(durable=False):
                        self._delete([seq for (seq,) in oldest])
                    rows += len(oldest)
                self._write_back()
            finally:
                while not self._make_ballast() and self._pragma("freelist_count"):
                    with self._all_or_nothing(durable=False):
                        self._give_back(4 * _BATCH_PAGES)
                    self._write_back()
        return rows

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

    def _query(self, sql: str, *values: str | int) -> list[Any]:
        with self._guard, self._errors("the journal could not be read"):
            return self._connection.execute(sql, values).fetchall()

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _used_bytes(self) -> int:
        return (self._pragma("page_count") - self._pragma("freelist_count")) * _PAGE_BYTES

    def _delete(self, seqs: Sequence[int]) -> None:
        self._connection.executemany(
            "DELETE FROM inspection WHERE seq = ? AND sent = 1", [(seq,) for seq in seqs]
        )

    def _shrink(self, max_bytes: int) -> None:
        """Give back to the disk what the file is larger, as far as it is free."""
        while True:
            with self._step("the journal could not be made smaller"):
                over = self._pragma("page_count") * _PAGE_BYTES > max_bytes
                if not over or not self._pragma("freelist_count"):
                    return
                self._give_back(_BATCH_PAGES)

    def _give_back(self, pages: int) -> None:
        # One by one: Python's module ends a statement without columns after its first step, and
        # each page is a step.
        for _ in range(pages):
            self._connection.execute("PRAGMA incremental_vacuum(1)")

    @contextmanager
    def _step(self, failure: str) -> Iterator[None]:
        """A transaction that leaves as much time to the others afterwards as it took."""
        begun = time.monotonic()
        with self._transaction(failure, durable=False):
            yield
        time.sleep(time.monotonic() - begun)

    def _write_back(self) -> None:
        """Copy the WAL into the file, so that the next commit overwrites it from its start."""
        self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def _write_back_aside(self) -> None:
        """The same without holding the guard: only who writes back waits for the disk."""
        with (
            self._errors("the journal could not be written back"),
            closing(sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)) as aside,
        ):
            aside.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _make_ballast(self) -> bool:
        """False when the disk is full."""
        ballast = _beside(self.path, ".ballast")
        try:
            with ballast.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, _BALLAST_BYTES)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                _logger.warning(
                    "no space could be reserved for the journal in %s: %s", ballast, error.strerror
                )
                return True
            ballast.unlink(missing_ok=True)
            return False
        return True

    @contextmanager
    def _transaction(self, failure: str, *, durable: bool = True) -> Iterator[None]:
        """All of the block or nothing; on the disk afterwards if ``durable`` and so set."""
        with self._guard, self._errors(failure), self._all_or_nothing(durable=durable):
            yield

    @contextmanager
    def _all_or_nothing(self, *, durable: bool) -> Iterator[None]:
        level = "FULL" if durable and self._sync == "full" else "NORMAL"
        self._connection.execute(f"PRAGMA synchronous = {level}")
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
            kind = JournalDamaged if _is_damage(error) else JournalError
            raise kind(f"{failure}: {error} ({self.path})") from error


def examine(path: Path, timeout_s: float) -> Examined:
    """Look at a journal that another process may have open, without writing to it.

    Args:
        path: of the journal, which is there.
        timeout_s: how long to search for damage.

    Raises:
        JournalUnusable: it cannot be read, is damaged, or is no journal.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            if not database.execute("PRAGMA user_version").fetchone()[0]:
                raise JournalUnusable(f"{path} is no journal of inspectd, or one only just begun")
            searched = _search_for_damage(database, timeout_s)
            last = _last_seq(database)
            unsent = database.execute("SELECT count(*) FROM inspection WHERE sent = 0").fetchone()
            return Examined(last, unsent[0], searched)
    except sqlite3.OperationalError as error:
        raise JournalUnusable(
            f"the journal {path} cannot be read: {error}; ask as the user the service runs as"
        ) from error
    except sqlite3.Error as error:
        raise JournalUnusable(_words_on_opening(path, error)) from error


def copy(path: Path, target: Path) -> Copied:
    """Copy a journal that another process may have open and write to.

    Who writes need not wait; the copy is one file, without a WAL.

    Args:
        path: of the journal, which is there.
        target: of the copy, which is not.

    Raises:
        JournalUnusable: it cannot be copied, is damaged, or is no journal.
    """
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target, isolation_level=None)) as database,
        ):
            if not source.execute("PRAGMA user_version").fetchone()[0]:
                raise JournalUnusable(f"{path} is no journal of inspectd, or one only just begun")
            source.backup(database)  # in one go: in steps, each commit would begin it anew
            database.execute("PRAGMA journal_mode = DELETE")
            _search_for_damage(database, float("inf"))
            return Copied(_read_id(database), _last_seq(database))
    except sqlite3.Error as error:
        if _is_damage(error):
            raise JournalUnusable(_words_on_opening(path, error)) from error
        raise JournalUnusable(
            f"the journal {path} cannot be copied to {target}: {error}; both folders must be "
            "writable for this user, and the disk must have room"
        ) from error


def summarise(path: Path, rows: int) -> Summary:
    """Look into a journal that another process may have open, without writing to it.

    Args:
        path: of the journal, which is there.
        rows: how many of the newest are wanted.

    Raises:
        JournalUnusable: it cannot be read, is damaged, or is no journal.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            counts = database.execute("SELECT verdict, count(*) FROM inspection GROUP BY verdict")
            span = "SELECT min(committed_at), max(committed_at), sum(sent = 0) FROM inspection"
            last = database.execute(
                "SELECT seq, id, payload FROM inspection ORDER BY seq DESC LIMIT ?", (rows,)
            )
            oldest, newest, unsent = database.execute(span).fetchone()
            return Summary(
                id=_read_id(database),
                last_seq=_last_seq(database),
                unsent=unsent or 0,
                counts=dict(counts.fetchall()),
                oldest=oldest,
                newest=newest,
                last=tuple(Row(*row) for row in reversed(last.fetchall())),
            )
    except sqlite3.Error as error:
        raise JournalUnusable(_words_on_opening(path, error)) from error


def in_use(path: Path) -> str:
    """Which process has the journal open, in words; empty when none has, or there is no journal.

    Raises:
        JournalUnusable: this user may not know.
    """
    try:
        with _beside(path, ".lock").open(encoding="utf-8", errors="replace") as lock_file:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock_file.read().strip() or "another process"
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise JournalUnusable(
            f"whether {path} is in use cannot be seen: {error.strerror}; try sudo"
        ) from error
    return ""


def _search_for_damage(database: sqlite3.Connection, timeout_s: float) -> bool:
    """Whether the time sufficed; raises sqlite3.Error where there is damage."""
    give_up_at = time.monotonic() + timeout_s
    database.set_progress_handler(lambda: time.monotonic() > give_up_at, _PROGRESS_STEPS)
    try:
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return False
    finally:
        database.set_progress_handler(None, 0)
    if found != "ok":
        raise _Damage(found.splitlines()[-1])
    return True


def _take_lock(path: Path) -> TextIO:
    """The open lock file; the lock goes with it, also when the process is killed.

    Raises:
        JournalUnusable: another process holds the lock.
        OSError: the file cannot be made.
    """
    lock_path = path.with_name(path.name + ".lock")
    # Not emptied before it is written: on a full disk its block would be gone.
    lock_file = os.fdopen(
        os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+", encoding="utf-8"
    )
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
    lock_file.write(f"process {os.getpid()} ({' '.join(sys.argv)})")
    lock_file.truncate()
    lock_file.flush()
    return lock_file


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _drop_ballast(path: Path) -> bool:
    """Whether there was any."""
    try:
        _beside(path, ".ballast").unlink()
    except OSError:
        return False
    return True


def _written(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds")


def _days_ago(days: float) -> str:
    """As in the columns, which compare as text; the first instant of all if it is before that."""
    try:
        return _written(datetime.now(UTC) - timedelta(days=days))
    except OverflowError:
        return ""


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is wrong, rather than the moment, the rights or the disk."""
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return isinstance(error, _Damage) or primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _may_be_full(error: sqlite3.Error) -> bool:
    """Whether more space on the disk might help: SQLite needs some even to open a file."""
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return primary in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}


def _put_aside(path: Path, damage: sqlite3.Error) -> Path:
    """Rename a damaged journal with its WAL; where it lies then.

    Raises:
        JournalUnusable: it cannot be renamed.
    """
    instant = datetime.now(UTC)
    while (aside := _beside(path, f".damaged-{instant:%Y%m%dT%H%M%SZ}")).exists():
        instant += timedelta(seconds=1)
    try:
        # The file first: without its WAL it might pass for a sound one that is shorter.
        for suffix in ("", "-wal", "-shm"):
            if _beside(path, suffix).exists():
                _beside(path, suffix).rename(_beside(aside, suffix))
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise JournalUnusable(
            f"the journal {path} is damaged ({damage}) and cannot be set aside: {error.strerror}; "
            f"the folder {path.parent} must be writable for the user the service runs as"
        ) from error
    _logger.error(
        "the journal %s is damaged (%s). It was set aside as %s, with the verdicts that were not "
        "sent yet, and a new journal is begun, with a new id. The memory card may be failing or "
        "the power unsteady: check both, and what can be read of the old one with "
        "sqlite3 %s .recover",
        path,
        damage,
        aside,
        aside,
    )
    return aside


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
        if version == 0:
            _refuse_other_databases(connection, path)
        else:
            _search_for_damage(connection, _SEARCH_AT_OPENING_S)
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
        connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_BYTES // _PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {4 * _WAL_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_other_databases(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise JournalUnusable(
            f"{path} is a database of something else, not a journal of inspectd; "
            "move it away, or set storage.directory to another folder"
        )


def _lay_out(connection: sqlite3.Connection) -> None:
    """Give a new file, or one of version 1, its size of pages, and the means to become smaller."""
    page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    vacuum = connection.execute("PRAGMA auto_vacuum").fetchone()[0]
    if (page_bytes, vacuum) == (_PAGE_BYTES, _AUTO_VACUUM_INCREMENTAL):
        return
    connection.execute("PRAGMA journal_mode = DELETE")  # in WAL mode the size of pages is fixed
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    connection.execute(f"PRAGMA auto_vacuum = {_AUTO_VACUUM_INCREMENTAL}")
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


def _read_id(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT value FROM meta WHERE key = 'journal_id'").fetchone()
    if row is None:
        raise _Damage("its id is missing")
    return str(row[0])


def _last_seq(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'inspection'").fetchone()
    return int(row[0]) if row else 0


def _words_on_opening(path: Path, error: sqlite3.Error) -> str:
    if isinstance(error, sqlite3.OperationalError):
        return (
            f"the journal {path} cannot be opened: {error}; it and the folder {path.parent} must "
            "be writable for the user the service runs as, and the disk must not be full"
        )
    return (
        f"the journal {path} is damaged or no journal: {error}; the service sets it aside when it "
        "starts and begins a new one, with a new id"
    )
