"""A station from a blank Debian to its removal: one machine a release, the tests in this order.

Each begins with a station that judges, and leaves one. What they need of the one before is only
that: any can be run alone.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import (
    BROKER,
    BUNDLES,
    FIGURES,
    PROGRAM,
    PROGRAM_FILE,
    SETTINGS,
    START_S,
    UNIT,
    Station,
)
from lab import booted
from roots import RELEASES, LabUnusable, bundle, dependency_wheels, scratch

IDLE_S = float(os.environ.get("INSPECTD_IDLE_S", "20"))
"""How long an idle station's writes are counted."""
REFERENCES = 20
EXPOSURE = 20
"""Highest one allowed, in tenths: 2.0 of systemd-analyze's 10."""
CANNOT_START = 'raise RuntimeError("this version cannot start")'


@pytest.fixture(scope="module")
def bundles(lab: None) -> Iterator[Path]:
    """This version, a newer one, and one that is newer still and cannot start."""
    with scratch("inspectd-bundles") as folder:
        try:
            dependency_wheels()
        except LabUnusable as error:
            pytest.skip(str(error))
        bundle(folder / "this")
        bundle(folder / "newer", "90.1")
        bundle(folder / "broken", "90.2", CANNOT_START)
        yield folder


@pytest.fixture(scope="module", params=RELEASES)
def installed(request: pytest.FixtureRequest, bundles: Path) -> Iterator[Station]:
    """Installed with a broker, and taught, as the README's first inspection does it."""
    try:
        with booted(request.param, [f"--bind-ro={bundles}:{BUNDLES}"]) as machine:
            station = Station(machine)
            began = time.monotonic()
            done = station.install("--mosquitto")
            took = time.monotonic() - began
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            FIGURES.append(f"{request.param}: install.sh --mosquitto took {took:.0f} s")
            machine.edit(SETTINGS, "  defect_rate: 0.1", "  defect_rate: 0.0")
            machine.edit(SETTINGS, "  #interval_s: 1.0", "  interval_s: 0.5")
            machine.run(f"inspectd teach {PROGRAM} --frames {REFERENCES}")
            machine.edit(SETTINGS, "  defect_rate: 0.0", "  defect_rate: 0.3")
            machine.run("apt-get install -y mosquitto-clients")
            station.consume()
            yield station
    except LabUnusable as error:
        pytest.skip(str(error))


@pytest.fixture
def station(installed: Station) -> Station:
    """Judging, and heard of."""
    installed.next_verdict(lambda one: one["verdict"] != "NOT_JUDGED", "the station judges")
    return installed


# ---- What install.sh made ------------------------------------------------------------------------


def test_says_ready_when_it_judges(station):
    machine = station.machine
    assert station.is_active
    assert station.state()["state"] == "judging"
    assert station.messages("availability")[-1] == "online"
    assert machine.run(f"systemctl is-enabled {UNIT}") == "enabled"
    assert machine.run(f"ps -o user= -p {station.pid}") == "inspectd"


@pytest.mark.parametrize("verdict", ["PASS", "FAIL"])
def test_judges_good_parts_and_bad_ones(station, verdict):
    one = station.next_verdict(lambda seen: seen["verdict"] == verdict, f"a {verdict}")
    result = f"{verdict} {one['seq']}"
    station.machine.wait_until("it is the result", lambda: result in station.messages("result"))


def test_units_are_clean(station):
    machine = station.machine
    for unit in (UNIT, "inspectd-warmup.service"):
        done = machine.result(f"systemd-analyze verify /etc/systemd/system/{unit}")
        said = done.stdout + done.stderr
        assert said == "", f"systemd-analyze verify {unit}: {said}"
        assert done.returncode == 0


def test_unit_is_confined(station, request):
    done = station.machine.result(
        f"systemd-analyze security --no-pager --offline=yes --threshold={EXPOSURE} "
        "/etc/systemd/system/inspectd@.service"
    )
    figure = re.search(r"Overall exposure level.*?: (\S+)", done.stdout)
    assert figure is not None, done.stdout + done.stderr
    FIGURES.append(f"{release_of(request)}: exposure {figure[1]} of 10")
    assert done.returncode == 0, figure[0]


