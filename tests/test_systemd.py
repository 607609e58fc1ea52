"""What systemd and journald are told, by the real daemon; and the units."""

import fcntl
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from station import (
    EXIT_S,
    PROGRAM,
    SIMULATED,
    Service,
    Station,
    request,
    wait_for_state,
    wait_for_verdicts,
    write_pictures,
)
from verdicts import a_verdict

import inspectd.settings
from inspectd import config, judging
from inspectd.commands.private_broker import PrivateBroker
from inspectd.errors import PermanentError
from inspectd.mqtt.access import read_access
from inspectd.settings import GpioTrigger, Settings, SimulatedCamera
from inspectd.settings import Station as StationSettings
from inspectd.supervision import FEED_S, longest_step_s
from inspectd.systemd import (
    LONGEST_STATUS,
    JournalHandler,
    Manager,
    encode_entry,
    is_journal,
    send_to_journal,
)

UNITS = Path(__file__).parent.parent / "systemd"
PROGRAM_OF_UNITS = "/opt/inspectd/current/bin/inspectd"
EXPOSURE = 20
"""Highest one allowed, in tenths: 2.0 of systemd-analyze's 10."""
EVERY_PICTURE = "{source: continuous}"
ON_REQUEST = "{source: mqtt}"
WATCHDOG_S = 60
READY, FED = "READY=1", "WATCHDOG=1"


