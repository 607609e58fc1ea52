"""What systemd is told of the station: what it does, when it is ready, and that it gets on.

The watchdog is fed by progress, not by a timer. It starves when a restart can mend what is wrong:
the thread that judges is stuck or dead, the camera's driver hangs in a call that the guard has
given up, the outbox or the broker's thread is dead or deadlocked, or the main thread, which feeds.
It does not starve by what a restart cannot mend: a camera that is unplugged answers with an error,
a broker that is away and a full disk do as well. So the interval must exceed the longest that one
step may take by itself; where the settings allow more than the unit says, it is made longer.

In the same way a start is given more time while it gets on: while kernels are compiled and
references learned, which costs processor time, and while the camera is tried again and again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from inspectd.camera.guard import CLOSE_TIMEOUT_S, GRACE_S, OPEN_TIMEOUT_S
from inspectd.payload import VerdictPayload
from inspectd.records import Verdict
from inspectd.settings import GpioTrigger, Station
from inspectd.state import State, StationState
from inspectd.systemd import Manager

FEED_S = 1.0
"""The watchdog is fed that often, while all gets on."""
EXTEND_EVERY_S = 2.0
EXTENSION_S = 60.0
"""A start that gets on is given so much more time, each time."""
COUNTED_EVERY_S = 10.0
"""So often the counts of STATUS are renewed: each change wakes systemd and whoever watches it."""
WORKING_SHARE = 0.2
"""Who learns or compiles takes at least so much of one processor; who hangs, next to nothing."""
JUDGING_S = 5.0
"""What inspecting, committing and telling may take beside the camera, on a slow card."""


class Supervisor:
    """Tells the service manager. All but `note`, `note_compiling` and `adopt` belong to the thread
    that waits for the end, the main one, of which `on_reload` may interrupt the others.
    """

    def __init__(
        self,
        manager: Manager,
        station: Station,
        state: StationState,
        *,
        steps: Callable[[], int],
        is_well: Callable[[], bool],
        ping: Callable[[Callable[[], None]], None],
        reload_is_pending: Callable[[], bool],
    ) -> None:
        """Args:
        manager: is told.
        station: its settings; see `adopt`.
        state: of the station.
        steps: how many steps the thread that judges has done.
        is_well: whether nothing else is amiss that a restart may mend.
        ping: has a function called on the outbox's thread.
        reload_is_pending: whether settings are to be read still.
        """
        self._manager = manager
        self._station = station
        self._state = state
        self._steps = steps
        self._is_well = is_well
        self._ping = ping
        self._reload_is_pending = reload_is_pending
        self._seen_steps = 0
        self._pong = threading.Event()
        self._pong.set()
        self._feed_at = self._extend_at = 0.0
        self._cpu_s = time.process_time()
        self._interval_s = manager.watchdog_s
        self._compiling = ""
        self._compiled = 0
        self._asked = self._answered = 0
        self._counts: Counter[str] = Counter()
        self._count_at = 0.0
        self._said = ""

    def adopt(self, station: Station) -> None:
        """Other settings are in force."""
        self._station = station

    def note(self, verdict: VerdictPayload) -> None:
        """A part was answered; on the thread that judges."""
        self._counts[verdict.verdict] += 1

    def note_compiling(self, kernel: str) -> None:
        """A kernel is not in the cache; on the thread that learns."""
        self._compiled += 1
        self._compiling = kernel

    # ---- the start -----------------------------------------------------------------------------

    def tend_learning(self, words: str) -> None:
        """To be called again and again while a program is learned."""
        if self._compiling:
            words = f"compiling {self._compiling}, kernel {self._compiled} that is not in the cache"
        self._manager.status(f"starting: {words}")
        now = time.monotonic()
        if now < self._extend_at:
            return
        cpu_s = time.process_time()
        if cpu_s - self._cpu_s > WORKING_SHARE * EXTEND_EVERY_S:
            self._manager.extend(EXTENSION_S)
        self._cpu_s, self._extend_at = cpu_s, now + EXTEND_EVERY_S

    def wait_for_camera(self) -> None:
        """To be called when nothing is missing but the camera."""
        self._manager.status("starting: waiting for the camera")

    # ---- from there on -------------------------------------------------------------------------

    def tend(self) -> None:
        """To be called again and again, several times a second."""
        if not self._manager.is_there:
            return
        if not self._manager.was_ready:
            self._try_ready()
        if self._manager.was_ready:
            self._tend_reload()
            self._tend_watchdog()
            self._tell_status()

    def on_reload(self) -> None:
        """Settings are to be read anew, which was asked for before this."""
        if self._manager.was_ready:
            self._manager.reloading()
            self._asked += 1

    def stopping(self) -> None:
        self._manager.status("stopping")
        self._manager.stopping()

    def _try_ready(self) -> None:
        fault = self._state.hindrance(State.CAMERA_FAULT)
        if fault is None:
            self._manager.ready()
            return
        self._manager.status(f"starting: waiting for the camera: {fault}")
        now = time.monotonic()
        if now >= self._extend_at and self._gets_on():
            self._manager.extend(EXTENSION_S)
            self._extend_at = now + EXTEND_EVERY_S

    def _tend_reload(self) -> None:
        asked = self._asked  # before the look: a signal may come between
        if asked != self._answered and not self._reload_is_pending():
            self._tell_status()
            self._manager.ready()
            self._answered = asked

    def _tend_watchdog(self) -> None:
        given_s = self._manager.watchdog_s
        if given_s is None:
            return
        needed_s = max(given_s, longest_step_s(self._station))
        if needed_s != self._interval_s:
            self._interval_s = needed_s
            self._manager.set_watchdog(needed_s)
        now = time.monotonic()
        if now >= self._feed_at and self._gets_on():
            self._manager.feed_watchdog()
            self._feed_at = now + FEED_S

    def _gets_on(self) -> bool:
        """Whether every thread that must has shown that it does since this was last so."""
        steps = self._steps()
        if steps == self._seen_steps or not self._pong.is_set() or not self._is_well():
            return False
        self._seen_steps = steps
        self._pong.clear()
        self._ping(self._pong.set)
        return True

    def _tell_status(self) -> None:
        payload = self._state.payload
        said = "; ".join([payload.state, payload.detail, payload.program, *payload.notes])
        now = time.monotonic()
        if said == self._said and now < self._count_at:
            return
        self._said, self._count_at = said, now + COUNTED_EVERY_S
        if payload.state == State.JUDGING:
            words = f"judging {payload.program}: {self._counted()}"
        else:
            words = f"{payload.state.replace('_', ' ')}: {payload.detail}"
        self._manager.status("; ".join([words, *payload.notes]))

    def _counted(self) -> str:
        counts = [f"{sum(self._counts.values())} inspected", f"{self._counts[Verdict.FAIL]} FAIL"]
        if not_judged := self._counts[Verdict.NOT_JUDGED]:
            counts.append(f"{not_judged} NOT_JUDGED")
        return ", ".join(counts)


def longest_step_s(station: Station) -> float:
    """How long the thread that judges may at most be between two steps while nothing is wrong with
    it: a lost camera is closed and opened, waits for its part, gives no picture, and is closed.
    """
    delay_s = station.trigger.delay_ms / 1000 if isinstance(station.trigger, GpioTrigger) else 0.0
    camera_s = CLOSE_TIMEOUT_S + OPEN_TIMEOUT_S + delay_s + station.capture_timeout_s + GRACE_S
    return camera_s + CLOSE_TIMEOUT_S + JUDGING_S
