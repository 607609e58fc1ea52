"""What a Sparkplug node must know after a restart: its last session, and what is still to be sent.

One small file in the station's folder. It is written when a session begins or ends and once in a
while between, not with every verdict, to spare the card: after a crash, some verdicts go out
again, marked historical.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from inspectd.durable import replace_file, sync_folder
from inspectd.typed_json import JsonError, JsonReader

_logger = logging.getLogger(__name__)

SESSIONS = 256
"""bdSeq counts them, and begins anew at 0."""


class Missing:
    """Numbers of verdicts still to be sent, as closed ranges in ascending order."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._ranges: list[tuple[int, int]] = []
        for first, last in ranges:
            self.add(first, last)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        return tuple(self._ranges)

    def add(self, first: int, last: int) -> None:
        """Add ``first`` to ``last``, both included; none where ``last`` is the smaller."""
        if last < first:
            return
        apart = [r for r in self._ranges if r[1] < first - 1 or r[0] > last + 1]
        touching = [r for r in self._ranges if r not in apart]
        joined = (
            min([first, *(r[0] for r in touching)]),
            max([last, *(r[1] for r in touching)]),
        )
        self._ranges = sorted([*apart, joined])

    def first(self, count: int) -> tuple[int, int]:
        """The first range, cut to ``count`` numbers."""
        first, last = self._ranges[0]
        return first, min(last, first + count - 1)

    def drop_up_to(self, last: int) -> None:
        """Forget everything up to ``last``, included."""
        self._ranges = [(max(a, last + 1), b) for a, b in self._ranges if b > last]


class _File(msgspec.Struct, frozen=True):
    bd_seq: int | None
    journal: str
    offered: int
    missing: tuple[tuple[int, int], ...]


_FILE: JsonReader[_File] = JsonReader(_File)


class Memory:
    """The file's content.

    Attributes:
        bd_seq: of the last session; None before the first.
        journal: the id of the one that all numbers are of.
        offered: the last verdict that was sent live or entered into `missing`.
    """

    def __init__(self, path: Path, journal: str, last_seq: int) -> None:
        """Read the file; without one, or with one of another journal, begin at ``last_seq``."""
        self._path = path
        self.journal = journal
        self._written = b""
        self._failed = False
        self.bd_seq: int | None = None
        self.offered = last_seq
        self.missing = Missing()
        known = self._read()
        if known is None:
            return
        self.bd_seq = known.bd_seq
        if known.journal == journal:
            self.missing = Missing(known.missing)
            self.missing.add(known.offered + 1, last_seq)
        else:
            self.missing.add(1, last_seq)

    @property
    def next_bd_seq(self) -> int:
        return 0 if self.bd_seq is None else (self.bd_seq + 1) % SESSIONS

    def begin_anew(self, journal: str) -> None:
        """With another journal, in which nothing was offered yet."""
        self.journal = journal
        self.offered = 0
        self.missing = Missing()

    def write(self) -> None:
        """Onto the disk, if it is news; a failure is logged, once until it works again."""
        content = msgspec.json.encode(
            _File(self.bd_seq, self.journal, self.offered, self.missing.ranges)
        )
        if content == self._written:
            return
        try:
            replace_file(self._path, content)
            sync_folder(self._path.parent)
            self._written = content
            self._failed = False
        except OSError as error:
            if not self._failed:
                _logger.error(
                    "%s cannot be written: %s; after a restart, Sparkplug hosts may get verdicts "
                    "twice, and a session number again",
                    self._path,
                    error.strerror,
                )
            self._failed = True

    def _read(self) -> _File | None:
        try:
            return _FILE.read(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, JsonError) as error:
            _logger.error(
                "%s cannot be read: %s; Sparkplug begins anew, and verdicts that it still had to "
                "send stay in the journal",
                self._path,
                error,
            )
            return None