def test_journal_is_searched_by_verdict(station):
    station.next_verdict(lambda one: one["verdict"] == "FAIL", "a FAIL")
    records = station.machine.journal_records("VERDICT=FAIL")
    assert records
    assert {record["VERDICT"] for record in records} == {"FAIL"}
    failed = {one["seq"] for one in station.verdicts() if one["verdict"] == "FAIL"}
    assert failed <= {int(record["SEQ"]) for record in records}
    assert {record["PROGRAM"] for record in records} == {PROGRAM}


def test_password_is_nowhere_to_be_read(station):
    machine = station.machine
    password = machine.read("/etc/inspectd/credentials/default.mqtt-password")
    assert len(password) >= 12
    places = f"/etc/inspectd/*.yaml /var/lib/inspectd /proc/{station.pid}/cmdline"
    assert machine.run(f"grep -rlF '{password}' {places} || true") == ""
    assert password not in machine.journal()
    as_another = "runuser -u nobody -- cat /etc/inspectd/credentials/default.mqtt-password"
    assert machine.result(as_another).returncode != 0


def test_broker_lets_nobody_in_without_a_password(station):
    machine = station.machine
    for login in (BROKER, f"{BROKER} -u {station.name} -P wrong", "-h localhost -p 1883"):
        done = machine.result(f"mosquitto_sub {login} -t '#' -C 1 -W 5")
        assert done.returncode != 0, f"{login}: {done.stdout}"
        assert done.stdout == ""


# ---- Settings ------------------------------------------------------------------------------------


def test_an_edited_limit_is_judged_by(station):
    before = station.next_verdict()
    with station.changed(PROGRAM_FILE, "limit: {threshold: 0.5}"):
        after = station.next_verdict(
            lambda one: one["settings_hash"] != before["settings_hash"], "one of the new settings"
        )
        assert after["limit"] == pytest.approx(before["limit"] / 2, rel=1e-3)
    station.next_verdict(
        lambda one: one["settings_hash"] == before["settings_hash"], "one of the old settings"
    )
    station.wait_until_gapless()


def test_a_mistake_in_the_settings_changes_nothing_and_is_told(station):
    machine = station.machine
    before, pid = station.next_verdict(), station.pid
    line = len(machine.read(PROGRAM_FILE).splitlines()) + 1
    with station.changed(PROGRAM_FILE, "resolutoin: 50"):
        place = f"{PROGRAM_FILE}:{line}"
        notes = machine.wait_until(
            "the mistake is told on state",
            lambda: [note for note in station.state()["notes"] if place in note],
        )
        assert "resolution" in notes[0], notes
        assert station.next_verdict()["settings_hash"] == before["settings_hash"]
        assert machine.result("inspectd check").returncode == 1
    machine.wait_until(
        "it is told no longer",
        lambda: not any(PROGRAM_FILE in note for note in station.state()["notes"]),
    )
    assert station.pid == pid
    station.wait_until_gapless()


def test_reload_reads_the_settings(station):
    before, pid = station.next_verdict(), station.pid
    station.machine.run(f"systemctl reload {UNIT}")
    assert station.is_active
    assert station.pid == pid
    assert station.next_verdict()["settings_hash"] == before["settings_hash"]


# ---- Faults --------------------------------------------------------------------------------------


def test_comes_back_after_sigkill_without_a_gap(station):
    pid, boot = station.pid, station.next_verdict()["boot_id"]
    station.machine.run(f"kill -KILL {pid}")
    station.wait_for_another(pid)
    station.next_verdict(lambda one: one["boot_id"] != boot, "one of the next start")
    station.wait_until_gapless()


def test_the_watchdog_restarts_a_frozen_daemon(station, request):
    machine, pid = station.machine, station.pid
    assert machine.property_of(UNIT, "WatchdogUSec") not in ("0", "infinity")
    began = time.monotonic()
    machine.run(f"kill -STOP {pid}")
    station.wait_for_another(pid, 120.0)
    took = time.monotonic() - began
    FIGURES.append(f"{release_of(request)}: {took:.1f} s from frozen to READY again")
    assert "watchdog" in machine.journal(f"-u {UNIT}").lower()
    station.next_verdict()
    station.wait_until_gapless()


