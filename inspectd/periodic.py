"""A thread that does the same again and again, whatever becomes of one time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_logger = logging.getLogger(__name__)

STOP_S = 0.5


class Periodic:
    """Acts at once and then every so often, in a daemon thread of its own, until it is stopped.

    Times that pass while the process or the act itself is held up are skipped, not made up for.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[], None],
        every_s: float,
        *,
        trouble: str,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        name: of the thread.
        act: what is done each time. It may raise: that is logged, and the next time comes.
        every_s: from one time's beginning to the next one's.
        trouble: what the log says of an exception, before its trace.
        finish: done at the end, in the thread; may raise as well.
        """
        self._act = act
        self._every_s = every_s
        self._trouble = trouble
        self._finish = finish
        self._stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Act now as well, without waiting for the next time."""
        self._woken.set()

    def stop(self) -> None:
        """End the thread, if it was started; one that hangs is not waited for."""
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stopping:
            late_s = time.monotonic() - due_s  # below zero where it is woken: then it stays due
            due_s += self._every_s * (1 + late_s // self._every_s)
            self._attempt(self._act)
            self._woken.wait(max(0.0, due_s - time.monotonic()))
            self._woken.clear()
        self._attempt(self._finish)

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            # What is done on the side is never worth the service.
            _logger.exception("%s", self._trouble)
