"""The station's standing connection to its broker.

It connects in the background, keeps trying for ever, and says what is wrong once, not at every
attempt. Nothing is queued for a broker that is away: whoever publishes is told so. What was still
unacknowledged when a connection broke is dropped too, since it would go out again as if it were
fresh, maybe hours late; durable messages come again from the journal, retained ones from here.

The broker keeps the station's session, so that no request is lost while the station is away. But
what waited there asks about a part that has gone by. To know it, the station sends itself a marker
on each connection, on a topic of the same subscription as the requests: where the broker had kept a
session, what comes before the marker waited. Where it does not come back, the session is given up,
and said to be: maybe the broker delivers no request at all, though it granted the subscription.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, Unpack

from inspectd.errors import BrokerState, BrokerUnavailable, MessageTooLarge
from inspectd.mqtt import words
from inspectd.mqtt.access import read_access, stamp
from inspectd.mqtt.connection import Connection, Terms
from inspectd.mqtt.held import HeldBack
from inspectd.mqtt.messages import PublishOptions, RequestMessage, Will
from inspectd.mqtt.standing import StandingConnection
from inspectd.mqtt.topics import OFFLINE, ONLINE, Topics
from inspectd.settings import MqttSettings

_logger = logging.getLogger(__name__)

SESSION_S = 86400
"""How long the broker keeps requests for a station that is away."""
MARKER_WITHIN_S = 30.0
"""So many requests as a broker keeps by default are answered in less."""
MARKER_EXPIRY_S = 60
ASK_AGAIN_S = 30.0
"""For a subscription that was refused: a person may have changed the broker's rules."""
_MARKER = "marker"
"""A NAME of ``request/NAME`` that only the station itself uses."""


class Listener(Protocol):
    """Who wants to know of the connection. Called on the network thread: must not wait."""

    def connected(self) -> None:
        """A connection stands; nothing published on an earlier one will be acknowledged now."""

    def lost(self) -> None:
        """The connection is gone."""

    def acknowledged(self, mid: int, refusal: str | None) -> None:
        """The broker has answered the message ``mid``; ``refusal`` is its reason against it."""


@dataclass(slots=True)
class _Marker:
    """What parts the requests that waited from those sent now."""

    payload: bytes
    waited: bool
    """Whether anything may have waited in the broker before it."""
    mid: int | None = None


