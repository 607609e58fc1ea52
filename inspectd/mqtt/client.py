"""The station's connection to its broker: the only module that knows paho-mqtt.

It connects in the background, keeps trying for ever, and says what is wrong once, not at every
attempt. Nothing is queued for a broker that is away: whoever publishes is told so. What paho still
held unacknowledged when a connection broke is dropped too, since paho would send it again as if it
were fresh, maybe hours late; durable messages come again from the journal, retained ones from
here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from inspectd.errors import BrokerUnavailable
from inspectd.mqtt.topics import OFFLINE, ONLINE, Topics
from inspectd.settings import MqttSettings

_logger = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0

_HINTS = {
    "Not authorized": "the broker's access rules must allow this station",
    "Bad user name or password": "the broker's password file must know this station",
    "Client identifier not valid": "the broker's rules for client ids must allow this one",
    "Unsupported protocol version": "the broker must speak MQTT 5",
    "Session taken over": "has another station on this broker the same name?",
    "Keep alive timeout": "the broker hangs, or the network between is interrupted",
    "Unspecified error": "the broker was stopped, or the network between is interrupted",
}


@dataclass(frozen=True, slots=True)
class RequestMessage:
    """A message on ``request/NAME``.

    Attributes:
        response_topic: where the requester wants its answer; None for ``response/NAME``.
        correlation_data: to be sent back with the answer.
        retain: it was kept by the broker, no one knows for how long.
    """

    payload: bytes
    response_topic: str | None
    correlation_data: bytes | None
    retain: bool


class Listener(Protocol):
    """Who wants to know of the connection. Called on the network thread: must not wait."""

    def connected(self) -> None:
        """A connection stands; nothing published on an earlier one will be acknowledged now."""

    def lost(self) -> None:
        """The connection is gone."""

    def acknowledged(self, mid: int, refusal: str | None) -> None:
        """The broker has answered the message ``mid``; ``refusal`` is its reason against it."""


_Arguments = ParamSpec("_Arguments")


def _guarded(
    callback: Callable[Concatenate[MqttClient, _Arguments], None],
) -> Callable[Concatenate[MqttClient, _Arguments], None]:
    """An exception that leaves a callback would end paho's network thread for good."""

    @functools.wraps(callback)
    def guarded(
        client: MqttClient, /, *arguments: _Arguments.args, **named: _Arguments.kwargs
    ) -> None:
        try:
            callback(client, *arguments, **named)
        except Exception:
            _logger.exception("unexpected error while handling a message of the MQTT broker")

    return guarded


