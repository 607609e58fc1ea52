"""The `replay` camera: a folder of images or a video file, played at a steady rate."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from inspectd.camera import Opened
from inspectd.camera.files import EXTENSIONS, find_images, is_image, picture_name, read_image
from inspectd.camera.pacing import Pacer
from inspectd.errors import (
    CameraLost,
    CameraTimeout,
    CameraUnusable,
    EndOfFrames,
    PictureUnreadable,
)
from inspectd.records import Frame, Image

log = logging.getLogger(__name__)

_AHEAD = 2
"""As many pictures lie ready."""
_REST_S = 0.01


class _Picture(NamedTuple):
    name: str
    pixels: Image


class ReplayCamera(Opened):
    """Plays pictures from their beginning each time it is opened.

    A frame is named by its path relative to the folder, in POSIX form, or ``video.mp4#12`` with
    the pictures of a video counted from 0. A file that cannot be read whole is reported once as a
    warning and skipped, and so is the last picture of a video that was cut short. Damage in the
    middle of a video cannot be told from its pictures: what must be right is better kept as image
    files.
    """

    def __init__(self, path: Path, rate: float = 10.0, loop: bool = False) -> None:
        """Takes the settings; nothing is read before `open`.

        Args:
            path: a folder of images, one image or a video file.
            rate: pictures per second at the most.
            loop: begin again at the end.
        """
        self._path = path
        self._rate = rate
        self._loop = loop
        self._playback: _Playback | None = None

    @property
    def live(self) -> bool:
        return False

    def open(self) -> None:
        """Lists the pictures and decodes the first that can be read.

        Raises:
            CameraUnusable: there is no such path, no picture in it, or none that can be read.
            CameraLost: the camera was closed meanwhile.
        """
        self.close()
        playback = _Playback(_source(self._path), self._path, self._rate, self._loop)
        self._playback = playback
        try:
            playback.begin()
        except BaseException:
            self.close()
            raise

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        """The next picture, as in `Camera.capture`.

        Raises:
            CameraTimeout: it is not due or not decoded in time; it comes with the next capture.
            CameraLost: the camera is closed, or not one of the pictures can be read any more.
            EndOfFrames: every picture was played.
        """
        del after_ns, whole  # a recording has no exposure to wait for, and is never reduced
        playback = self._playback
        if playback is None:
            raise CameraLost("the replay camera is closed; open it before capturing")
        try:
            name, pixels = playback.next(timeout_s)
        except CameraUnusable as error:
            # It was of use when it was opened: its files are being replaced, or their disk is away.
            raise CameraLost(str(error)) from error
        now_ns = time.monotonic_ns()
        return Frame(
            pixels=pixels,
            name=name,
            captured_at=datetime.now(UTC),
            captured_ns=now_ns,
            copied_ns=now_ns,
        )

    def close(self) -> None:
        playback, self._playback = self._playback, None
        if playback is not None:
            playback.stop()


class _Source(Protocol):
    """What can be played more than once."""

    def pictures(self) -> Generator[_Picture | None, None, None]:
        """Every picture once, None in place of one that was skipped."""


class _Playback:
    """One opening: its clock, and the thread that decodes pictures ahead.

    That costs as much as judging one, and a camera delivers them for nothing. So while one picture
    still lies ready, the next is decoded `_REST_S` after the last was taken, when that is judged.
    """

    def __init__(self, source: _Source, path: Path, rate: float, loop: bool) -> None:
        self._path = path
        self._pictures = self._play(source, loop)
        self._pacer = Pacer(rate)
        self._changed = threading.Condition()
        self._ready: deque[_Picture | Exception] = deque()
        # A daemon: a network share that hangs must not keep the process from ending.
        self._worker = threading.Thread(target=self._decode, name="replay", daemon=True)

    def begin(self) -> None:
        """Wait for the first picture; raises what came in its place."""
        self._worker.start()
        self._first(None)

    def next(self, timeout_s: float) -> _Picture:
        began_ns = time.monotonic_ns()
        picture = self._first(timeout_s)
        elapsed_s = (time.monotonic_ns() - began_ns) / 1e9
        self._pacer.wait(after_ns=0, timeout_s=max(0.0, timeout_s - elapsed_s))
        with self._changed:
            self._pacer.check()
            self._ready.popleft()
            self._changed.notify_all()
        return picture

    def stop(self) -> None:
        """Ends a waiting `next` and the worker, which finishes the picture it has begun."""
        with self._changed:
            self._pacer.stop()
            self._changed.notify_all()
        if self._worker.is_alive():  # else it has ended, or will as soon as it begins
            self._worker.join()
        self._pictures.close()

    def _first(self, timeout_s: float | None) -> _Picture:
        """What comes next, which stays until it is due; raises what ended the recording."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._pacer.stopped, timeout_s)
            self._pacer.check()
            if not self._ready:
                raise CameraTimeout(
                    f"no picture of {self._path} was decoded within {timeout_s:g} s"
                )
            first = self._ready[0]
        if isinstance(first, Exception):
            raise first
        return first

    def _decode(self) -> None:
        """On the worker, until the recording has ended."""
        while self._wanted():
            try:
                decoded: _Picture | Exception = next(self._pictures)
            except StopIteration:
                decoded = EndOfFrames(f"{self._path} has come to its end")
            except Exception as error:  # noqa: BLE001 - raised again where the picture is taken
                decoded = error
            with self._changed:
                self._ready.append(decoded)
                self._changed.notify_all()
            if isinstance(decoded, Exception):
                return

    def _wanted(self) -> bool:
        """Waits until one more picture is wanted; whether it still is."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < _AHEAD or self._pacer.stopped)
            self._changed.wait_for(lambda: not self._ready or self._pacer.stopped, _REST_S)
            return not self._pacer.stopped

    def _play(self, source: _Source, loop: bool) -> Generator[_Picture, None, None]:
        while True:
            shown = 0
            with contextlib.closing(source.pictures()) as pictures:
                for picture in pictures:
                    if self._pacer.stopped:
                        return
                    if picture is not None:
                        shown += 1
                        yield picture
            if not shown:  # in a loop it would spin for ever
                raise CameraUnusable(
                    f"not one picture of {self._path} can be read; the warnings before this say "
                    f"what is wrong with each"
                )
            if not loop:
                return


class _Folder:
    """Image files, read one by one."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder = folder
        self._files = files
        self._reported: set[Path] = set()

    def pictures(self) -> Generator[_Picture | None, None, None]:
        for file in self._files:
            try:
                pixels = read_image(self._folder / file)
            except PictureUnreadable as fault:
                self._report(file, fault)
                yield None
            else:
                yield _Picture(picture_name(file), pixels)

    def _report(self, file: Path, fault: PictureUnreadable) -> None:
        if file not in self._reported:  # once, however often the folder is played
            self._reported.add(file)
            log.warning(
                "%s %s; skipped, not judged: replace or delete it",
                picture_name(self._folder / file),
                fault,
            )


