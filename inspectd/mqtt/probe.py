"""A look at the broker from outside the running service: what `inspectd doctor` wants to know."""

from __future__ import annotations

import queue
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from inspectd.errors import BrokerUnavailable, InspectdError
from inspectd.mqtt import words
from inspectd.mqtt.access import read_access
from inspectd.mqtt.connection import Connection
from inspectd.mqtt.messages import RequestMessage
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings

PROBE_WITHIN_S = 8.0
ROUNDS = 11
IN_A_ROW = 4
_GOODBYE_S = 0.5
_SECONDS_A_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class BrokerReport:
    """What one connection to the broker has shown; None is what could not be found out.

    Attributes:
        reachable: something takes TCP connections at the host and port.
        connected: the broker has let the station in.
        trouble: why it has not, or why the rest was not found out; empty if there was none.
        tls_version: such as TLSv1.3; None in the clear too.
        broker_certificate_days: until it expires; one that has expired is told by ``trouble``.
        own_certificate_days: the same of the station's own; negative after, and told without a
            connection too.
        publish_refusal: the broker's reason against messages below ``inspectd/STATION``; empty if
            it takes them.
        subscribe_refusal: the broker's reason against the subscription to ``request/+``; empty if
            it grants it. Mosquitto with a file of access rules always does, and then delivers
            nothing that the rules forbid.
        answer_ms: from the hand-over of four messages (QoS 1) in a row to the acknowledgement of
            all, the median. One alone would not show Nagle's algorithm: without
            ``set_tcp_nodelay true``, the broker's system holds an answer back until ours has
            acknowledged the one before, for about 40 ms. Two show it only now and then.
    """

    reachable: bool | None = None
    connected: bool = False
    trouble: str = ""
    tls_version: str | None = None
    broker_certificate_days: float | None = None
    own_certificate_days: float | None = None
    publish_refusal: str | None = None
    subscribe_refusal: str | None = None
    answer_ms: float | None = None


def probe(
    settings: MqttSettings,
    station: str,
    resolve: Callable[[str], Path],
    within_s: float = PROBE_WITHIN_S,
) -> BrokerReport:
    """Connect once, beside the service that may be running, and look around.

    The client id is ``inspectd-STATION-doctor``, the topic ``inspectd/STATION/doctor``. It takes
    little more than ``within_s``. Raises nothing: what is wrong stands in the report. ``resolve``
    makes a path of the settings absolute.
    """
    report = BrokerReport()
    try:
        access = read_access(settings, resolve)
    except InspectdError as error:
        return replace(report, trouble=str(error))
    if settings.tls is not None and settings.tls.certificate is not None:
        days = _own_days_left(resolve(settings.tls.certificate))
        report = replace(report, own_certificate_days=days)
    visit = _Visit(settings, within_s)
    topics = Topics(station)
    connection = Connection(settings, access, f"inspectd-{station}-doctor", visit)
    # Neither a name look-up nor a handshake can be interrupted: they are left behind if need be.
    thread = threading.Thread(
        target=visit.run, args=(connection,), name="broker-probe", daemon=True
    )
    thread.start()
    try:
        visit.wait_for(_Reached)
        report = replace(report, reachable=True)
        report = _let_in(report, visit.wait_for(_LetIn))
        connection.subscribe(topics.request("+"))
        report = replace(report, subscribe_refusal=visit.wait_for(_Subscribed).refusal)
        report = replace(report, publish_refusal=_publish_row(connection, visit, topics.doctor))
        rounds = [_answer_s(connection, visit, topics.doctor) for _ in range(ROUNDS)]
        return replace(report, answer_ms=1000.0 * statistics.median(rounds))
    except _NotReached as error:
        return replace(report, reachable=False, trouble=str(error))
    except InspectdError as error:
        return replace(report, trouble=str(error))
    finally:
        connection.close()
        thread.join(_GOODBYE_S)


class _NotReached(BrokerUnavailable):
    """There was not even a TCP connection."""


# What happens on the connection, in the order in which it does.


@dataclass(frozen=True, slots=True)
class _Reached:
    """Something takes TCP connections."""


@dataclass(frozen=True, slots=True)
class _LetIn:
    tls_version: str | None
    certificate: bytes | None


@dataclass(frozen=True, slots=True)
class _Subscribed:
    refusal: str


@dataclass(frozen=True, slots=True)
class _Acknowledged:
    refusal: str


@dataclass(frozen=True, slots=True)
class _Ended:
    error: InspectdError


_Event = TypeVar("_Event", _Reached, _LetIn, _Subscribed, _Acknowledged)


class _Visit:
    """The connection's handler: hands what happens to the thread that waits for it."""

    def __init__(self, settings: MqttSettings, within_s: float) -> None:
        self._settings = settings
        self._within_s = within_s
        self._give_up_at = time.monotonic() + within_s
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()

    def run(self, connection: Connection) -> None:
        """Live through the connection, on a thread of its own."""
        try:
            self._reach()
            why = connection.run()
        except InspectdError as error:
            self._events.put(_Ended(error))
        else:
            self._events.put(_Ended(BrokerUnavailable(f"the connection was lost: {why}")))

    def wait_for(self, kind: type[_Event]) -> _Event:
        """The next event of a kind; others that come before it are passed over.

        Raises:
            InspectdError: why it will not come.
        """
        while True:
            try:
                event = self._events.get(timeout=max(0.0, self._give_up_at - time.monotonic()))
            except queue.Empty:
                raise BrokerUnavailable(f"no answer within {self._within_s:g} s") from None
            if isinstance(event, kind):
                return event
            if isinstance(event, _Ended):
                raise event.error

    def _reach(self) -> None:
        address = (self._settings.host, self._settings.port)
        try:
            socket.create_connection(address, timeout=self._within_s).close()
        except (OSError, ValueError) as error:
            raise _NotReached(str(words.not_opened(error, self._settings))) from error
        self._events.put(_Reached())

    def connected(self, connection: Connection) -> None:
        self._events.put(_LetIn(connection.tls_version, connection.broker_certificate))

    def subscribed(self, _topic: str, refusal: str | None) -> None:
        self._events.put(_Subscribed(refusal or ""))

    def acknowledged(self, _mid: int, refusal: str | None) -> None:
        self._events.put(_Acknowledged(refusal or ""))

    def received(self, _topic: str, _message: RequestMessage) -> None:
        """A request, which the running service answers."""


def _let_in(report: BrokerReport, event: _LetIn) -> BrokerReport:
    days = None
    if event.certificate is not None:
        days = _days_left(x509.load_der_x509_certificate(event.certificate))
    return replace(
        report, connected=True, tls_version=event.tls_version, broker_certificate_days=days
    )


def _publish_row(connection: Connection, visit: _Visit, topic: str) -> str:
    """Publish some messages in a row, and wait until all are acknowledged.

    Returns:
        The broker's reason against them; empty if it has taken them.
    """
    for _ in range(IN_A_ROW):
        connection.publish(topic, b"")
    return [visit.wait_for(_Acknowledged).refusal for _ in range(IN_A_ROW)][-1]


def _answer_s(connection: Connection, visit: _Visit, topic: str) -> float:
    began = time.monotonic()
    _publish_row(connection, visit, topic)
    return time.monotonic() - began


def _own_days_left(path: Path) -> float | None:
    try:
        return _days_left(x509.load_pem_x509_certificate(path.read_bytes()))
    except ValueError:
        # TLS has taken the file; this parser is the stricter one.
        return None


def _days_left(certificate: x509.Certificate) -> float:
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    return left.total_seconds() / _SECONDS_A_DAY
