"""The lock beside the journal: only one process at a time has it open."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import TextIO

from inspectd.errors import JournalUnusable

_WARY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Root opens it as well, in a folder of the service's user: no link, and no pipe to wait at."""


def take_lock(path: Path) -> TextIO:
    """The open lock file; the lock goes with it, also when the process is killed.

    Raises:
        JournalUnusable: another process holds the lock.
        OSError: the file cannot be made.
    """
    # Not emptied before it is written: on a full disk its block would be gone.
    descriptor = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | _WARY, 0o644)
    lock_file = os.fdopen(descriptor, "r+", encoding="utf-8")
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


def in_use(path: Path) -> str:
    """Which process has the journal open, in words; empty when none has, or there is no journal.

    Raises:
        JournalUnusable: this user may not know.
    """
    try:
        descriptor = os.open(_lock_path(path), os.O_RDONLY | _WARY)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as lock_file:
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


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")
