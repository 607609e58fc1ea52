"""A station for the tests: its files, its references, and the real service as a process."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import cv2
from broker import Subscriber, eventually
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from inspectd.camera.simulated import render
from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.mqtt.topics import Topics
from inspectd.records import Image
from inspectd.references import ReferenceStore
from inspectd.settings import Program, SimulatedCamera
from inspectd.teaching import Candidate, teach

NAME = "cell"
PROGRAM = "block"
TOPICS = Topics(NAME)
EXIT_S = 30.0
SIMULATED = "{driver: simulated, width: 320, height: 240, seed: 4, rate: %g}"
_PARTS = SimulatedCamera(width=320, height=240, seed=3)


def good_part(number: int) -> Image:
    return render(_PARTS, number)[0]


def write_pictures(folder: Path, numbers: Sequence[int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        assert cv2.imwrite(str(folder / f"{number}.png"), good_part(number))
    return folder


def cut_short(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:500])


MADE: list["Station"] = []
"""Cleaned up after each test, a failed one too: no service is left running."""


class Station:
    """The files of one station in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        camera: str,
        trigger: str,
        port: int = 1,
        extra: str = "",
        name: str = NAME,
    ) -> None:
        """``camera`` and ``trigger`` are YAML, ``extra`` further lines of the station file."""
        self.folder = folder
        self.file = folder / f"{name}.yaml"
        (folder / "programs").mkdir(parents=True, exist_ok=True)
        (folder / "programs" / f"{PROGRAM}.yaml").write_text("description: 27 pins\n")
        self.file.write_text(
            f"station: {name}\nprogram: {PROGRAM}\ncamera: {camera}\ntrigger: {trigger}\n"
            f"mqtt: {{host: {HOST}, port: {port}}}\nstorage: {{directory: state}}\n{extra}"
        )
        self.references = folder / "state" / name / "references" / PROGRAM
        self.journal = folder / "state" / name / "journal.db"
        self.started: list[Service] = []
        MADE.append(self)

    def teach(self, numbers: Sequence[int] = range(8)) -> None:
        """Good parts as references, without the command line."""
        now = datetime.now(UTC)
        parts = [Candidate(f"{number}.png", good_part(number), now) for number in numbers]
        taught = teach(Program(), ReferenceStore(self.references), parts, "0" * 12)
        assert len(taught.added) == len(numbers)

    def start(self) -> "Service":
        self.started.append(
            Service(self.file, self.folder / f"{self.file.stem}-{len(self.started)}.log")
        )
        return self.started[-1]

    def rows(self) -> list[tuple[int, str, bool]]:
        """seq, id and whether sent, of each row of the journal."""
        if not self.journal.exists():
            return []
        with closing(sqlite3.connect(f"file:{self.journal}?mode=ro", uri=True)) as database:
            try:
                found = database.execute("SELECT seq, id, sent FROM inspection ORDER BY seq")
            except sqlite3.OperationalError:  # just made, without tables yet
                return []
            return [(seq, id_, bool(sent)) for seq, id_, sent in found]

    def wait_until_sent(self) -> None:
        """Until what was judged so far is sent: a stop does not wait for the backlog."""
        behind = len(self.rows())
        assert eventually(lambda: all(sent for _, _, sent in self.rows()[:behind]))

    def clean_up(self) -> None:
        for service in self.started:
            service.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Service:
    """``inspectd run`` as a process."""

    def __init__(self, file: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inspectd", "run", "-c", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait(self, timeout_s: float = EXIT_S) -> int:
        return self.process.wait(timeout_s)

    def stop(self, timeout_s: float = EXIT_S) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        self.process.kill()  # also ends a process that is paused
        self.process.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It does nothing meanwhile, such as connecting before a subscriber is there."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def hanging(broker: PrivateBroker) -> Iterator[None]:
    """The broker takes bytes, since the kernel does, and answers nothing."""
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        broker.process.send_signal(signal.SIGCONT)


def request(
    subscriber: Subscriber,
    payload: bytes | dict[str, str] = b"",
    name: str = "trigger",
    *,
    response_topic: str | None = None,
    correlation_data: bytes | None = None,
    retain: bool = False,
) -> None:
    """Publish ``request/NAME``."""
    properties = Properties(PacketTypes.PUBLISH)
    if response_topic is not None:
        properties.ResponseTopic = response_topic
    if correlation_data is not None:
        properties.CorrelationData = correlation_data
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    subscriber.publish(TOPICS.request(name), raw, retain=retain, properties=properties)


def decoded(subscriber: Subscriber, topic: str) -> list[dict]:
    return [json.loads(message.payload) for message in subscriber.received(topic)]


def verdicts(subscriber: Subscriber) -> list[dict]:
    return decoded(subscriber, TOPICS.verdict)


def wait_for_verdicts(subscriber: Subscriber, count: int) -> list[dict]:
    subscriber.wait_for(TOPICS.verdict, count)
    return verdicts(subscriber)


def wait_until(subscriber: Subscriber, topic: str, fits: Callable[[bytes], bool]) -> bytes:
    """The first message on the topic that fits."""

    def fitting() -> list[bytes]:
        return [m.payload for m in subscriber.received(topic) if fits(m.payload)]

    assert eventually(lambda: bool(fitting()), EXIT_S), [
        m.payload for m in subscriber.received(topic)
    ]
    return fitting()[0]


def wait_until_available(subscriber: Subscriber, times: int = 1) -> None:
    def count() -> int:
        return [m.payload for m in subscriber.received(TOPICS.availability)].count(b"online")

    assert eventually(lambda: count() >= times, EXIT_S), "the station does not come up"


def wait_for_state(subscriber: Subscriber, state: str) -> dict:
    raw = wait_until(subscriber, TOPICS.state, lambda p: json.loads(p)["state"] == state)
    found: dict = json.loads(raw)
    return found
