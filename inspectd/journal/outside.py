"""A journal seen from outside: by whoever does not hold it open, while the service may."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from inspectd.errors import JournalUnusable
from inspectd.journal import Row
from inspectd.journal.damage import is_damage, search_for_damage
from inspectd.journal.database import (
    known_version,
    last_seq,
    read_id,
    read_text,
    words_on_opening,
)


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


def examine_journal(path: Path, timeout_s: float) -> Examined:
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
            searched = search_for_damage(database, timeout_s)
            last = last_seq(database)
            unsent = database.execute("SELECT count(*) FROM inspection WHERE sent = 0").fetchone()
            return Examined(last, unsent[0], searched)
    except sqlite3.OperationalError as error:
        raise JournalUnusable(
            f"the journal {path} cannot be read: {error}; ask as the user the service runs as"
        ) from error
    except sqlite3.Error as error:
        raise JournalUnusable(words_on_opening(path, error)) from error


def refuse_newer_journal(path: Path) -> None:
    """Make sure that this version can open a journal, which another process may have open.

    Damage is no hindrance: the service sets such a file aside.

    Args:
        path: of the journal, which is there.

    Raises:
        JournalUnusable: a newer version has written it, or it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            known_version(database, path)
    except sqlite3.Error as error:
        if is_damage(error):
            return
        raise JournalUnusable(
            f"the journal {path} cannot be read: {error}; ask as the user the service runs as"
        ) from error


def copy_journal(path: Path, target: Path) -> Copied:
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
            search_for_damage(database, float("inf"))
            return Copied(read_id(database), last_seq(database))
    except sqlite3.Error as error:
        if is_damage(error):
            raise JournalUnusable(words_on_opening(path, error)) from error
        raise JournalUnusable(
            f"the journal {path} cannot be copied to {target}: {error}; both folders must be "
            "writable for this user, and the disk must have room"
        ) from error


def summarise_journal(path: Path, rows: int) -> Summary:
    """Look into a journal that another process may have open, without writing to it.

    Args:
        path: of the journal, which is there.
        rows: how many of the newest are wanted.

    Raises:
        JournalUnusable: it cannot be read, is damaged, or is no journal.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = read_text
            counts = database.execute("SELECT verdict, count(*) FROM inspection GROUP BY verdict")
            span = "SELECT min(committed_at), max(committed_at), sum(sent = 0) FROM inspection"
            last = database.execute(
                "SELECT seq, id, CAST(payload AS BLOB) FROM inspection ORDER BY seq DESC LIMIT ?",
                (rows,),
            )
            oldest, newest, unsent = database.execute(span).fetchone()
            return Summary(
                id=read_id(database),
                last_seq=last_seq(database),
                unsent=unsent or 0,
                counts=dict(counts.fetchall()),
                oldest=oldest,
                newest=newest,
                last=tuple(Row(*row) for row in reversed(last.fetchall())),
            )
    except sqlite3.Error as error:
        raise JournalUnusable(words_on_opening(path, error)) from error
