"""The station's side of the broker: its connections, made anew when their settings change.

Whoever publishes does so here, and need not know which connection it is at present.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from inspectd import __version__
from inspectd.errors import BrokerState, JournalDamaged, JournalError
from inspectd.mqtt.client import Listener, MqttClient
from inspectd.mqtt.homeassistant import Announcement, birth_topic, discovery
from inspectd.mqtt.messages import PublishOptions, RequestMessage
from inspectd.mqtt.sparkplug import SparkplugNode, Store
from inspectd.mqtt.topics import Topics
from inspectd.payload import VerdictPayload
from inspectd.settings import MqttSettings, Settings, Station

_logger = logging.getLogger(__name__)

LEAVE_S = 0.4
"""What the goodbye to a broker may take when another one is set."""


class _Relay:
    """Passes on what a connection tells, until it is replaced."""

    def __init__(self, listener: Listener) -> None:
        self._listener: Listener | None = listener
        self._lock = threading.Lock()

    def mute(self) -> None:
        """From now on the connection is lost, whatever it still has to tell."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.lost()

    def connected(self) -> None:
        with self._lock:
            if self._listener is not None:
                self._listener.connected()

    def lost(self) -> None:
        with self._lock:
            if self._listener is not None:
                self._listener.lost()

    def acknowledged(self, mid: int, refusal: str | None) -> None:
        with self._lock:
            if self._listener is not None:
                self._listener.acknowledged(mid, refusal)


