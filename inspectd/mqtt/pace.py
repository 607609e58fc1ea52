"""How closely one connection to a broker may follow on another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from inspectd.errors import BrokerUnavailable

APART_S = 1.25
"""A second, and what the network and a busy machine are out by."""


class Pace:
    """Of the connections to one broker, whatever each is for: none comes right after another.

    For use by one thread at a time.
    """

    def __init__(self, stopping: threading.Event | None = None) -> None:
        """``stopping``: once it is set, no connection is to be opened any more."""
        self._stopping = threading.Event() if stopping is None else stopping
        self._free_at = time.monotonic()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Around the opening of a connection: waits until it is time.

        Raises:
            BrokerUnavailable: no connection is to be opened any more.
        """
        if self._stopping.wait(max(0.0, self._free_at - time.monotonic())):
            raise BrokerUnavailable("no connection is to be made any more")
        try:
            yield
        finally:
            # A name look-up may have taken long: only now is it known that nothing is on its way.
            self._free_at = time.monotonic() + APART_S
