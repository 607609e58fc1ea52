"""A plain MQTT consumer, as a SCADA system would be one: for the demonstration."""

from __future__ import annotations

import queue
import uuid
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from inspectd.errors import BrokerUnavailable

CONNECT_S = 10.0


class Subscriber:
    """Connected while it is entered as a context; what comes is put into a queue."""

    def __init__(self, host: str, port: int, topic_filter: str) -> None:
        self._host, self._port, self._filter = host, port, topic_filter
        self._messages: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"demo-{uuid.uuid4().hex}", protocol=paho.MQTTv5
        )
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.put(None)
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        """Connect and subscribe.

        Raises:
            BrokerUnavailable: the broker does not answer in time.
        """
        self._client.connect(self._host, self._port)
        self._client.loop_start()
        try:
            self._ready.get(timeout=CONNECT_S)
        except queue.Empty:
            self._leave()
            raise BrokerUnavailable(
                f"the MQTT broker {self._host}:{self._port} does not answer"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)

    def receive(self, timeout_s: float) -> tuple[str, bytes] | None:
        """The next message's topic and payload; None when none comes in time."""
        try:
            return self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, *_: Any) -> None:
        self._client.subscribe(self._filter, qos=1)

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._messages.put((message.topic, bytes(message.payload)))
