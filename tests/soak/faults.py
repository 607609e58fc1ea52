"""Brokers that do not want the station: each is named in words, and none is hammered."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from broker import eventually
from impostor import Impostor
from station import SIMULATED, Service, Station
from tls import Authority, password_lines, tls_lines

from inspectd import config
from inspectd.commands.private_broker import PrivateBroker
from inspectd.control import StatusRequest, ask
from inspectd.errors import BrokerState
from inspectd.payload import StatePayload
from soak.proxy import Proxy
from soak.report import Report
from soak.rig import START_S, crashes, kept, set_mqtt, workplace

LOG_S = 15.0
BETWEEN_ATTEMPTS_S = 1.0
LOG_LINES = 10
"""A fault is told, not repeated at every attempt or message."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One broker that does not work.

    Attributes:
        keys: of ``mqtt`` in the station file, in YAML.
        named: what `state` must call it.
        words: what the log must say; the reason and the remedy.
    """

    broker: AbstractContextManager[int]
    keys: str
    named: BrokerState
    words: tuple[str, ...]


def faults(*, watch_s: float = 70.0, only: str = "") -> Report:
    """Each broker that does not work for WATCH_S seconds; ONLY one of them by its name."""
    report = Report("Faults")
    for name, arrange in FAULTS.items():
        if only in {"", name}:
            with workplace() as folder:
                _watch(report, name, folder, arrange(folder), watch_s)
    return report


def _watch(report: Report, name: str, folder: Path, fault: Fault, watch_s: float) -> None:
    with fault.broker as port, Proxy(port) as proxy:
        station = Station(
            folder / "station",
            camera=SIMULATED % 50,
            trigger="{source: interval, interval_s: 0.2}",
            port=proxy.port,
        )
        station.teach()
        set_mqtt(station, fault.keys)
        with kept(station):
            service = station.start()
            said = eventually(lambda: all(word in service.log for word in fault.words), LOG_S)
            time.sleep(watch_s)
            state = _state(station, fault.named)
            lines = _trouble(service)
            service.stop()
    report.demand(said, f"{name}: the log does not say {fault.words}:\n{service.log[-1500:]}")
    report.demand(
        state is not None and state.state == "judging" and bool(station.rows()),
        f"{name}: a broker's fault stops the judging: {state}",
    )
    report.demand(
        state is not None and state.broker is fault.named and any(state.notes),
        f"{name}: the state does not name it {fault.named}, with a note: {state}",
    )
    report.violations += [f"{name}: in the log: {line}" for line in crashes(station)]
    waits = [later - at for at, later in pairwise(proxy.attempts)]
    report.demand(
        min(waits, default=BETWEEN_ATTEMPTS_S) >= BETWEEN_ATTEMPTS_S,
        f"{name}: tried again after {min(waits, default=0.0):.2f} s",
    )
    report.figure(f"{name}: state", state.broker if state else "none")
    report.figure(f"{name}: connections", len(proxy.attempts))
    report.figure(f"{name}: log lines on it", len(lines), at_most=LOG_LINES)
    report.note(f"{name}: {lines[0] if lines else 'not a word'}")


def _state(station: Station, broker: BrokerState) -> StatePayload | None:
    """The last one, by the control socket, for over MQTT nobody can hear it; it may take a while
    to settle."""
    answered: list[StatePayload | None] = []

    def told() -> bool:
        reply = ask(config.load(station.file).control_socket, StatusRequest())
        answered.append(reply.state if reply else None)
        last = answered[-1]
        return last is not None and last.state == "judging" and last.broker is broker

    eventually(told, START_S)
    return answered[-1]


def _trouble(service: Service) -> list[str]:
    """The warnings and errors of the log that are about the broker."""
    words = ("WARNING", "ERROR")
    return [
        line
        for line in service.log.splitlines()
        if "MQTT broker" in line and any(word in line for word in words)
    ]


@contextmanager
def _broker(folder: Path, lines: list[str]) -> Iterator[int]:
    with PrivateBroker(folder / "broker", settings=lines) as broker:
        yield broker.port


@contextmanager
def _impostor(answer: list[bytes] | None) -> Iterator[int]:
    """Gives these answers and hangs up, or, with None, is silent."""
    impostor = Impostor(answer)
    try:
        yield impostor.port
    finally:
        impostor.close()


def _wrong_password(folder: Path) -> Fault:
    (folder / "station").mkdir()
    (folder / "station" / "password").write_text("wrong")
    return Fault(
        _broker(folder, password_lines(folder, "cell", "right")),
        "username: cell, password_file: password",
        BrokerState.REFUSED_CREDENTIALS,
        ("it refuses the connection", "wrong password", "mqtt.password_file"),
    )


def _expired_certificate(folder: Path) -> Fault:
    plant = Authority(folder, "plant")
    return Fault(
        _broker(folder, _readable(tls_lines(plant.issue(days=-1)), folder)),
        f"tls: {{ca: {plant.file}}}",
        BrokerState.REFUSED_CERTIFICATE,
        ("has expired", "needs a new one"),
    )


def _wrong_authority(folder: Path) -> Fault:
    plant, other = Authority(folder, "plant"), Authority(folder, "other")
    return Fault(
        _broker(folder, _readable(tls_lines(plant.issue()), folder)),
        f"tls: {{ca: {other.file}}}",
        BrokerState.REFUSED_CERTIFICATE,
        ("not signed by an authority that this station trusts", "mqtt.tls.ca"),
    )


def _says_nothing(_folder: Path) -> Fault:
    return Fault(
        _impostor(None),
        "keepalive_s: 5",
        BrokerState.SILENT,
        ("takes the connection but does not answer",),
    )


def _closes_at_once(_folder: Path) -> Fault:
    """As what stands before a broker does while the broker is away."""
    return Fault(
        _impostor([]),
        "keepalive_s: 5",
        BrokerState.WRONG_PROTOCOL,
        ("takes the connection but gives no proper answer",),
    )


def _wants_a_certificate(folder: Path) -> Fault:
    plant = Authority(folder, "plant")
    return Fault(
        _broker(folder, _readable(tls_lines(plant.issue(), clients=plant), folder)),
        f"tls: {{ca: {plant.file}}}",
        BrokerState.REFUSED_CERTIFICATE,
        ("wants a certificate of the station", "mqtt.tls.certificate"),
    )


def _refuses_large_messages(folder: Path) -> Fault:
    """Large enough for a verdict, too small for a heatmap: a reason code each time."""
    return Fault(
        _broker(folder, ["message_size_limit 6000"]),
        "keepalive_s: 5",
        BrokerState.MESSAGE_TOO_LARGE,
        ("the MQTT broker refuses messages on", "/heatmap"),
    )


def _breaks_off_large_messages(folder: Path) -> Fault:
    """It tells its limit when the station connects, and ends a connection that disregards it."""
    return Fault(
        _broker(folder, ["max_packet_size 6000"]),
        "keepalive_s: 5",
        BrokerState.MESSAGE_TOO_LARGE,
        ("the MQTT broker refuses messages on", "/heatmap"),
    )


def _refuses_even_statistics(folder: Path) -> Fault:
    """Of the retained topics nothing else would tell."""
    return Fault(
        _broker(folder, ["message_size_limit 600"]),
        "keepalive_s: 5",
        BrokerState.MESSAGE_TOO_LARGE,
        ("the MQTT broker refuses messages on", "/statistics"),
    )


def _readable(lines: list[str], folder: Path) -> list[str]:
    """By the user that the broker becomes."""
    for file in folder.iterdir():
        file.chmod(0o755 if file.is_dir() else 0o644)
    return lines


FAULTS: dict[str, Callable[[Path], Fault]] = {
    "wrong password": _wrong_password,
    "expired certificate": _expired_certificate,
    "wrong authority": _wrong_authority,
    "broker that says nothing": _says_nothing,
    "closes at once": _closes_at_once,
    "wants a client certificate and gets none": _wants_a_certificate,
    "message too large": _refuses_large_messages,
    "packet too large": _breaks_off_large_messages,
    "retained message too large": _refuses_even_statistics,
}
