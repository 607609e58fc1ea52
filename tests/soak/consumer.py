"""The plant's side of MQTT: a SCADA system that keeps everything, and a PLC that insists."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import paho.mqtt.client as paho
from broker import at_once, eventually
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from inspectd.commands.private_broker import HOST
from inspectd.mqtt.topics import Topics

CONNECT_S = 15.0
_TICK_S = 0.005


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as it came; ``retained``: of some time before the subscription."""

    at: datetime
    topic: str
    payload: bytes
    retained: bool
    correlation: bytes | None = None

    @property
    def json(self) -> dict:
        found: dict = json.loads(self.payload)
        return found


class Consumer:
    """Does what docs/mqtt.md asks of one: QoS 1 and a session that outlives its connection.

    A context manager; it connects again by itself, at once.
    """

    def __init__(self, port: int, topics: Topics, wanted: Sequence[str]) -> None:
        """``wanted``: topic filters."""
        self.topics = topics
        self._wanted = wanted
        self._by_topic: dict[str, list[Arrival]] = defaultdict(list)
        self._subscribed = False
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"plant-{uuid4().hex}", protocol=paho.MQTTv5
        )
        self._client.reconnect_delay_set(0.1, 0.2)  # type: ignore[arg-type]  # seconds all the same
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_socket_open = at_once
        self._session = Properties(PacketTypes.CONNECT)
        self._session.SessionExpiryInterval = 3600
        self._port = port

    def __enter__(self) -> "Consumer":
        self._client.connect(
            HOST, self._port, keepalive=5, clean_start=False, properties=self._session
        )
        self._client.loop_start()
        assert eventually(lambda: self._subscribed, CONNECT_S), "the broker takes no subscription"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected()

    def received(self, topic: str) -> list[Arrival]:
        """In the order of arrival; it goes on growing."""
        return self._by_topic[topic]

    def fresh(self, topic: str, since: int = 0) -> list[Arrival]:
        """Those from number ``since`` on that were not retained by the broker."""
        return [arrival for arrival in self.received(topic)[since:] if not arrival.retained]

    def says(self, topic: str, payload: bytes, since: int = 0) -> bool:
        """Whether that is the last word on the topic, and came after the first ``since``."""
        said = self.received(topic)
        return len(said) > since and said[-1].payload == payload

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, answer_to: str | None = None
    ) -> bool:
        """Hand over to the broker; False without a connection: nothing waits for one."""
        if not self.is_connected:
            return False
        properties = Properties(PacketTypes.PUBLISH)
        if answer_to is not None:
            properties.ResponseTopic = answer_to
            properties.CorrelationData = answer_to.encode()
        self._client.publish(topic, payload, 1, retain, properties)
        return True

    def _on_connect(self, client: paho.Client, _data, flags, _reason, _properties) -> None:
        if not flags.session_present:
            kind = SubscribeOptions(qos=1)
            client.subscribe([(wanted, kind) for wanted in self._wanted])

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed = True

    def _on_message(self, _client: paho.Client, _data, message: paho.MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", None)
        arrival = Arrival(
            datetime.now(UTC), message.topic, message.payload, message.retain, correlation
        )
        self._by_topic[message.topic].append(arrival)


@dataclass(slots=True)
class Request:
    """One part's, each time it was sent, and the verdicts it was answered with."""

    part_id: str
    sent_at: list[datetime] = field(default_factory=list)
    tried_at: float = 0.0
    answers: list[dict] = field(default_factory=list)


class Requester:
    """Asks for a verdict on each part, and repeats what stays without one: same transaction.

    Attributes:
        requests: by transaction, in the order of the parts.
        refusals: answers without a verdict.
    """

    def __init__(self, consumer: Consumer, repeat_s: float) -> None:
        self._consumer = consumer
        self._repeat_s = repeat_s
        self._read = 0
        self.requests: dict[str, Request] = {}
        self.refusals: list[dict] = []

    def run(
        self,
        parts: Sequence[str],
        rate: float,
        meanwhile: Callable[[], Future],
        begin_after: int,
        give_up_s: float,
    ) -> bool:
        """Ask for all parts, ``rate`` a second.

        Args:
            meanwhile: called once ``begin_after`` parts were asked for.
            give_up_s: after the last part was asked for and ``meanwhile`` has ended.

        Returns:
            False if some part had no verdict by then.
        """
        begun = time.monotonic()
        disturbance: Future | None = None
        waiting: list[str] = []
        asked = 0
        give_up_at = float("inf")
        while time.monotonic() < give_up_at:
            while asked < len(parts) and time.monotonic() >= begun + asked / rate:
                transaction = f"t-{parts[asked]}"
                self.requests[transaction] = Request(parts[asked])
                waiting.append(transaction)
                asked += 1
            if disturbance is None and asked >= begin_after:
                disturbance = meanwhile()
            self._read_answers()
            waiting = [one for one in waiting if not self.requests[one].answers]
            for transaction in waiting:
                self._ask(transaction)
            if asked == len(parts) and disturbance is not None and disturbance.done():
                if not waiting:
                    return True
                give_up_at = min(give_up_at, time.monotonic() + give_up_s)
            time.sleep(_TICK_S)
        return False

    def _ask(self, transaction: str) -> None:
        request = self.requests[transaction]
        if time.monotonic() - request.tried_at < self._repeat_s:
            return
        request.tried_at = time.monotonic()
        content = {"part_id": request.part_id, "transaction": transaction}
        now = datetime.now(UTC)
        if self._consumer.publish(
            self._consumer.topics.request("trigger"), json.dumps(content).encode()
        ):
            request.sent_at.append(now)

    def _read_answers(self) -> None:
        arrivals = self._consumer.received(self._consumer.topics.response("trigger"))[self._read :]
        self._read += len(arrivals)
        for arrival in arrivals:
            response = arrival.json
            request = self.requests.get(response["transaction"])
            if request is None or response["verdict"] is None:
                self.refusals.append(response)
            else:
                request.answers.append(response["verdict"])
