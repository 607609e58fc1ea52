"""What the tests on installed machines share; tests/conftest.py is above."""

import pytest
from installed import FIGURES
from roots import LabUnusable, require_tools


@pytest.fixture(scope="session")
def lab() -> None:
    try:
        require_tools()
    except LabUnusable as error:
        pytest.skip(str(error))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("measured")
        for line in FIGURES:
            terminalreporter.line(line)
