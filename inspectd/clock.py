"""Whether the wall clock can be believed: the kernel's own word on it, and whether it was set."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

_TIME_ERROR = 5
_TIMEX_BYTES = 512  # more than struct timex takes on any Linux; all zero only asks

_libc = ctypes.CDLL(None, use_errno=True)


def clock_synchronised() -> bool:
    """True while the kernel counts its clock as synchronised (adjtimex(2)).

    False as well where the kernel refuses to say, as in a sandbox: then nobody vouches for the
    clock. Needs no privilege and takes microseconds.
    """
    state: int = _libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR


SLEWED_S = 1.0
"""A clock that differs by less was not set."""


def _uptime_s() -> float:
    """Since the machine's start; counts on while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ClockWatch:
    """Since which instant no reading of the wall clock can have come twice.

    The wall clock and the time since the machine's start run alike, however the former is slewed:
    their difference changes only when it is set. Older readings cannot be compared with those of
    now: those from before the machine's start, since a clock without a battery goes on from where
    it stood, and those from before it was set.
    """

    def __init__(
        self, wall_s: Callable[[], float] = time.time, uptime_s: Callable[[], float] = _uptime_s
    ) -> None:
        self._wall_s = wall_s
        self._uptime_s = uptime_s
        self._lock = threading.Lock()
        self._started = self._since = wall_s() - uptime_s()

    def since(self) -> datetime:
        """That instant, UTC; notes whether the clock was set since the last call."""
        with self._lock:
            uptime_s = self._uptime_s()
            started = self._wall_s() - uptime_s
            if abs(started - self._started) > SLEWED_S:
                # Neither clock can have shown later instants before it was set.
                self._since = max(self._since, started + uptime_s, self._started + uptime_s)
                self._started = started
            return datetime.fromtimestamp(self._since, UTC)
