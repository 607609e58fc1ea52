"""`inspectd status` of a real service, whose settings files are wrong by now."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from broker import eventually
from station import PROGRAM, SIMULATED, Service, Station

Run = Callable[..., tuple[int, str, str]]

UNTAUGHT, TAUGHT = "not_ready", "judging"


def started(station: Station, run: Run, state: str = TAUGHT) -> Service:
    """A service that has come to a state."""
    if state == TAUGHT:
        station.teach()
    service = station.start()

    def says() -> bool:
        code, out, _ = run("status", "-c", station.file)
        return code != 1 and json.loads(out)["state"] == state

    assert eventually(says, 60.0), service.log
    return service


@pytest.fixture
def station(make_station: Callable[..., Station]) -> Station:
    return make_station(camera=SIMULATED % 30, trigger="{source: mqtt}")


MISTAKES = [
    ("program:", "programm:", "2: programm: unknown key (did you mean program?)"),
    ("station: cell", "station: [cell", "1: the bracket [ opened here is not closed"),
    ("{directory: state}", "{directory: 7}", "6: storage.directory: expected "),
    ("storage:", "\tstorage:", "6: a tab where there can be none"),
    ("station: cell\n", "", "1: station: is missing"),
]


def test_whatever_is_wrong_in_the_station_file_is_told_and_the_service_is_asked(
    run: Run, station: Station
):
    service = started(station, run)
    good = station.file.read_text()
    for old, new, problem in MISTAKES:
        station.file.write_text(good.replace(old, new))
        code, out, err = run("status", "-c", station.file)
        assert f"{station.file}:{problem}" in err
        assert "the service goes on by settings " in err
        assert (code, json.loads(out)["state"], json.loads(out)["station"]) == (1, TAUGHT, "cell")
    station.file.write_text(good)
    assert run("status", "-c", station.file)[0] == 0
    assert service.stop() == 0, service.log


def test_a_file_that_is_gone_or_wrong_elsewhere_or_names_another_station_is_no_hindrance(
    run: Run, station: Station, tmp_path: Path
):
    started(station, run, UNTAUGHT)
    good = station.file.read_text()
    program = station.folder / "programs" / f"{PROGRAM}.yaml"
    program.write_text("resolution: wide\n")
    code, out, err = run("status", "-c", station.file)
    assert (code, json.loads(out)["state"]) == (3, UNTAUGHT)  # the graver of the two
    assert f"{program}:1: resolution: expected " in err
    program.write_text("description: 27 pins\n")

    station.file.write_text(good.replace("station: cell", "station: renamed"))
    code, out, err = run("status", "-c", station.file)
    assert (code, json.loads(out)["station"]) == (3, "cell")

    link = tmp_path / "link.yaml"
    link.symlink_to(station.file)
    station.file.unlink()
    code, out, err = run("status", "-c", link)
    assert (code, json.loads(out)["station"]) == (3, "cell")
    assert f"{link}: there is no such file" in err


def test_the_service_of_another_file_is_not_taken_for_it(run: Run, station: Station):
    started(station, run, UNTAUGHT)
    other = station.folder / "other.yaml"
    shutil.copy(station.file, other)
    other.write_text(other.read_text().replace("program:", "programm:"))
    code, out, err = run("status", "-c", other)
    assert (code, out) == (1, "")
    assert f"{other}:2: programm: unknown key" in err
    assert err.splitlines()[-1].startswith(f"inspectd: no service was found that runs by {other}")
