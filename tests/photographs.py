"""The photographs that accuracy is measured on. They are no part of the project."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "shared" / "data"


def photographs(*parts: str) -> Path:
    """A folder of them; where it is missing, the test that asks is skipped."""
    folder = FOLDER.joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(f"the photographs are not in {folder}: docs/accuracy.md names them")
    return folder
