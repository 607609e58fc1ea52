"""Damage to the journal's file: told from other errors, searched for, and put aside."""

from __future__ import annotations

import logging
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from inspectd.durable import sync_folder
from inspectd.errors import JournalUnusable

_logger = logging.getLogger(__name__)

_PROGRESS_STEPS = 10_000  # of SQLite's machine, about a millisecond


class Damage(sqlite3.DatabaseError):
    """What SQLite itself does not call an error."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is wrong, rather than the moment, the rights or the disk."""
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return isinstance(error, Damage) or primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def search_for_damage(database: sqlite3.Connection, timeout_s: float) -> bool:
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
        raise Damage(found.splitlines()[-1])
    return True


def put_aside(path: Path, damage: sqlite3.Error) -> Path:
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
        sync_folder(path.parent)
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


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
