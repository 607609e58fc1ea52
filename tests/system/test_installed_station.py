"""A station from a blank Debian to its removal: one machine a release, the tests in this order.

Each begins with a station that judges, and leaves one. What they need of the one before is only
that: any can be run alone.
"""

import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from installed import (
    BROKER,
    BUNDLES,
    INSTALL_S,
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
BUNDLE_S = 400.0
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
            station.installed_after_s = time.monotonic() - began
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
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


def test_says_ready_when_it_judges(station, measured):
    measured(f"install.sh --mosquitto took {station.installed_after_s:.0f} s")
    machine = station.machine
    assert station.is_active
    assert station.state()["state"] == "judging"
    assert station.messages("availability")[-1] == "online"
    assert machine.run(f"systemctl is-enabled {UNIT}") == "enabled"
    assert machine.run(f"ps -o user= -p {station.pid}") == "inspectd"


@pytest.mark.parametrize("verdict", ["PASS", "FAIL"])
def test_judges_good_parts_and_bad_ones(station, verdict):
    one = station.next_verdict(lambda seen: seen["verdict"] == verdict, f"a {verdict}")
    assert (one["score"] > 1.0) == (verdict == "FAIL"), one
    assert (one["reason"] is None) == (verdict == "PASS"), one
    result = f"{verdict} {one['seq']}"
    station.machine.wait_until("it is the result", lambda: result in station.messages("result"))


def test_units_are_clean(station):
    machine = station.machine
    for unit in (UNIT, "inspectd-warmup.service", "inspectd-trial.service"):
        done = machine.result(f"systemd-analyze verify /etc/systemd/system/{unit}")
        said = done.stdout + done.stderr
        assert said == "", f"systemd-analyze verify {unit}: {said}"
        assert done.returncode == 0


def test_units_are_confined(station, measured):
    for unit in ("inspectd@.service", "inspectd-warmup.service"):
        done = station.machine.result(
            f"systemd-analyze security --no-pager --offline=yes --threshold={EXPOSURE} "
            f"/etc/systemd/system/{unit}"
        )
        figure = re.search(r"Overall exposure level.*?: (\S+)", done.stdout)
        assert figure is not None, done.stdout + done.stderr
        measured(f"{unit} has an exposure of {figure[1]} of 10")
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


def test_doctor_logs_in_with_the_password_of_the_service(station):
    """As README has it, by the user and without further words; sudo is not in a bare Debian."""
    done = station.machine.result("runuser -u inspectd -- inspectd doctor")
    assert re.search(
        rf"^ok +broker +localhost:8883 lets the station in, as {station.name}", done.stdout, re.M
    ), done.stdout + done.stderr
    assert not re.search(r"^error", done.stdout, re.M), done.stdout
    assert done.returncode == 0
    station.wait_until_gapless()


def test_bundle_has_what_the_broker_knows_and_not_the_password(station):
    """As README has it, by root."""
    machine = station.machine
    password = machine.read("/etc/inspectd/credentials/default.mqtt-password")
    try:
        said = machine.run("cd /srv/shared && inspectd bundle", timeout_s=BUNDLE_S)
        assert "not in it: broker" not in said, said
        (packed,) = machine.shared.glob("inspectd-bundle-default-*.tar.gz")
        with tarfile.open(packed) as tar:
            texts = {
                one.name.partition("/")[2]: tar.extractfile(one).read().decode() for one in tar
            }
    finally:
        machine.run("rm -f /srv/shared/inspectd-bundle-*")
    assert json.loads(texts["mqtt/state.json"])["state"] == "judging"
    assert "lets the station in" in texts["doctor.txt"]
    assert [name for name, text in texts.items() if password in text] == []
    station.wait_until_gapless()


def test_a_spare_takes_over_a_station_that_had_a_broker_of_its_own(station):
    """By docs/backup.md: what is restored knows the dead one's authority and password."""
    machine = station.machine
    authority = f"sh {BUNDLES}/this/deploy/mosquitto/make-certificates.sh --directory /run/dead"
    machine.run(
        f"systemctl stop {UNIT}; {authority} authority; cp -a /etc/inspectd /run/spare; "
        "cp /run/dead/ca.pem /etc/inspectd/ca.pem; "
        "echo of-the-dead-one >/etc/inspectd/credentials/default.mqtt-password; "
        "cd /run && inspectd backup station.tar.gz --secrets --journal; "
        "rm -r /etc/inspectd && mv /run/spare /etc/inspectd"
    )
    said = machine.run("inspectd restore /run/station.tar.gz --force")
    assert "install.sh --mosquitto --instance default" in said
    done = station.install("--mosquitto", "--instance", "default")
    assert done.returncode == 0, done.stdout + done.stderr
    password = machine.read("/etc/inspectd/credentials/default.mqtt-password")
    assert password == "of-the-dead-one"
    machine.run("cmp /etc/inspectd/ca.pem /etc/mosquitto/inspectd/ca.pem")
    station.next_verdict(what="the broker lets the restored station in")
    station.wait_until_gapless()
    again = station.install("--mosquitto")
    assert "nothing changed" in again.stdout, again.stdout


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


def test_reload_reads_what_is_not_seen_to_change(station):
    """The watch looks at the folder; behind a link, a file changes without it."""
    machine = station.machine
    elsewhere, before, pid = "/srv/program.yaml", station.next_verdict(), station.pid
    text = machine.read(PROGRAM_FILE)
    machine.write(elsewhere, f"{text}\nlimit: {{threshold: 0.5}}\n")
    machine.run(
        f"ln -s {elsewhere} {PROGRAM_FILE}.link && mv -T {PROGRAM_FILE}.link {PROGRAM_FILE}"
    )
    try:
        linked = station.next_verdict(
            lambda one: one["settings_hash"] != before["settings_hash"], "one of the linked file"
        )
        machine.write(elsewhere, text + "\n")
        assert station.next_verdict()["settings_hash"] == linked["settings_hash"]
        machine.run(f"systemctl reload {UNIT}")
        station.next_verdict(
            lambda one: one["settings_hash"] == before["settings_hash"], "one of the file as it is"
        )
    finally:
        machine.write(PROGRAM_FILE, text + "\n")
    assert station.is_active
    assert station.pid == pid
    station.wait_until_gapless()


# ---- Faults --------------------------------------------------------------------------------------


def test_comes_back_after_sigkill_without_a_gap(station):
    pid, boot = station.pid, station.next_verdict()["boot_id"]
    station.machine.run(f"kill -KILL {pid}")
    station.wait_for_another(pid)
    station.next_verdict(lambda one: one["boot_id"] != boot, "one of the next start")
    station.wait_until_gapless()


def test_the_watchdog_restarts_a_frozen_daemon(station, measured):
    machine, pid = station.machine, station.pid
    assert machine.property_of(UNIT, "WatchdogUSec") not in ("0", "infinity")
    began = time.monotonic()
    machine.run(f"kill -STOP {pid}")
    station.wait_for_another(pid, 120.0)
    took = time.monotonic() - began
    measured(f"{took:.1f} s from frozen to READY again")
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


def test_start_is_measured_warm_and_cold(station, measured):
    warm_s = started_after_s(station, "touch /run/marker")
    assert kernels_since(station, "/run/marker") == []
    cold_s = started_after_s(station, "rm -r /var/cache/inspectd")
    assert kernels_since(station, "/run/marker") != []
    folders = "/var/cache/inspectd /var/cache/inspectd/kernels"
    assert station.machine.run(f"stat -c '%a %U' {folders}").splitlines() == ["750 inspectd"] * 2
    measured(f"start to READY {warm_s:.1f} s warm, {cold_s:.1f} s cold")
    station.wait_until_gapless()


def kernels_since(station: Station, marker: str) -> list[str]:
    """Files of kernels that were compiled since a file was touched."""
    return station.machine.run(
        f"find /var/cache/inspectd/kernels -name '*.nbc' -newer {marker}"
    ).split()


def started_after_s(station: Station, what: str) -> float:
    """How long it takes to READY, what it waits for included, after doing something between."""
    station.machine.run(f"systemctl stop {UNIT}; {what}")
    began = time.monotonic()
    station.machine.run(f"systemctl start {UNIT}", timeout_s=START_S)
    took = time.monotonic() - began
    station.next_verdict()
    return took


def test_an_idle_station_writes_nothing_but_its_journal(station, measured):
    machine = station.machine
    before = machine.read(SETTINGS)
    machine.edit(SETTINGS, "  interval_s: 0.5\n", "")
    machine.edit(SETTINGS, "\ntrigger:\n  source: interval\n", "\ntrigger:\n  source: mqtt\n")
    try:
        machine.wait_until("it is idle", lambda: is_quiet(station))
        pid = station.pid
        machine.run("touch /run/marker")
        first = written(station, pid)
        count, last_s, end = 0, 0.0, time.monotonic() + IDLE_S  # the time is what is measured
        while (left_s := end - time.monotonic()) > 0:
            time.sleep(min(left_s, 60.0))
            if written(station, pid) - first > count:
                count = written(station, pid) - first
                last_s = IDLE_S - max(end - time.monotonic(), 0.0)
        lines = len(machine.journal_records(f"-u {UNIT} --since @$(stat -c %Y /run/marker)"))
        places = "/etc/inspectd /var/lib/inspectd /var/cache/inspectd /opt/inspectd"
        touched = machine.run(f"find {places} -type f -newer /run/marker").split()
    finally:
        machine.write(SETTINGS, before + "\n")
    measured(
        f"idle for {IDLE_S:g} s, {count} bytes written by the daemon, "
        f"the last of them before {last_s:.0f} s, {lines} lines in the log"
    )
    assert station.pid == pid
    # The journal, and up to five minutes after the last part, once, the counts of it.
    own = ("/journal.db", "/statistics.json")
    assert [path for path in touched if not any(name in path for name in own)] == []


def is_quiet(station: Station) -> bool:
    """Whether three seconds went by without a verdict."""
    count = len(station.messages("verdict"))
    time.sleep(3.0)
    return len(station.messages("verdict")) == count


def written(station: Station, pid: int) -> int:
    counters = station.machine.read(f"/proc/{pid}/io").splitlines()
    return int(next(line for line in counters if line.startswith("write_bytes:")).split()[1])


def test_comes_back_by_itself_after_a_reboot(station, measured):
    boot = station.next_verdict()["boot_id"]
    reboot(station)
    assert station.is_active
    station.next_verdict(lambda one: one["boot_id"] != boot, "one of the next start")
    measured(f"READY {station.start_took_s():.1f} s after a boot")
    station.wait_until_gapless()


def reboot(station: Station, *options: str) -> None:
    """The consumer goes with the machine, its session stays."""
    station.machine.reboot(*options)
    station.consume()


# ---- Other versions ------------------------------------------------------------------------------


FULL_DISK = """\
#!/bin/sh
echo Filesystem 1048576-blocks Used Available Capacity Mounted on
echo disk 1000 990 10 99% /
"""


def test_installing_again_changes_nothing_and_needs_no_room(station):
    machine = station.machine
    pid = station.pid
    machine.write("/usr/local/sbin/df", FULL_DISK)
    machine.run("chmod 755 /usr/local/sbin/df; touch /run/marker")
    try:
        done = station.install("--mosquitto", "--upgrade")
        too_much = station.install("--upgrade", bundle="newer")
    finally:
        machine.run("rm /usr/local/sbin/df")
    assert too_much.returncode == 1
    assert "there are 10 MB free where /opt/inspectd lies" in too_much.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing changed" in done.stdout
    changed = machine.run(
        "find /etc /opt /usr/local /var/lib/mosquitto -newer /run/marker -type f "
        "-not -path '/var/lib/mosquitto/*.db*'"
    )
    assert changed == ""
    assert station.pid == pid
    station.wait_until_gapless()


def test_a_link_that_the_user_has_laid_is_not_followed(station):
    machine, kernels = station.machine, "/var/cache/inspectd/kernels"
    machine.run(f"mkdir -m 700 /srv/victim; mv {kernels} {kernels}.away")
    machine.run(f"runuser -u inspectd -- ln -s /srv/victim {kernels}")
    try:
        done = station.install()
        assert done.returncode == 1, done.stdout + done.stderr
        assert f"{kernels} is a symbolic link" in done.stderr
        assert machine.run("stat -c '%a %U' /srv/victim") == "700 root"
    finally:
        machine.run(f"rm -r {kernels} /srv/victim; mv {kernels}.away {kernels}")


def test_what_is_mended_at_the_broker_is_a_change(station):
    machine, access_list = station.machine, "/etc/mosquitto/inspectd/access-list"
    before = machine.read(access_list)
    machine.run(f"rm {access_list}")
    done = station.install("--mosquitto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Mosquitto was set up" in done.stdout
    assert "nothing changed" not in done.stdout
    assert machine.read(access_list) == before
    station.wait_until_gapless()


def test_a_new_password_of_the_broker_reaches_the_service(station):
    machine, path = station.machine, "/etc/inspectd/credentials/default.mqtt-password"
    before, pid = machine.read(path), station.pid
    machine.run(f"rm {path}")
    done = station.install("--mosquitto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.read(path) != before
    assert station.pid not in (0, pid)
    station.next_verdict()
    station.wait_until_gapless()


def test_another_version_is_refused_without_upgrade(station):
    release = station.machine.run("readlink /opt/inspectd/current")
    done = station.install(bundle="newer")
    assert done.returncode == 1
    assert "--upgrade" in done.stderr
    assert station.machine.run("readlink /opt/inspectd/current") == release


KILLS = """\
#!/bin/sh
case $* in
restart*inspectd@*)
    rm "$0"
    kill -KILL "$(ps -o ppid= -p "$PPID")"
    exit 1
    ;;
esac
exec /usr/bin/systemctl "$@"
"""
"""A `systemctl` that ends install.sh, two processes above, where it would restart a service."""


@contextmanager
def killed_before_the_restart(station: Station) -> Iterator[None]:
    """An upgrade is killed between the switch and the restart, as a power cut would end it."""
    machine = station.machine
    release, pid = machine.run("readlink /opt/inspectd/current"), station.pid
    machine.write("/usr/local/sbin/systemctl", KILLS)
    machine.run("chmod 755 /usr/local/sbin/systemctl")
    try:
        yield
    finally:
        machine.run("rm -f /usr/local/sbin/systemctl")
    assert machine.run("readlink /opt/inspectd/current") != release
    assert station.pid == pid


def test_upgrades_to_a_wheel_though_the_first_attempt_was_killed(station):
    """And a draft of a program, or a note beside the settings, is nobody's concern."""
    machine = station.machine
    settings, drafts = machine.read(SETTINGS), "/etc/inspectd/programs/draft /etc/inspectd/notes"
    for draft in drafts.split():
        machine.write(f"{draft}.yaml", "ask: Anna\n")
    with killed_before_the_restart(station):
        station.install_wheel("--upgrade", bundle="newer")
    done = station.install_wheel("--upgrade", bundle="newer")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was interrupted before it was proved" in done.stderr
    machine.wait_until("the new one tells its version", lambda: version(station) == "90.1")
    assert machine.run("inspectd --version").endswith("90.1")
    assert machine.result("test -e /opt/inspectd/trial").returncode == 1
    assert machine.read(SETTINGS) == settings
    machine.run(f"cd /etc/inspectd; rm {' '.join(f'{draft}.yaml' for draft in drafts.split())}")
    station.next_verdict()
    station.wait_until_gapless()


def test_rolls_back_and_restarts_what_waits_for_its_camera(station):
    machine, waiting = station.machine, "inspectd@cam2.service"
    if machine.result("test -e /opt/inspectd/previous").returncode != 0:
        assert station.install("--upgrade", bundle="newer").returncode == 0
    links = [f"readlink /opt/inspectd/{name}" for name in ("current", "previous")]
    before, told = [machine.run(link) for link in links], version(station)
    machine.write(
        "/etc/inspectd/cam2.yaml",
        f"station: cam2\nprogram: {PROGRAM}\ntrigger: {{source: mqtt}}\n"
        "camera: {driver: opencv, device: /dev/video9}\n",
    )
    machine.run(f"systemctl start --no-block {waiting}")
    try:
        machine.wait_until(
            "the camera is waited for",
            lambda: "waiting for the camera" in machine.property_of(waiting, "StatusText"),
        )
        pid = machine.property_of(waiting, "MainPID")
        script = "/opt/inspectd/current/share/inspectd/deploy/install.sh"
        done = machine.result(f"sh {script} --rollback", timeout_s=INSTALL_S)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{waiting} was not READY before" in done.stderr
        assert machine.property_of(waiting, "MainPID") not in (pid, "0")
    finally:
        machine.run(f"systemctl stop {waiting}; rm -r /etc/inspectd/cam2.yaml")
    assert [machine.run(link) for link in links] == before[::-1]
    assert station.is_active
    machine.wait_until("it tells its version", lambda: version(station) != told)
    station.next_verdict()
    station.wait_until_gapless()


JOURNAL_VERSION = """\
import sqlite3, sys
database = sqlite3.connect("/var/lib/inspectd/NAME/journal.db", isolation_level=None)
print(database.execute("PRAGMA user_version").fetchone()[0])
for version in sys.argv[1:]:
    database.execute(f"PRAGMA user_version = {version}")
"""


def test_does_not_roll_back_to_what_cannot_read_the_journal(station):
    machine = station.machine
    if machine.result("test -e /opt/inspectd/previous").returncode != 0:
        assert station.install("--upgrade", bundle="newer").returncode == 0
    machine.write("/srv/version.py", JOURNAL_VERSION.replace("NAME", station.name))
    release, pid = machine.run("readlink /opt/inspectd/current"), station.pid
    known = machine.run("runuser -u inspectd -- python3 /srv/version.py 99")
    try:
        script = "/opt/inspectd/current/share/inspectd/deploy/install.sh"
        done = machine.result(f"sh {script} --rollback", timeout_s=INSTALL_S)
    finally:
        machine.run(f"runuser -u inspectd -- python3 /srv/version.py {known}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "was written by a newer inspectd (its schema is 99" in done.stderr
    assert machine.run("readlink /opt/inspectd/current") == release
    assert station.pid == pid
    station.next_verdict()
    station.wait_until_gapless()


def test_upgrades_while_nothing_runs_and_starts_nothing(station):
    machine = station.machine
    release, before = machine.run("readlink /opt/inspectd/current"), version(station)
    machine.run(f"systemctl stop {UNIT}")
    done = station.install("--upgrade", bundle="this" if before == "90.1" else "newer")
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{UNIT} did not run, and is left so" in done.stdout
        assert station.pid == 0
        assert machine.run("readlink /opt/inspectd/current") != release
    finally:
        machine.run(f"systemctl start {UNIT}", timeout_s=START_S)
    machine.wait_until("it tells its version", lambda: version(station) != before)
    station.next_verdict()
    station.wait_until_gapless()


def test_goes_back_from_a_version_that_cannot_start(station):
    machine = station.machine
    release, before = machine.run("readlink /opt/inspectd/current"), version(station)
    with killed_before_the_restart(station):
        station.install("--upgrade", bundle="broken")
    for options in ([], ["--upgrade"]):  # the first one finds what the killed one has left
        done = station.install(*options, bundle="broken")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "this version cannot start" in done.stderr, done.stderr
        assert machine.run("readlink /opt/inspectd/current") == release
        assert machine.result("test -e /opt/inspectd/trial").returncode == 1
        assert station.is_active
        assert version(station) == before
    assert machine.run("ls /opt/inspectd/releases | grep -c ^90.2- || true") == "0"
    station.next_verdict()
    station.wait_until_gapless()


def test_after_a_power_cut_it_goes_back_by_itself(station):
    machine = station.machine
    release, before = machine.run("readlink /opt/inspectd/current"), version(station)
    with killed_before_the_restart(station):
        station.install("--upgrade", bundle="broken")
    reboot(station)
    said = machine.journal("-u inspectd-trial.service -b")
    assert "was interrupted before it was proved" in said
    assert "is READY again" in said
    assert machine.run("readlink /opt/inspectd/current") == release
    assert machine.result("test -e /opt/inspectd/trial").returncode == 1
    assert station.is_active
    assert version(station) == before
    station.next_verdict()
    station.wait_until_gapless()


def version(station: Station) -> str:
    return station.state()["versions"]["inspectd"]


# ---- A root that keeps nothing -------------------------------------------------------------------


def test_works_on_a_root_that_forgets_with_its_state_elsewhere(station):
    machine = station.machine
    boot = station.next_verdict()["boot_id"]
    with elsewhere(station, "/var/lib/inspectd") as binds:
        reboot(station, "--volatile=overlay", *binds)
        assert station.is_active
        station.next_verdict(lambda one: one["boot_id"] != boot, "one of the next start")
        station.wait_until_gapless()
        machine.run("touch /etc/forgotten")
        assert not machine.on_disk("/etc/forgotten").exists()
    station.wait_until_gapless()


READ_ONLY = ("--read-only", "--tmpfs=/var/tmp:mode=1777", "--tmpfs=/var/log")


def test_works_on_a_root_that_cannot_be_written_with_its_state_elsewhere(station, measured):
    """As docs/systemd.md has it: two folders on the disk, three in memory."""
    machine = station.machine
    boot = station.next_verdict()["boot_id"]
    machine.run("rm -rf /var/lib/inspectd/.cache")
    with elsewhere(station, "/var/lib/inspectd", "/var/lib/mosquitto") as binds:
        reboot(station, *READ_ONLY, *binds)
        for path in ("/etc", "/opt/inspectd", "/var/cache/inspectd/kernels", "/var/lib"):
            said = machine.result(f"touch {path}/something").stderr
            assert "Read-only file system" in said, f"{path}: {said}"
        assert station.is_active
        station.next_verdict(lambda one: one["boot_id"] != boot, "one of the next start")
        station.next_verdict(lambda one: one["verdict"] == "PASS", "a PASS")
        station.next_verdict(lambda one: one["verdict"] == "FAIL", "a FAIL")
        measured(f"READY {station.start_took_s():.1f} s after a boot with a read-only root")
        # Else Numba has taken the user's own folder, and compiled all of them anew.
        assert machine.result("test -e /var/lib/inspectd/.cache").returncode == 1
        assert "cannot be kept" not in machine.journal(f"-u {UNIT}")
        refused = station.install("--upgrade", bundle="newer")
        assert refused.returncode == 1
        assert "mounted read-only" in refused.stderr
        station.wait_until_gapless()
    station.wait_until_gapless()


@contextmanager
def elsewhere(station: Station, *folders: str) -> Iterator[list[str]]:
    """Move folders to another file system for a time: the options to boot with meanwhile.

    At the end it boots as before, with what they then had.
    """
    machine = station.machine
    places = {folder: machine.folder / folder.replace("/", "-").strip("-") for folder in folders}
    machine.run(f"systemctl stop {UNIT} mosquitto")
    for folder, place in places.items():
        copy(machine.on_disk(folder), place)
    try:
        yield [f"--bind={place}:{folder}" for folder, place in places.items()]
    finally:
        boot = station.verdicts()[-1]["boot_id"]
        machine.run(f"systemctl stop {UNIT} mosquitto")
        for folder, place in places.items():
            shutil.rmtree(machine.on_disk(folder))
            copy(place, machine.on_disk(folder))
            shutil.rmtree(place)
        reboot(station)
        station.next_verdict(lambda one: one["boot_id"] != boot, "one of the usual root")


def copy(source: Path, destination: Path) -> None:
    """With owners, which `shutil.copytree` leaves out."""
    assert os.system(f"cp -a '{source}' '{destination}'") == 0


# ---- The end -------------------------------------------------------------------------------------


def test_uninstalls_and_keeps_what_is_the_users(station):
    machine = station.machine
    kept = ["/etc/inspectd", f"/var/lib/inspectd/{station.name}"]
    before = machine.run(f"find {' '.join(kept)} -name '*.yaml' -o -name '*.png' | sort")
    units = [f"/etc/systemd/system/inspectd{name}.service" for name in ("-backup", "@second")]
    for unit in units:
        machine.write(unit, "[Service]\nExecStart=/bin/true\n")
    script = f"sh {BUNDLES}/this/deploy/uninstall.sh"
    refused = machine.result(f"flock /run/inspectd-install.lock {script}")
    assert refused.returncode == 1
    assert "is at work" in refused.stderr
    machine.run(script)
    for path in ("/opt/inspectd", "/usr/local/bin/inspectd", "/var/cache/inspectd"):
        assert machine.result(f"test -e {path}").returncode == 1, path
    assert machine.property_of(UNIT, "LoadState") == "not-found"
    assert machine.run("pgrep -u inspectd || true") == ""
    assert machine.run(f"find {' '.join(kept)} -name '*.yaml' -o -name '*.png' | sort") == before
    assert machine.run("find /etc/systemd -name '*inspectd*' | sort").split() == units
    assert "nothing to remove" in machine.run(script)
    machine.run(f"rm {' '.join(units)}; systemctl daemon-reload")


def test_what_was_kept_is_taken_up_by_a_new_installation(installed):
    done = installed.install("--mosquitto")
    assert done.returncode == 0, done.stdout + done.stderr
    installed.next_verdict(lambda one: one["verdict"] != "NOT_JUDGED", "it judges as before")
    installed.wait_until_gapless()


def test_purge_leaves_nothing_but_names_what_lies_elsewhere(installed):
    """Also where /var/lib/inspectd is a file system of its own, which cannot be removed."""
    machine = installed.machine
    machine.run(f"systemctl stop {UNIT}; mount --bind /var/lib/inspectd /var/lib/inspectd")
    name, settings = installed.name, machine.read(SETTINGS)
    machine.write(SETTINGS, f"{settings}\nstorage: {{directory: /srv/pictures}}\n")
    script = "/opt/inspectd/current/share/inspectd/deploy/uninstall.sh"
    said = machine.run(f"sh {script} --purge </dev/null")
    assert f"kept, for it lies elsewhere: /srv/pictures/{name}" in said
    assert machine.run("ls -A /var/lib/inspectd") == ""
    machine.run("umount /var/lib/inspectd; rmdir /var/lib/inspectd")
    for path in ("/etc/inspectd", "/opt/inspectd", "/var/cache/inspectd"):
        assert machine.result(f"test -e {path}").returncode == 1, path
    assert machine.result("getent passwd inspectd").returncode != 0
