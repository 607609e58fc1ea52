"""The `opencv` camera: a USB camera by V4L2, or a video stream, read by OpenCV.

What a picture shows must have been exposed after the trigger, and OpenCV tells little about when
that was. A sensor exposes and reads out one frame after the other, so that the age of a frame can
be bounded by when the frames before it came (see `Arrivals`), whatever rate is promised.

A stream brings its pictures late by what its sender and the network take, often some tenths of a
second, and nothing in the stream tells how much: a trigger must come so much after the part.

Pictures that come as JPEG (MJPG, most USB cameras and many streams) are taken undecoded and decoded
here, where one that was cut short is told and refused: FFmpeg would fill up what is missing with
what the picture before showed there. In other compressed streams (H.264) such damage cannot be told
from the pictures, nor can a change of size, which FFmpeg scales away.

Not run on a V4L2 device so far: there was none. What only V4L2 has (setting and reading back,
time stamps, its own time-out, undecoded JPEG) is written by OpenCV's source and tested with a
stand-in for VideoCapture; streams are tested with real ones.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.camera import Opened, v4l2
from inspectd.camera.files import decode_image
from inspectd.errors import CameraLost, CameraTimeout, CameraUnusable, PictureUnreadable
from inspectd.records import Frame, Image
from inspectd.settings import OpencvCamera as OpencvSettings

log = logging.getLogger(__name__)

OPEN_TIMEOUT_MS = 10_000
"""How long a stream may take to begin."""
READ_TIMEOUT_MS = 3_000
"""How long a stream may send nothing before it counts as lost."""

_V4L2_WAIT_S = 1
"""How long OpenCV waits for a frame of a V4L2 camera before it answers that there is none."""
_BUFFERS = 2
"""Of V4L2: one that fills while the other is read. With one alone, a camera whose next frame begins
at once loses it; old frames are no concern, for they are told by their time stamps."""
_OLDEST_STAMP_NS = 10_000_000_000
"""A time stamp older than this is of another clock."""
_WAITED_NS = 2_000_000
"""Less than this is no waiting for a frame: it lay ready."""


class OpencvCamera(Opened):
    """A USB camera or a stream. A frame is named by its number since the camera was opened."""

    def __init__(self, settings: OpencvSettings) -> None:
        self._settings = settings
        self._reader: _Reader | None = None
        self._warned: set[str] = set()

    @property
    def live(self) -> bool:
        return True

    def open(self) -> None:
        """As in `Camera.open`."""
        self.close()
        # Both are read by OpenCV once. -8: FFmpeg's own messages stay off stderr.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(_V4L2_WAIT_S))
        device = device_of(self._settings)
        self._reader = self._open_stream() if device is None else self._open_device(device)

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        """As in `Camera.capture`."""
        del whole  # its pictures are never reduced
        reader = self._reader
        if reader is None:
            raise CameraLost("the camera is closed; open it before capturing")
        return reader.capture(after_ns, timeout_s)

    def close(self) -> None:
        """As in `Camera.close`; waits until OpenCV comes back from waiting for a frame."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()

    def _open_device(self, device: Path) -> _Reader:
        _reach(device)
        video = cv2.VideoCapture(str(device), cv2.CAP_V4L2)
        if not video.isOpened():
            raise CameraLost(
                f"{device} cannot be opened as a camera: another program uses it (`fuser -v "
                f"{device}` tells which), it is no camera (one camera may have several /dev/video: "
                f"take its index0 in /dev/v4l/by-id), or it has no format that OpenCV reads"
            )
        try:
            video.set(cv2.CAP_PROP_BUFFERSIZE, _BUFFERS)
            unfixed = v4l2.configure(video, self._settings)
        except BaseException as error:
            video.release()
            if isinstance(error, CameraUnusable) and not device.exists():
                raise CameraLost(f"{device} went away while it was set up") from error
            raise
        if unfixed:
            self._warn_once(
                f"{device} adapts its pictures by itself, and a picture that changes without the "
                f"part cannot be trusted; fix it by, under camera, {', '.join(unfixed)}"
            )
        if v4l2.four_letters(video.get(cv2.CAP_PROP_FOURCC)) in {"MJPG", "JPEG"}:
            video.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        arrivals = Arrivals(self._settings.exposure_us, stamped=True)
        return _Reader(video, str(device), arrivals, stalls_end=False)

    def _open_stream(self) -> _Reader:
        address = self._settings.device or ""
        name = shown(address)
        unheard = [key for key in v4l2.SETTABLE if getattr(self._settings, key) is not None]
        if unheard:
            raise CameraUnusable(
                f"a stream cannot be told camera.{', camera.'.join(unheard)}: remove that here, "
                f"and set it where {name} is sent from"
            )
        options = {
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: OPEN_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC: READ_TIMEOUT_MS,
            cv2.CAP_PROP_N_THREADS: 1,  # each further thread holds back one more frame
        }
        video = cv2.VideoCapture(
            address, cv2.CAP_FFMPEG, [number for option in options.items() for number in option]
        )
        if not video.isOpened():
            raise CameraLost(
                f"{name} cannot be opened: nothing answers there, it refuses, or it sends no video "
                f"that FFmpeg can read; try `ffplay` with it, and check the address, its user and "
                f"password, and the network"
            )
        self._warn_once(
            f"how late the pictures of {name} come cannot be told from here: film a clock that "
            f"counts milliseconds, and let the trigger come so much after the part"
        )
        if v4l2.four_letters(video.get(cv2.CAP_PROP_FOURCC)) == "MJPG":
            video.set(cv2.CAP_PROP_FORMAT, -1)
        return _Reader(video, name, Arrivals(), stalls_end=True)

    def _warn_once(self, warning: str) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            log.warning("%s", warning)


