"""What the broker keeps of a station's topics, read by a connection beside the service's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from inspectd.errors import BrokerUnavailable, InspectdError
from inspectd.mqtt.access import read_access
from inspectd.mqtt.connection import Connection
from inspectd.mqtt.messages import RequestMessage
from inspectd.settings import MqttSettings

_GOODBYE_S = 0.5


def read_retained(
    settings: MqttSettings,
    station: str,
    topics: Sequence[str],
    resolve: Callable[[str], Path],
    within_s: float,
) -> dict[str, bytes]:
    """The retained payload of each topic, as far as they come within ``within_s``.

    The client id is ``inspectd-STATION-bundle``. ``resolve`` makes a path of the settings absolute.

    Raises:
        InspectdError: why none came.
    """
    visit = _Visit(topics)
    connection = Connection(
        settings, read_access(settings, resolve), f"inspectd-{station}-bundle", visit
    )

    def live() -> None:
        try:
            visit.end(BrokerUnavailable(f"the connection was lost: {connection.run()}"))
        except InspectdError as error:
            visit.end(error)

    thread = threading.Thread(target=live, name="broker-retained", daemon=True)
    thread.start()
    try:
        visit.done.wait(within_s)
        if not visit.payloads:
            raise visit.trouble or BrokerUnavailable(
                f"the broker has sent none of {', '.join(topics)} within {within_s:g} s: it keeps "
                "none, or its access rules do not let the station read them"
            )
        return dict(visit.payloads)
    finally:
        connection.close()
        thread.join(_GOODBYE_S)


class _Visit:
    """The connection's handler."""

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics
        self.payloads: dict[str, bytes] = {}
        self.trouble: InspectdError | None = None
        self.done = threading.Event()

    def end(self, trouble: InspectdError) -> None:
        self.trouble = trouble
        self.done.set()

    def connected(self, connection: Connection) -> None:
        for topic in self._topics:
            connection.subscribe(topic)

    def subscribed(self, topic: str, refusal: str | None) -> None:
        if refusal:
            self.trouble = BrokerUnavailable(f"the broker refuses {topic}: {refusal}")

    def acknowledged(self, mid: int, refusal: str | None) -> None:
        """Nothing is published here."""

    def received(self, topic: str, message: RequestMessage) -> None:
        self.payloads[topic] = message.payload
        message.acknowledge()
        if len(self.payloads) == len(self._topics):
            self.done.set()
