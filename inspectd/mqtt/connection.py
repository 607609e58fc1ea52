"""One connection to a broker, from the first byte to the last: the only module that knows paho.

Whoever wants another one makes another `Connection`: so nothing of a broken one, neither messages
nor certificates, is left over in the next. Only what the broker demands is, in its `Terms`.

MQTT 5 is spoken, and MQTT 3.1.1 with a broker that refuses it: there, nothing has properties
(response topic, correlation data, content type, expiry, user properties), and no refusal a reason.
"""

from __future__ import annotations

import functools
import logging
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from inspectd.errors import BrokerUnavailable, MessageTooLarge
from inspectd.mqtt import words
from inspectd.mqtt.access import Access
from inspectd.mqtt.messages import RequestMessage, Will
from inspectd.mqtt.pace import Pace
from inspectd.settings import MqttSettings

_logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 5.0
"""How long a broker may take over the connection, over TLS, and over its answer."""
ASK_WITHIN_S = 2.0
"""How long it may take over a question that is put to it when it has not answered."""
ACKNOWLEDGE_WITHIN_S = 20.0
"""How long a broker may leave every message unacknowledged before it counts as hung."""
TRY_MQTT_5_AGAIN_S = 6 * 3600.0
IN_FLIGHT = 20
"""Messages on their way without an acknowledgement, at the most; a broker may allow fewer."""
_LOOP_S = 1.0
_REFUSED_VERSION = "Unsupported protocol version"
_TOO_LARGE = "Packet too large"
# Mosquitto's answer to a message over its message_size_limit. The standard does not allow it in an
# acknowledgement, and to paho it would be nonsense that ends the connection.
ReasonCode.names = {
    **ReasonCode.names,
    0x95: {_TOO_LARGE: [PacketTypes.CONNACK, PacketTypes.PUBACK, PacketTypes.DISCONNECT]},
}
_LONGEST_HEADER = 9
"""Bytes of a PUBLISH beside topic, properties and payload: 5 of the header, 2 before the topic, 2
of the packet's number."""
_GOODBYE_WITH_WILL = ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message")


class Handler(Protocol):
    """Who uses the connection. Called within `Connection.run`: must not wait."""

    def connected(self, connection: Connection) -> None:
        """The broker has let us in."""

    def subscribed(self, topic: str, refusal: str | None) -> None:
        """The broker has answered a subscription; ``refusal`` is its reason against it."""

    def acknowledged(self, mid: int, refusal: str | None) -> None:
        """The broker has answered the message ``mid``; ``refusal`` is its reason against it."""

    def received(self, topic: str, message: RequestMessage) -> None:
        """A message has come."""


class Terms:
    """What a broker was found to demand; kept from one connection to the next."""

    def __init__(self) -> None:
        self._refused_mqtt_5_at: float | None = None
        self.spoke_mqtt_5 = False
        self.in_flight = IN_FLIGHT
        """Messages on their way without an acknowledgement, at the most."""
        self.largest: int | None = None
        """Bytes of a packet, where the broker has not told but ended the connection over one."""

    @property
    def mqtt_5(self) -> bool:
        """Whether MQTT 5 is worth a try; after some hours it is again, for brokers are updated."""
        since = self._refused_mqtt_5_at
        return since is None or time.monotonic() - since > TRY_MQTT_5_AGAIN_S

    def refuse_mqtt_5(self) -> None:
        self._refused_mqtt_5_at = time.monotonic()


class _NotAcknowledged(Exception):
    """The broker takes messages and is silent."""


@dataclass(slots=True)
class _Owed:
    """An acknowledgement that the broker waits for."""

    mid: int
    due: bool = False


_Arguments = ParamSpec("_Arguments")


def _guarded(
    callback: Callable[Concatenate[Connection, _Arguments], None],
) -> Callable[Concatenate[Connection, _Arguments], None]:
    """A mistake in handling one message is no reason to lose the connection."""

    @functools.wraps(callback)
    def guarded(
        connection: Connection, /, *arguments: _Arguments.args, **named: _Arguments.kwargs
    ) -> None:
        try:
            callback(connection, *arguments, **named)
        except Exception:
            _logger.exception("unexpected error while handling a message of the MQTT broker")

    return guarded