def test_nothing_is_lost_while_the_broker_is_away(station):
    machine, pid = station.machine, station.pid
    machine.run("systemctl stop mosquitto")
    try:
        known = station.last_seq()
        machine.wait_until("parts are judged", lambda: station.last_seq() > known + 5)
    finally:
        machine.run("systemctl start mosquitto")
    machine.wait_until(
        "what was judged meanwhile follows",
        lambda: known + 5 in {one["seq"] for one in station.verdicts() if one["historical"]},
    )
    station.next_verdict()
    station.wait_until_gapless()
    assert station.pid == pid


# ---- Start and wear ------------------------------------------------------------------------------


def test_start_is_measured_warm_and_cold(station, request):
    took = [
        started_after_s(station, what) for what in ("true", "rm -r /var/cache/inspectd/kernels/*")
    ]
    FIGURES.append(
        f"{release_of(request)}: start to READY {took[0]:.1f} s warm, {took[1]:.1f} s cold"
    )
    station.wait_until_gapless()


def started_after_s(station: Station, what: str) -> float:
    """How long it takes to READY, what it waits for included, after doing something between."""
    station.machine.run(f"systemctl stop {UNIT}; {what}")
    began = time.monotonic()
    station.machine.run(f"systemctl start {UNIT}", timeout_s=START_S)
    took = time.monotonic() - began
    station.next_verdict()
    return took


def test_an_idle_station_writes_nothing_but_its_journal(station, request):
    machine = station.machine
    before = machine.read(SETTINGS)
    machine.edit(SETTINGS, "  interval_s: 0.5\n", "")
    machine.edit(SETTINGS, "\ntrigger:\n  source: interval\n", "\ntrigger:\n  source: mqtt\n")
    try:
        machine.wait_until("it is idle", lambda: is_quiet(station))
        pid = station.pid
        machine.run("touch /run/marker")
        first = written(station, pid)
        time.sleep(IDLE_S)  # the time is what is measured
        count = written(station, pid) - first
        places = "/etc/inspectd /var/lib/inspectd /var/cache/inspectd /opt/inspectd"
        touched = machine.run(f"find {places} -type f -newer /run/marker").split()
    finally:
        machine.write(SETTINGS, before + "\n")
    FIGURES.append(
        f"{release_of(request)}: idle for {IDLE_S:g} s, {count} bytes written by the daemon"
    )
    assert station.pid == pid
    assert [path for path in touched if "/journal.db" not in path] == []


def is_quiet(station: Station) -> bool:
    """Whether three seconds went by without a verdict."""
    count = len(station.messages("verdict"))
    time.sleep(3.0)
    return len(station.messages("verdict")) == count


def written(station: Station, pid: int) -> int:
    counters = station.machine.read(f"/proc/{pid}/io").splitlines()
    return int(next(line for line in counters if line.startswith("write_bytes:")).split()[1])


def test_comes_back_by_itself_after_a_reboot(station, request):
    boot = station.next_verdict()["boot_id"]
    reboot(station)
    assert station.is_active
    station.next_verdict(lambda one: one["boot_id"] != boot, "one of the next start")
    FIGURES.append(f"{release_of(request)}: READY {station.start_took_s():.1f} s after a boot")
    station.wait_until_gapless()


def reboot(station: Station, *options: str) -> None:
    """The consumer goes with the machine, its session stays."""
    station.machine.reboot(*options)
    station.consume()


# ---- Other versions ------------------------------------------------------------------------------