class ServiceManager:
    """Stands where systemd does: keeps each message, in the order of arrival."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._messages: list[str] = []
        self._arrival = threading.Condition()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        while message := self._socket.recv(65536):
            with self._arrival:
                self._messages.append(message.decode())
                self._arrival.notify_all()

    @property
    def messages(self) -> list[str]:
        with self._arrival:
            return list(self._messages)

    def wait_for(self, pattern: str, start: int = 0) -> int:
        """How many messages there are up to the first that fits, from number ``start`` on."""

        def found() -> int:
            numbered = enumerate(self._messages[start:], start + 1)
            return next((count for count, one in numbered if re.search(pattern, one)), 0)

        with self._arrival:
            came = self._arrival.wait_for(found, EXIT_S)
            assert came, f"no {pattern} in {self._messages[start:]}"
            return found()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceManager]:
    """Of every process that the test starts."""
    manager = ServiceManager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(WATCHDOG_S * 1_000_000))
    yield manager
    manager.close()


# ---- the protocol of notification ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_manager_is_told(tmp_path: Path, kind: str):
    path = str(tmp_path / "notify")
    bound, named = {"path": (path, path), "abstract": (f"\0{path}", f"@{path}")}[kind]
    listener = ServiceManager(bound)
    manager = Manager.of({"NOTIFY_SOCKET": named, "WATCHDOG_USEC": "30000000"})
    assert manager.is_there
    assert manager.watchdog_s == 30
    manager.status("one\nline,  whatever\tcomes")
    manager.status("one line, whatever comes")
    manager.extend(60)
    assert not manager.was_ready
    assert manager.ready()
    assert manager.was_ready
    manager.set_watchdog(45.5)
    manager.feed_watchdog()
    manager.reloading()
    manager.stopping()
    listener.wait_for("STOPPING=1")
    listener.close()
    *told, reloading, stopping = listener.messages
    assert told == [
        "STATUS=one line, whatever comes",
        "EXTEND_TIMEOUT_USEC=60000000",
        READY,
        "WATCHDOG_USEC=45500000",
        FED,
    ]
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)
    assert stopping == "STOPPING=1"


def test_a_long_status_is_cut_between_characters(tmp_path: Path):
    listener = ServiceManager(str(tmp_path / "notify"))
    Manager(str(tmp_path / "notify")).status("ü" * LONGEST_STATUS)
    listener.wait_for("STATUS")
    listener.close()
    (message,) = listener.messages
    assert message.endswith("ü...")
    assert len(message.encode()) <= LONGEST_STATUS + len("STATUS=")


def test_nothing_happens_without_a_manager():
    for environment in ({}, {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1"}):
        manager = Manager.of(environment)
        assert not manager.is_there
        assert manager.watchdog_s is None
        assert not manager.ready()
        manager.feed_watchdog()


def test_the_watchdog_of_another_process_is_not_ours(tmp_path: Path):
    others = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert Manager.of(others).watchdog_s is None
    assert Manager.of(others | {"WATCHDOG_PID": str(os.getpid())}).watchdog_s == 1


def test_a_manager_that_is_gone_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    manager = Manager(str(tmp_path / "nobody"))
    assert not manager.ready()
    assert not manager.was_ready
    assert "systemd could not be told READY=1" in caplog.text


@pytest.mark.parametrize("timeout_s", [0.1, 60.0])
def test_the_interval_covers_the_longest_step(timeout_s: float):
    trigger = GpioTrigger(pin=4, delay_ms=1000.0)
    station = StationSettings(
        station="cell",
        program="block",
        camera=SimulatedCamera(),
        trigger=trigger,
        capture_timeout_s=timeout_s,
    )
    opened_and_closed_s, delay_s = 20 + 1 + 1, 1
    assert longest_step_s(station) > opened_and_closed_s + delay_s + timeout_s


def test_the_unit_gives_the_usual_settings_enough():
    station = StationSettings(station="cell", program="block", camera=SimulatedCamera())
    given = re.search(r"^WatchdogSec=(\d+)$", (UNITS / "inspectd@.service").read_text(), re.M)
    assert given is not None
    assert longest_step_s(station) <= int(given[1])


# ---- the daemon ----------------------------------------------------------------------------------


def test_ready_comes_when_it_judges_and_stopping_before_the_end(
    make_station: Callable[..., Station],
    broker: PrivateBroker,
    subscribe: Callable,
    manager: ServiceManager,
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 30, trigger=EVERY_PICTURE, port=broker.port)
    station.teach()
    service = station.start()
    ready = manager.wait_for(f"^{READY}$")
    wait_for_state(subscriber, "judging")
    wait_for_verdicts(subscriber, 1)
    manager.wait_for(rf"STATUS=judging {PROGRAM}: \d+ inspected, \d+ FAIL", ready)
    manager.wait_for(FED, manager.wait_for(FED, ready))
    assert service.stop() == 0, service.log
    told = manager.messages
    assert told[0] == "STATUS=starting: reading the settings"
    assert f"STATUS=starting: learning {PROGRAM} from 8 references" in told[:ready]
    assert FED not in told[:ready]
    assert told.count(READY) == 1
    assert told[-2:] == ["STATUS=stopping", "STOPPING=1"]


def test_a_camera_that_is_not_there_is_waited_for(
    make_station: Callable[..., Station], manager: ServiceManager
):
    station = make_station(camera="{driver: replay, path: parts, loop: true}", trigger=ON_REQUEST)
    station.teach()
    service = station.start()
    waiting = manager.wait_for("STATUS=starting: waiting for the camera: .*parts")
    manager.wait_for("EXTEND_TIMEOUT_USEC", waiting)
    assert READY not in manager.messages
    write_pictures(station.folder / "parts", range(20, 22))
    ready = manager.wait_for(READY)
    manager.wait_for(f"STATUS=judging {PROGRAM}", ready)
    assert service.stop() == 0, service.log


def test_without_references_it_is_ready_to_be_taught_and_says_so(
    make_station: Callable[..., Station], manager: ServiceManager
):
    service = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST).start()
    ready = manager.wait_for(READY)
    manager.wait_for("STATUS=not ready: .*inspectd teach", ready)
    assert service.stop() == 0, service.log


def test_wrong_settings_are_waited_for(
    make_station: Callable[..., Station], manager: ServiceManager
):
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST)
    station.teach()
    right = station.file.read_text()
    station.file.write_text(right + "queeu: 3\n")
    service = station.start()
    waiting = manager.wait_for("STATUS=starting: waiting for settings .*queeu: unknown key")
    manager.wait_for("EXTEND_TIMEOUT_USEC", waiting)
    manager.wait_for("EXTEND_TIMEOUT_USEC", waiting + 1)
    assert service.log.count("unknown key") == 1
    station.file.write_text(right)
    manager.wait_for(READY, waiting)
    assert service.stop() == 0, service.log


def test_what_keeps_it_from_starting_is_waited_for_until_the_settings_are_others(
    make_station: Callable[..., Station], manager: ServiceManager
):
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST)
    (station.folder / "state").write_text("a file where a folder should be")
    service = station.start()
    manager.wait_for("STATUS=does not start: ")
    assert service.process.poll() is None
    assert "Traceback" not in service.log
    text = station.file.read_text()
    station.file.write_text(text.replace("directory: state", "directory: other"))
    assert service.wait() == 1  # systemd starts it anew
    assert READY not in manager.messages
    assert "STOPPING=1" not in manager.messages


@pytest.mark.parametrize("mistake", ["", "queeu: 3\n"], ids=["right", "wrong"])
def test_a_reload_is_told_from_its_beginning_to_its_end(
    make_station: Callable[..., Station], manager: ServiceManager, mistake: str
):
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST)
    station.teach()
    service = station.start()
    ready = manager.wait_for(f"STATUS=judging {PROGRAM}", manager.wait_for(READY))
    station.file.write_text(station.file.read_text() + mistake)
    service.process.send_signal(1)
    reloading = manager.wait_for(r"RELOADING=1\nMONOTONIC_USEC=\d+", ready)
    through = manager.wait_for(READY, reloading)
    if mistake:
        manager.wait_for(rf"STATUS=judging {PROGRAM}: .*{station.file.name}:\d+: queeu", ready)
    assert manager.messages[:through].count(READY) == 2
    assert service.stop() == 0, service.log


# ---- the watchdog --------------------------------------------------------------------------------

STALLING = """
import sys
from pathlib import Path

