"""The journal: the one durable record of what was judged, history and outbox in one.

An SQLite file in WAL mode. A verdict counts once it is committed here, with its sequence number;
`seq` runs 1, 2, 3 … without a gap for the life of the file, and a new file has a new id. A row
stays unsent until the broker has acknowledged it; only sent rows are ever deleted.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import msgspec

from inspectd.errors import JournalDamaged, JournalError, JournalUnusable
from inspectd.journal.ballast import BALLAST_BYTES, drop_ballast, make_ballast
from inspectd.journal.damage import Damage, is_damage, put_aside
from inspectd.journal.database import (
    BUSY_TIMEOUT_S,
    PAGE_BYTES,
    connect,
    last_seq,
    read_id,
    words_on_opening,
)
from inspectd.journal.lock import take_lock
from inspectd.payload import VerdictPayload, decode_verdict, encode
from inspectd.typed_json import JsonError

_PROBE_BYTES = 65536
_ROOM_BYTES = 2 << 20  # about a thousand verdicts
_MARKING_BYTES = 512 << 10
"""Of the ballast: what marking and deleting may take in the WAL."""
_BATCH_ROWS = 16  # deleted at a time: a millisecond, and a few on a Raspberry Pi
_BATCH_PAGES = 64
_BATCH_MARKS = 64  # marked at a time: no longer than deleting a batch
_MARKS_PER_WRITE_BACK = 512
_ROWS_PER_WRITE_BACK = 128
_HEADROOM = 20  # a twentieth of the allowed size is kept free, for the rows until the next pruning
_ANSWERS_KEPT = 1000


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
class Pruned:
    """What was deleted, and the bytes in the file that became free by it."""

    rows: int
    bytes: int


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
        self._connection = connect(path)
        try:
            self.id = read_id(self._connection)
            """Made with the file; `seq` counts within it."""
        except BaseException:
            self._connection.close()
            raise
        self._reserve_bytes = make_ballast(self.path)

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
            lock_file = take_lock(path)
        except OSError as error:
            raise JournalUnusable(
                f"the journal {path} cannot be opened: {error.strerror}; "
                f"the folder {path.parent} must be writable for the user the service runs as"
            ) from error
        try:
            try:
                if path.exists() and not path.stat().st_size:
                    # SQLite would begin anew in it without a word, and delete its WAL.
                    raise Damage("it is empty")
                return cls(path, sync, lock_file, None)
            except sqlite3.Error as error:
                if is_damage(error):
                    return cls(path, sync, lock_file, put_aside(path, error))
                if not (_may_be_full(error) and drop_ballast(path)):
                    raise
                return cls(path, sync, lock_file, None)
        except sqlite3.Error as error:
            lock_file.close()
            raise JournalUnusable(words_on_opening(path, error)) from error
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
                    self.set_aside = put_aside(self.path, Damage("found at work"))
                self._connection = connect(self.path)
                self.id = read_id(self._connection)

    def commit(self, verdict: VerdictPayload) -> VerdictPayload:
        """Store a verdict for good and give it the next sequence number.

        Args:
            verdict: its ``seq`` and ``journal_id`` are set here.

        Returns:
            The verdict as stored; what may happen from here on is told at `open`, under ``sync``.

        Raises:
            JournalError: nothing was stored (disk full, read-only, transaction known already).
        """
        with self._addition(f"verdict {verdict.id} could not be committed"):
            seq = last_seq(self._connection) + 1
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
            with self._addition("the journal cannot be written"):
                self._connection.execute(statement, values)

    def find_transaction(self, transaction: str) -> VerdictPayload | None:
        """The verdict that this requester's transaction was answered with, if it was.

        Raises:
            JournalError: the journal could not be read.
        """
        rows = self._query(
            "SELECT seq, CAST(payload AS BLOB) FROM inspection WHERE requester_transaction = ?",
            transaction,
        )
        if not rows:
            return None
        seq, payload = rows[0]
        try:
            return decode_verdict(payload)
        except JsonError as error:
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
        with self._addition(f"the answer to request {request} could not be kept"):
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
                "SELECT seq, id, CAST(payload AS BLOB) FROM inspection "
                "WHERE seq BETWEEN ? AND ? ORDER BY seq",
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
                "SELECT seq, id, CAST(payload AS BLOB) FROM inspection WHERE sent = 0 AND seq > ? "
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
            if journal_id in {None, self.id}:
                self._mark(seqs)

    def mark_unsent(self, first: int, last: int) -> int:
        """Have the rows ``first`` to ``last``, both included, sent once more.

        In small steps with pauses, as `prune`; on the disk when it returns.

        Returns:
            How many of them are kept.

        Raises:
            JournalError: not all of them were marked.
        """
        failure = "verdicts could not be marked to be sent again"
        kept = since_written_back = 0
        while True:
            with self._pausing(self._addition(failure, durable=False)):
                batch = self._connection.execute(
                    "SELECT seq FROM inspection WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
                    (first, last, _BATCH_MARKS),
                ).fetchall()
                if not batch:
                    break
                first = batch[-1][0] + 1
                self._connection.execute(
                    "UPDATE inspection SET sent = 0 WHERE seq BETWEEN ? AND ? AND sent = 1",
                    (batch[0][0], batch[-1][0]),
                )
            kept += len(batch)
            since_written_back += len(batch)
            if since_written_back >= _MARKS_PER_WRITE_BACK:
                self._write_back_aside()
                since_written_back = 0
        if since_written_back:
            self._write_back_aside()  # which waits for the disk, as no step has
        return kept

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
            return last_seq(self._connection)

    def size_bytes(self) -> int:
        """What file and WAL occupy on the disk; without the ballast."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
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
        failure = "old verdicts could not be deleted"
        rows = pages = after = since_written_back = 0
        while True:
            with self._pausing(self._transaction(failure, durable=False)):
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
        with self._guard:
            self._reserve_bytes = make_ballast(self.path)
        return Pruned(rows, pages * PAGE_BYTES)

    def keeps_older_than(self, days: float) -> bool:
        """Whether sent rows of that age lie at its beginning, by the clock as it stands.

        Raises:
            JournalError: the journal could not be read.
        """
        rows = self._query(
            "SELECT max(old) FROM (SELECT sent AND committed_at < ? AS old FROM inspection "
            "ORDER BY seq LIMIT ?)",
            _days_ago(days),
            _BATCH_ROWS,
        )
        return bool(rows[0][0])

    def make_room(self, acknowledged: Sequence[int] = (), journal_id: str | None = None) -> int:
        """Make room for about a thousand more verdicts when the disk is full.

        The ballast is removed, which gives SQLite the space that deleting takes; the oldest sent
        rows are deleted; and the ballast is made anew of what the file gives back. Where nothing
        can be deleted the ballast stays: it is what lets the rows be marked once they are sent.

        Args:
            acknowledged: rows that `mark_sent` had no space for; they are marked before.
            journal_id: that of these rows, as of `mark_sent`.

        Returns:
            The number of rows deleted; 0 also when the file had enough free space already, or when
            no row is sent. What failed is worth a new attempt in any case.

        Raises:
            JournalError: the disk does not even allow that, or it is not the disk that is wrong.
        """
        with self._guard, self._errors("no room could be made in the journal"):
            seqs = acknowledged if journal_id in {None, self.id} else ()
            if not (seqs or self._has_room() or self._has_sent()):
                return 0
            drop_ballast(self.path)
            try:
                self._write_back()
                with self._all_or_nothing(durable=False):
                    self._mark(seqs)
                rows = self._delete_for_room()
                self._write_back()
                while (
                    make_ballast(self.path) < BALLAST_BYTES and self._pragma("freelist_count") > 0
                ):
                    drop_ballast(self.path)  # giving back takes space in the WAL first
                    with self._all_or_nothing(durable=False):
                        self._give_back(4 * _BATCH_PAGES)
                    self._write_back()
            finally:
                self._reserve_bytes = make_ballast(self.path)
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
        return (self._pragma("page_count") - self._pragma("freelist_count")) * PAGE_BYTES

    def _has_room(self) -> bool:
        """Whether the file has the space for ballast and verdicts in itself."""
        return self._pragma("freelist_count") * PAGE_BYTES >= BALLAST_BYTES + _ROOM_BYTES

    def _has_sent(self) -> bool:
        # Counted, since both counts are read from an index: an outage may leave a million rows.
        kept, unsent = self._connection.execute(
            "SELECT (SELECT count(*) FROM inspection), "
            "(SELECT count(*) FROM inspection WHERE sent = 0)"
        ).fetchone()
        return bool(kept > unsent)

    def _delete_for_room(self) -> int:
        rows = 0
        while not self._has_room():
            oldest = self._connection.execute(
                "SELECT seq FROM inspection WHERE sent = 1 ORDER BY seq LIMIT ?",
                (_ROWS_PER_WRITE_BACK,),
            ).fetchall()
            if not oldest:
                break
            with self._all_or_nothing(durable=False):
                self._delete([seq for (seq,) in oldest])
            rows += len(oldest)
        return rows

    def _mark(self, seqs: Sequence[int]) -> None:
        self._connection.executemany(
            "UPDATE inspection SET sent = 1 WHERE seq = ?", [(seq,) for seq in seqs]
        )

    def _delete(self, seqs: Sequence[int]) -> None:
        self._connection.executemany(
            "DELETE FROM inspection WHERE seq = ? AND sent = 1", [(seq,) for seq in seqs]
        )

    def _shrink(self, max_bytes: int) -> None:
        """Give back to the disk what the file is larger, as far as it is free."""
        failure = "the journal could not be made smaller"
        while True:
            with self._pausing(self._transaction(failure, durable=False)):
                over = self._pragma("page_count") * PAGE_BYTES > max_bytes
                if not over or not self._pragma("freelist_count"):
                    return
                self._give_back(_BATCH_PAGES)

    def _give_back(self, pages: int) -> None:
        # One by one: Python's module ends a statement without columns after its first step, and
        # each page is a step.
        for _ in range(pages):
            self._connection.execute("PRAGMA incremental_vacuum(1)")

    @contextmanager
    def _pausing(self, transaction: AbstractContextManager[None]) -> Iterator[None]:
        """A transaction that leaves as much time to the others afterwards as it took."""
        begun = time.monotonic()
        with transaction:
            yield
        time.sleep(time.monotonic() - begun)

    def _write_back(self) -> None:
        """Copy the WAL into the file, so that the next commit overwrites it from its start."""
        self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def _write_back_aside(self) -> None:
        """The same without holding the guard: only who writes back waits for the disk."""
        with (
            self._errors("the journal could not be written back"),
            closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as aside,
        ):
            aside.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @contextmanager
    def _transaction(self, failure: str, *, durable: bool = True) -> Iterator[None]:
        """All of the block or nothing; on the disk afterwards if ``durable`` and so set."""
        with self._guard, self._errors(failure), self._all_or_nothing(durable=durable):
            yield

    @contextmanager
    def _addition(self, failure: str, *, durable: bool = True) -> Iterator[None]:
        """A transaction that may make the file larger, as far as the ballast reaches.

        The file grows when the WAL is written back. What is in the WAL must find its space then,
        or nothing can be marked or deleted any more either.
        """
        with self._transaction(failure, durable=durable):
            yield
            grows = self._pragma("page_count") * PAGE_BYTES - self.path.stat().st_size
            if grows > 0 and not self._can_grow_by(grows):
                raise JournalError(
                    f"{failure}: the disk is full to the journal's last reserve ({self.path})"
                )

    def _can_grow_by(self, size: int) -> bool:
        wanted = size + _MARKING_BYTES
        if wanted <= self._reserve_bytes:
            return True
        self._reserve_bytes = make_ballast(self.path)
        if self._reserve_bytes == BALLAST_BYTES:
            # Whoever reads for long keeps the WAL from being written back, on any disk.
            disk = os.statvfs(self.path.parent)
            return wanted <= BALLAST_BYTES + disk.f_bavail * disk.f_frsize
        return wanted <= self._reserve_bytes

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
            kind = JournalDamaged if is_damage(error) else JournalError
            raise kind(f"{failure}: {error} ({self.path})") from error
        except OSError as error:
            raise JournalError(f"{failure}: {error.strerror} ({self.path})") from error


def _written(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds")


def _days_ago(days: float) -> str:
    """As in the columns, which compare as text; the first instant of all if it is before that."""
    try:
        return _written(datetime.now(UTC) - timedelta(days=days))
    except OverflowError:
        return ""


def _may_be_full(error: sqlite3.Error) -> bool:
    """Whether more space on the disk might help: SQLite needs some even to open a file."""
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return primary in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