class Arrivals:
    """The instants at which frames came, and what follows for the exposure of the newest.

    A frame is read out after the one before it had been read out whole. Its exposure began before
    that by no more than the exposure time; where that is unknown, not before the frame previous to
    that one had been read out, because a row is exposed for one frame after the other. And cameras
    bring a frame late: those that compress it as a whole by one frame, and so do senders who mark
    the end of a frame by the beginning of the next.

    So the exposure of a frame began after the frame three before it came; or, where the exposure
    time is known, no more than that before the frame two before it came.

    A frame came at its time stamp where that is one of the monotonic clock (V4L2's is), else when
    it was got, if it had to be waited for: one that lay ready may have lain there for long, and
    counting begins anew after it.
    """

    def __init__(self, exposure_us: int | None = None, *, stamped: bool = False) -> None:
        """Args:
        exposure_us: exposure time, where it is fixed and known.
        stamped: whether frames have a time stamp.
        """
        before = 3 if exposure_us is None else 2
        self._instants: deque[int] = deque(maxlen=before + 1)
        self._exposure_ns = 1000 * (exposure_us or 0)
        self._stamped = stamped

    def add(self, asked_ns: int, got_ns: int, busy_ns: int, stamp_ms: float) -> None:
        """The next frame came.

        Args:
            asked_ns: `time.monotonic_ns` when it was asked for.
            got_ns: when it was there.
            busy_ns: processor time spent between the two.
            stamp_ms: its time stamp, in milliseconds.
        """
        stamp_ns = round(stamp_ms * 1e6)
        if self._stamped and 0 <= got_ns - stamp_ns <= _OLDEST_STAMP_NS:
            self._instants.append(stamp_ns)
        elif got_ns - asked_ns - busy_ns >= _WAITED_NS:
            self._instants.append(got_ns)
        else:
            self._instants.clear()

    @property
    def newest_ns(self) -> int:
        """When the newest frame came, where it `began_after` any instant."""
        return self._instants[-1]

    def began_after(self, instant_ns: int) -> bool:
        """Whether the exposure of the newest frame surely began after an instant."""
        known = len(self._instants) == self._instants.maxlen
        return known and self._instants[0] - self._exposure_ns > instant_ns


