"""inspectd on 64-bit Arm with Python 3.13: it installs, compiles, computes and judges."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from arm import BUNDLE, PYTEST_WHEELS, Arm, measured
from roots import CHECKOUT
from station import PROGRAM, SIMULATED, Station, write_pictures

from inspectd import __version__
from inspectd.camera.simulated import render
from inspectd.records import Defect
from inspectd.settings import SimulatedCamera

VENV = "/opt/inspectd"
INSPECTD = f"{VENV}/bin/inspectd"
TESTS = "/srv/tests"
STATION = "/srv/station"
PARTS = SimulatedCamera(width=320, height=240, seed=3)
REFERENCES = range(8)
GOOD, BAD = "20.png", "missing-pin.png"


@pytest.fixture(scope="module")
def arm(bare: Arm) -> Arm:
    """With inspectd in a virtual environment, its kernels not compiled yet."""
    with measured("virtual environment"):
        bare.run("/usr/bin/python3", "-m", "venv", VENV)
    offline = ["--quiet", "--no-index", "--no-compile"]
    folders = ["--find-links", BUNDLE, "--find-links", PYTEST_WHEELS]
    with measured("installation"):
        bare.run(f"{VENV}/bin/python", "-m", "pip", "install", *offline, *folders, "inspectd")
        bare.run(f"{VENV}/bin/python", "-m", "pip", "install", *offline, *folders, "pytest")
    return bare


def test_it_is_a_64_bit_arm_with_python_3_13(arm):
    what = "import platform; print(platform.machine(), *platform.python_version_tuple()[:2])"
    assert arm.run(f"{VENV}/bin/python", "-c", what) == "aarch64 3 13"


def test_the_wheel_installs(arm):
    assert arm.run(INSPECTD, "--version") == f"inspectd {__version__}"


def test_every_kernel_compiles_once(arm):
    with measured("warmup, cold"):
        assert re.fullmatch(r"kernels ready after \d+\.\d s", arm.run(INSPECTD, "warmup"))
    compiled = compiled_files(arm)
    assert compiled
    with measured("warmup, from the cache"):
        arm.run(INSPECTD, "warmup")
    assert compiled_files(arm) == compiled


def compiled_files(arm: Arm) -> dict[str, int]:
    """Each with when it was written."""
    cache = arm.on_disk("/var/cache/inspectd/kernels")
    return {str(file.relative_to(cache)): file.stat().st_mtime_ns for file in cache.rglob("*.nbc")}


def test_kernels_match_the_published_tables_and_the_plain_loops(arm):
    folder = arm.on_disk(TESTS)
    folder.mkdir()
    for name in ("test_soartc.py", "naive.py", "interpreted.py", "data"):
        source = CHECKOUT / "tests" / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
    chosen = ["-k", "published or oracle", "-p", "no:cacheprovider", f"--rootdir={TESTS}"]
    with measured("comparison with the tables and the plain loops"):
        printed = arm.run(f"{VENV}/bin/python", "-m", "pytest", *chosen, f"{TESTS}/test_soartc.py")
    summary = printed.splitlines()[-1]
    assert re.search(r"\d+ passed", summary)
    assert "skipped" not in summary


def test_it_learns_and_tells_a_good_part_from_a_bad_one(arm):
    folder = arm.on_disk(STATION)
    folder.mkdir()
    station = Station(folder, camera=SIMULATED % 1, trigger="{source: interval}")
    settings = ("-c", f"{STATION}/{station.file.name}")
    write_pictures(folder / "good", REFERENCES)
    with measured("teaching"):
        arm.run(INSPECTD, "teach", PROGRAM, "--from-folder", f"{STATION}/good", *settings)
    write_pictures(folder, [20])
    assert cv2.imwrite(str(folder / BAD), render(PARTS, 21, Defect.MISSING_PIN)[0])

    for picture, verdict, code in ((GOOD, "PASS", 0), (BAD, "FAIL", 3)):
        with measured(f"inspection of {picture}"):
            done = arm.result(
                *(INSPECTD, "inspect", PROGRAM, f"{STATION}/{picture}", "--json"),
                *("-o", f"{STATION}/heatmaps", *settings),
            )
        assert done.returncode == code, done.stderr
        found = json.loads(done.stdout)
        assert found["verdict"] == verdict
        assert (folder / "heatmaps" / f"{picture}.heatmap.png").is_file()
        assert found["score"] == pytest.approx(score_here(station, folder / picture), rel=1e-3)


def score_here(station: Station, picture: Path) -> float:
    """What this machine finds, from the references that were taught there."""
    words = ["inspect", PROGRAM, picture, "--json", "-o", station.folder, "-c", station.file]
    done = subprocess.run(
        [sys.executable, "-m", "inspectd", *words], capture_output=True, text=True, check=False
    )
    found: float = json.loads(done.stdout)["score"]
    return found