class MqttClient:
    """One station's connection.

    The retained topics (`availability` and whatever `publish_retained` was given) are sent anew on
    every connection. `availability` starts as offline, and is the last will.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topics: Topics,
        client_id: str,
        on_request: Callable[[str, RequestMessage], None],
    ) -> None:
        """Prepare; `start` connects.

        ``client_id`` must be the station's own: the broker drops the older of two alike.
        ``on_request`` is given the NAME of ``request/NAME`` and the message, on the network
        thread: it must not wait.
        """
        self._settings = settings
        self._topics = topics
        self._on_request = on_request
        self._listener: Listener | None = None
        # Held while publishing, so never to be taken where paho holds its own locks: not in
        # on_publish and not in on_disconnect.
        self._retained_lock = threading.Lock()
        self._retained = {topics.availability: OFFLINE}
        self._connected = False
        self._stopping = threading.Event()
        self._retry_delay_s = 0.0
        self._answered = False
        self._reported = ""
        self._paho = self._make_paho(client_id)

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def broker(self) -> str:
        """HOST:PORT, for messages."""
        return f"{self._settings.host}:{self._settings.port}"

    def start(self, listener: Listener) -> None:
        """Connect in the background; returns at once. Once only."""
        self._listener = listener
        self._paho.connect_async(
            self._settings.host,
            self._settings.port,
            keepalive=self._settings.keepalive_s,
            # The broker keeps nothing for an absent station: a queued trigger would judge the
            # wrong part.
            clean_start=True,
        )
        self._paho.loop_start()

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content_type: str | None = None,
        expiry_s: int | None = None,
        correlation_data: bytes | None = None,
        user_properties: Sequence[tuple[str, str]] = (),
    ) -> int:
        """Hand a message over; never waits.

        The broker need not deliver it any more after ``expiry_s`` seconds.

        Returns:
            The message's number; `Listener.acknowledged` names it, maybe before this returns.

        Raises:
            BrokerUnavailable: there is no connection; the message is not kept.
            ValueError: the topic cannot be published to.
        """
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's own
        if content_type is not None:
            properties.ContentType = content_type
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        if correlation_data is not None:
            properties.CorrelationData = correlation_data
        if user_properties:
            properties.UserProperty = list(user_properties)
        return self._hand_over(topic, payload, qos, retain, properties).mid

    def publish_retained(self, topic: str, payload: bytes) -> None:
        """Publish now, if there is a connection, and anew on every later one."""
        with self._retained_lock:
            self._retained[topic] = payload
            # Without a connection it goes out with the next one.
            with contextlib.suppress(BrokerUnavailable):
                self._hand_over(topic, payload, qos=1, retain=True)

    def set_available(self, available: bool) -> None:
        """Publish `availability`, now and on every later connection."""
        self.publish_retained(self._topics.availability, ONLINE if available else OFFLINE)

    def stop(self, timeout_s: float = 1.0) -> None:
        """Say `offline`, disconnect and end the network thread, in about ``timeout_s`` at most."""
        self._stopping.set()
        half_s = timeout_s / 2
        with self._retained_lock:
            self._retained[self._topics.availability] = OFFLINE
            try:
                farewell = self._hand_over(self._topics.availability, OFFLINE, qos=1, retain=True)
            except BrokerUnavailable:
                farewell = None
        if farewell is not None:
            # Raised when the connection breaks meanwhile: then the last will speaks.
            with contextlib.suppress(RuntimeError):
                farewell.wait_for_publish(half_s)
        self._paho.disconnect()
        # paho's loop_stop has no time limit, and a connection attempt may hang in a name look-up.
        ending = threading.Thread(target=self._paho.loop_stop, name="mqtt-stop", daemon=True)
        ending.start()
        ending.join(half_s)
        if ending.is_alive():
            _logger.warning(
                "the connection to the MQTT broker %s does not end in time; leaving it behind",
                self.broker,
            )

    def _make_paho(self, client_id: str) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        client.will_set(self._topics.availability, OFFLINE, qos=1, retain=True)
        client.reconnect_delay_set(0, 0)  # the waiting is done in _before_connecting
        client.on_pre_connect = self._before_connecting
        client.on_socket_open = self._on_socket_open
        client.on_connect_fail = self._on_connect_fail
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _hand_over(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        properties: Properties | None = None,
    ) -> paho.MQTTMessageInfo:
        if self._connected:
            info = self._paho.publish(topic, payload, qos, retain, properties)
            if info.rc == paho.MQTT_ERR_SUCCESS:
                return info
        # paho may have kept the message; _on_connect drops it.
        raise BrokerUnavailable(f"no connection to the MQTT broker {self.broker}")

    # ---- paho's callbacks, all on its network thread -------------------------------------------

    def _before_connecting(self, client: paho.Client, _userdata: Any) -> None:
        """Wait between attempts, longer each time, unless `stop` ends it.

        Raises:
            ConnectionAbortedError: the client is stopping; paho takes it as a failed attempt.
        """
        # Random, so that a plant's stations do not all come back in the same instant.
        self._stopping.wait(self._retry_delay_s * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
        self._retry_delay_s = min(max(2 * self._retry_delay_s, FIRST_RETRY_S), LONGEST_RETRY_S)
        if self._stopping.is_set():
            client.disconnect()
            raise ConnectionAbortedError("stopping")

    @_guarded
    def _on_socket_open(self, _client: paho.Client, _userdata: Any, opened: Any) -> None:
        self._answered = False
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @_guarded
    def _on_connect_fail(self, _client: paho.Client, _userdata: Any) -> None:
        # paho calls this inside its except clause and hands over nothing.
        self._report(_words_for(sys.exc_info()[1]))

    @_guarded
    def _on_connect(
        self,
        client: paho.Client,
        _userdata: Any,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._answered = True
        if reason.is_failure:
            self._report(f"it refuses the connection: {_with_hint(reason)}")
            return
        if self._stopping.is_set():
            client.disconnect()
            return
        self._retry_delay_s = FIRST_RETRY_S
        self._reported = ""
        _logger.info("connected to the MQTT broker %s", self.broker)
        client.drop_out_messages()
        client.subscribe(self._topics.request("+"), qos=1)
        with self._retained_lock:
            self._connected = True
            for topic, payload in self._retained.items():
                self._hand_over(topic, payload, qos=1, retain=True)
        if self._listener is not None:
            self._listener.connected()

    @_guarded
    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: Any,
        _flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        was_connected, self._connected = self._connected, False
        if was_connected:
            if not self._stopping.is_set():
                _logger.warning(
                    "the connection to the MQTT broker %s is lost: %s; "
                    "verdicts wait in the journal until it is back",
                    self.broker,
                    _with_hint(reason),
                )
            if self._listener is not None:
                self._listener.lost()
        elif not self._answered:
            self._report(
                "it takes the connection but gives no proper answer (is it an MQTT broker?)"
            )

    @_guarded
    def _on_publish(
        self,
        _client: paho.Client,
        _userdata: Any,
        mid: int,
        reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        if self._listener is not None:
            self._listener.acknowledged(mid, _with_hint(reason) if reason.is_failure else None)

    @_guarded
    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        name = message.topic.removeprefix(self._topics.request(""))
        response_topic = getattr(message.properties, "ResponseTopic", None)
        if response_topic is not None and not _publishable(response_topic):
            _logger.warning(
                "request/%s names a response topic that cannot be published to (%r); "
                "it is answered on %s",
                name,
                response_topic,
                self._topics.response(name),
            )
            response_topic = None
        self._on_request(
            name,
            RequestMessage(
                payload=bytes(message.payload),
                response_topic=response_topic,
                correlation_data=getattr(message.properties, "CorrelationData", None),
                retain=message.retain,
            ),
        )

    def _report(self, trouble: str) -> None:
        """Log why there is no connection, once until it changes or there is one."""
        if trouble != self._reported and not self._stopping.is_set():
            self._reported = trouble
            _logger.warning(
                "no connection to the MQTT broker %s: %s. Verdicts wait in the journal; "
                "it is tried again every %d s or sooner",
                self.broker,
                trouble,
                LONGEST_RETRY_S,
            )


def _words_for(error: BaseException | None) -> str:
    match error:
        case ConnectionRefusedError():
            return "connection refused (is the broker running, and mqtt.port right?)"
        case socket.gaierror():
            return "its name cannot be looked up (is mqtt.host right?)"
        case TimeoutError():
            return "no answer (is it switched on, and the network connected?)"
        case _:
            return str(error)


def _with_hint(reason: ReasonCode) -> str:
    name = reason.getName()
    return f"{name} ({_HINTS[name]})" if name in _HINTS else name


def _publishable(topic: str) -> bool:
    return bool(topic) and not set(topic) & set("+#\0") and len(topic.encode()) < 65536