class Connection:
    """One connection; `run` is its whole life.

    The other methods may be called from any thread at any time, the handler's included.
    """

    def __init__(
        self,
        settings: MqttSettings,
        access: Access,
        client_id: str,
        handler: Handler,
        will: Will | None = None,
        *,
        session_s: int = 0,
        terms: Terms | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Prepare; `run` connects.

        Args:
            settings: where the broker is.
            access: how to prove who we are.
            client_id: nobody else's; the broker drops the older of two alike.
            handler: is told what happens.
            will: what the broker publishes when the connection breaks.
            session_s: how long the broker keeps subscriptions and messages with QoS 1 for us while
                we are away (without limit with MQTT 3.1.1); what it delivers is then to be
                acknowledged by hand. 0: it keeps nothing, and drops what it kept.
            terms: from an earlier connection to the same broker.
            pace: likewise.
        """
        self._settings = settings
        self._access = access
        self._handler = handler
        self._client_id = client_id
        self._will = will
        self._session_s = session_s
        self._terms = Terms() if terms is None else terms
        self._pace = Pace() if pace is None else pace
        self._answer: ReasonCode | None = None
        self._goodbye: ReasonCode | None = None
        self._broken_by: BaseException | None = None
        self._socket: socket.socket | None = None
        self._session_present = False
        self._announced_largest: int | None = None
        self._largest_sent = 0
        # Taken for moments only, and after `_lock` where both are.
        self._counting = threading.Lock()
        self._unanswered = 0
        self._answered_at = 0.0
        self._owed: deque[_Owed] = deque()
        self._closing = False
        self._abandoning = False
        # So that no other thread uses paho while it is being taken down.
        self._lock = threading.Lock()
        self._ended = False
        self._runner = 0
        self._subscriptions: dict[int, str] = {}
        self._again = False
        self._speaks_5 = self._terms.mqtt_5
        self._paho = self._make_paho()

    def run(self) -> str:
        """Connect, and serve the connection until it ends. Once only.

        Returns:
            Why a connection that stood has ended.

        Raises:
            BrokerUnavailable: none came about; it may succeed later.
            BrokerRefused: none came about, until a person changes something.
        """
        self._runner = threading.get_ident()
        try:
            self._open()
            self._serve()
            if self._answer is None and self._speaks_5 and not self._terms.spoke_mqtt_5:
                self._again = self._refuses_mqtt_5()
            while self._again and not self._closing:
                self._begin_again()
                self._open()
                self._serve()
            return self._why_ended()
        finally:
            with self._lock:
                self._ended = True
                # Of itself, paho keeps its sockets open until the garbage is collected.
                self._paho.reinitialise()

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
    ) -> paho.MQTTMessageInfo:
        """Hand a message over; never waits. See `inspectd.mqtt.client.MqttClient.publish`.

        Raises:
            BrokerUnavailable: the connection has ended; the message is not kept.
            MessageTooLarge: the broker would not take it.
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
        self._refuse_too_large(topic, payload, properties)
        with self._in_use():
            if not self._ended:
                self._count(1)
                try:
                    info = self._paho.publish(
                        topic, payload, qos, retain, properties if self._speaks_5 else None
                    )
                except ValueError:
                    self._count(-1)
                    raise
                if info.rc == paho.MQTT_ERR_SUCCESS:
                    return info
                self._count(-1)
        raise BrokerUnavailable("the connection to the MQTT broker has ended")

    def _refuse_too_large(self, topic: str, payload: bytes, properties: Properties) -> None:
        """Raises MessageTooLarge."""
        size = _LONGEST_HEADER + len(topic.encode()) + len(payload)
        if self._speaks_5:
            size += len(properties.pack())  # type: ignore[no-untyped-call]  # paho's own
        largest = self._announced_largest or self._terms.largest
        if largest is not None and size > largest:
            raise MessageTooLarge(words.too_large(size, largest))
        self._largest_sent = max(self._largest_sent, size)

    def _count(self, change: int) -> None:
        with self._counting:
            if self._unanswered == 0 or change < 0:
                self._answered_at = time.monotonic()
            self._unanswered += change

    def subscribe(self, topic: str) -> None:
        """Ask for the messages on a topic, with QoS 1; `Handler.subscribed` tells the answer."""
        with self._in_use():
            if not self._ended:
                with self._counting:  # or the answer may come before its topic is known
                    _, mid = self._paho.subscribe(topic, qos=1)
                    if mid is not None:
                        self._subscriptions[mid] = topic

    def close(self, *, with_will: bool = False) -> None:
        """Say goodbye, which ends `run`; the last will is published only ``with_will``."""
        self._closing = True
        if with_will and not self._speaks_5:
            # There, a goodbye takes the will back; only who goes without one has it published.
            self._abandoning = True
            return
        reason = _GOODBYE_WITH_WILL if with_will else None
        with self._in_use():
            if not self._ended:
                self._paho.disconnect(reason)

    @property
    def session_present(self) -> bool:
        """Whether the broker has kept what came for us while we were away."""
        return self._session_present

    @property
    def keeps_session(self) -> bool:
        """Whether the broker is to keep what comes for us once this connection has ended."""
        return self._session_s > 0

    @property
    def version(self) -> str:
        """Of MQTT."""
        return "5" if self._speaks_5 else "3.1.1"

    @property
    def tls_version(self) -> str | None:
        """Such as TLSv1.3; None in the clear or without a connection."""
        return self._socket.version() if isinstance(self._socket, ssl.SSLSocket) else None

    @property
    def broker_certificate(self) -> bytes | None:
        """In DER form; None in the clear or without a connection."""
        if not isinstance(self._socket, ssl.SSLSocket):
            return None
        return self._socket.getpeercert(binary_form=True)

    def _in_use(self) -> AbstractContextManager[object]:
        # In a callback paho may hold a lock of its own that another thread, with ours, waits for.
        return nullcontext() if threading.get_ident() == self._runner else self._lock

    def _make_paho(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5 if self._speaks_5 else paho.MQTTv311,
            clean_session=None if self._speaks_5 else self._session_s == 0,
            # Else, paho would itself go on to MQTT 3.1.
            reconnect_on_failure=False,
            manual_ack=self._session_s > 0,
        )
        client.connect_timeout = ANSWER_WITHIN_S
        client.max_inflight_messages_set(self._terms.in_flight)
        if self._access.username is not None:
            client.username_pw_set(self._access.username, self._access.password)
        if self._access.tls is not None:
            client.tls_set_context(self._access.tls)
        if (will := self._will) is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        client.on_log = self._on_log
        client.on_socket_open = self._on_socket_open
        # Without one, paho would write to the socket from the threads that publish.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _open(self) -> None:
        with self._pace.opening():
            if self._closing:
                raise BrokerUnavailable("the connection was closed before it was made")
            self._connect()

    def _connect(self) -> None:
        host, port, keepalive_s = (
            self._settings.host,
            self._settings.port,
            self._settings.keepalive_s,
        )
        try:
            if self._speaks_5:
                kept = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
                kept.SessionExpiryInterval = self._session_s
                self._paho.connect(
                    host, port, keepalive_s, clean_start=self._session_s == 0, properties=kept
                )
            else:
                self._paho.connect(host, port, keepalive_s)
        except (OSError, ValueError) as error:
            raise words.not_opened(error, self._settings) from error

    def _serve(self) -> None:
        give_up_at = time.monotonic() + ANSWER_WITHIN_S
        try:
            while (end := self._paho.loop(_LOOP_S)) == paho.MQTT_ERR_SUCCESS:
                if self._answer is None and time.monotonic() > give_up_at:
                    raise TimeoutError(f"no answer in {ANSWER_WITHIN_S:.0f} s")
                if self._abandoning and not self._paho.want_write():
                    return
                self._demand_acknowledgements()
            if end == paho.MQTT_ERR_PROTOCOL:
                raise ValueError("not MQTT")
        except Exception as error:  # noqa: BLE001 (what is not MQTT makes paho raise anything)
            self._broken_by = error

    def _demand_acknowledgements(self) -> None:
        """Raises _NotAcknowledged."""
        with self._counting:
            waiting, since = self._unanswered, self._answered_at
        if waiting and time.monotonic() - since > ACKNOWLEDGE_WITHIN_S:
            raise _NotAcknowledged

    def _refuses_mqtt_5(self) -> bool:
        """Ask for nothing but the version, since it has not answered.

        A broker that knows MQTT 3.1.1 only may not find its way through the rest of a CONNECT of
        MQTT 5, and never come to the answer. Only a refusal counts: silence may be anything.
        """
        reasons: list[ReasonCode] = []
        client = paho.Client(
            CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        client.connect_timeout = ASK_WITHIN_S
        client.on_connect = lambda _client, _data, _flags, reason, _properties: reasons.append(
            reason
        )
        if self._access.tls is not None:
            client.tls_set_context(self._access.tls)
        try:
            with self._pace.opening():
                give_up_at = time.monotonic() + ASK_WITHIN_S
                client.connect(self._settings.host, self._settings.port, clean_start=True)
            while not reasons and time.monotonic() < give_up_at and not self._closing:
                if client.loop(0.1) != paho.MQTT_ERR_SUCCESS:
                    break
        except Exception as error:  # noqa: BLE001 (what is not MQTT makes paho raise anything)
            _logger.debug("asked for its version, the MQTT broker does not answer: %s", error)
        finally:
            client.reinitialise()
        refused = bool(reasons) and reasons[0].getName() == _REFUSED_VERSION
        if refused:
            self._fall_back()
        return refused

    def _expects_tls(self) -> bool:
        """Ask for TLS, where it has ended a connection in the clear without an answer."""
        if self._settings.tls is not None or isinstance(self._broken_by, TimeoutError):
            return False
        with self._pace.opening():
            return _speaks_tls(self._settings.host, self._settings.port)

    def _fall_back(self) -> None:
        self._terms.refuse_mqtt_5()
        self._speaks_5 = False
        _logger.warning(
            "the MQTT broker %s:%d refuses MQTT 5: with MQTT 3.1.1 requests cannot name a response "
            "topic, and messages carry no properties",
            self._settings.host,
            self._settings.port,
        )

    def _begin_again(self) -> None:
        """To meet the terms of the broker that the first attempt has shown."""
        with self._lock:
            self._paho.reinitialise()
            self._paho = self._make_paho()
        self._again = False
        self._answer = self._goodbye = self._broken_by = None

    def _why_ended(self) -> str:
        if self._answer is None:
            raise words.broken_off(self._broken_by, self._settings, expects_tls=self._expects_tls())
        if self._answer.is_failure:
            raise words.refused(self._answer.getName())
        if isinstance(self._broken_by, _NotAcknowledged):
            return words.silent(ACKNOWLEDGE_WITHIN_S)
        if self._goodbye is None:
            return f"what it sends cannot be understood ({self._broken_by})"
        reason = self._goodbye.getName()
        if reason == _TOO_LARGE and self._announced_largest is None:
            self._terms.largest = self._largest_sent - 1
        return words.lost(reason)

    # ---- paho's callbacks, all within `run` ----------------------------------------------------

    def _on_log(self, _client: paho.Client, _userdata: Any, level: int, _text: str) -> None:
        # paho swallows the error that broke the connection, but tells of it inside its except
        # clause.
        if level == paho.MQTT_LOG_ERR and self._broken_by is None:
            self._broken_by = sys.exc_info()[1]

    @_guarded
    def _on_socket_open(self, _client: paho.Client, _userdata: Any, opened: Any) -> None:
        self._socket = opened
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @_guarded
    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._answer = reason
        if reason.is_failure:
            self._again = self._speaks_5 and reason.getName() == _REFUSED_VERSION
            if self._again:
                self._fall_back()
            return
        self._terms.spoke_mqtt_5 = self._speaks_5
        allowed: int = getattr(properties, "ReceiveMaximum", IN_FLIGHT)
        if allowed < self._terms.in_flight:
            self._terms.in_flight = allowed
            # paho takes it before the connection only.
            self._again = True
            self._paho.disconnect()
            return
        self._session_present = flags.session_present
        self._announced_largest = getattr(properties, "MaximumPacketSize", None)
        self._handler.connected(self)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: Any,
        _flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._goodbye = reason

    @_guarded
    def _on_subscribe(
        self,
        _client: paho.Client,
        _userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties,
    ) -> None:
        with self._counting:
            topic = self._subscriptions.pop(mid)
        self._handler.subscribed(topic, _refusal(reasons[0]))

    @_guarded
    def _on_publish(
        self,
        _client: paho.Client,
        _userdata: Any,
        mid: int,
        reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        self._count(-1)
        self._handler.acknowledged(mid, _refusal(reason))

    @_guarded
    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        acknowledge = self._owe(message)
        try:
            self._handler.received(
                message.topic,
                RequestMessage(
                    payload=bytes(message.payload),
                    response_topic=getattr(message.properties, "ResponseTopic", None),
                    correlation_data=getattr(message.properties, "CorrelationData", None),
                    retain=message.retain,
                    queued=message.dup,
                    acknowledge=acknowledge,
                ),
            )
        except Exception:
            # It would only fail again, and hold up the others meanwhile.
            acknowledge()
            raise

    def _owe(self, message: paho.MQTTMessage) -> Callable[[], None]:
        """The way to acknowledge the message; once is enough, and more does no harm."""
        if message.qos == 0 or self._session_s == 0:
            return lambda: None
        owed = _Owed(message.mid)
        with self._counting:
            self._owed.append(owed)
        return lambda: self._acknowledge(owed)

    @property
    def owed(self) -> int:
        """Acknowledgements that the broker waits for."""
        with self._counting:
            return len(self._owed)

    def _acknowledge(self, owed: _Owed) -> None:
        owed.due = True
        with self._in_use(), self._counting:
            # MQTT wants them in the order of the messages [MQTT-4.6.0-2].
            while self._owed and self._owed[0].due:
                mid = self._owed.popleft().mid
                # After its end the broker will deliver it again.
                if not self._ended:
                    self._paho.ack(mid, 1)


def _refusal(reason: ReasonCode) -> str | None:
    return words.forbidden(reason.getName()) if reason.is_failure else None


def _speaks_tls(host: str, port: int) -> bool:
    """Whether it does, be it trusted or not; nothing is sent but a greeting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            closing(socket.create_connection((host, port), timeout=ASK_WITHIN_S)) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
