"""The station as an edge node of Sparkplug B 3.0, on a connection of its own.

The node is the station, each program a device, each verdict a DDATA. Verdicts go out live while
the node is born; what could not go out follows from the journal, in order, marked historical.
Sparkplug sends with QoS 0, so nobody acknowledges anything: a verdict counts as sent once it is
written to the socket. When a connection or the primary host is lost, what was written within the
last seconds goes again, since it may not have arrived; a consumer knows repeated ones by their id.

One thread owns the state of the session. Every method that others call only puts an event into its
queue. `docs/sparkplug.md` says how each requirement of the specification is met.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from inspectd import __version__
from inspectd.errors import BrokerUnavailable, JournalError
from inspectd.mqtt import sparkplug_payload as encoding
from inspectd.mqtt.access import read_access, stamp
from inspectd.mqtt.connection import Connection
from inspectd.mqtt.messages import RequestMessage, Will
from inspectd.mqtt.sparkplug_memory import Memory
from inspectd.mqtt.standing import StandingConnection
from inspectd.payload import VerdictPayload, decode_verdict
from inspectd.settings import MqttSettings
from inspectd.typed_json import JsonError

_logger = logging.getLogger(__name__)

BACKLOG_ROWS = 50
"""Rows read from the journal at a time."""
LIVE_WINDOW = 300
"""Messages not yet written to the socket beyond which verdicts wait in the journal."""
UNSURE_S = 5.0
"""Beside one and a half keep-alives: what was written so long before a loss may be lost, too."""
WRITE_EVERY_S = 60.0
RETRY_S = 5.0
"""After an error of the journal, the backlog rests so long."""


class StoredVerdict(Protocol):
    """A row of the journal: its number, and the JSON as first sent."""

    @property
    def seq(self) -> int: ...
    @property
    def payload(self) -> bytes: ...


class Store(Protocol):
    """What the node needs of the journal; the methods may raise JournalError."""

    @property
    def id(self) -> str: ...
    def read(self, first: int, last: int) -> Sequence[StoredVerdict]: ...
    def last_seq(self) -> int: ...


class SparkplugTopics:
    """The names of one node's topics."""

    def __init__(self, group: str, node: str) -> None:
        self._group = group
        self._node = node

    def of_node(self, kind: str) -> str:
        return f"spBv1.0/{self._group}/{kind}/{self._node}"

    def of_device(self, kind: str, device: str) -> str:
        return f"{self.of_node(kind)}/{device}"

    @staticmethod
    def of_host(host: str) -> str:
        return f"spBv1.0/STATE/{host}"


