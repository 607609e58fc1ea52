"""What several tests need: the command line, a station, a real broker and subscribers to it."""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from broker import Subscriber
from hypothesis import HealthCheck, settings
from sensor import Scene
from station import MADE, Station

from inspectd import cli
from inspectd.commands.private_broker import PrivateBroker, find_mosquitto

# The same examples in each run, and none that is refused because the machine is busy.
settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same")


@pytest.fixture
def broker_directory() -> Iterator[Path]:
    """Open to the user `mosquitto`, which pytest's own temporary folders are not."""
    if find_mosquitto() is None:
        pytest.skip("there is no mosquitto on this machine (Debian: apt install mosquitto)")
    with tempfile.TemporaryDirectory(prefix="inspectd-broker-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def broker(broker_directory: Path) -> Iterator[PrivateBroker]:
    """A running Mosquitto on a port of its own."""
    with PrivateBroker(broker_directory, persistent=True) as broker:
        yield broker


@pytest.fixture
def subscribe() -> Iterator[Callable[[PrivateBroker], Subscriber]]:
    """Makes subscribers, and closes them at the end."""
    subscribers: list[Subscriber] = []

    def make(broker: PrivateBroker) -> Subscriber:
        subscribers.append(Subscriber(broker.port))
        return subscribers[-1]

    yield make
    for subscriber in subscribers:
        subscriber.close()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Before the simulated sensor, in this process and in those that it starts."""
    for name in ("FRAME", "STALL", "ERROR"):
        monkeypatch.setenv(f"LIBCAMERA_SIM_{name}", str(tmp_path / name.lower()))
    scene = Scene(tmp_path)
    scene.show(scene.pattern)
    return scene


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`inspectd` within this process: exit code, standard output and standard error."""

    def run_it(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inspectd", *map(str, arguments)])
        capsys.readouterr()
        code = cli.run_command_line()
        return (code, *capsys.readouterr())

    kept = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # some commands set their own
    before = {number: signal.getsignal(number) for number in kept}
    yield run_it
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def make_station(tmp_path: Path) -> Callable[..., Station]:
    """Makes the station of the test."""
    return partial(Station, tmp_path / "station")


@pytest.fixture(autouse=True)
def no_service_is_left() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().clean_up()
