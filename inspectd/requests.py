"""What is asked of the station by MQTT: sorted, checked against the settings, done, answered.

A trigger goes into its line at once. Everything else is done on threads of its own: what is quick
on one, one after the other, and what may take long on another. A trigger that follows a quick
request, such as for another program, comes after it, as a requester expects who does not wait for
the answer. What was done is remembered by its transaction, also across restarts, so that a repeated
request gets the same answer and is not done again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import msgspec

from inspectd.clock import SLEWED_S, ClockWatch
from inspectd.errors import ControlError, InspectdError, JournalError
from inspectd.journal import Answer
from inspectd.mqtt.messages import RequestMessage
from inspectd.mqtt.outbox import ReplyTo
from inspectd.payload import REQUESTS, Identifier, Response, TriggerRequest, encode
from inspectd.typed_json import JsonError, JsonReader

_logger = logging.getLogger(__name__)

WAITING = 100
"""Requests that may wait to be done; beyond, they are refused."""
STOP_S = 0.5
REPEATED_WITHIN_S = 600.0
"""A request that comes later with the same transaction is no repetition, but another one, of a
requester that has begun to count anew."""

QUICK = frozenset({"program", "lot", "limits"})

Act = Callable[[Any], str]
"""Does what a request of one of the REQUESTS asks for, and says in words what was done; may raise
InspectdError."""


_clock = ClockWatch()


def used_before(transaction: str, at: datetime) -> str:
    """Why an answer of that instant is none to a request of now; empty if it is.

    Where the clock was set, or the machine started, since then, the age is not known: then it is
    none either. It may be an old one, of another part.
    """
    age_s = (datetime.now(UTC) - at).total_seconds()
    if at < _clock.since():
        why = "before the machine was started or its clock set, so nobody knows how long ago"
    elif -SLEWED_S <= age_s <= REPEATED_WITHIN_S:
        return ""
    else:
        why = f"which is not within the last {REPEATED_WITHIN_S / 60:.0f} minutes"
    return (
        f"transaction {transaction} was used already, at {at:%Y-%m-%dT%H:%M:%SZ}, {why}: this is "
        "another request, and must have a transaction of its own"
    )


class Answers(Protocol):
    """The journal's memory of what was answered; both may raise JournalError."""

    def find_answer(self, request: str, transaction: str) -> Answer | None: ...
    def keep_answer(self, request: str, transaction: str, response: bytes) -> None: ...


class _Kept(msgspec.Struct):
    """What is remembered of a request that was done.

    Attributes:
        asked: what it was, of one of the REQUESTS.
    """

    asked: msgspec.Raw
    response: Response


class _Transaction(msgspec.Struct):
    """What is read of a request that is not understood otherwise."""

    transaction: Identifier | None = None


_REQUESTS = {name: JsonReader[msgspec.Struct](kind) for name, kind in REQUESTS.items()}
_KEPT: JsonReader[_Kept] = JsonReader(_Kept)
_TRANSACTION: JsonReader[_Transaction] = JsonReader(_Transaction)


@dataclass(frozen=True, slots=True)
class _Job:
    where: ReplyTo
    request: Any


