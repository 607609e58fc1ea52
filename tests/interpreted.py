"""The same tests once more, with the kernels run by the interpreter instead of the compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT") == "1"
"""Whether this is that run."""

once = pytest.mark.skipif(INTERPRETED, reason="starts the run without the compiler, which this is")


def check_without_the_compiler(file: str, *arguments: str) -> None:
    """The tests of a file pass in a process whose kernels are not compiled."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file, *arguments],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " passed" in run.stdout