class _Wish:
    """A frame that somebody waits for."""

    def __init__(self, after_ns: int) -> None:
        self.after_ns = after_ns
        self.came = 0
        self.damaged = 0
        self.frame: Frame | None = None


class _Reader:
    """One opening: a thread that takes every frame as it comes, and keeps the one wished for.

    Nothing queues up that way, and only what is wished for is decoded.
    """

    def __init__(
        self, video: cv2.VideoCapture, name: str, arrivals: Arrivals, *, stalls_end: bool
    ) -> None:
        """Args:
        video: opened; released at the end.
        name: for messages.
        arrivals: dates the frames.
        stalls_end: whether the video is lost when a frame did not come for long.
        """
        self._video = video
        self._name = name
        self._arrivals = arrivals
        self._stalls_end = stalls_end
        self._size = (
            round(video.get(cv2.CAP_PROP_FRAME_WIDTH)),
            round(video.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        self._changed = threading.Condition()
        self._wish: _Wish | None = None
        self._came = 0
        self._end = ""
        self._thread = threading.Thread(target=self._run, name="opencv", daemon=True)
        self._thread.start()

    def capture(self, after_ns: int, timeout_s: float) -> Frame:
        until_due_s = max(0.0, (after_ns - time.monotonic_ns()) / 1e9)
        with self._changed:
            wish = self._wish = _Wish(after_ns)
            self._changed.wait_for(lambda: wish.frame or self._end, until_due_s + timeout_s)
            self._wish = None
            if wish.frame is not None:
                return wish.frame
            if self._end:
                raise CameraLost(self._end)
            raise CameraTimeout(self._say_why_not(wish, timeout_s))

    def stop(self) -> None:
        """End a waiting `capture`, and the thread as soon as OpenCV comes back."""
        self._finish("the camera was closed")
        self._thread.join()

    def _say_why_not(self, wish: _Wish, timeout_s: float) -> str:
        if not wish.came:
            return (
                f"{self._name} gave no picture within {timeout_s:g} s: check its cable, power and "
                f"network"
            )
        if wish.damaged:
            return (
                f"{self._name} gave no whole picture within {timeout_s:g} s ({wish.damaged} were "
                f"damaged): check its cable; on USB, take another port"
            )
        return (
            f"{self._name} gave no picture within {timeout_s:g} s that was surely exposed after "
            f"the trigger ({wish.came} came): if they come slowly, raise capture_timeout_s to the "
            f"time of 5 pictures; if in bursts, the network or this computer does not keep up: "
            f"lower their size or rate"
        )

    def _finish(self, reason: str) -> None:
        with self._changed:
            self._end = self._end or reason
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while not self._end:
                self._read()
        except CameraLost as error:
            self._finish(str(error))
        except Exception as error:
            # Whatever it was: who waits for a picture must hear that none will come.
            log.exception("unexpected error while reading %s", self._name)
            self._finish(f"reading {self._name} failed: {type(error).__name__}: {error}")
        finally:
            self._video.release()

    def _read(self) -> None:
        """Take the next frame.

        Raises:
            CameraLost: there is none, or it has another size.
        """
        asked_ns, busy_ns = time.monotonic_ns(), time.thread_time_ns()
        grabbed = self._video.grab()
        got_ns, busy_ns = time.monotonic_ns(), time.thread_time_ns() - busy_ns
        if not grabbed:
            # OpenCV tells a stall of a V4L2 camera from its loss by nothing but its waiting.
            if not self._stalls_end and got_ns - asked_ns > _V4L2_WAIT_S * 1e9 / 2:
                return
            raise CameraLost(
                f"{self._name} is lost: it was unplugged, it ended, or it sent nothing for "
                f"{READ_TIMEOUT_MS / 1000:g} s"
                if self._stalls_end
                else f"{self._name} is lost: it was unplugged, it answers with errors, or its USB "
                f"bus is full (take another port, or a smaller size or rate)"
            )
        self._arrivals.add(asked_ns, got_ns, busy_ns, self._video.get(cv2.CAP_PROP_POS_MSEC))
        self._came += 1
        wish = self._wish
        if wish is None or got_ns <= wish.after_ns:
            return
        wish.came += 1
        if self._arrivals.began_after(wish.after_ns):
            self._fulfil(wish)

    def _fulfil(self, wish: _Wish) -> None:
        """Decode the frame that was grabbed; a damaged one leaves it to the next."""
        try:
            pixels = self._decode()
        except PictureUnreadable as fault:
            wish.damaged += 1
            log.warning("picture %d of %s %s; the next is taken", self._came, self._name, fault)
            return
        height, width = pixels.shape[:2]
        if (width, height) != self._size:
            raise CameraLost(
                f"{self._name} has changed the size of its pictures from "
                f"{self._size[0]}x{self._size[1]} to {width}x{height}"
            )
        copied_ns = time.monotonic_ns()
        age = timedelta(microseconds=(copied_ns - self._arrivals.newest_ns) / 1000)
        frame = Frame(
            pixels=pixels,
            name=str(self._came),
            captured_at=datetime.now(UTC) - age,
            captured_ns=self._arrivals.newest_ns,
            copied_ns=copied_ns,
        )
        with self._changed:
            wish.frame = frame
            if self._wish is wish:
                self._wish = None
            self._changed.notify_all()

    def _decode(self) -> Image:
        """Raises PictureUnreadable."""
        try:
            retrieved, picture = self._video.retrieve()
        except cv2.error as error:
            raise PictureUnreadable(f"cannot be decoded: {error.err}") from error
        if not retrieved or picture is None:
            raise PictureUnreadable("cannot be decoded")
        pixels: NDArray[np.uint8] = np.asarray(picture, np.uint8)
        if pixels.ndim == 2 and pixels.shape[0] == 1:  # undecoded
            return decode_image(pixels.tobytes())
        return pixels


def device_of(settings: OpencvSettings) -> Path | None:
    """The V4L2 device that the settings mean; None for a stream.

    Raises:
        CameraUnusable: they mean a file or a folder.
    """
    if settings.index is not None:
        return Path(f"/dev/video{settings.index}")
    address = settings.device or ""
    if "://" in address and not address.startswith("file:"):
        return None
    path = Path(address.removeprefix("file://"))
    if path.is_file() or path.is_dir():
        raise CameraUnusable(
            f"{path} shows what was recorded, not what lies before the camera: name a device or a "
            f"stream in camera.device, or play it with camera.driver: replay"
        )
    return None if path.is_fifo() else path


def shown(address: str) -> str:
    """An address as it may stand in a log: without user, password and the query, often a key."""
    parts = urlsplit(address)
    if not parts.netloc:
        return address
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reach(device: Path) -> None:
    """Raises CameraLost where a device is not there, or not for us.

    Missing rights may come right by themselves: udev grants them a moment after it made the device.
    """
    try:
        os.close(os.open(device, os.O_RDWR | os.O_NONBLOCK))
    except FileNotFoundError:
        raise CameraLost(
            f"there is no {device}: plug the camera in, or correct camera.device or camera.index "
            f"(`ls -l /dev/v4l/by-id` and `v4l2-ctl --list-devices` show what there is)"
        ) from None
    except PermissionError:
        raise CameraLost(
            f"{device} may not be opened by this user: add it to the group video (`sudo usermod "
            f"-aG video USER`, then log in again; a service: SupplementaryGroups=video)"
        ) from None
    except OSError as error:
        raise CameraLost(f"{device} cannot be opened: {error.strerror}") from error
    if not stat.S_ISCHR(device.stat().st_mode):
        raise CameraLost(f"{device} is no device; correct camera.device")
