"""The camera as the service uses it: opened again when it was lost or gives nothing of use."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterator

from inspectd.camera import Camera
from inspectd.errors import (
    CameraError,
    CameraFrozen,
    CameraHung,
    CameraLost,
    CameraTimeout,
    CameraUnusable,
)
from inspectd.imaging.frozen import same_picture
from inspectd.records import Frame, Image
from inspectd.settings import Station
from inspectd.state import State, StationState

_logger = logging.getLogger(__name__)

FIRST_REOPENING_S = 1.0
LONGEST_REOPENING_S = 8.0
"""A lost camera is opened again after so long, longer each time."""
PROBE_S = 2.0
"""A live camera that nobody asks for pictures is asked for one after so long."""


class CameraClosed(CameraError):
    """No picture came because the service stops."""


class CameraKeeper:
    """The camera, opened again when it was lost or gives nothing of use, until it is closed.

    A live camera counts as a fault from the first picture that does not come until one does: that
    it is open proves nothing. So it is asked for one after each opening, and now and then while
    nobody else asks.

    Whatever a driver fails with, the camera is lost by it, and opened again. Only one that could
    never be opened may be unusable: later the settings are the same, and it is the camera that is
    not.
    """

    def __init__(
        self, camera: Camera, station: Station, state: StationState, *, patient: bool = False
    ) -> None:
        """Args:
        camera: not yet open.
        station: how long to wait for pictures, and what to put up with.
        state: told of faults.
        patient: an unusable camera counts as lost from the first opening on; see `replace`.
        """
        self._camera = camera
        self._station = station
        self._state = state
        self._open = False
        self._opened_before = patient
        self._closed = False
        self._hangs = False
        self._pause_s = FIRST_REOPENING_S
        self._try_at = 0.0
        self._trouble = ""
        self._misses = 0
        self._last: Image | None = None
        self._alike = 0
        self._probe_at = 0.0
        self._lost = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a camera at present."""
        return self._open

    @property
    def hangs(self) -> bool:
        """Whether its driver was left behind in a call, and no picture has come since."""
        return self._hangs

    @property
    def times_lost(self) -> int:
        """How often it had to be given up once it was open, since the start."""
        return self._lost

    def adopt(self, station: Station) -> None:
        """Follow other settings: the timeout, and what to put up with."""
        self._station = station

    def replace(self, camera: Camera) -> None:
        """Go on with another camera, not yet open, as after a loss; not while capturing."""
        self._give_back()
        self._camera = camera
        self._open = False
        self._pause_s, self._try_at = FIRST_REOPENING_S, 0.0
        self._misses = self._alike = 0
        self._last = None
        # Should it be unusable: the station says so and waits for better settings.
        self._opened_before = True

    def tend(self) -> None:
        """Open the camera if it is closed and the time has come, which may take long.

        Raises:
            CameraUnusable: it cannot be used as it is set.
        """
        if self._open or self._closed or time.monotonic() < self._try_at:
            return
        try:
            with _faults_of_the_driver():
                self._camera.open()
        except CameraLost as error:
            self._lose(error)
            return
        except CameraUnusable as error:
            if not self._opened_before:
                raise
            self._lose(CameraLost(str(error)))
            return
        self._open = self._opened_before = True
        self._misses = 0
        if self._camera.live:
            self._probe_at = 0.0
        else:
            self._note_good()

    def tend_idle(self) -> None:
        """`tend`, and see whether a live camera that nobody asks still gives pictures.

        Raises:
            CameraUnusable: it cannot be used as it is set.
        """
        self.tend()
        if self._open and self._camera.live and time.monotonic() >= self._probe_at:
            self._probe()

    def capture(self, after_ns: int, *, whole: bool = False) -> Frame:
        """A frame exposed after an instant, which may lie ahead; see `Camera.capture`.

        Raises:
            CameraTimeout: none came in time; ExposureNotSettled: none exposed as it should be.
            CameraFrozen: it shows the past.
            CameraLost: there is no camera at present.
            CameraClosed: `close` was called, before or meanwhile.
            CameraUnusable: it cannot be used as it is set.
            EndOfFrames: a recording has come to its end.
        """
        self.tend()
        if self._closed:
            raise CameraClosed("the service is stopping")
        if not self._open:
            raise CameraLost(self._trouble)
        try:
            with _faults_of_the_driver():
                timeout_s = self._station.capture_timeout_s
                frame = self._camera.capture(after_ns, timeout_s, whole=whole)
            self._require_fresh(frame)
        except CameraLost as error:
            if self._closed:
                raise CameraClosed("the service is stopping") from error
            self._lose(error)
            raise
        except (CameraTimeout, CameraFrozen) as error:
            self._miss(error)
            raise
        self._note_good()
        return frame

    def close(self) -> None:
        """Give the camera back for good; a waiting `capture` ends. From any thread."""
        self._closed = True
        self._give_back()

    def _probe(self) -> None:
        """Whatever is wrong with it has been told by `capture`."""
        with contextlib.suppress(CameraTimeout, CameraFrozen, CameraLost, CameraClosed):
            self.capture(time.monotonic_ns())

    def _require_fresh(self, frame: Frame) -> None:
        """Raises CameraFrozen."""
        if not self._camera.live or not self._station.frozen_after:
            return
        alike = self._last is not None and same_picture(frame.pixels, self._last)
        self._last = frame.pixels
        self._alike = self._alike + 1 if alike else 0
        if self._alike >= self._station.frozen_after:
            raise CameraFrozen(
                "the picture is to the last pixel the one before: the camera shows the past; check "
                "its cable and power, and if it never has any noise set frozen_after to 0"
            )

    def _note_good(self) -> None:
        self._hangs = False
        self._misses = 0
        self._pause_s = FIRST_REOPENING_S
        self._probe_at = time.monotonic() + PROBE_S
        self._state.clear(State.CAMERA_FAULT)

    def _miss(self, error: CameraTimeout | CameraFrozen) -> None:
        """No picture of use came. What is not live need not have one ready."""
        if not self._camera.live:
            return
        self._misses += 1
        self._state.hinder(State.CAMERA_FAULT, str(error))
        if self._misses >= self._station.reopen_after:
            self._lose(CameraLost(str(error)))

    def _lose(self, error: CameraLost) -> None:
        self._give_back()
        self._hangs = isinstance(error, CameraHung)
        self._lost += self._open
        self._open = False
        # Random, so that several stations on one bus do not all try in the same instant.
        self._try_at = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
        self._pause_s = min(2 * self._pause_s, LONGEST_REOPENING_S)
        self._trouble = str(error)
        self._state.hinder(State.CAMERA_FAULT, self._trouble)

    def _give_back(self) -> None:
        try:
            with _faults_of_the_driver():
                self._camera.close()
        except CameraError as error:
            _logger.warning("the camera could not be closed properly: %s", error)


@contextlib.contextmanager
def _faults_of_the_driver() -> Iterator[None]:
    """Turns what a driver was not meant to raise into `CameraLost`."""
    try:
        yield
    except CameraError:
        raise
    except Exception as error:
        _logger.exception("unexpected error in the camera's driver")
        raise CameraLost(
            f"the camera's driver failed: {type(error).__name__}: {error}; the log has the details"
        ) from error
