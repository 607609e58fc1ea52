"""Frame instants at a steady rate, and a wait for the next one that closing the camera ends."""

from __future__ import annotations

import threading
import time

from inspectd.errors import CameraLost, CameraTimeout


class Pacer:
    """The clock of one opening of a camera.

    Frame instants lie on a grid that starts when the pacer is made, so that waiting never adds up
    to a drift. Like a free-running camera it keeps only the newest instant that nobody took:
    whoever comes late gets that one at once, never a burst of older ones.
    """

    def __init__(self, rate: float) -> None:
        self._start_ns = time.monotonic_ns()
        self._period_ns = round(1e9 / rate)
        self._next = 0
        self._stopped = threading.Event()

    def wait(self, after_ns: int, timeout_s: float) -> int:
        """Waits for the next frame instant and returns it, in `time.monotonic_ns`.

        Args:
            after_ns: instants up to and including this one do not count.
            timeout_s: how long to wait, in seconds; from ``after_ns`` on where that is to come.

        Raises:
            CameraTimeout: the instant lies beyond the timeout; it is not used up.
            CameraLost: `stop` was called, before or while waiting.
        """
        now_ns = time.monotonic_ns()
        deadline_ns = max(now_ns, after_ns) + round(timeout_s * 1e9)
        newest = (now_ns - self._start_ns) // self._period_ns
        first_after = (after_ns - self._start_ns) // self._period_ns + 1
        number = max(self._next, newest, first_after)
        due_ns = self._start_ns + number * self._period_ns
        self._sleep_until(min(due_ns, deadline_ns))
        if due_ns > deadline_ns:
            raise CameraTimeout(
                f"no picture in time: at {1e9 / self._period_ns:g} pictures per second the next is "
                f"due {(due_ns - deadline_ns) / 1e9:.3g} s too late; raise camera.rate or "
                f"capture_timeout_s"
            )
        self._next = number + 1
        return due_ns

    def stop(self) -> None:
        """Ends every wait, now and from now on."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def check(self) -> None:
        """Raises CameraLost after `stop`."""
        if self.stopped:
            raise CameraLost("the camera was closed")

    def _sleep_until(self, instant_ns: int) -> None:
        while (left_ns := instant_ns - time.monotonic_ns()) > 0:
            if self._stopped.wait(left_ns / 1e9):
                break
        self.check()
