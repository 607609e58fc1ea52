"""What asks for verdicts: the waiting line of triggers, and the timer that fills it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from inspectd.records import Trigger, TriggerSource

_logger = logging.getLogger(__name__)


def trigger_now(
    source: TriggerSource,
    *,
    part_id: str | None = None,
    transaction: str | None = None,
    response_topic: str | None = None,
    correlation_data: bytes | None = None,
    requested_ns: int | None = None,
    delay_ms: float = 0.0,
    queued: bool = False,
    sent_after_ns: int | None = None,
    acknowledge: Callable[[], None] = lambda: None,
) -> Trigger:
    """A trigger of this instant, or of the one that ``requested_ns`` names (`time.monotonic_ns`).

    The part is in front of the camera ``delay_ms`` milliseconds after it.
    """
    now_ns, now = time.monotonic_ns(), datetime.now(UTC)
    if requested_ns is None:
        requested_ns = now_ns
    return Trigger(
        source=source,
        requested_at=now - timedelta(microseconds=(now_ns - requested_ns) / 1000),
        requested_ns=requested_ns,
        delay_ns=round(delay_ms * 1e6),
        part_id=part_id,
        transaction=transaction,
        response_topic=response_topic,
        correlation_data=correlation_data,
        queued=queued,
        sent_after_ns=sent_after_ns,
        acknowledge=acknowledge,
    )


@dataclass(frozen=True, slots=True)
class Overrun:
    """A trigger that came when the line was full: to be answered in its turn, not judged."""

    trigger: Trigger


Work = Trigger | Overrun | Callable[[], None]


class TriggerLine:
    """The triggers that wait for the one thread that judges, and other work for that thread.

    Every trigger that was put in comes out, in order: a consumer that counts parts relies on it.
    One that came when the line was full comes out as an `Overrun`. Work that needs the camera but
    is no trigger (teaching) goes between two parts: ahead of those that wait, but however much of
    it there is, only one piece at a time.
    """

    def __init__(self, bound: int, program: Callable[[], str | None] = lambda: None) -> None:
        """Args:
        bound: triggers that may wait; may be changed at any time.
        program: the one in force, which each trigger is given that names none.
        """
        self.bound = bound
        self._program = program
        self._parts: deque[Trigger | Overrun] = deque()
        self._waiting = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._part_is_next = False
        self._changed = threading.Condition()

    def put(self, trigger: Trigger) -> None:
        """Ask for a verdict; never waits."""
        if trigger.program is None:
            trigger = replace(trigger, program=self._program())
        with self._changed:
            if self._waiting < self.bound:
                self._waiting += 1
                self._parts.append(trigger)
            else:
                self._parts.append(Overrun(trigger))
            self._changed.notify()

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called by the thread that judges."""
        with self._changed:
            self._calls.append(function)
            self._changed.notify()

    def take(self, timeout_s: float) -> Work | None:
        """The next piece of work, or None after ``timeout_s`` seconds without any."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._parts, timeout_s)
            if self._calls and not (self._part_is_next and self._parts):
                self._part_is_next = True
                return self._calls.popleft()
            if not self._parts:
                return None
            self._part_is_next = False
            part = self._parts.popleft()
            if isinstance(part, Trigger):
                self._waiting -= 1
            return part

    @property
    def waiting(self) -> int:
        """Triggers that wait to be judged."""
        with self._changed:
            return self._waiting

    @property
    def has_parts(self) -> bool:
        """Whether a trigger waits."""
        with self._changed:
            return bool(self._parts)

    def wake(self) -> None:
        """Let a waiting `take` return, so that its caller can look whether to stop."""
        self.call(lambda: None)


class IntervalTimer:
    """Puts a trigger into the line every so many seconds, without drift.

    Instants that pass while the process is held up (a suspended machine) are skipped, not made up
    for: there was a part for each, and a picture of now shows none of them.
    """

    def __init__(self, interval_s: float, line: TriggerLine) -> None:
        self._interval_s = interval_s
        self._line = line
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interval", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        count = 0
        while not self._stopping.wait(start + count * self._interval_s - time.monotonic()):
            self._line.put(trigger_now(TriggerSource.INTERVAL))
            count += 1 + self._missed(time.monotonic() - start, count)

    def _missed(self, elapsed_s: float, count: int) -> int:
        """How many instants after number ``count`` have passed as well."""
        missed = max(0, int(elapsed_s / self._interval_s) - count)
        if missed:
            _logger.warning(
                "the interval trigger was held up: %d of its instants passed without a verdict",
                missed,
            )
        return missed