class SparkplugNode(StandingConnection):
    """One edge node."""

    def __init__(
        self,
        settings: MqttSettings,
        station: str,
        resolve: Callable[[str], Path],
        folder: Path,
        store: Store,
    ) -> None:
        """Prepare; `start` connects.

        ``resolve`` makes a path of the settings absolute; ``folder`` is the station's own, for
        what must outlive a restart.

        Raises:
            JournalError: the journal could not be read.
            ValueError: ``settings`` have no part for Sparkplug.
        """
        if settings.sparkplug is None:
            raise ValueError("mqtt.sparkplug is not set")
        super().__init__(
            f"{settings.host}:{settings.port} (Sparkplug)",
            "sparkplug-mqtt",
            partial(stamp, settings, resolve),
        )
        self._settings = settings
        self._client_id = f"inspectd-{station}-sparkplug"
        self._resolve = resolve
        self._store = store
        self._topics = SparkplugTopics(settings.sparkplug.group, settings.sparkplug.node or station)
        host = settings.sparkplug.primary_host
        self._host_topic = None if host is None else SparkplugTopics.of_host(host)
        self._unsure_s = 1.5 * settings.keepalive_s + UNSURE_S
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="sparkplug", daemon=True)
        self._running = True
        # From here on: touched by the network thread only.
        memory = Memory(folder / "sparkplug.json", store.id, store.last_seq())
        self._next_bd_seq = memory.next_bd_seq
        # From here on: touched by the worker only.
        self._memory = memory
        self._written_at = 0.0
        self._connection: Connection | None = None
        self._host_timestamp: int | None = None
        self._born = False
        self._seq = 0
        self._programs: tuple[str, ...] = ()
        self._available = False
        self._devices: set[str] = set()
        self._aliases: dict[str, int] = {}
        self._last: dict[str, VerdictPayload] = {}
        self._in_flight: dict[int, int | None] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._late: deque[StoredVerdict] = deque()
        self._backlog_at = 0.0

    # ---- for everyone --------------------------------------------------------------------------

    def start(self) -> None:
        """Connect in the background; returns at once. Once only."""
        self._worker.start()
        self._thread.start()

    def offer(self, verdict: VerdictPayload) -> None:
        """Send a verdict that was committed just now; call it in the order of the commits."""
        self._events.put(lambda: self._send_live(verdict))

    def journal_replaced(self, journal_id: str) -> None:
        """Another journal was begun, with numbers of its own; call it before the first offer."""
        self._events.put(lambda: self._forget_numbers(journal_id))

    def set_programs(self, names: Sequence[str]) -> None:
        """The programs in use: each is a device; one that is gone, dies."""
        programs = tuple(names)
        self._events.put(lambda: self._change_programs(programs))

    def set_available(self, available: bool) -> None:
        """Whether the station can judge."""
        self._events.put(lambda: self._change_available(available))

    def stop(self, timeout_s: float = 1.0) -> None:
        """Say that the node goes, disconnect and end the threads, in about ``timeout_s``."""
        self._stopping.set()
        self._events.put(lambda: self._end(timeout_s / 4))
        if self._worker.is_alive():
            self._worker.join(timeout_s / 2)
        self._join(timeout_s / 2)

    # ---- the network thread --------------------------------------------------------------------

    def _connect_once(self) -> str:
        bd_seq = self._next_bd_seq
        connection = Connection(
            self._settings,
            read_access(self._settings, self._resolve),
            self._client_id,
            self,
            Will(self._topics.of_node("NDEATH"), encoding.node_death(bd_seq), retain=False),
            pace=self._pace,
        )
        try:
            return connection.run()
        finally:
            self._events.put(self._on_lost)

    def connected(self, connection: Connection) -> None:
        if self._stopping.is_set():
            connection.close()
            return
        self._stands()
        bd_seq = self._next_bd_seq
        self._next_bd_seq = (bd_seq + 1) % 256
        connection.subscribe(self._topics.of_node("NCMD"))
        if self._host_topic is not None:
            connection.subscribe(self._host_topic)
        self._events.put(lambda: self._on_connected(connection, bd_seq))

    def subscribed(self, topic: str, refusal: str | None) -> None:
        self._note_subscription(topic, refusal)

    def acknowledged(self, mid: int, refusal: str | None) -> None:  # noqa: ARG002 (none with QoS 0)
        self._events.put(lambda: self._on_written(mid))

    def received(self, topic: str, message: RequestMessage) -> None:
        if topic == self._host_topic:
            self._events.put(lambda: self._on_host_state(message.payload))
        elif message.retain:
            _logger.warning("a retained message on %s is ignored: commands must not be", topic)
        else:
            self._events.put(lambda: self._on_command(message.payload))

    # ---- the worker ----------------------------------------------------------------------------

    def _work(self) -> None:
        while self._running:
            try:
                self._handle_next_event()
                if self._backlog_is_due():
                    self._send_backlog()
                if self._born and time.monotonic() > self._written_at + WRITE_EVERY_S:
                    self._write_memory()
            except BrokerUnavailable:
                self._on_lost()  # the network thread is about to say so, too
            except JournalError as error:
                _logger.error("%s; Sparkplug's backlog is tried again in %.0f s", error, RETRY_S)
                self._backlog_at = time.monotonic() + RETRY_S
            except Exception:
                _logger.exception("unexpected error in the Sparkplug node")
                self._backlog_at = time.monotonic() + RETRY_S

    def _handle_next_event(self) -> None:
        """Wait for one, or until there is something to do without."""
        timeout = None
        if self._born:
            due = self._written_at + WRITE_EVERY_S
            if self._memory.missing and not self._in_flight:
                due = min(due, self._backlog_at)
            timeout = max(0.0, due - time.monotonic())
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return
        event()

    def _end(self, confirm_s: float) -> None:
        self._running = False
        try:
            if self._die(confirm_s):
                self._in_flight.clear()
                self._recent.clear()
        except BrokerUnavailable:
            _logger.debug("the connection broke before the NDEATH; the last will speaks")
        self._on_lost()

    def _on_connected(self, connection: Connection, bd_seq: int) -> None:
        self._connection = connection
        self._memory.bd_seq = bd_seq
        self._write_memory()
        if self._host_topic is None:
            self._birth()

    def _on_lost(self) -> None:
        """Everything that may not have arrived is to be sent again."""
        self._connection = None
        self._born = False
        self._devices.clear()
        unsure = [seq for seq in self._in_flight.values() if seq is not None]
        since = time.monotonic() - self._unsure_s
        unsure += [seq for at, seq in self._recent if at >= since]
        self._in_flight.clear()
        self._recent.clear()
        self._late.clear()
        for seq in unsure:
            self._memory.missing.add(seq, seq)
        self._write_memory()

    def _forget_numbers(self, journal_id: str) -> None:
        if journal_id == self._memory.journal:
            return
        self._memory.begin_anew(journal_id)
        self._in_flight = dict.fromkeys(self._in_flight)
        self._recent.clear()
        self._late.clear()
        self._write_memory()

    def _write_memory(self) -> None:
        self._written_at = time.monotonic()
        self._memory.write()

    def _on_written(self, mid: int) -> None:
        seq = self._in_flight.pop(mid, None)
        if seq is not None:
            now = time.monotonic()
            self._recent.append((now, seq))
            while self._recent[0][0] < now - self._unsure_s:
                self._recent.popleft()

    # ---- birth and death -----------------------------------------------------------------------

    def _birth(self) -> None:
        """NBIRTH, and DBIRTH for each device; raises BrokerUnavailable."""
        assert self._memory.bd_seq is not None
        self._seq = 0
        self._devices.clear()
        properties = (("Software", "inspectd"), ("Software Version", __version__))
        self._publish(
            self._topics.of_node("NBIRTH"),
            encoding.node_birth(self._next_seq(), self._memory.bd_seq, self._available, properties),
        )
        for program in self._programs:
            self._birth_device(program)
        self._born = True

    def _birth_device(self, program: str) -> None:
        self._publish(
            self._topics.of_device("DBIRTH", program),
            encoding.device_birth(
                self._next_seq(), self._first_alias(program), self._last.get(program)
            ),
        )
        self._devices.add(program)

    def _bury_device(self, program: str) -> None:
        self._devices.discard(program)
        self._publish(
            self._topics.of_device("DDEATH", program), encoding.device_death(self._next_seq())
        )

    def _die(self, confirm_s: float = 0.0) -> bool:
        """Say that the node goes, and disconnect.

        Returns:
            Whether the broker has acknowledged that, within ``confirm_s``, and so all before it.

        Raises:
            BrokerUnavailable: the connection has ended before.
        """
        connection = self._connection
        if connection is None:
            return False
        confirmed = False
        if self._born:
            assert self._memory.bd_seq is not None
            death = encoding.node_death(self._memory.bd_seq)
            info = connection.publish(self._topics.of_node("NDEATH"), death, qos=1)
            if confirm_s > 0:
                # It raises where the connection breaks meanwhile.
                with contextlib.suppress(RuntimeError):
                    info.wait_for_publish(confirm_s)
                    confirmed = info.is_published()
        self._born = False
        connection.close(with_will=True)
        return confirmed

    def _on_host_state(self, raw: bytes) -> None:
        try:
            state = encoding.decode_host_state(raw)
        except JsonError as error:
            _logger.warning("a message on %s is ignored: %s", self._host_topic, error)
            return
        if self._host_timestamp is not None and state.timestamp < self._host_timestamp:
            _logger.warning(
                "a message on %s is ignored: it is older than the last one; if the host's clock "
                "was set back, restart inspectd",
                self._host_topic,
            )
            return
        self._host_timestamp = state.timestamp
        if state.online and not self._born and self._connection is not None:
            self._birth()
        elif not state.online and self._born:
            _logger.warning(
                "the Sparkplug host of %s is offline; verdicts wait in the journal until it is "
                "back",
                self._host_topic,
            )
            self._die()
            self._on_lost()

    def _on_command(self, raw: bytes) -> None:
        try:
            rebirth = encoding.asks_for_rebirth(raw)
        except ValueError as error:
            _logger.warning("a message on %s is ignored: %s", self._topics.of_node("NCMD"), error)
            return
        if rebirth and self._born:
            self._birth()

    def _change_programs(self, programs: tuple[str, ...]) -> None:
        self._programs = programs
        for name in [name for name in self._last if name not in programs]:
            del self._last[name]
        if self._born:
            for program in sorted(self._devices.difference(programs)):
                self._bury_device(program)
            for program in programs:
                if program not in self._devices:
                    self._birth_device(program)

    def _change_available(self, available: bool) -> None:
        changed = available != self._available
        self._available = available
        if changed and self._born:
            data = encoding.node_data(self._next_seq(), available)
            self._publish(self._topics.of_node("NDATA"), data)

    # ---- verdicts ------------------------------------------------------------------------------

    def _send_live(self, verdict: VerdictPayload) -> None:
        self._last[verdict.program] = verdict
        if verdict.journal_id != self._memory.journal:
            # Committed just before its journal was replaced: now or never.
            if self._born:
                self._send(verdict, historical=False)
            return
        missing = self._memory.missing
        missing.add(self._memory.offered + 1, verdict.seq - 1)
        self._memory.offered = max(self._memory.offered, verdict.seq)
        if not self._born or len(self._in_flight) >= LIVE_WINDOW:
            missing.add(verdict.seq, verdict.seq)
            return
        try:
            self._send(verdict, historical=False)
        except BrokerUnavailable:
            missing.add(verdict.seq, verdict.seq)
            raise

    def _backlog_is_due(self) -> bool:
        return (
            self._born
            and bool(self._memory.missing)
            and not self._in_flight
            and self._events.empty()
            and time.monotonic() >= self._backlog_at
        )

    def _send_backlog(self) -> None:
        """One more verdict of the journal, late; raises BrokerUnavailable and JournalError."""
        missing = self._memory.missing
        if not self._late:
            first, last = missing.first(BACKLOG_ROWS)
            self._late.extend(self._store.read(first, last))
            if not self._late:  # they are no longer kept
                missing.drop_up_to(last)
                return
        row = self._late[0]
        try:
            verdict = decode_verdict(row.payload)
        except JsonError as error:
            _logger.error("verdict %d stays in the journal: it cannot be read: %s", row.seq, error)
        else:
            self._send(verdict, historical=True)
            self._backlog_at = time.monotonic() + 1.0 / self._settings.backlog_rate
        self._late.popleft()
        missing.drop_up_to(row.seq)
        if not self._late:
            for program in sorted(self._devices.difference(self._programs)):
                self._bury_device(program)

    def _send(self, verdict: VerdictPayload, *, historical: bool) -> None:
        """Raises BrokerUnavailable."""
        if verdict.program not in self._devices:
            self._birth_device(verdict.program)
        data = encoding.device_data(
            self._next_seq(),
            self._first_alias(verdict.program),
            verdict,
            historical=historical,
        )
        self._publish(self._topics.of_device("DDATA", verdict.program), data, verdict.seq)

    def _publish(self, topic: str, payload: bytes, verdict: int | None = None) -> None:
        if self._connection is None:
            raise BrokerUnavailable(f"no connection to the MQTT broker {self.broker}")
        info = self._connection.publish(topic, payload, qos=0)
        # In time even if it is written already: the event waits in the queue.
        self._in_flight[info.mid] = verdict

    def _next_seq(self) -> int:
        seq = self._seq
        self._seq = (seq + 1) % 256
        return seq

    def _first_alias(self, program: str) -> int:
        """Of its metrics; nobody else's on this node, and the same until the next start."""
        position = self._aliases.setdefault(program, len(self._aliases) + 1)
        return position * encoding.ALIASES_PER_DEVICE