def test_installing_again_changes_nothing(station):
    machine = station.machine
    pid = station.pid
    machine.run("touch /run/marker")
    done = station.install("--mosquitto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing changed" in done.stdout
    changed = machine.run(
        "find /etc /opt /usr/local /var/lib/mosquitto -newer /run/marker -type f "
        "-not -path '/var/lib/mosquitto/*.db*'"
    )
    assert changed == ""
    assert station.pid == pid
    station.wait_until_gapless()


def test_another_version_is_refused_without_upgrade(station):
    release = station.machine.run("readlink /opt/inspectd/current")
    done = station.install(bundle="newer")
    assert done.returncode == 1
    assert "--upgrade" in done.stderr
    assert station.machine.run("readlink /opt/inspectd/current") == release


def test_upgrades(station):
    machine = station.machine
    settings = machine.read(SETTINGS)
    done = station.install("--upgrade", bundle="newer")
    assert done.returncode == 0, done.stdout + done.stderr
    machine.wait_until("the new one tells its version", lambda: version(station) == "90.1")
    assert machine.run("inspectd --version").endswith("90.1")
    assert machine.read(SETTINGS) == settings
    station.next_verdict()
    station.wait_until_gapless()


def test_goes_back_from_a_version_that_cannot_start(station):
    machine = station.machine
    release, before = machine.run("readlink /opt/inspectd/current"), version(station)
    done = station.install("--upgrade", bundle="broken")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "this version cannot start" in done.stderr, done.stderr
    assert machine.run("readlink /opt/inspectd/current") == release
    assert station.is_active
    assert version(station) == before
    station.next_verdict()
    station.wait_until_gapless()


def version(station: Station) -> str:
    return station.state()["versions"]["inspectd"]


# ---- A root that forgets -------------------------------------------------------------------------


def test_works_on_a_root_that_forgets_with_its_state_elsewhere(station):
    machine = station.machine
    boot = station.next_verdict()["boot_id"]
    machine.run(f"systemctl stop {UNIT}")
    within, state = machine.on_disk("/var/lib/inspectd"), machine.folder / "state"
    copy(within, state)
    reboot(station, "--volatile=overlay", f"--bind={state}:/var/lib/inspectd")
    assert station.is_active
    forgotten = station.next_verdict(lambda one: one["boot_id"] != boot, "one of the next start")
    station.wait_until_gapless()
    machine.run(f"touch /etc/forgotten && systemctl stop {UNIT}")
    assert not machine.on_disk("/etc/forgotten").exists()
    shutil.rmtree(within)
    copy(state, within)
    reboot(station)
    station.next_verdict(lambda one: one["boot_id"] not in (boot, forgotten["boot_id"]), "another")
    station.wait_until_gapless()


def copy(source: Path, destination: Path) -> None:
    """With owners, which `shutil.copytree` leaves out."""
    assert os.system(f"cp -a '{source}' '{destination}'") == 0


# ---- The end -------------------------------------------------------------------------------------


def test_uninstalls_and_keeps_what_is_the_users(station):
    machine = station.machine
    kept = ["/etc/inspectd", f"/var/lib/inspectd/{station.name}"]
    before = machine.run(f"find {' '.join(kept)} -name '*.yaml' -o -name '*.png' | sort")
    machine.run(f"sh {BUNDLES}/this/deploy/uninstall.sh")
    for path in ("/opt/inspectd", "/usr/local/bin/inspectd", "/var/cache/inspectd"):
        assert machine.result(f"test -e {path}").returncode == 1, path
    assert machine.property_of(UNIT, "LoadState") == "not-found"
    assert machine.run("pgrep -u inspectd || true") == ""
    assert machine.run(f"find {' '.join(kept)} -name '*.yaml' -o -name '*.png' | sort") == before
    assert machine.run("find /etc/systemd -name '*inspectd*'") == ""
    assert "nothing to remove" in machine.run(f"sh {BUNDLES}/this/deploy/uninstall.sh")


def test_what_was_kept_is_taken_up_by_a_new_installation(installed):
    done = installed.install("--mosquitto")
    assert done.returncode == 0, done.stdout + done.stderr
    installed.next_verdict(lambda one: one["verdict"] != "NOT_JUDGED", "it judges as before")
    installed.wait_until_gapless()


def test_purge_leaves_nothing(installed):
    machine = installed.machine
    machine.run(f"sh {BUNDLES}/this/deploy/uninstall.sh --purge </dev/null")
    for path in ("/etc/inspectd", "/var/lib/inspectd"):
        assert machine.result(f"test -e {path}").returncode == 1, path
    assert machine.result("getent passwd inspectd").returncode != 0


def release_of(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["installed"])
