"""What asks for verdicts: the waiting line of triggers, and the timer that fills it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from inspectd.records import Trigger, TriggerSource


def trigger_now(
    source: TriggerSource,
    *,
    part_id: str | None = None,
    transaction: str | None = None,
    response_topic: str | None = None,
    correlation_data: bytes | None = None,
) -> Trigger:
    """A trigger of this instant."""
    return Trigger(
        source=source,
        requested_at=datetime.now(UTC),
        requested_ns=time.monotonic_ns(),
        part_id=part_id,
        transaction=transaction,
        response_topic=response_topic,
        correlation_data=correlation_data,
    )


@dataclass(frozen=True, slots=True)
class Overrun:
    """A trigger that came when the line was full: to be answered, not judged."""

    trigger: Trigger


Work = Trigger | Overrun | Callable[[], None]


class TriggerLine:
    """The triggers that wait for the one thread that judges, and other work for that thread.

    Every trigger that was put in comes out, in order; beyond the bound it comes out as an
    `Overrun`, ahead of the others, since nobody need look at its part any more. Work that needs
    the camera but is no trigger (teaching) goes between two parts.
    """

    def __init__(self, bound: int) -> None:
        """``bound``: triggers that may wait."""
        self._bound = bound
        self._triggers: deque[Trigger] = deque()
        self._overruns: deque[Overrun] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()

    def put(self, trigger: Trigger) -> None:
        """Ask for a verdict; never waits."""
        with self._changed:
            if len(self._triggers) < self._bound:
                self._triggers.append(trigger)
            else:
                self._overruns.append(Overrun(trigger))
            self._changed.notify()

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called by the thread that judges."""
        with self._changed:
            self._calls.append(function)
            self._changed.notify()

    def take(self, timeout_s: float) -> Work | None:
        """The next piece of work, or None after ``timeout_s`` seconds without any."""
        with self._changed:
            self._changed.wait_for(self._any, timeout_s)
            for line in (self._overruns, self._calls, self._triggers):
                if line:
                    return line.popleft()
        return None

    def wake(self) -> None:
        """Let a waiting `take` return, so that its caller can look whether to stop."""
        self.call(lambda: None)

    def _any(self) -> bool:
        return bool(self._overruns or self._calls or self._triggers)


class IntervalTimer:
    """Puts a trigger into the line every so many seconds, without drift."""

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
            count += 1
