"""Committing verdicts whatever disk and file do: room is made, a damaged journal is replaced.

What can be mended is mended before a part is refused for it. A thread of its own prunes the
journal, so that the one that judges need not.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import TypeVar

from inspectd.archive import Archive
from inspectd.clock import clock_synchronised
from inspectd.errors import JournalDamaged, JournalError, JournalUnusable
from inspectd.journal import Answer, Journal, Row
from inspectd.payload import VerdictPayload
from inspectd.settings import StorageSettings
from inspectd.state import StationState

_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

PRUNED_EVERY_S = 60.0
STOP_S = 0.5
FULL_BYTES = 4 << 20
"""A disk with less than this is what a commit failed for."""
WANTED_BYTES = 16 << 20
"""So much of the pictures is given up at once."""
DISK_FULL = (
    "the disk is full: {what}; delete what is not needed, or set archive.max_mb, storage.max_mb or "
    "storage.keep_days lower"
)
CLOCK_NOT_TRUSTED = (
    "verdicts older than storage.keep_days are kept, up to storage.max_mb: the clock is not "
    "synchronised, and by a wrong one all would seem old; give the machine a time server (NTP)"
)


class Recorder:
    """The journal as the service uses it: what finds it damaged has it replaced.

    `commit` belongs to the thread that judges; the rest is for any. After JournalDamaged the
    journal is a new one, and whatever was done is to be looked at anew.
    """

    def __init__(
        self,
        journal: Journal,
        archive: Archive,
        state: StationState,
        settings: StorageSettings,
        replaced: Callable[[], None],
    ) -> None:
        """Args:
        journal: open.
        archive: gives up pictures where the disk is full.
        state: is told what was done.
        settings: how much is kept; see `adopt`.
        replaced: called when a damaged journal was replaced by a new one, before anything is
            committed to that.
        """
        self._journal = journal
        self._archive = archive
        self._state = state
        self._settings = settings
        self._replaced = replaced
        # Nothing is committed between the beginning of a journal and the telling of it.
        self._guard = threading.Lock()
        self._broken = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        if journal.set_aside is not None:
            self._tell_of_damage()

    def start(self) -> None:
        """Prune now and then."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. A disk that hesitates is not waited for: pruning may end anywhere."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def adopt(self, settings: StorageSettings) -> None:
        """From now on these hold: keep_days, max_mb."""
        self._settings = settings

    def commit(self, verdict: VerdictPayload) -> VerdictPayload:
        """`Journal.commit`, tried once more where what was in the way could be removed.

        Raises:
            JournalError: nothing was stored.
        """
        with self._guard:
            return self._attempt(lambda: self._journal.commit(verdict))

    def probe(self) -> None:
        """`Journal.probe`, likewise: so a disk that was full is no longer, without a verdict.

        Raises:
            JournalError: nothing can be committed.
        """
        with self._guard:
            self._attempt(self._journal.probe)

    def _attempt(self, act: Callable[[], _Result]) -> _Result:
        """Under the guard; raises JournalError."""
        if self._broken:
            self._begin_anew()
        try:
            return act()
        except JournalDamaged:
            self._begin_anew()
        except JournalError:
            if not self._disk_is_full():
                raise
            self._make_room()
        return act()

    # ---- as of the journal; each may raise JournalError ----------------------------------------

    def read(self, first: int, last: int) -> list[Row]:
        with self._replacing():
            return self._journal.read(first, last)

    def unsent(self, after: int, limit: int) -> list[Row]:
        with self._replacing():
            return self._journal.unsent(after, limit)

    @property
    def id(self) -> str:
        return self._journal.id

    def mark_sent(self, seqs: Sequence[int], journal_id: str | None = None) -> None:
        with self._replacing():
            try:
                self._journal.mark_sent(seqs, journal_id)
            except JournalDamaged:
                raise
            except JournalError:
                if not self._disk_is_full():
                    raise
                self._make_room(seqs, journal_id)
                self._journal.mark_sent(seqs, journal_id)

    def mark_unsent(self, first: int, last: int) -> int:
        with self._replacing():
            return self._journal.mark_unsent(first, last)

    def unsent_count(self) -> int:
        with self._replacing():
            return self._journal.unsent_count()

    def last_seq(self) -> int:
        with self._replacing():
            return self._journal.last_seq()

    def find_answer(self, request: str, transaction: str) -> Answer | None:
        with self._replacing():
            return self._journal.find_answer(request, transaction)

    def keep_answer(self, request: str, transaction: str, response: bytes) -> None:
        with self._replacing():
            self._journal.keep_answer(request, transaction, response)

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        journal_id = self._journal.id
        try:
            yield
        except JournalDamaged:
            with self._guard:
                if self._journal.id == journal_id:  # nobody else was faster
                    self._begin_anew()
            raise

    # ---- a disk that is full -------------------------------------------------------------------

    def _disk_is_full(self) -> bool:
        try:
            disk = os.statvfs(self._journal.path.parent)
        except OSError as error:
            _logger.error("the disk of the journal cannot be looked at: %s", error.strerror)
            return False
        return disk.f_bavail * disk.f_frsize < FULL_BYTES

    def _make_room(self, acknowledged: Sequence[int] = (), journal_id: str | None = None) -> None:
        """Pictures first, then sent verdicts; raises JournalError."""
        freed = self._archive.free_room(WANTED_BYTES)
        rows = 0
        if freed < FULL_BYTES:
            rows = self._journal.make_room(acknowledged, journal_id)
        given = [
            f"the oldest pictures ({freed / 1e6:.1f} MB)" if freed else "",
            f"the {rows} oldest verdicts that were sent" if rows else "",
        ]
        what = " and ".join(filter(None, given))
        words = f"{what} were deleted to go on" if what else "there is nothing to give up"
        self._state.note_trouble("disk", DISK_FULL.format(what=words))

    # ---- a damaged file ------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        """Raises JournalError."""
        self._broken = True
        try:
            self._journal.reopen()
        except JournalUnusable as error:
            raise JournalError(str(error)) from error
        self._broken = False
        self._tell_of_damage()
        self._state.note_journal(self._journal.id)
        self._replaced()

    def _tell_of_damage(self) -> None:
        self._state.note_trouble(
            "journal",
            f"the journal was damaged: it was set aside as {self._journal.set_aside}, with what "
            "was not sent yet, and a new one was begun; check memory card and power supply",
        )

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.wait(PRUNED_EVERY_S):
            try:
                self.prune()
            except JournalError as error:
                _logger.error("%s", error)
            except Exception:
                # What is kept too long is not worth the service.
                _logger.exception("unexpected error while the journal was pruned")

    def prune(self) -> None:
        """Delete what is too old or too much; raises JournalError.

        By the clock only where it can be trusted: one that is wrong might find everything old.
        """
        settings = self._settings
        trusted = clock_synchronised()
        with self._replacing():
            self._journal.prune(settings.keep_days if trusted else inf, int(settings.max_mb * 1e6))
            kept = not trusted and self._journal.keeps_older_than(settings.keep_days)
        self._state.note_trouble("clock", CLOCK_NOT_TRUSTED if kept else "")
        if not self._disk_is_full():
            self._state.note_trouble("disk", "")