from inspectd import cli, inspector, service
from inspectd.camera import guard, simulated

pipe = Path(sys.argv.pop(1))


def stall():
    if pipe.exists():
        pipe.read_bytes()  # until somebody has opened and closed the other end


class StallingCamera(simulated.SimulatedCamera):
    def capture(self, *arguments, **options):
        {in_driver}
        return super().capture(*arguments, **options)


inspect = inspector.Inspector.inspect


def inspect_stalling(*arguments):
    {in_inspection}
    return inspect(*arguments)


inspector.Inspector.inspect = inspect_stalling
service.make_camera = lambda settings: guard.Guarded(StallingCamera(settings.station.camera))
sys.exit(cli.run_command_line())
"""


class StallingService(Service):
    """The daemon with a call in it that does not come back while there is a certain pipe."""

    def __init__(self, station: Station, where: str) -> None:
        self.pipe = station.folder / "stall"
        places = {"in_driver": "pass", "in_inspection": "pass"} | {where: "stall()"}
        self._log = station.folder / "stalling.log"
        with self._log.open("wb") as sink:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", STALLING.format(**places), self.pipe),
                    *("run", "-c", station.file),
                ],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        station.started.append(self)

    @contextmanager
    def stalled(self, ask: Callable[[], None]) -> Iterator[None]:
        """Once it hangs over what is asked for, until it hangs no more."""
        os.mkfifo(self.pipe)
        ask()
        writer = os.open(self.pipe, os.O_WRONLY)  # waits for the reader
        try:
            yield
        finally:
            self.pipe.unlink()
            os.close(writer)


def reload_and_wait(service: Service, manager: ServiceManager) -> None:
    """The main thread, which feeds, has done some rounds then."""
    before = len(manager.messages)
    service.process.send_signal(1)
    manager.wait_for(READY, manager.wait_for("RELOADING", before))


@pytest.mark.parametrize("where", ["in_driver", "in_inspection"])
def test_the_watchdog_starves_while_a_call_hangs(
    make_station: Callable[..., Station],
    broker: PrivateBroker,
    subscribe: Callable,
    manager: ServiceManager,
    where: str,
):
    subscriber = subscribe(broker)
    station = make_station(
        camera=SIMULATED % 30,
        trigger=ON_REQUEST,
        port=broker.port,
        extra="capture_timeout_s: 0.3\n",
    )
    station.teach()
    service = StallingService(station, where)
    manager.wait_for(FED, manager.wait_for(READY))
    wait_for_state(subscriber, "judging")
    hung = len(manager.messages)
    with service.stalled(lambda: request(subscriber)):
        if where == "in_driver":
            hung = manager.wait_for("STATUS=camera fault: .*does not answer", hung)
        else:
            # What was done before it hung is fed for once that is due, maybe just behind a READY.
            due_at = time.monotonic() + FEED_S
            while time.monotonic() < due_at:
                reload_and_wait(service, manager)
            for _ in range(2):
                reload_and_wait(service, manager)
            hung = len(manager.messages)
        for _ in range(4):
            reload_and_wait(service, manager)
        assert FED not in manager.messages[hung:]
    manager.wait_for(FED, hung)  # what comes back by itself is not restarted
    assert service.stop() == 0, service.log


def test_the_watchdog_is_fed_without_a_broker_and_without_a_camera(
    make_station: Callable[..., Station], manager: ServiceManager
):
    camera = SIMULATED % 30
    station = make_station(camera=camera, trigger=ON_REQUEST, port=1)  # where nobody listens
    station.teach()
    service = station.start()
    at = manager.wait_for("STATUS=judging .*connection refused", manager.wait_for(READY))
    for _ in range(2):
        at = manager.wait_for(FED, at)
    unplugged = "{driver: opencv, device: /dev/v4l/by-id/unplugged}"
    station.file.write_text(station.file.read_text().replace(camera, unplugged))
    at = manager.wait_for("STATUS=camera fault: .*unplugged", at)
    for _ in range(3):
        at = manager.wait_for(FED, at)
    assert service.stop() == 0, service.log


def test_a_long_wait_for_the_camera_makes_the_interval_longer(
    make_station: Callable[..., Station], manager: ServiceManager
):
    station = make_station(
        camera=SIMULATED % 30, trigger=ON_REQUEST, extra="capture_timeout_s: 60\n"
    )
    station.teach()
    service = station.start()
    at = manager.wait_for("WATCHDOG_USEC", manager.wait_for(READY))
    usec = int(manager.messages[at - 1].partition("=")[2])
    assert usec / 1e6 == longest_step_s(config.load(station.file).station) > WATCHDOG_S
    assert service.stop() == 0, service.log


# ---- journald ------------------------------------------------------------------------------------


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "journal"))
        journald.settimeout(EXIT_S)
        yield journald


def received(journald: socket.socket) -> dict[str, str]:
    """The fields of the next entry, as journald reads them."""
    content, descriptors, _, _ = socket.recv_fds(journald, 1 << 20, 1)
    if descriptors:
        assert content == b""
        seals = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_WRITE
        with os.fdopen(descriptors[0], "rb") as file:
            file.seek(0)
            content = file.read()
    fields = {}
    while content:
        line, _, content = content.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", content[:8])
            value, content = content[8 : 8 + length], content[9 + length :]
        fields[name.decode()] = value.decode()
    return fields


def test_an_entry_is_encoded_as_the_protocol_says():
    fields = {"MESSAGE": "one=1", "PART_ID": "a\nb", "SEQ": 7, "REASON": None}
    lines = b"PART_ID\n\x03\0\0\0\0\0\0\0a\nb\n"
    assert encode_entry(fields) == b"MESSAGE=one=1\n" + lines + b"SEQ=7\n"


@pytest.mark.parametrize("size", [10, 10_000_000])
def test_entries_of_any_size_arrive(journald: socket.socket, size: int):
    send_to_journal({"MESSAGE": "x" * size, "SEQ": 1}, journald.getsockname())
    assert received(journald) == {"MESSAGE": "x" * size, "SEQ": "1"}


@pytest.fixture
def handler(journald: socket.socket) -> Iterator[JournalHandler]:
    """That all log lines go to."""
    handler = JournalHandler(journald.getsockname())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def test_a_verdict_is_found_by_its_fields(journald: socket.socket, handler: JournalHandler):
    judging._log(a_verdict(seq=6))  # a PASS has no line of its own
    judging._log(
        a_verdict(seq=7, verdict="FAIL", reason="too many", part_id="A 1", score=1.5, margin=-0.5)
    )
    entry = received(journald)
    assert entry["MESSAGE"].startswith("7 FAIL score 1.50 part A 1")
    expected = {
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "inspectd",
        "PROGRAM": "connector",
        "STATION": "line1-cell3",
        "SEQ": "7",
        "VERDICT": "FAIL",
        "REASON": "too many",
        "PART_ID": "A 1",
        "SCORE": "1.5",
        "CODE_FUNC": "_log",
        "LOGGER": "inspectd.judging",
    }
    assert expected.items() <= entry.items()
    assert Path(entry["CODE_FILE"]).name == "judging.py"
    assert entry["CODE_LINE"].isdecimal()


def test_an_error_brings_its_traceback(journald: socket.socket, handler: JournalHandler):
    try:
        int("x")
    except ValueError:
        logging.getLogger("inspectd.somewhere").exception("it broke")
    entry = received(journald)
    assert entry["PRIORITY"] == "3"
    assert entry["MESSAGE"].startswith("it broke\nTraceback")
    assert "invalid literal" in entry["MESSAGE"]


def test_lines_that_journald_did_not_take_are_counted(tmp_path: Path, handler: JournalHandler):
    logger = logging.getLogger("inspectd.somewhere")
    (tmp_path / "journal").unlink()
    logger.warning("lost")
    logger.warning("lost too")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as back:
        back.bind(str(tmp_path / "journal"))
        back.settimeout(EXIT_S)
        logger.warning("here again")
        assert "(2 lines before this one are lost" in received(back)["MESSAGE"]
        logger.warning("as ever")
        assert received(back)["MESSAGE"] == "as ever"


def test_only_what_goes_to_the_journal_goes_there_with_fields(tmp_path: Path):
    with (tmp_path / "log").open("w") as file:
        found = os.fstat(file.fileno())
        ours = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(file.fileno(), ours)
        assert not is_journal(file.fileno(), {})
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:1"})
    assert not is_journal(10_000, ours)


# ---- credentials ---------------------------------------------------------------------------------

SECRET = "Tr0ub4dor&3"
WITH_CREDENTIAL = "mqtt: {username: cell, password_file: $CREDENTIALS_DIRECTORY/mqtt-password, "


@pytest.fixture
def with_credential(tmp_path: Path) -> Station:
    station = Station(tmp_path / "station", camera=SIMULATED % 30, trigger=ON_REQUEST)
    station.file.write_text(station.file.read_text().replace("mqtt: {", WITH_CREDENTIAL))
    return station


def test_the_service_finds_its_credentials(
    with_credential: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = config.load(with_credential.file)
    folder = tmp_path / "inspectd@line2.service"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    folder.mkdir()
    (folder / "mqtt-password").write_text(f"{SECRET}\n")
    assert read_access(settings.station.mqtt, settings.resolve).password == SECRET
    (folder / "mqtt-password").write_text("\n")  # which the unit has for none
    source = "/etc/inspectd/credentials/line2.mqtt-password"
    with pytest.raises(PermanentError, match=f"is empty; .*{source}"):
        read_access(settings.station.mqtt, settings.resolve)


@pytest.fixture
def installed(
    with_credential: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Settings, Path]:
    """As if it lay where the unit looks for it; and the folder that systemd makes for the unit."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(inspectd.settings, "INSTALLED", with_credential.file.parent)
    monkeypatch.setattr(inspectd.settings, "HANDED_OVER", tmp_path / "run")
    return config.load(with_credential.file), tmp_path / "run" / "inspectd@cell.service"