class _Lane:
    """Work that is done in order, on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def waiting(self) -> int:
        return self._work.qsize()

    @property
    def idle(self) -> bool:
        """Whether all that was put in is done."""
        return self._work.unfinished_tasks == 0

    def start(self) -> None:
        self._thread.start()

    def put(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def stop(self) -> None:
        self._work.put(None)
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            self._work.task_done()


class Requests:
    """Takes requests on the network's thread, and does them on its own."""

    def __init__(
        self,
        allowed: Callable[[], Collection[str]],
        ask: Callable[[TriggerRequest, RequestMessage, int], None],
        acts: Mapping[str, Act],
        answers: Answers,
        respond: Callable[[ReplyTo, Response], None],
    ) -> None:
        """Args:
        allowed: names of the requests that are answered.
        ask: puts a trigger of an instant (`time.monotonic_ns`) into its line; does not wait. It
            acknowledges the message when the trigger is answered.
        acts: what is done for each of the other REQUESTS.
        answers: remembers what was done.
        respond: sends an answer; does not wait.
        """
        self._allowed = allowed
        self._ask = ask
        self._acts = acts
        self._answers = answers
        self._respond = respond
        self._stopping = threading.Event()
        self._quick = _Lane("requests")
        self._slow = _Lane("long-requests")

    def start(self) -> None:
        self._quick.start()
        self._slow.start()

    def stop(self) -> None:
        """Take no more, and refuse those that wait. What is being done is not waited for long."""
        self._stopping.set()
        self._quick.stop()
        self._slow.stop()

    def receive(self, name: str, message: RequestMessage) -> None:
        """Take a request; on the network's thread, does not wait."""
        _clock.since()  # before the instant that is kept with the answer
        where = ReplyTo(name, message.response_topic, message.correlation_data)
        raw = message.payload or b"{}"
        try:
            request = self._understood(name, raw)
            if message.retain:
                raise ControlError(
                    "the request was retained by the broker, nobody knows since when: "
                    "send requests without the retain flag"
                )
            if self._stopping.is_set():
                raise ControlError("the service is stopping")
            if isinstance(request, TriggerRequest):
                self._pass_on(request, message)
                return
            lane = self._quick if name in QUICK else self._slow
            if lane.waiting >= WAITING:
                raise ControlError(f"{WAITING} requests are waiting already: ask again later")
            lane.put(partial(self._do, _Job(where, request)))
        except ControlError as error:
            self._refuse(where, _transaction_of(raw), str(error))
        # Not when it is done: it may take long, and a broker that waits for an acknowledgement
        # holds back the triggers behind it. A requester without an answer repeats its request.
        message.acknowledge()

    def _pass_on(self, request: TriggerRequest, message: RequestMessage) -> None:
        asked_ns = time.monotonic_ns()
        if self._quick.idle:
            self._ask(request, message, asked_ns)
        else:
            self._quick.put(lambda: self._ask(request, message, asked_ns))

    def _understood(self, name: str, raw: bytes) -> msgspec.Struct:
        """Raises ControlError."""
        known = ", ".join(name for name in REQUESTS if name in self._allowed())
        if name not in REQUESTS:
            raise ControlError(f"there is no request {name!r}; allowed are: {known}")
        if name not in self._allowed():
            raise ControlError(
                f"request/{name} is not allowed here: mqtt.requests in the station file lacks it; "
                f"allowed are: {known}"
            )
        try:
            return _REQUESTS[name].read(raw)
        except JsonError as error:
            raise ControlError(str(error)) from error

    # ---- the requests' own threads -------------------------------------------------------------

    def _do(self, job: _Job) -> None:
        transaction = job.request.transaction
        if self._stopping.is_set():
            self._refuse(job.where, transaction, "the service is stopping")
            return
        try:
            self._answer(job)
        except Exception:
            _logger.exception("unexpected error while request/%s was done", job.where.request)
            words = "the service met an unexpected error; its log tells more"
            self._refuse(job.where, transaction, words)

    def _answer(self, job: _Job) -> None:
        name, transaction = job.where.request, job.request.transaction
        try:
            if transaction and (before := self._answered(job, transaction)) is not None:
                self._respond(job.where, before)
                return
            detail = self._acts[name](job.request)
        except InspectdError as error:
            # Not remembered: nothing was done, and repeated it may succeed.
            self._refuse(job.where, transaction, str(error))
            return
        _logger.info("request/%s: %s", name, detail)
        response = Response(request=name, transaction=transaction, ok=True, detail=detail)
        if transaction is not None:
            self._remember(transaction, _Kept(msgspec.Raw(encode(job.request)), response))
        self._respond(job.where, response)

    def _answered(self, job: _Job, transaction: str) -> Response | None:
        """Raises ControlError where the transaction was of another request."""
        name = job.where.request
        try:
            before = self._answers.find_answer(name, transaction)
            if before is None:
                return None
            if words := used_before(transaction, before.at):
                raise ControlError(words)
            kept = _KEPT.read(before.response)
        except (JournalError, JsonError) as error:
            _logger.error("whether request/%s was done already is not known: %s", name, error)
            return None
        if bytes(kept.asked) != encode(job.request):
            asked = bytes(kept.asked).decode(errors="replace")
            raise ControlError(
                f"transaction {transaction} was used already, at {before.at:%Y-%m-%dT%H:%M:%SZ}, "
                f"for another request/{name}, {asked}: give each request a transaction of its own"
            )
        return kept.response

    def _remember(self, transaction: str, kept: _Kept) -> None:
        name = kept.response.request
        try:
            self._answers.keep_answer(name, transaction, encode(kept))
        except JournalError as error:
            _logger.error("%s; repeated, it is done again", error)

    def _refuse(self, where: ReplyTo, transaction: str | None, words: str) -> None:
        _logger.warning("request/%s is refused: %s", where.request, words)
        self._respond(
            where, Response(request=where.request, transaction=transaction, ok=False, error=words)
        )


def _transaction_of(raw: bytes) -> str | None:
    """As far as it can be read."""
    try:
        return _TRANSACTION.read(raw).transaction
    except JsonError:
        return None
