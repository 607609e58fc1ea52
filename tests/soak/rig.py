"""What the scenarios stand on: a folder of their own, a station, its memory, its end."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import eventually
from station import Service, Station

from inspectd.commands.private_broker import PrivateBroker
from inspectd.mqtt.topics import OFFLINE, ONLINE
from soak.consumer import Consumer

START_S = 60.0
SAMPLE_S = 0.5
MEBIBYTE = 2**20
WORDS_OF_A_CRASH = ("Traceback", "unexpected error")


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder that is open to the user `mosquitto`, which a broker started by root becomes."""
    with tempfile.TemporaryDirectory(prefix="inspectd-soak-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def kept(station: Station) -> Iterator[Station]:
    """Its services end, whatever happens."""
    try:
        yield station
    finally:
        for service in station.started:
            service.kill()


def set_mqtt(station: Station, keys: str) -> None:
    """Further keys, in YAML, for ``mqtt`` of the station file."""
    text = station.file.read_text()
    begun = "mqtt: {"
    assert text.count(begun) == 1
    station.file.write_text(text.replace(begun, f"{begun}{keys}, "))


def kill(broker: PrivateBroker) -> None:
    """As a power cut would."""
    assert broker.process is not None
    broker.process.kill()
    broker.process.wait()
    broker.stop()


def wait_online(consumer: Consumer, since: int = 0, timeout_s: float = START_S) -> bool:
    topic = consumer.topics.availability
    return eventually(lambda: consumer.says(topic, ONLINE, since), timeout_s)


def wait_offline(consumer: Consumer, since: int = 0, timeout_s: float = START_S) -> bool:
    topic = consumer.topics.availability
    return eventually(lambda: consumer.says(topic, OFFLINE, since), timeout_s)


def start(station: Station, consumer: Consumer) -> Service:
    """Start the service and wait until it can judge."""
    since = len(consumer.received(consumer.topics.availability))
    service = station.start()
    assert wait_online(consumer, since), service.log
    return service


def crashes(station: Station) -> list[str]:
    """Lines of its logs that no service should have written."""
    return [
        line
        for service in station.started
        for line in service.log.splitlines()
        if any(word in line for word in WORDS_OF_A_CRASH)
    ]


def resident_bytes(pid: int) -> int:
    """Memory of a process, as the system counts it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


class Sampler:
    """Calls a function every half second on a thread of its own; a context manager."""

    def __init__(self, sample: Callable[[], float]) -> None:
        self._sample = sample
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.values: list[float] = []

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_S):
            self.values.append(self._sample())
