"""Debian 12 with Picamera2: numpy is an older one, for what is compiled against the system's."""

from collections.abc import Iterator

import pytest
from installed import BUNDLES, PROGRAM, SETTINGS, START_S, UNIT, Station
from lab import booted_from
from roots import LabUnusable, bundle, dependency_wheels, root_with_numpy_1, scratch

PYTHON = "/opt/inspectd/current/bin/python -P"
VERDICTS = """\
import sqlite3
database = sqlite3.connect("file:/var/lib/inspectd/NAME/journal.db?mode=ro", uri=True)
print(*(row[0] for row in database.execute("SELECT DISTINCT verdict FROM inspection")))
"""


@pytest.fixture(scope="module")
def station(lab: None) -> Iterator[Station]:
    """Installed from wheels, for all Pythons, as they come on a stick."""
    try:
        dependency_wheels()
        root = root_with_numpy_1()
    except LabUnusable as error:
        pytest.skip(str(error))
    with scratch("inspectd-bundles") as folder:
        bundle(folder / "this")
        with booted_from(root, [f"--bind-ro={folder}:{BUNDLES}"]) as machine:
            station = Station(machine)
            done = station.install()
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            yield station


def test_one_numpy_serves_all(station):
    """The installation has tried them in one process; here is which ones."""
    machine = station.machine
    said = machine.run(
        f"{PYTHON} -c 'import cv2, numpy; print(numpy.__version__, cv2.__version__)'"
    )
    numpy, opencv = said.split()
    assert numpy.startswith("1.26.")
    assert opencv.startswith("4.11.")
    code = "import numexpr, numpy; print(numexpr.__file__, numpy.__file__)"
    numexpr, own = machine.run(f"{PYTHON} -c '{code}'").split()
    assert numexpr.startswith("/usr/lib/python3/dist-packages/")
    assert own.startswith("/opt/inspectd/current/")


def test_judges_good_parts_and_bad_ones(station):
    machine = station.machine
    machine.edit(SETTINGS, "  defect_rate: 0.1", "  defect_rate: 0.0")
    machine.edit(SETTINGS, "  #interval_s: 1.0", "  interval_s: 0.5")
    machine.run(f"inspectd teach {PROGRAM} --frames 10", timeout_s=START_S)
    machine.edit(SETTINGS, "  defect_rate: 0.0", "  defect_rate: 0.3")
    machine.write("/srv/verdicts.py", VERDICTS.replace("NAME", station.name))
    machine.wait_until(
        "both are seen",
        lambda: {"PASS", "FAIL"} <= set(machine.run("python3 /srv/verdicts.py").split()),
        60.0,
    )
    assert machine.property_of(UNIT, "ActiveState") == "active"
