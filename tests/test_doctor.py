"""`inspectd doctor` in sound and in broken situations, and what each figure is taken for."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from broker import eventually
from station import EXIT_S, PROGRAM, SIMULATED, Station
from verdicts import a_verdict

from inspectd import cli, jit
from inspectd.camera.simulated import render
from inspectd.commands import doctor
from inspectd.commands.checks import Examination, Finding, Level, NotChecked, ok
from inspectd.commands.checks.broker import describe
from inspectd.commands.checks.camera import check_camera, check_exposure, check_picture
from inspectd.commands.checks.machine import (
    check_disk,
    check_journal,
    check_pins,
    clock,
    power,
    room,
    temperature,
)
from inspectd.commands.checks.station import check_service, check_settings
from inspectd.commands.private_broker import PrivateBroker
from inspectd.config import load
from inspectd.errors import PermanentError
from inspectd.journal import Journal
from inspectd.machine import Machine, Throttle, Throttling
from inspectd.mqtt.probe import BrokerReport
from inspectd.records import Exposure
from inspectd.references import ReferenceStore
from inspectd.settings import OpencvCamera, Picamera2Camera, Program, SimulatedCamera
from inspectd.soartc import kernels
from inspectd.teaching import Candidate, teach_empty

TRIGGER = "{source: interval, interval_s: 1}"


@pytest.fixture
def station(tmp_path: Path) -> Station:
    """Taught, its broker not there."""
    station = Station(tmp_path / "station", camera=SIMULATED % 1000, trigger=TRIGGER)
    station.teach(range(12))
    return station


def known_of(station: Station) -> Examination:
    return Examination(station.file, loaded=load(station.file))


def run(station: Station, monkeypatch, capsys) -> tuple[int, dict[str, list[dict]]]:
    """The whole command with ``--json``: its exit status, and the findings by subject."""
    arguments = ["inspectd", "doctor", "--json", "-c", str(station.file)]
    monkeypatch.setattr(sys, "argv", arguments)
    code = cli.run_command_line()
    report = json.loads(capsys.readouterr().out)
    return code, by_subject(report["findings"])


def by_subject(findings: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for finding in findings:
        found.setdefault(finding["subject"], []).append(finding)
    return found


def levels(findings: list[dict]) -> list[str]:
    return [finding["level"] for finding in findings]


# ---- the whole command ---------------------------------------------------------------------------


def test_a_sound_station_has_no_error(broker: PrivateBroker, station: Station, monkeypatch, capsys):
    nest, _ = render(SimulatedCamera(width=320, height=240), 0, empty=True)
    empty = Candidate("nest", nest, datetime.now(UTC))
    teach_empty(Program(), ReferenceStore(station.references), [empty], "0" * 12)
    text = station.file.read_text()
    station.file.write_text(text.replace("port: 1}", f"port: {broker.port}}}"))
    code, found = run(station, monkeypatch, capsys)
    assert code == 0, found
    for subject in ("settings", "camera", "exposure", "picture", "broker", "rights", "pins"):
        assert levels(found[subject]) == ["ok"], found[subject]
    assert levels(found["service"]) == ["warning"]
    assert "does not run" in found["service"][0]["message"]
    (references,) = found["references"]
    assert references["message"].startswith(f"{PROGRAM}: 12, 5 are needed; 1 of the empty station")
    assert not station.journal.parent.joinpath("journal.db").exists(), "doctor made a journal"


def test_an_error_sets_the_exit_status_and_the_rest_is_checked(station, monkeypatch, capsys):
    code, found = run(station, monkeypatch, capsys)
    assert code == 1
    assert levels(found["broker"]) == ["error"]
    assert "127.0.0.1:1" in found["broker"][0]["message"]
    assert levels(found["camera"]) == levels(found["picture"]) == ["ok"]


def test_wrong_settings_are_all_told_and_nothing_is_guessed(station, monkeypatch, capsys):
    text = station.file.read_text()
    station.file.write_text(text.replace("width: 320", "widht: 320") + "queue: 0\n")
    (station.folder / "programs" / "other.yaml").write_text("resolution: wide\n")
    code, found = run(station, monkeypatch, capsys)
    assert code == 1
    told = [f"{one['message']} {one['fix']}" for one in found["settings"]]
    assert levels(found["settings"]) == ["error"] * 3
    assert any("cell.yaml:3: camera.widht" in one and "width" in one for one in told)
    assert any("cell.yaml:7: queue" in one for one in told)
    assert any("other.yaml:1: resolution" in one for one in told)
    for subject in ("service", "camera", "broker", "disk", "references"):
        assert found[subject] == [
            {
                "level": "warning",
                "subject": subject,
                "message": "not checked: the settings are wrong",
                "fix": "",
            }
        ]


def test_a_program_that_is_not_in_use_only_warns(station: Station):
    (station.folder / "programs" / "other.yaml").write_text("resolution: wide\n")
    known = Examination(station.file)
    (finding,) = check_settings(known)
    assert finding.level is Level.WARNING
    assert "other.yaml:1: resolution" in finding.message
    assert known.settings.station.program == PROGRAM


def test_a_running_service_is_asked_and_keeps_its_camera(
    broker: PrivateBroker, tmp_path: Path, monkeypatch, capsys
):
    station = Station(
        tmp_path / "station", camera=SIMULATED % 1000, trigger=TRIGGER, port=broker.port
    )
    station.teach(range(12))
    service = station.start()
    try:
        assert eventually(lambda: bool(station.rows()), EXIT_S), service.log
        code, found = run(station, monkeypatch, capsys)
        assert code == 0, found
        assert found["service"][0]["message"].startswith(f"judges by {PROGRAM} since ")
        assert "the service has it; 320 x 240 pixels" in found["camera"][0]["message"]
        assert levels(found["picture"]) == ["ok"]
        assert "sound" in found["journal"][0]["message"]

        # What a station that runs would take over by itself, it might have before it is asked.
        text = station.file.read_text()
        station.file.write_text(
            text.replace("{directory: state}", "{directory: state, sync: normal}")
        )
        assert "restart" in run(station, monkeypatch, capsys)[1]["service"][0]["fix"]
    finally:
        service.stop()


def test_lines_fit_and_the_fix_stands_below(station: Station, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["inspectd", "doctor", "-c", str(station.file)])
    assert cli.run_command_line() == 1
    lines = capsys.readouterr().out.splitlines()
    paths = [line for line in lines if str(station.folder) in line]
    assert all(len(line) <= 100 for line in lines if line not in paths)
    assert any(line.startswith("error    broker       no connection to") for line in lines)
    assert any(line.startswith(" " * 22 + "fix: start it") for line in lines)
    assert lines[-1].startswith("1 error, ")


# ---- checks that go wrong ------------------------------------------------------------------------


def test_a_check_that_crashes_is_an_error_of_its_own(tmp_path: Path):
    def crash(_known: Examination) -> list[Finding]:
        raise ZeroDivisionError("0 / 0")

    (finding,) = doctor.carry_out("disk", crash, Examination(tmp_path), 5.0)
    assert finding.level is Level.ERROR
    assert "ZeroDivisionError: 0 / 0" in finding.message


def test_a_check_that_hangs_is_left_behind(tmp_path: Path):
    released = threading.Event()

    def hang(_known: Examination) -> list[Finding]:
        released.wait(60)
        return []

    (finding,) = doctor.carry_out("camera", hang, Examination(tmp_path), 0.05)
    released.set()
    assert finding.level is Level.ERROR
    assert "no answer within 0.05 s" in finding.message
    assert "unplug" in finding.fix


@pytest.mark.parametrize("camera", [SIMULATED % 1000, "{driver: picamera2}"])
def test_beside_a_service_that_hangs_neither_camera_nor_pins_are_touched(camera: str):
    with tempfile.TemporaryDirectory(prefix="inspectd-") as folder:
        station = Station(
            Path(folder), camera=camera, trigger=TRIGGER, extra="outputs: {ready: {pin: 23}}\n"
        )
        known = known_of(station)
        known.settings.control_socket.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as service:
            service.bind(str(known.settings.control_socket))
            service.listen()
            (finding,) = doctor.carry_out("service", check_service, known, 0.1)
        assert finding.level is Level.ERROR
        assert "restart the service" in finding.fix
        checks = [("camera", check_camera), ("picture", check_picture), ("pins", check_pins)]
        if "picamera2" in camera:
            checks.append(("exposure", check_exposure))
        for subject, check in checks:
            (finding,) = doctor.carry_out(subject, check, known, 10.0)
            assert finding.level is Level.WARNING
            assert finding.message.startswith("not checked: the service cannot be asked")


def test_a_check_that_depends_on_another_says_so(tmp_path: Path):
    (finding,) = doctor.carry_out("camera", check_camera, Examination(tmp_path), 5.0)
    assert finding == Finding(Level.WARNING, "camera", "not checked: the settings are wrong", "")


def test_findings_before_the_crash_of_a_check_are_kept(tmp_path: Path):
    def half(_known: Examination) -> Iterator[Finding]:
        yield ok("disk", "there is room")
        raise ZeroDivisionError

    first, second = doctor.carry_out("disk", half, Examination(tmp_path), 5.0)
    assert first == ok("disk", "there is room")
    assert second.level is Level.ERROR


# ---- camera --------------------------------------------------------------------------------------


def test_a_missing_folder_of_pictures_is_told_in_the_cameras_words(tmp_path: Path):
    station = Station(tmp_path, camera="{driver: replay, path: nowhere}", trigger=TRIGGER)
    known = known_of(station)
    (finding,) = doctor.carry_out("camera", check_camera, known, 30.0)
    assert finding.level is Level.ERROR
    assert "camera.path" in finding.message
    (finding,) = doctor.carry_out("picture", check_picture, known, 30.0)
    assert finding.message == "not checked: the camera gives no picture"


def test_a_short_recording_suffices(tmp_path: Path, station: Station):
    pictures = station.references
    camera = f"{{driver: replay, path: {pictures}, rate: 1000}}"
    known = known_of(Station(tmp_path / "replay", camera=camera, trigger=TRIGGER))
    (finding,) = doctor.carry_out("camera", check_camera, known, 30.0)
    assert finding.level is Level.OK, finding
    assert "320 x 240 pixels" in finding.message


def test_a_picture_that_does_not_fit_the_references_is_an_error(station: Station):
    text = station.file.read_text()
    station.file.write_text(text.replace("width: 320, height: 240", "width: 640, height: 480"))
    known = known_of(station)
    list(check_camera(known))
    (finding,) = check_picture(known)
    assert finding.level is Level.ERROR
    assert finding.message.startswith("wrong size: ")


def exposure_of(station: Station, camera, exposures: list[Exposure | None]) -> Finding:
    known = known_of(station)
    settings = known.settings
    changed = msgspec.structs.replace(settings.station, camera=camera)
    known.loaded = msgspec.structs.replace(settings, station=changed)
    known.exposures = exposures
    (finding,) = check_exposure(known)
    return finding


def seen(exposure_us: float = 4000.0, gain: float = 2.0, digital_gain: float = 1.0) -> Exposure:
    return Exposure(exposure_us, gain, digital_gain, (1.5, 1.25))


def test_a_locked_exposure_is_as_set_in_every_picture(station: Station):
    camera = Picamera2Camera(exposure_us=4000, gain=2.0, white_balance=(1.5, 1.25))
    assert exposure_of(station, camera, [seen(), seen(3990.0)]).level is Level.OK
    drifting = exposure_of(station, camera, [seen(), seen(5000.0), seen(gain=2.5)])
    assert drifting.level is Level.ERROR
    assert "(camera.exposure_us, camera.gain)" in drifting.message
    assert exposure_of(station, camera, [seen(digital_gain=1.3)]).level is Level.WARNING
    with pytest.raises(NotChecked, match="does not tell"):
        exposure_of(station, camera, [None])


def test_an_automatic_exposure_is_a_warning(station: Station):
    automatic = exposure_of(station, OpencvCamera(index=0, white_balance_k=4600), [])
    assert automatic.level is Level.WARNING
    assert automatic.fix == "set camera.exposure_us"
    fixed = OpencvCamera(index=0, exposure_us=5000, white_balance_k=4600)
    assert exposure_of(station, fixed, [None, None]).level is Level.OK
    varying = exposure_of(station, fixed, [seen(5000.0), seen(9000.0)])
    assert varying.level is Level.ERROR


# ---- broker --------------------------------------------------------------------------------------


def described(station: Station, **found) -> list[tuple[str, str]]:
    report = BrokerReport(reachable=True, **found)
    findings = describe(report, load(station.file).station)
    return [(finding.subject, finding.level.value) for finding in findings]


def test_what_a_broker_shows_is_told_line_by_line(station: Station):
    allowed = {"connected": True, "publish_refusal": "", "subscribe_refusal": ""}
    assert described(station, **allowed, answer_ms=1.5) == [
        ("broker", "ok"),
        ("rights", "ok"),
        ("answer time", "ok"),
    ]
    assert described(station, trouble="Not authorized") == [("broker", "error")]
    refused = {"connected": True, "publish_refusal": "no", "subscribe_refusal": "no"}
    assert described(station, **refused) == [
        ("broker", "ok"),
        ("rights", "error"),
        ("rights", "error"),
    ]


@pytest.mark.parametrize(("days", "level"), [(-2.0, "error"), (12.0, "warning"), (90.0, "ok")])
def test_certificates_are_told_before_they_expire(station: Station, days: float, level: str):
    both = described(station, own_certificate_days=days, broker_certificate_days=days)
    assert both[1:] == [("certificate", level)] * 2


def test_a_slow_broker_names_the_setting(station: Station):
    report = BrokerReport(reachable=True, connected=True, answer_ms=43.0)
    *_, finding = describe(report, load(station.file).station)
    assert finding.level is Level.WARNING
    assert finding.message.startswith("43.0 ms for 4 messages")
    assert "set_tcp_nodelay true" in finding.fix


# ---- machine -------------------------------------------------------------------------------------


def test_the_clock_must_be_plausible_and_synchronised():
    now = datetime(2026, 5, 4, tzinfo=UTC)
    assert clock(now, synchronised=True).level is Level.OK
    assert clock(now, synchronised=False).level is Level.WARNING
    assert clock(datetime(1970, 1, 2, tzinfo=UTC), synchronised=True).level is Level.ERROR


@pytest.mark.parametrize(
    ("free", "total", "level"),
    [
        (20e9, 32e9, Level.OK),
        (3e9, 32e9, Level.WARNING),  # less than a tenth
        (0.9e9, 8e9, Level.WARNING),  # less than 1 GB
        (0.5e9, 32e9, Level.ERROR),  # less than a fiftieth
        (90e6, 200e6, Level.ERROR),  # less than 100 MB
        (0, 0, Level.ERROR),
    ],
)
def test_room_on_the_disk(free: float, total: float, level: Level, tmp_path: Path):
    assert room(int(free), int(total), tmp_path).level is level


def test_a_folder_in_the_main_memory_is_told(station: Station):
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    if ["/dev/shm", "tmpfs"] not in mounts:
        pytest.skip("this machine has no tmpfs on /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        text = station.file.read_text()
        station.file.write_text(text.replace("directory: state", f"directory: {folder}"))
        findings = list(check_disk(known_of(station)))
    assert any("(tmpfs)" in finding.message for finding in findings)


def test_a_folder_that_cannot_be_written_is_an_error(station: Station):
    if os.geteuid() == 0:
        pytest.skip("needs another user than root, who may write everywhere")
    station.journal.parent.chmod(0o555)
    findings = list(check_disk(known_of(station)))
    station.journal.parent.chmod(0o755)
    (refused,) = [finding for finding in findings if finding.level is Level.ERROR]
    assert "Permission denied" in refused.message


def test_a_file_in_place_of_the_folder_is_an_error(station: Station):
    shutil.rmtree(station.journal.parent)
    station.journal.parent.write_text("")
    (finding,) = check_disk(known_of(station))
    assert finding.level is Level.ERROR
    assert "storage.directory" in finding.fix


def test_temperature_and_power():
    assert temperature(None).level is temperature(55.0).level is Level.OK
    assert temperature(72.0).level is Level.WARNING
    assert temperature(84.0).level is Level.ERROR
    nothing = Throttle(0)
    pi = "Raspberry Pi 5 Model B Rev 1.0"
    assert power(Machine(model="a desk computer")).message == "no Raspberry Pi"
    assert power(Machine(model=pi)).level is Level.WARNING
    assert power(Machine(model=pi, throttling=Throttling(nothing, nothing))).level is Level.OK
    before = power(Machine(model=pi, throttling=Throttling(nothing, Throttle.UNDER_VOLTAGE)))
    assert (before.level, before.message) == (Level.WARNING, "under voltage since the start")
    assert "power supply" in before.fix
    now = power(Machine(model=pi, throttling=Throttling(Throttle.THROTTLED, Throttle.THROTTLED)))
    assert (now.level, now.message) == (Level.ERROR, "throttled")


def test_pins_that_are_not_there_are_told(tmp_path: Path, monkeypatch):
    station = Station(
        tmp_path,
        camera=SIMULATED % 1000,
        trigger="{source: gpio, pin: 17}",
        extra="outputs: {ready: {pin: 23}}\n",
    )
    if list(Path("/dev").glob("gpiochip*")):
        pytest.skip("this machine has pins, and they may be wired")
    monkeypatch.delenv("GPIOZERO_PIN_FACTORY", raising=False)
    (finding,) = doctor.carry_out("pins", check_pins, known_of(station), 10.0)
    assert finding.level is Level.ERROR
    assert "trigger.pin: GPIO 17" in finding.message


# ---- the journal ---------------------------------------------------------------------------------


def test_a_damaged_journal_is_told(tmp_path: Path, station: Station):
    known = known_of(station)
    (finding,) = check_journal(known)
    assert finding.message.startswith("none yet")
    with Journal.open(station.journal) as journal:
        for _ in range(200):
            journal.commit(a_verdict(detail="x" * 200))
    content = bytearray(station.journal.read_bytes())
    content[-4096:] = b"\xa5" * 4096
    for damaged in (content, b"\xa5" * 8192):
        station.journal.write_bytes(damaged)
        (finding,) = doctor.carry_out("journal", check_journal, known, 10.0)
        assert finding.level is Level.ERROR
        assert "is damaged or no journal" in finding.message


# ---- kernels -------------------------------------------------------------------------------------


def test_a_cold_cache_is_told_and_nothing_is_compiled(station: Station, tmp_path: Path):
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-m", "inspectd", "doctor", "--json", "-c", str(station.file)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_DISABLE_JIT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = by_subject(json.loads(done.stdout)["findings"])
    (kernels,) = found["kernels"]
    assert kernels["level"] == "warning"
    assert "inspectd warmup" in kernels["fix"]
    (references,) = found["references"]
    assert references["message"].startswith(f"{PROGRAM}: 12, 5 are needed; ")
    assert references["level"] == "warning"
    assert "the kernels are not compiled" in found["picture"][0]["message"]
    assert not [path for path in cache.rglob("*") if path.is_file()]


KERNEL = """
from inspectd import jit
from inspectd.errors import NotCompiled

@jit.kernel
def doubled(value):
    return 2 * value

def ask():
    try:
        return doubled(21)
    except NotCompiled as refusal:
        return str(refusal)

with jit.compiling_refused():
    print(ask())
print(ask(), jit.cache_folder(doubled))
"""


def test_compiling_is_refused_until_the_cache_is_warm(tmp_path: Path):
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    script.write_text(KERNEL)

    def lines() -> list[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_DISABLE_JIT": "0"}
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    refusal, compiled = lines()
    assert refusal == "the kernel doubled is not compiled yet: run `inspectd warmup`"
    assert compiled.startswith(f"42 {cache}/")
    assert lines() == ["42", compiled]


def test_a_kernel_without_a_place_in_any_cache_names_the_variable():
    scope: dict[str, Callable[[int], int]] = {}
    exec(compile("def doubled(value): return 2 * value", "<nowhere>", "exec"), scope)
    if jit.cache_folder(kernels.responses) is None:
        pytest.skip("NUMBA_DISABLE_JIT is set: numba compiles and keeps nothing")
    with pytest.raises(PermanentError, match="NUMBA_CACHE_DIR"):
        jit.kernel(scope["doubled"])
