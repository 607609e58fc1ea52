"""The ballast beside the journal: a file that only occupies space, for when the disk is full."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

_logger = logging.getLogger(__name__)

BALLAST_BYTES = 2 << 20
"""More than the pages of a WAL that the file may have to grow by."""
_BLOCK_BYTES = 512
"""What `stat` counts blocks in."""
_STEP_BYTES = 64 << 10


def make_ballast(path: Path) -> int:
    """Occupy the space beside the journal at ``path``, as much of it as there is.

    Returns:
        The bytes it holds: fewer than BALLAST_BYTES where the disk is full.
    """
    ballast = _ballast_path(path)
    held = 0
    try:
        with ballast.open("ab") as file:
            # To occupy it again would write its time of change, each minute, for years.
            if os.fstat(file.fileno()).st_blocks * _BLOCK_BYTES >= BALLAST_BYTES:
                return BALLAST_BYTES
            while held < BALLAST_BYTES:
                os.posix_fallocate(file.fileno(), held, _STEP_BYTES)
                held += _STEP_BYTES
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return held
        _logger.warning(
            "no space could be reserved for the journal in %s: %s", ballast, error.strerror
        )
    return BALLAST_BYTES


def drop_ballast(path: Path) -> bool:
    """Give the space back; whether there was any."""
    try:
        _ballast_path(path).unlink()
    except OSError:
        return False
    return True


def _ballast_path(path: Path) -> Path:
    return path.with_name(path.name + ".ballast")
