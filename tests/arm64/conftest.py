"""The Debian for 64-bit Arm that the tests here share; tests/conftest.py is above."""

from collections.abc import Iterator

import pytest
from arm import FIGURES, Arm, bare_arm
from roots import LabUnusable


@pytest.fixture(scope="session")
def bare() -> Iterator[Arm]:
    try:
        with bare_arm() as arm:
            yield arm
    except LabUnusable as error:
        pytest.skip(str(error))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("measured")
        for line in FIGURES:
            terminalreporter.line(line)
