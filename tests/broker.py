"""The other end of MQTT in the tests: a subscriber that owes nothing to `inspectd.mqtt`."""

import re
import socket
import threading
import time
from collections.abc import Callable
from uuid import uuid4

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from inspectd.commands.private_broker import HOST, PrivateBroker

TIMEOUT_S = 15.0


def at_once(_client: paho.Client, _data: object, opened: socket.socket) -> None:
    """Else what follows on an acknowledgement of ours waits up to 40 ms for one of the kernel's."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Subscriber:
    """Subscribed to everything once it is made; keeps every message in the order of arrival."""

    def __init__(self, port: int) -> None:
        self._messages: list[paho.MQTTMessage] = []
        self._arrival = threading.Condition(threading.RLock())
        subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = self._on_message
        self._client.on_socket_open = at_once
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect(HOST, port)
        self._client.loop_start()
        self._client.subscribe("#", options=SubscribeOptions(qos=1, retainAsPublished=True))
        assert subscribed.wait(TIMEOUT_S), "the broker does not acknowledge a subscription"

    def _on_message(self, _client, _userdata, message: paho.MQTTMessage) -> None:
        with self._arrival:
            self._messages.append(message)
            self._arrival.notify_all()

    def everything(self) -> list[paho.MQTTMessage]:
        """All messages, in the order of arrival."""
        with self._arrival:
            return list(self._messages)

    def received(self, topic: str) -> list[paho.MQTTMessage]:
        with self._arrival:
            return [message for message in self._messages if message.topic == topic]

    def wait_for(self, topic: str, count: int = 1) -> list[paho.MQTTMessage]:
        """All messages on the topic once there are at least ``count``."""
        with self._arrival:
            came = self._arrival.wait_for(lambda: len(self.received(topic)) >= count, TIMEOUT_S)
        messages = self.received(topic)
        assert came, f"{len(messages)} messages on {topic}, not {count}: {payloads(messages)}"
        return messages

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: Properties | None
    ) -> None:
        info = self._client.publish(topic, payload, 1, retain, properties)
        info.wait_for_publish(TIMEOUT_S)

    def catch_up(self) -> None:
        """Wait for all that the broker has acknowledged so far: it keeps the order."""
        own = f"caught-up/{uuid4().hex}"
        self._client.publish(own, qos=1)
        self.wait_for(own)
        with self._arrival:
            self._messages = [message for message in self._messages if message.topic != own]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def payloads(messages: list[paho.MQTTMessage]) -> list[bytes]:
    return [message.payload for message in messages]


def has_said_goodbye(broker: PrivateBroker, client_id: str) -> bool:
    """Whether Mosquitto's log has it, which may come a moment after the goodbye was sent.

    Of a connection that broke it says "closed its connection", or goes on with a reason. A newer
    Mosquitto names the client's address, too.
    """
    goodbye = rf"Client {re.escape(client_id)}( \[[^]]*\])? disconnected\."
    return re.search(goodbye, broker.log_path.read_text()) is not None


def eventually(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> bool:
    """For what announces itself by no event: whether it came true in time."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True