def test_who_works_beside_the_service_finds_its_credentials_while_it_runs(
    installed: tuple[Settings, Path],
):
    settings, folder = installed
    folder.mkdir(parents=True)
    (folder / "mqtt-password").write_text(f"{SECRET}\n")
    assert read_access(settings.station.mqtt, settings.resolve).password == SECRET
    (folder / "mqtt-password").write_text("\n")
    with pytest.raises(PermanentError, match=r"is empty; .*/cell\.mqtt-password"):
        read_access(settings.station.mqtt, settings.resolve)


def test_a_station_file_of_another_folder_has_none_of_the_service_s_credentials(
    installed: tuple[Settings, Path], monkeypatch: pytest.MonkeyPatch
):
    settings, folder = installed
    folder.mkdir(parents=True)
    (folder / "mqtt-password").write_text(f"{SECRET}\n")
    monkeypatch.setattr(inspectd.settings, "INSTALLED", Path("/etc/inspectd"))
    with pytest.raises(PermanentError, match="is there only while the service runs"):
        read_access(settings.station.mqtt, settings.resolve)


def test_while_the_service_does_not_run_it_is_said_that_they_are_not_there(
    installed: tuple[Settings, Path], with_credential: Station
):
    settings, _ = installed
    words = r"\$CREDENTIALS_DIRECTORY/mqtt-password is there only while the service runs.* sudo -u"
    with pytest.raises(PermanentError, match=words):
        read_access(settings.station.mqtt, settings.resolve)
    checked = subprocess.run(
        [sys.executable, "-m", "inspectd", "check", "-c", with_credential.file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "$CREDENTIALS_DIRECTORY/mqtt-password is not looked at" in checked.stdout


# ---- the units -----------------------------------------------------------------------------------


@pytest.fixture
def analyze() -> Callable[..., subprocess.CompletedProcess[str]]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze on this machine (Debian: apt install systemd)")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemd-analyze", "--no-pager", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_units_are_clean(analyze: Callable, tmp_path: Path):
    for name, installed in {
        "inspectd@.service": "inspectd@default.service",
        "inspectd-warmup.service": "inspectd-warmup.service",
        "inspectd-trial.service": "inspectd-trial.service",
    }.items():
        text = (UNITS / name).read_text()
        (tmp_path / installed).write_text(text.replace(PROGRAM_OF_UNITS, "/bin/true"))
    done = analyze("verify", *tmp_path.glob("*.service"))
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("unit", ["inspectd@.service", "inspectd-warmup.service"])
def test_the_units_are_confined(analyze: Callable, unit: str):
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", UNITS / unit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout
