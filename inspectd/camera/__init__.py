"""Cameras: one protocol, one module a driver, each the only importer of its library."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from inspectd.records import Frame


class Camera(Protocol):
    """What the service asks of a camera.

    A camera is opened by entering it as a context and closed by leaving it; it may be entered
    again after that. Only one thread captures at a time; `close` may come from any thread and
    makes a waiting `capture` raise `CameraLost`.
    """

    @property
    def live(self) -> bool:
        """Whether it shows what lies before it at the moment, captured or not.

        Not so a recording or a simulation, whose next picture waits to be captured.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def open(self) -> None:
        """Make the camera ready to capture.

        Opening an open camera closes it first; what is recorded or simulated begins anew.

        Raises:
            CameraLost: it is not there at present, or busy.
            CameraUnusable: it cannot be used as it is set.
        """

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        """The first frame whose exposure began after the instant ``after_ns``.

        Args:
            after_ns: `time.monotonic_ns` of the trigger. A camera that plays something recorded
                gives its next picture instead.
            timeout_s: how long to wait, in seconds; from ``after_ns`` on where that is to come.
            whole: copy the picture at full resolution too, where `Frame.pixels` is reduced.

        Returns:
            A frame whose pixels belong to the caller.

        Raises:
            CameraTimeout: no frame came in time.
            ExposureNotSettled: frames came, but not one exposed as the settings demand.
            CameraLost: the camera went away, was closed, or was never opened.
            EndOfFrames: a recording has come to its end.
        """
        ...

    def close(self) -> None:
        """Give the camera back. Closing a closed camera does nothing."""


class Opened:
    """The context-manager half of a `Camera`, for drivers to inherit."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