class MqttClient(StandingConnection):
    """One station's connection.

    The retained topics (`availability` and whatever `publish_retained` was given) are sent anew on
    every connection. `availability` starts as offline, and is the last will. The files of the
    settings are read anew for every connection.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topics: Topics,
        client_id: str,
        on_request: Callable[[str, RequestMessage], None],
        resolve: Callable[[str], Path],
        subscriptions: Mapping[str, Callable[[bytes], None]] | None = None,
    ) -> None:
        """Prepare; `start` connects.

        ``client_id`` must be the station's own: the broker drops the older of two alike.
        ``on_request`` is given the NAME of ``request/NAME`` and the message, on the network
        thread: it must not wait; the message's ``acknowledge`` is to be called when the request has
        been dealt with, whatever becomes of it. ``resolve`` makes a path of the settings absolute.
        ``subscriptions`` are further topics (without wildcards), and who is given their payloads,
        on the same thread.
        """
        super().__init__(
            f"{settings.host}:{settings.port}",
            f"mqtt-{client_id}",
            partial(stamp, settings, resolve),
        )
        self._settings = settings
        self._topics = topics
        self._client_id = client_id
        self._on_request = on_request
        self._resolve = resolve
        self._subscriptions = dict(subscriptions or {})
        self._listener: Listener | None = None
        # Held while publishing, so never to be taken in `acknowledged`, where paho holds its own.
        self._retained_lock = threading.Lock()
        self._retained = {topics.availability: OFFLINE}
        self._connection: Connection | None = None
        # Of the retained topics; replaced as a whole, for it is read from any thread.
        self._refused: dict[str, str] = {}
        self._retained_sent: dict[int, str] = {}
        self._terms = Terms()
        self._keeps_session = True
        self._starts_afresh = False
        self._requests_lost = ""
        self._marker: _Marker | None = None
        self._held = HeldBack()
        self._held_mid: int | None = None
        # Of the connection; touched by the network thread only.
        self._timers: list[threading.Timer] = []

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    def _lacks(self) -> list[tuple[BrokerState, str]]:
        lacks = super()._lacks() + [
            (
                words.state_of_refusal(refusal),
                f"the MQTT broker refuses messages on {topic}: {refusal}",
            )
            for topic, refusal in self._refused.items()
        ]
        if lost := self._requests_lost:
            lacks.append((BrokerState.REQUESTS_LOST, lost))
        return lacks

    def start(self, listener: Listener) -> None:
        """Connect in the background; returns at once. Once only."""
        self._listener = listener
        self._thread.start()

    def publish(self, topic: str, payload: bytes, **options: Unpack[PublishOptions]) -> int:
        """Hand a message over; never waits.

        Returns:
            The message's number; `Listener.acknowledged` names it, maybe before this returns.

        Raises:
            BrokerUnavailable: there is no connection; the message is not kept.
            MessageTooLarge: the broker would not take it.
            ValueError: the topic cannot be published to.
        """
        connection = self._connection
        if connection is None:
            raise self._unavailable()
        return connection.publish(topic, payload, **options).mid

    def publish_retained(self, topic: str, payload: bytes) -> None:
        """Publish now, if there is a connection, and anew on every later one."""
        with self._retained_lock:
            self._retained[topic] = payload
            if self._connection is not None:
                self._send_retained(self._connection, topic, payload)

    def _send_retained(self, connection: Connection, topic: str, payload: bytes) -> None:
        # Without a connection it goes out with the next one.
        with contextlib.suppress(BrokerUnavailable):
            try:
                # An answer that is faster than this line goes unnoticed; the topic comes again.
                self._retained_sent[connection.publish(topic, payload, retain=True).mid] = topic
            except MessageTooLarge as error:
                self._note_refusal(topic, str(error))

    def _note_refusal(self, topic: str, refusal: str | None) -> None:
        """Of a retained topic; None: the broker takes it."""
        others = {other: why for other, why in self._refused.items() if other != topic}
        if refusal is not None:
            if topic not in self._refused:
                _logger.error("the MQTT broker refuses messages on %s: %s", topic, refusal)
            others[topic] = self._refused.get(topic, refusal)
        self._refused = others

    def set_available(self, available: bool) -> None:
        """Publish `availability`, now and on every later connection."""
        self.publish_retained(self._topics.availability, ONLINE if available else OFFLINE)

    def stop(self, timeout_s: float = 1.0) -> None:
        """Say `offline`, disconnect and end the network thread, in about ``timeout_s`` at most."""
        self._stopping.set()
        half_s = timeout_s / 2
        with self._retained_lock:
            self._retained[self._topics.availability] = OFFLINE
            connection = self._connection
        if connection is not None:
            # The connection may break meanwhile: then the last will speaks.
            with contextlib.suppress(BrokerUnavailable, RuntimeError):
                farewell = connection.publish(self._topics.availability, OFFLINE, retain=True)
                farewell.wait_for_publish(half_s)
            connection.close()
        self._join(half_s)

    def _unavailable(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"no connection to the MQTT broker {self.broker}")

    # ---- the network thread --------------------------------------------------------------------

    def _connect_once(self) -> str:
        self._starts_afresh = False
        reason = self._connect()
        if self._starts_afresh and not self._stopping.is_set():
            reason = self._connect()
        return reason

    def _connect(self) -> str:
        self._marker = None  # an earlier connection's says nothing of this one
        connection = Connection(
            self._settings,
            read_access(self._settings, self._resolve),
            self._client_id,
            self,
            Will(self._topics.availability, OFFLINE),
            session_s=SESSION_S if self._keeps_session else 0,
            terms=self._terms,
            pace=self._pace,
        )
        try:
            reason = connection.run()
        finally:
            while self._timers:
                self._timers.pop().cancel()
        self._connection = None
        if self._listener is not None:
            self._listener.lost()
        return reason

    def _send_marker(self, connection: Connection) -> None:
        marker = self._marker = _Marker(uuid.uuid4().hex.encode(), connection.session_present)
        marker.mid = connection.publish(
            self._topics.request(_MARKER), marker.payload, expiry_s=MARKER_EXPIRY_S
        ).mid
        self._later(MARKER_WITHIN_S, partial(self._on_marker_overdue, connection, marker))

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        """On a thread of its own, unless the connection has ended by then."""
        timer = threading.Timer(delay_s, action)
        timer.daemon = True
        self._timers = [*filter(threading.Thread.is_alive, self._timers), timer]
        timer.start()

    def _on_marker_overdue(self, connection: Connection, marker: _Marker) -> None:
        if self._marker is marker:
            self._miss_marker(connection, marker, words.not_back(MARKER_WITHIN_S))

    def _miss_marker(self, connection: Connection, marker: _Marker, reason: str) -> None:
        if marker.waited:
            self._give_up_session(connection, reason)
        else:
            # All that comes on this connection is new: no reason to break it. The marker may
            # still come, behind many requests.
            self._keep_no_session(reason)

    def _give_up_session(self, connection: Connection, reason: str) -> None:
        """Rather lose the requests that wait than judge the wrong part."""
        self._keep_no_session(reason)
        self._starts_afresh = True
        connection.close(with_will=True)

    def _keep_no_session(self, reason: str) -> None:
        """From the next connection on."""
        self._keeps_session = False
        trouble = words.requests_lost(self._topics.request(_MARKER), reason)
        if trouble != self._requests_lost:
            _logger.warning("%s", trouble)
        self._requests_lost = trouble

    def _keep_session(self) -> None:
        """A marker is back: from the next connection on, if this one keeps none."""
        self._keeps_session = True
        assert self._connection is not None
        if self._requests_lost and self._connection.keeps_session:
            self._requests_lost = ""
            _logger.info("the MQTT broker %s keeps requests again", self.broker)

    # ---- for the connection, on the network thread ---------------------------------------------

    def connected(self, connection: Connection) -> None:
        if self._stopping.is_set():
            connection.close()
            return
        self._stands()
        self._held, self._held_mid = HeldBack(), None
        self._refused = {}
        self._retained_sent.clear()
        for topic in (self._topics.request("+"), *self._subscriptions):
            connection.subscribe(topic)
        if connection.session_present:
            self._send_marker(connection)
        with self._retained_lock:
            self._connection = connection
            for topic, payload in self._retained.items():
                self._send_retained(connection, topic, payload)
        if self._listener is not None:
            self._listener.connected()

    def subscribed(self, topic: str, refusal: str | None) -> None:
        self._note_subscription(topic, refusal)
        connection = self._connection
        if connection is None:
            return
        if refusal is not None:
            self._later(ASK_AGAIN_S, partial(connection.subscribe, topic))
        elif topic == self._topics.request("+") and self._marker is None:
            self._send_marker(connection)

    def acknowledged(self, mid: int, refusal: str | None) -> None:
        marker = self._marker
        if marker is not None and marker.mid == mid and refusal is not None:
            assert self._connection is not None
            self._miss_marker(self._connection, marker, refusal)
        if (topic := self._retained_sent.pop(mid, None)) is not None:
            self._note_refusal(topic, refusal)
        if self._held_mid == mid and refusal is not None and self._connection is not None:
            self._give_up_session(self._connection, refusal)
        if self._listener is not None:
            self._listener.acknowledged(mid, refusal)

    def received(self, topic: str, message: RequestMessage) -> None:
        if (take := self._subscriptions.get(topic)) is not None:
            take(message.payload)
            message.acknowledge()
            return
        name = topic.removeprefix(self._topics.request(""))
        if name == topic:
            _logger.warning("the MQTT broker sends %s, which nobody has asked for", topic)
            message.acknowledge()
            return
        if name == _MARKER:
            # An earlier connection's, if it is not this one's.
            if self._marker is not None and message.payload == self._marker.payload:
                self._marker = None
                self._keep_session()
            elif self._held.take(message.payload, time.monotonic_ns()):
                self._keep_session()
                self._watch_the_broker()
            message.acknowledge()
            return
        self._watch_the_broker()
        queued = message.queued or (self._marker is not None and self._marker.waited)
        self._on_request(
            name,
            replace(
                self._answerable(name, message), queued=queued, sent_after_ns=self._held.since_ns
            ),
        )

    def _watch_the_broker(self) -> None:
        """Find out how far behind the messages are that it delivers."""
        connection, now_ns = self._connection, time.monotonic_ns()
        if connection is None:
            return
        if self._held.waits_for_marker(now_ns, MARKER_WITHIN_S):
            self._held.forget_marker()
            self._give_up_session(connection, words.not_back(MARKER_WITHIN_S))
        elif self._held.note_message(now_ns, connection.owed):
            try:
                self._held_mid = connection.publish(
                    self._topics.request(_MARKER),
                    self._held.new_marker(now_ns),
                    expiry_s=MARKER_EXPIRY_S,
                ).mid
            except BrokerUnavailable:
                self._held.forget_marker()  # the next message tries again

    def _answerable(self, name: str, message: RequestMessage) -> RequestMessage:
        asked = message.response_topic
        if asked is None or (_publishable(asked) and not self._topics.is_reserved(asked)):
            return message
        _logger.warning(
            "request/%s names a response topic that cannot be published to, or is one of the "
            "station's own for something else (%r); it is answered on %s",
            name,
            asked,
            self._topics.response(name),
        )
        return replace(message, response_topic=None)


def _publishable(topic: str) -> bool:
    return bool(topic) and not set(topic) & set("+#\0") and len(topic.encode()) < 65536
