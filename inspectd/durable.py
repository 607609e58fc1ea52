"""Files that a power cut leaves whole: with their new content, or with that of before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TEMPORARY = ".writing-"
"""What the names of files begin with whose writing was interrupted: nobody misses them."""


def replace_file(path: Path, content: bytes) -> None:
    """Put a whole file in place, or leave what was there. Its name is durable after `sync_folder`.

    Raises OSError.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # the first one tells what is wrong
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
