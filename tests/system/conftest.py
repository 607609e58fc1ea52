"""What the tests on installed machines share; tests/conftest.py is above.

They may run in several processes, a machine in each: what is measured goes by the reports.
"""

from collections.abc import Callable

import pytest
from roots import RELEASES, LabUnusable, require_tools
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

MEASURED = "measured"


@pytest.fixture(scope="session")
def lab() -> None:
    try:
        require_tools()
    except LabUnusable as error:
        pytest.skip(str(error))


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes a line to be printed at the end of the run."""
    return lambda line: record_property(MEASURED, line)


class ByMachine(LoadScopeScheduling):
    """The tests of a module and a release in one process, in order, for they share a machine."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        release = next((one for one in RELEASES if one in test.partition("[")[2]), "")
        return f"{module} {release}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByMachine:
    return ByMachine(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        f"{report.nodeid.partition('::')[2]}: {line}"
        for reports in (terminalreporter.getreports(kind) for kind in ("passed", "failed"))
        for report in reports
        for name, line in report.user_properties
        if name == MEASURED and report.when == "call"
    ]
    if lines:
        terminalreporter.section("measured")
        for line in sorted(lines):
            terminalreporter.line(line)
