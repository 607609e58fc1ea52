"""The way of committed verdicts to the broker.

Two lanes. Live: a verdict goes out the moment it is committed, with `result`, the answer to its
request, and the pictures if the line is free. Backlog: what could not go out then follows after
the next connection, in order of `seq` and at a bounded rate, marked ``historical``, past the
retained `result`; live verdicts overtake it.

One thread owns all of the state. Every method that others call only puts an event into its queue.
A row is marked sent when the broker has acknowledged it, and not before; whatever else happens
leaves it in the journal, from where it goes again. So a consumer may see a verdict twice, and
knows it by its id. What the broker refuses is passed over, and tried again after a while. Nothing
that grows with the length of an outage is kept in memory: the journal knows what is unsent.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Unpack

from inspectd.errors import BrokerState, BrokerUnavailable, JournalError, MessageTooLarge
from inspectd.mqtt import words
from inspectd.mqtt.messages import PublishOptions
from inspectd.mqtt.topics import Topics
from inspectd.payload import MapPayload, Response, VerdictPayload, as_historical, encode
from inspectd.typed_json import JsonError

_logger = logging.getLogger(__name__)

BACKLOG_WINDOW = 16
"""Messages in flight beyond which the backlog waits; below paho's own 20, to leave room for live
verdicts."""
CATCH_UP_S = 0.1
"""So far the backlog may catch up with its rate, when the window was full."""
LIVE_WINDOW = 300
"""Messages in flight beyond which a verdict is left to the backlog: the broker does not keep up."""
PICTURES_WINDOW = 4
"""Messages in flight beyond which pictures wait."""
PICTURES_KEPT = 4
"""Pictures that may wait; beyond, the oldest are dropped."""
PICTURES_EXPIRY_S = 60
MARK_BATCH = 50
MARK_DELAY_S = 0.2
"""Acknowledged rows are marked so many at a time, or after so long."""
RETRY_S = 5.0
"""After an error, the backlog rests so long."""
REFUSED_REST_S = 1.0
LONGEST_REST_S = 30.0
"""After a verdict was refused, the backlog rests so long: longer each time, until one is taken."""
REFUSED_AGAIN_S = 30.0
"""When it has come to its end, and not before, those refused are tried again."""
TROUBLES_KEPT = 20
"""Topics whose refusals are spoken of; requesters may name any number of response topics."""

JSON = "application/json"

_DIGITS = re.compile(r"\d+")


class StoredVerdict(Protocol):
    """A row of the journal: its number, the inspection's id, and the JSON as first sent."""

    @property
    def seq(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def payload(self) -> bytes: ...


class Store(Protocol):
    """What the outbox needs of the journal; each may raise JournalError."""

    @property
    def id(self) -> str: ...
    def unsent(self, after: int, limit: int) -> Sequence[StoredVerdict]: ...
    def mark_sent(self, seqs: Sequence[int], journal_id: str | None = None) -> None: ...
    def unsent_count(self) -> int: ...
    def last_seq(self) -> int: ...


class Publisher(Protocol):
    """What the outbox needs of the MQTT client."""

    def publish(self, topic: str, payload: bytes, **options: Unpack[PublishOptions]) -> int:
        """The message's number, which `Outbox.acknowledged` names.

        Raises BrokerUnavailable and MessageTooLarge.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """Where the answer to a request goes.

    Attributes:
        request: the NAME of ``request/NAME``.
        topic: the requester's response topic; None for ``response/NAME``.
    """

    request: str
    topic: str | None = None
    correlation_data: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Pictures:
    id: str
    seq: int
    heatmap: bytes
    map: MapPayload | None


@dataclass(frozen=True, slots=True)
class _Sent:
    topic: str
    seq: int | None
    """The row it carries; None for all but `verdict`."""


class Outbox:
    """Moves verdicts from the journal to the broker, on a thread of its own.

    It is the `inspectd.mqtt.client.Listener` of the client it publishes through.
    """

    def __init__(
        self, store: Store, publisher: Publisher, topics: Topics, backlog_rate: float = 50.0
    ) -> None:
        """Prepare; `start` starts it. ``backlog_rate`` is in verdicts a second, at the most."""
        self._store = store
        self._backlog_rate = backlog_rate
        self._publisher = publisher
        self._topics = topics
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._running = True
        # From here on: touched by the outbox's own thread only.
        self._connected = False
        self._in_flight: dict[int, _Sent] = {}
        self._journal_id = ""
        """Of all numbers here; the store may be ahead with a new one."""
        self._to_mark: list[int] = []
        self._mark_at = 0.0
        self._offered_up_to = 0
        self._backlog_from: int | None = None
        self._late_at = 0.0
        self._resting_until = 0.0
        self._refused_rest_s = 0.0
        self._refused_again_at: float | None = None
        self._pictures: deque[_Pictures] = deque(maxlen=PICTURES_KEPT)
        self._refusals: dict[str, str] = {}
        self._refused_now: dict[str, str] = {}
        self._drained: threading.Event | None = None
        # Written by that thread, read by any.
        self._trouble = ""
        self._state = BrokerState.CONNECTED

    # ---- for everyone --------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """What the broker refuses of late, for a person to read; empty if it takes everything."""
        return self._trouble

    @property
    def state(self) -> BrokerState:
        """The same in a word; CONNECTED if it takes everything."""
        return self._state

    def start(self) -> None:
        """Start the thread, before the client and before anything is judged.

        Raises:
            JournalError: the journal could not be read.
        """
        self._journal_id = self._store.id
        self._offered_up_to = self._store.last_seq()
        self._thread.start()

    def offer(self, verdict: VerdictPayload, reply_to: ReplyTo | None = None) -> None:
        """Send a verdict that was committed just now; call it in the order of the commits."""
        self._events.put(lambda: self._send_live(verdict, reply_to))

    def offer_pictures(
        self, verdict: VerdictPayload, heatmap: bytes, values: MapPayload | None
    ) -> None:
        """Send the heatmap (PNG) and the map of a verdict offered before, if there is room.

        ``values`` is None where nothing was judged.
        """
        pictures = _Pictures(verdict.id, verdict.seq, heatmap, values)
        self._events.put(lambda: self._pictures.append(pictures))

    def respond(self, reply_to: ReplyTo, response: Response) -> None:
        """Answer a request; one that cannot be answered now is for the requester to repeat."""
        self._events.put(lambda: self._send_response(reply_to, response))

    def journal_replaced(self, journal_id: str) -> None:
        """Another journal was begun, with numbers of its own; call it before the first offer."""
        self._events.put(lambda: self._forget_numbers(journal_id))

    def set_backlog_rate(self, rate: float) -> None:
        """In verdicts a second, at the most."""
        self._backlog_rate = rate

    def ping(self, answer: Callable[[], None]) -> None:
        """Have a function called on the outbox's thread, which shows that it lives; not to wait."""
        self._events.put(answer)

    def forget_sent(self, first: int, last: int, timeout_s: float) -> bool:
        """Call it before rows are marked unsent, and then `look_back`.

        Else one whose acknowledgement is still to be noted would be marked as sent after all.

        Returns:
            False if the time was over first.
        """
        forgotten = threading.Event()
        self._events.put(lambda: self._forget_sent(first, last, forgotten))
        return forgotten.wait(timeout_s)

    def look_back(self) -> None:
        """Rows of the journal are unsent again: they follow with the backlog."""
        self._events.put(self._rewind_backlog)

    def drain(self, timeout_s: float) -> bool:
        """Send what was offered, begin nothing else, and wait until all is acknowledged.

        Returns:
            False if the time was over first. Whatever is unsent stays in the journal.
        """
        drained = threading.Event()
        self._events.put(lambda: self._begin_draining(drained))
        return drained.wait(timeout_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """End the thread; one that was never started is no error."""
        self._events.put(self._end)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # ---- for the client's network thread -------------------------------------------------------

    def connected(self) -> None:
        self._events.put(self._on_connected)

    def lost(self) -> None:
        self._events.put(self._on_lost)

    def acknowledged(self, mid: int, refusal: str | None) -> None:
        self._events.put(lambda: self._on_acknowledged(mid, refusal))

    # ---- the outbox's thread -------------------------------------------------------------------

    def _run(self) -> None:
        while self._running:
            try:
                self._handle_next_event()
                self._work_on()
            except JournalError as error:
                _logger.error("%s; what is unsent is tried again in %.0f s", error, RETRY_S)
                self._rest()
            except Exception:
                _logger.exception(
                    "unexpected error in the outbox; what is unsent is tried again in %.0f s",
                    RETRY_S,
                )
                self._rest()

    def _handle_next_event(self) -> None:
        """Wait for one, or until there is something to do without."""
        due = self._next_work_at()
        timeout = None if due is None else max(0.0, due - time.monotonic())
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return
        event()

    def _next_work_at(self) -> float | None:
        """When the journal is needed next; None if only an event can bring work."""
        due: list[float] = []
        if self._to_mark:
            due.append(self._mark_at)
        if self._backlog_may_go():
            due.append(self._late_at)
        elif self._refused_may_go():
            assert self._refused_again_at is not None
            due.append(self._refused_again_at)
        return max(min(due), self._resting_until) if due else None

    def _work_on(self) -> None:
        """What is not urgent, a bit at a time, while no event waits."""
        if not self._events.empty():
            return
        while self._pictures and self._connected and len(self._in_flight) < PICTURES_WINDOW:
            self._send_pictures(self._pictures.popleft())
        if time.monotonic() >= self._resting_until:
            if len(self._to_mark) >= MARK_BATCH or time.monotonic() >= self._mark_at:
                self._mark()
            if self._refused_may_go() and time.monotonic() >= (self._refused_again_at or 0.0):
                self._rewind_backlog()
            if self._backlog_may_go() and time.monotonic() >= self._late_at:
                self._send_backlog()
        if self._drained is not None and not self._in_flight:
            self._mark()
            self._drained.set()

    def _rest(self, seconds: float | None = None) -> None:
        self._resting_until = time.monotonic() + (RETRY_S if seconds is None else seconds)

    def _end(self) -> None:
        self._running = False

    def _begin_draining(self, drained: threading.Event) -> None:
        self._drained = drained

    def _forget_numbers(self, journal_id: str) -> None:
        self._journal_id = journal_id
        self._to_mark = []
        self._offered_up_to = 0
        self._backlog_from = None
        self._in_flight = {mid: _Sent(sent.topic, None) for mid, sent in self._in_flight.items()}

    def _forget_sent(self, first: int, last: int, forgotten: threading.Event) -> None:
        self._to_mark = [seq for seq in self._to_mark if not first <= seq <= last]
        for mid, sent in self._in_flight.items():
            if sent.seq is not None and first <= sent.seq <= last:
                self._in_flight[mid] = _Sent(sent.topic, None)
        forgotten.set()

    def _on_connected(self) -> None:
        self._on_lost()
        self._connected = True
        self._refusals.clear()
        self._refused_now.clear()
        self._tell_trouble()
        self._refused_rest_s = 0.0
        self._resting_until = 0.0
        self._rewind_backlog()
        waiting = self._store.unsent_count()
        if waiting:
            _logger.info("%d verdicts of the journal follow late, marked historical", waiting)

    def _on_lost(self) -> None:
        self._connected = False
        # Nobody will acknowledge these any more; the rows go again with the backlog.
        self._in_flight.clear()
        self._pictures.clear()

    def _on_acknowledged(self, mid: int, refusal: str | None) -> None:
        sent = self._in_flight.pop(mid, None)
        if sent is None:  # not ours, or of an earlier connection
            return
        if refusal is not None:
            self._on_refused(sent, refusal)
            return
        if self._refused_now.pop(sent.topic, None) is not None:
            self._tell_trouble()
        if sent.seq is not None:
            self._refused_rest_s = 0.0
            if not self._to_mark:
                self._mark_at = time.monotonic() + MARK_DELAY_S
            self._to_mark.append(sent.seq)

    def _on_refused(self, sent: _Sent, refusal: str) -> None:
        self._note_refusal(sent.topic, refusal)
        if sent.seq is not None:
            self._leave_behind()
            if time.monotonic() >= self._resting_until:  # once for all that were sent together
                self._refused_rest_s = min(
                    max(2 * self._refused_rest_s, REFUSED_REST_S), LONGEST_REST_S
                )
                self._rest(self._refused_rest_s)

    def _leave_behind(self) -> None:
        """A verdict cannot be sent now; the next ones may."""
        if self._refused_again_at is None:
            self._refused_again_at = time.monotonic() + REFUSED_AGAIN_S

    def _note_refusal(self, topic: str, refusal: str) -> None:
        known = self._refusals.get(topic)
        if known is None and len(self._refusals) >= TROUBLES_KEPT:
            return
        # The same refusal names the size of each picture: the first one stands for all.
        if known is not None and _DIGITS.sub("", known) == _DIGITS.sub("", refusal):
            refusal = known
        self._refusals[topic] = self._refused_now[topic] = refusal
        self._tell_trouble()
        if known != refusal:
            _logger.error("the MQTT broker refuses messages on %s: %s", topic, refusal)

    def _tell_trouble(self) -> None:
        self._trouble = "; ".join(
            f"the MQTT broker refuses messages on {topic}: {refusal}"
            for topic, refusal in self._refused_now.items()
        )
        self._state = BrokerState.worst(map(words.state_of_refusal, self._refused_now.values()))

    def _mark(self) -> None:
        if self._to_mark:
            self._store.mark_sent(self._to_mark, self._journal_id)
            self._to_mark = []

    # ---- the live lane -------------------------------------------------------------------------

    def _send_live(self, verdict: VerdictPayload, reply_to: ReplyTo | None) -> None:
        self._offered_up_to = max(self._offered_up_to, verdict.seq)
        if self._connected:
            self._send_verdict_and_result(verdict)
        if reply_to is not None:
            response = Response(
                request=reply_to.request,
                transaction=verdict.transaction,
                ok=True,
                verdict=verdict,
            )
            self._send_response(reply_to, response)

    def _send_verdict_and_result(self, verdict: VerdictPayload) -> None:
        if len(self._in_flight) >= LIVE_WINDOW:
            self._rewind_backlog()
            return
        result = f"{verdict.verdict} {verdict.seq}"
        try:
            self._send_verdict(verdict.seq, verdict.id, encode(verdict))
            self._publish(self._topics.result, result.encode(), retain=True)
        except BrokerUnavailable:
            self._rewind_backlog()

    def _send_verdict(self, seq: int, id_: str, payload: bytes) -> None:
        self._publish(
            self._topics.verdict,
            payload,
            seq=seq,
            content_type=JSON,
            user_properties=_identity(id_, seq),
        )

    def _send_response(self, reply_to: ReplyTo, response: Response) -> None:
        topic = reply_to.topic or self._topics.response(reply_to.request)
        try:
            self._publish(
                topic,
                encode(response),
                content_type=JSON,
                correlation_data=reply_to.correlation_data,
            )
        except BrokerUnavailable as error:
            _logger.warning("request/%s is not answered: %s", reply_to.request, error)

    def _send_pictures(self, pictures: _Pictures) -> None:
        identity = _identity(pictures.id, pictures.seq)
        messages: list[tuple[str, bytes, str | None]] = [
            (self._topics.heatmap, pictures.heatmap, "image/png"),
            (self._topics.heatmap_id, pictures.id.encode(), None),
        ]
        if pictures.map is not None:
            messages.append((self._topics.map, encode(pictures.map), JSON))
        try:
            for topic, payload, content_type in messages:
                self._publish(
                    topic,
                    payload,
                    content_type=content_type,
                    expiry_s=PICTURES_EXPIRY_S,
                    user_properties=identity,
                )
        except BrokerUnavailable as error:
            _logger.debug("the pictures of verdict %d are dropped: %s", pictures.seq, error)

    def _publish(
        self,
        topic: str,
        payload: bytes,
        *,
        seq: int | None = None,
        **options: Unpack[PublishOptions],
    ) -> None:
        """What is too large is refused, as if by the broker; raises BrokerUnavailable."""
        try:
            mid = self._publisher.publish(topic, payload, **options)
        except MessageTooLarge as error:
            self._note_refusal(topic, str(error))
            if seq is not None:
                self._leave_behind()
            return
        # In time even if the broker has answered already: its answer waits among the events.
        self._in_flight[mid] = _Sent(topic, seq)

    # ---- the backlog lane ----------------------------------------------------------------------

    def _rewind_backlog(self) -> None:
        self._backlog_from = 0
        self._refused_again_at = None

    def _refused_may_go(self) -> bool:
        """Once the backlog has passed by."""
        return (
            self._refused_again_at is not None
            and self._backlog_from is None
            and self._connected
            and self._drained is None
        )

    def _backlog_may_go(self) -> bool:
        return (
            self._backlog_from is not None
            and self._connected
            and self._drained is None
            and len(self._in_flight) < BACKLOG_WINDOW
        )

    def _send_backlog(self) -> None:
        """Send the next unsent rows that are nowhere on their way yet, as window and rate allow."""
        assert self._backlog_from is not None
        now = time.monotonic()
        self._late_at = max(self._late_at, now - CATCH_UP_S)
        due = 1 + int((now - self._late_at) * self._backlog_rate)
        room = min(due, BACKLOG_WINDOW - len(self._in_flight))
        rows = self._store.unsent(self._backlog_from, room)
        # What was committed but not offered yet is about to come by the live lane.
        late = [row for row in rows if row.seq <= self._offered_up_to]
        on_their_way = {sent.seq for sent in self._in_flight.values()}.union(self._to_mark)
        try:
            for row in late:
                if row.seq not in on_their_way:
                    self._send_late(row)
                    self._late_at += 1.0 / self._backlog_rate
        except BrokerUnavailable:
            self._rewind_backlog()
            self._rest()
        else:
            self._backlog_from = late[-1].seq if len(late) == room else None

    def _send_late(self, row: StoredVerdict) -> None:
        """Raises BrokerUnavailable."""
        try:
            payload = as_historical(row.payload)
        except JsonError as error:
            _logger.error("verdict %d stays in the journal: it cannot be read: %s", row.seq, error)
        else:
            self._send_verdict(row.seq, row.id, payload)


def _identity(id_: str, seq: int) -> tuple[tuple[str, str], ...]:
    return (("id", id_), ("seq", str(seq)))
