"""A guard between the service and a camera's driver: a hang in its library stops nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from inspectd.camera import Camera, Opened
from inspectd.errors import CameraHung, CameraLost
from inspectd.records import Frame

log = logging.getLogger(__name__)

GRACE_S = 0.5
"""How long a driver may overrun the time that it was given."""
OPEN_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 1.0

_Result = TypeVar("_Result")
_REMEDY = "check the camera's cable and power; if it stays so, restart inspectd"


class Guarded(Opened):
    """A camera whose driver may hang.

    Each opening has a thread of its own, which alone opens the driver and captures. When the
    driver does not answer in time, that thread is left behind: what it brings later is dropped, and
    it closes the driver when it comes back. Until then the camera cannot be opened, so that never
    more than one opening is left behind. The threads are daemons, which do not hold up the end of
    the process; those of `concurrent.futures` would.

    Exceptions of the driver pass unchanged.
    """

    def __init__(
        self,
        camera: Camera,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        """Args:
        camera: the driver; from now on nobody else uses it.
        open_timeout_s: how long it may take to open, in seconds.
        close_timeout_s: how long it may take to close.
        """
        self._camera = camera
        self._open_timeout_s = open_timeout_s
        self._close_timeout_s = close_timeout_s
        self._lock = threading.Lock()
        self._opening: _Opening | None = None
        self._left: _Opening | None = None

    @property
    def live(self) -> bool:
        return self._camera.live

    def open(self) -> None:
        """As in `Camera.open`.

        Raises:
            CameraHung: the driver does not answer in time, or hangs still in a call of an earlier
                opening.
        """
        self.close()
        with self._lock:
            if self._left is not None and self._left.alive:
                raise CameraHung(
                    f"the camera's driver hangs still in {self._left.hangs_in}; it can be opened "
                    f"when it has come back: {_REMEDY}"
                )
            self._left = None
            opening = self._opening = _Opening(self._camera)
        try:
            opening.open(self._open_timeout_s)
        except _NoAnswer:
            self._give_up(opening)
            raise CameraHung(
                f"the camera's driver does not answer: it was not open within "
                f"{self._open_timeout_s:g} s: {_REMEDY}"
            ) from None
        except BaseException:
            self.close()
            raise

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        """As in `Camera.capture`.

        Raises:
            CameraHung: the driver does not answer in time; the camera is closed then.
        """
        opening = self._opening
        if opening is None:
            raise CameraLost("the camera is closed; open it before capturing")
        until_due_s = max(0.0, (after_ns - time.monotonic_ns()) / 1e9)
        limit_s = until_due_s + timeout_s + GRACE_S
        try:
            return opening.capture(after_ns, timeout_s, whole, limit_s)
        except _NoAnswer:
            self._give_up(opening)
            raise CameraHung(
                f"the camera's driver does not answer: neither a picture nor an error within "
                f"{limit_s:.3g} s: {_REMEDY}"
            ) from None

    def close(self) -> None:
        """As in `Camera.close`; a driver that does not close in time is left behind."""
        opening = self._take()
        if opening is not None and not opening.close(self._close_timeout_s):
            log.warning(
                "the camera's driver does not come back from %s within %g s of closing; it is left "
                "behind and cannot be opened until it does: %s",
                opening.hangs_in,
                self._close_timeout_s,
                _REMEDY,
            )

    def _give_up(self, opening: _Opening) -> None:
        self._take()
        opening.leave_behind()

    def _take(self) -> _Opening | None:
        """The opening, which from now on counts as left behind for as long as it is alive."""
        with self._lock:
            opening, self._opening = self._opening, None
            if opening is not None:
                self._left = opening
            return opening


class _NoAnswer(Exception):
    """The driver did not answer in time."""


class _Call(Generic[_Result]):
    """One call of the driver; the answers of one never reach another.

    The first answer counts: that of the driver, or that of whoever closes the camera meanwhile.
    """

    def __init__(self, name: str, function: Callable[[], _Result]) -> None:
        self.name = name
        self.function = function
        self.answers: SimpleQueue[_Result | BaseException] = SimpleQueue()


class _Opening:
    """One opening of the driver: its thread, and the calls handed to it."""

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._running: _Call[Any] | None = None
        self._ended = False
        self._opened = False
        self._left_behind = False
        self._fault: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, name="camera", daemon=True)]
        self._threads[0].start()

    @property
    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    @property
    def hangs_in(self) -> str:
        """The driver's method that has not come back."""
        running = self._running
        return "close" if running is None else running.name

    def open(self, limit_s: float) -> None:
        self._ask(_Call("open", self._open), limit_s)

    def capture(self, after_ns: int, timeout_s: float, whole: bool, limit_s: float) -> Frame:
        function = partial(self._camera.capture, after_ns, timeout_s, whole=whole)
        return self._ask(_Call("capture", function), limit_s)

    def leave_behind(self) -> None:
        """Let the thread close the driver whenever it comes back."""
        self._end(left_behind=True)

    def close(self, timeout_s: float) -> bool:
        """End a waiting call, close the driver, and wait for it.

        Returns:
            False if it did not come back in time; it is left behind then.

        Raises:
            BaseException: what the driver's own close raised.
        """
        deadline = time.monotonic() + timeout_s
        running = self._end()
        if running is not None:
            running.answers.put(CameraLost("the camera was closed"))
            if self._opened:  # only the driver's own close ends its capture
                closer = threading.Thread(target=self._close, name="camera-close", daemon=True)
                self._threads.append(closer)
                closer.start()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._left_behind = self.alive
            fault, self._fault = self._fault, None
        if fault is not None:
            raise fault
        return not self._left_behind

    def _end(self, *, left_behind: bool = False) -> _Call[Any] | None:
        """Take no further calls; returns the one that runs."""
        with self._lock:
            self._ended = True
            self._left_behind = left_behind
            self._calls.put(None)
            return self._running

    def _ask(self, call: _Call[_Result], limit_s: float) -> _Result:
        with self._lock:
            if self._ended:
                raise CameraLost("the camera was closed")
            self._running = call
            self._calls.put(call)
        try:
            answer = call.answers.get(timeout=limit_s)
        except Empty:
            raise _NoAnswer from None
        try:
            if isinstance(answer, BaseException):
                raise answer
            return answer
        finally:
            del answer  # an exception that knows this frame must not be kept alive by it

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._answer(call)
        if self._opened:
            self._close()

    def _answer(self, call: _Call[Any]) -> None:
        try:
            answer = call.function()
        except BaseException as error:  # noqa: BLE001 - raised again where the call came from
            answer = error
        with self._lock:
            if self._running is call:
                self._running = None
        call.answers.put(answer)
        del answer  # as in `_ask`

    def _open(self) -> None:
        self._camera.open()
        self._opened = True

    def _close(self) -> None:
        try:
            self._camera.close()
        except BaseException as error:
            with self._lock:
                if not self._left_behind:
                    self._fault = self._fault or error
                    return
            log.warning("the camera's driver, left behind, failed to close", exc_info=error)