class _Video:
    """The pictures of a video file.

    Decoders make up what is missing of a picture. A video that ends before the number of pictures
    it promises, or promises none, may have been cut within its last one, which is left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reported = False
        _open_video(path).release()

    def pictures(self) -> Generator[_Picture | None, None, None]:
        video = _open_video(self._path)
        try:
            promised = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
            came, picture = 0, None
            while (read := video.read())[0]:
                if picture is not None:
                    yield picture
                name = f"{picture_name(Path(self._path.name))}#{came}"
                picture = _Picture(name, np.asarray(read[1], np.uint8))
                came += 1
        finally:
            video.release()
        if came >= promised > 0:
            yield picture
        else:
            self._report(came, promised)

    def _report(self, came: int, promised: int) -> None:
        if self._reported:
            return
        self._reported = True
        name = picture_name(self._path)
        if promised > 0:
            log.warning(
                "%s ends at picture %d of %d: it is cut short or damaged, and that picture is not "
                "judged: record it anew or save its pictures as image files",
                name,
                came,
                promised,
            )
        else:
            log.warning(
                "%s does not say how many pictures it has and may be cut short: its last picture, "
                "the %d., is not judged; put it into a container such as MP4 to judge them all",
                name,
                came,
            )


def _source(path: Path) -> _Source:
    if path.is_dir():
        files = find_images(path)
        if not files:
            raise CameraUnusable(
                f"no pictures in {path}: looked, with its subfolders, for files ending in "
                f"{', '.join(EXTENSIONS)}; correct camera.path"
            )
        return _Folder(path, files)
    if not path.is_file():
        raise CameraUnusable(
            f"no such folder or file: {path}; camera.path must name a folder of images "
            f"({', '.join(EXTENSIONS)}) or a video file"
        )
    if is_image(path):  # OpenCV would take a numbered image for the first of a sequence
        return _Folder(path.parent, [Path(path.name)])
    return _Video(path)


def _open_video(path: Path) -> cv2.VideoCapture:
    # Read by OpenCV at its first video: keeps FFmpeg's own messages off stderr (-8: none at all).
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not video.isOpened():
        raise CameraUnusable(
            f"{path} is neither a video that FFmpeg can read nor an image "
            f"({', '.join(EXTENSIONS)}), or it is damaged"
        )
    return video
