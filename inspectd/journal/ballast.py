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


def make_ballast(path: Path) -> bool:
    """Occupy the space beside the journal at ``path``; False when the disk is full."""
    ballast = _ballast_path(path)
    try:
        with ballast.open("ab") as file:
            # To occupy it again would write its time of change, each minute, for years.
            if os.fstat(file.fileno()).st_blocks * _BLOCK_BYTES < BALLAST_BYTES:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            _logger.warning(
                "no space could be reserved for the journal in %s: %s", ballast, error.strerror
            )
            return True
        ballast.unlink(missing_ok=True)
        return False
    return True


def drop_ballast(path: Path) -> bool:
    """Give the space back; whether there was any."""
    try:
        _ballast_path(path).unlink()
    except OSError:
        return False
    return True


def _ballast_path(path: Path) -> Path:
    return path.with_name(path.name + ".ballast")