class Broker:
    """The connection that all topics go over, the one of Sparkplug, and Home Assistant's news."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        on_request: Callable[[str, RequestMessage], None],
    ) -> None:
        """Args:
        settings: name the broker; see `adopt`.
        topics: of the station.
        on_request: as of `MqttClient`.
        """
        self._settings = settings
        self._topics = topics
        self._store: Store | None = None
        self._on_request = on_request
        self._listener: Listener | None = None
        self._relay: _Relay | None = None
        # The retained topics are kept here, too: a new connection begins with them.
        self._retaining = threading.Lock()
        self._retained: dict[str, bytes] = {}
        self._available = False
        self._announcement = Announcement(self.publish_retained)
        self._client = self._make_client(settings.station)
        self._node: SparkplugNode | None = None
        self._node_fault = ""

    def _make_client(self, station: Station) -> MqttClient:
        home = station.mqtt.homeassistant
        return MqttClient(
            station.mqtt,
            self._topics,
            f"inspectd-{station.station}",
            self._on_request,
            self._resolve,
            {birth_topic(home): self._announcement.on_status} if home else {},
        )

    def _make_node(self, store: Store) -> SparkplugNode | None:
        """Raises JournalError."""
        station = self._settings.station
        if station.mqtt.sparkplug is None:
            return None
        node = SparkplugNode(
            station.mqtt, station.station, self._resolve, self._settings.directory, store
        )
        node.set_programs(sorted(self._settings.programs))
        return node

    def _resolve(self, path: str) -> Path:
        return self._settings.resolve(path)

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    @property
    def trouble(self) -> str:
        """Why there is no connection, for a person; empty while there is one."""
        return self._client.trouble

    @property
    def lives(self) -> bool:
        """Whether somebody sees to the connection."""
        return self._client.lives

    @property
    def state(self) -> BrokerState:
        """The same in a word."""
        return self._client.state

    @property
    def sparkplug_trouble(self) -> str:
        """Why Sparkplug has no connection, for a person; empty where it needs none."""
        node = self._node
        trouble = self._node_fault if node is None else node.trouble
        return f"Sparkplug: {trouble}" if trouble else ""

    @property
    def sparkplug_state(self) -> BrokerState | None:
        """The same in a word; None where it is not set up."""
        node = self._node
        if node is None:
            return BrokerState.FAULT if self._node_fault else None
        return node.state

    def start(self, listener: Listener, store: Store) -> None:
        """Connect in the background; returns at once. Once only.

        Args:
            listener: is told of the connection that all topics go over.
            store: Sparkplug's backlog comes from it.
        """
        self._listener = listener
        self._store = store
        self._announce()
        self._start_client()
        self._rebuild_node()

    def stop(self, timeout_s: float) -> None:
        """Say `offline` and disconnect, in about ``timeout_s`` at most."""
        self._announcement.stop()
        if self._node is not None:
            self._node.stop(timeout_s)
        self._client.stop(timeout_s)

    def adopt(self, settings: Settings) -> None:
        """Follow other settings: what they do not concern stays connected."""
        before, self._settings = self._settings, settings
        old, new = before.station.mqtt, settings.station.mqtt
        if _connection_of(old) != _connection_of(new):
            self._reconnect()
        if (_connection_of(old), old.sparkplug, old.backlog_rate) != (
            _connection_of(new),
            new.sparkplug,
            new.backlog_rate,
        ):
            self._rebuild_node()
        elif self._node is not None:
            self._node.set_programs(sorted(settings.programs))
        self._announce()

    def journal_replaced(self, journal_id: str) -> None:
        """Another journal was begun; call it before the first offer of its verdicts."""
        node = self._node
        if node is not None:
            node.journal_replaced(journal_id)

    # ---- publishing ----------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, **options: Unpack[PublishOptions]) -> int:
        """See `MqttClient.publish`; raises BrokerUnavailable."""
        return self._client.publish(topic, payload, **options)

    def publish_retained(self, topic: str, payload: bytes) -> None:
        """Publish now, if there is a connection, and anew on every later one."""
        with self._retaining:
            self._retained[topic] = payload
            self._client.publish_retained(topic, payload)

    def set_available(self, available: bool) -> None:
        """Publish a change of `availability`, now and on every later connection."""
        with self._retaining:
            if available == self._available:
                return
            self._available = available
            self._client.set_available(available)
            if self._node is not None:
                self._node.set_available(available)

    def offer(self, verdict: VerdictPayload) -> None:
        """Tell Sparkplug's hosts of a verdict that was committed just now."""
        if self._node is not None:
            self._node.offer(verdict)

    # ---- other settings ------------------------------------------------------------------------

    def _announce(self) -> None:
        station, programs = self._settings.station, self._settings.programs
        self._announcement.announce(discovery(station, self._topics, programs, __version__))

    def _start_client(self) -> None:
        assert self._listener is not None
        self._relay = _Relay(self._listener)
        self._client.start(self._relay)

    def _reconnect(self) -> None:
        before = self._client
        if self._relay is not None:
            self._relay.mute()
        # First, for it is known by the same name: of two alike the broker drops one.
        before.stop(LEAVE_S)
        with self._retaining:
            self._client = self._make_client(self._settings.station)
            self._client.set_available(self._available)
            for topic, payload in self._retained.items():
                self._client.publish_retained(topic, payload)
        self._start_client()

    def _rebuild_node(self) -> None:
        assert self._store is not None
        if self._node is not None:
            self._node.stop(LEAVE_S)
        fault = ""
        try:
            try:
                node = self._make_node(self._store)
            except JournalDamaged:
                node = self._make_node(self._store)  # with the one begun in its place
        except JournalError as error:
            fault = f"it stays off until the next change of the settings: {error}"
            _logger.error("Sparkplug: %s", fault)
            node = None
        self._node, self._node_fault = node, fault
        if node is not None:
            # What has changed until here, the node before was told.
            node.journal_replaced(self._store.id)
            node.set_available(self._available)
            node.start()


def _connection_of(settings: MqttSettings) -> tuple[object, ...]:
    """What a standing connection depends on."""
    return (
        settings.host,
        settings.port,
        settings.keepalive_s,
        settings.username,
        settings.password_file,
        settings.tls,
        settings.homeassistant,
    )
