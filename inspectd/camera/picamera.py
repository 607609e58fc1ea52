"""The `picamera2` camera: a sensor of the Raspberry Pi by libcamera, its exposure locked.

The sensor's image pipeline does what it can before a pixel reaches this process: it cuts out the
part of the frame that is of interest (ScalerCrop) and reduces it to the grey picture that is judged
(the Y plane of the low-resolution stream), which is copied once, out of the mapped buffer. Nothing
the settings ask for is taken on trust: each frame's own metadata must say that it was exposed after
the trigger, with this exposure, and shows this part.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from inspectd.camera import Opened
from inspectd.camera.crop import Rectangle, SensorField, Size, part_to_cut, reduced
from inspectd.camera.exposure import ExposureLock, exposure_of, on_monotonic_clock, out_of_reach
from inspectd.camera.tuning import Tuning, without_adaptation
from inspectd.errors import CameraLost, CameraTimeout, CameraUnusable, ExposureNotSettled
from inspectd.records import Frame, GreyImage, Image, View
from inspectd.settings import Picamera2Camera, RegionOfInterest

log = logging.getLogger(__name__)

_BUFFERS = 4
_PATIENCE_S = 0.25  # for another thread to finish what takes milliseconds

FULL_RANGE = np.clip((np.arange(256) - 16) * (255 / 219) + 0.5, 0, 255).astype(np.uint8)
"""uint8 (256,): luma of a limited-range colour space, black 16 and white 235, to 0..255."""


class Picamera(Opened):
    """A camera that Picamera2 drives.

    It runs all the time; a capture takes the first frame exposed after the trigger. `Frame.name` is
    the number of the frame since the camera was opened.
    """

    def __init__(self, settings: Picamera2Camera, crop: RegionOfInterest | None) -> None:
        """Takes the settings; nothing is touched before `open`.

        Args:
            settings: the sensor mode and its exposure.
            crop: what is of interest, in frame pixels; None for the whole frame.
        """
        self._settings = settings
        self._crop = crop
        self._opening: _Opening | None = None

    @property
    def live(self) -> bool:
        return True

    def open(self) -> None:
        """Acquires the camera, sets it and starts it.

        Raises:
            CameraLost: it is not there, in use by another program, or does not start.
            CameraUnusable: Picamera2 is missing, or the sensor cannot do what the settings ask.
        """
        self.close()
        # Picamera2 objects lie in reference cycles; those of earlier openings still hold handles.
        gc.collect()
        picamera2 = _load_picamera2()
        number = self._settings.camera
        device = _acquire(picamera2, number)
        with contextlib.ExitStack() as undo:
            undo.callback(_give_back, device, number)
            try:
                self._opening = _start(picamera2, device, self._settings, self._crop)
            except (RuntimeError, OSError) as error:
                raise CameraLost(f"camera {number} does not start: {error}") from error
            undo.pop_all()

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        """The first frame exposed after ``after_ns``, as in `Camera.capture`."""
        opening = self._opening
        if opening is None:
            raise CameraLost(f"camera {self._settings.camera} is closed; open it before capturing")
        return opening.capture(after_ns, timeout_s, whole)

    def close(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.close()


@dataclass(frozen=True, slots=True)
class _Demand:
    """What every frame of one opening must be.

    Attributes:
        crop: the part of the pixel array; None where the camera cannot cut.
        field: frame pixels against the pixel array.
    """

    exposure: ExposureLock
    field: SensorField
    crop: Rectangle | None

    def faults(self, metadata: Mapping[str, Any]) -> list[str]:
        """What differs from it in a frame, in words."""
        faults = self.exposure.faults(metadata)
        if self.crop is not None:
            for seen in metadata.get("ScalerCrops") or [metadata.get("ScalerCrop")]:
                if seen is None or not self.field.alike(seen, self.crop):
                    faults.append(f"part of the sensor {seen} instead of {self.crop}")
                    break
        return faults

    def view(self, metadata: Mapping[str, Any]) -> View:
        """What a frame really shows."""
        if self.crop is None:
            width, height = self.field.frame
            return View(0, 0, width, height)
        return self.field.to_frame(metadata["ScalerCrop"])


class _Opening:
    """One opening of the camera, running, until it is closed."""

    def __init__(
        self, picamera2: ModuleType, device: Any, settings: Picamera2Camera, demand: _Demand
    ) -> None:
        """Takes over a started device.

        Args:
            picamera2: the library.
            device: its Picamera2 object; this one closes it.
            settings: for the messages.
            demand: on every frame.
        """
        self._picamera2 = picamera2
        self._device = device
        self._number = settings.camera
        self._demand = demand
        self._size: Size = device.camera_configuration()["lores"]["size"]
        self._limited = _is_limited(device)
        self._closed = False
        self._gate = threading.Lock()  # between asking for a frame and closing
        self._in_use = threading.Lock()  # while a capture may hold a buffer

    def capture(self, after_ns: int, timeout_s: float, whole: bool) -> Frame:
        deadline = max(time.monotonic(), after_ns / 1e9) + timeout_s
        faults: list[str] = []
        with self._in_use:
            while (request := self._next(after_ns, deadline)) is not None:
                with contextlib.ExitStack() as stack:
                    stack.callback(request.release)
                    metadata = request.get_metadata()
                    ended_ns = _exposure_end(metadata)
                    began_ns = ended_ns - 1000 * metadata.get("ExposureTime", 0)
                    if not after_ns < began_ns <= time.monotonic_ns():
                        continue
                    faults = self._demand.faults(metadata)
                    if not faults:
                        return self._copy(request, metadata, ended_ns, whole)
        raise self._too_late(timeout_s, faults)

    def close(self) -> None:
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._device.cancel_all_and_flush()
        borrowed = self._in_use.acquire(timeout=_PATIENCE_S)
        try:
            _give_back(self._device, self._number)
        finally:
            if borrowed:
                self._in_use.release()

    def _next(self, after_ns: int, deadline: float) -> Any:
        """The next completed request of libcamera, to be released; None once it is too late."""
        try:
            with self._gate:
                self._refuse_if_closed()
                job = self._device.capture_request(wait=False, flush=after_ns)
            try:
                return self._device.wait(job, timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                # A job that is left queued swallows a later frame and its buffer.
                self._device.cancel_all_and_flush()
                # It may have been served in that very moment; its buffer must not be lost.
                return self._device.wait(job, timeout=_PATIENCE_S)
        except (CancelledError, TimeoutError):
            self._refuse_if_closed()
            return None
        except KeyError as missing:
            raise CameraLost(f"camera {self._number} sent a frame without {missing}") from missing
        except (RuntimeError, OSError) as error:
            raise CameraLost(f"camera {self._number} answers with an error: {error}") from error

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise CameraLost(f"camera {self._number} was closed while a capture waited")

    def _copy(self, request: Any, metadata: Mapping[str, Any], ended_ns: int, whole: bool) -> Frame:
        pixels = self._grey(request)
        full = self._colour(request) if whole else None
        copied_ns = time.monotonic_ns()
        age = timedelta(microseconds=(copied_ns - ended_ns) / 1000)
        return Frame(
            pixels=pixels,
            name=str(request.request.sequence),
            captured_at=datetime.now(UTC) - age,
            captured_ns=ended_ns,
            copied_ns=copied_ns,
            view=self._demand.view(metadata),
            exposure=exposure_of(metadata),
            whole=full,
        )

    def _grey(self, request: Any) -> GreyImage:
        width, height = self._size
        with self._picamera2.MappedArray(request, "lores", write=False) as mapped:
            luma = mapped.array[:height, :width]  # the rows are padded, the colours below
            grey: GreyImage = cv2.LUT(luma, FULL_RANGE) if self._limited else luma.copy()
        return grey

    def _colour(self, request: Any) -> Image:
        with self._picamera2.MappedArray(request, "main", write=False) as mapped:
            colour: Image = mapped.array.copy()
        return colour

    def _too_late(self, timeout_s: float, faults: list[str]) -> CameraTimeout:
        if faults:
            return ExposureNotSettled(
                f"camera {self._number} sends frames, but after {timeout_s:g} s not yet as set: "
                f"{'; '.join(faults)}"
            )
        return CameraTimeout(
            f"no frame from camera {self._number} within {timeout_s:g} s; when this goes on, check "
            f"both ends of its ribbon cable with the power off, and the power supply"
        )


def _load_picamera2() -> ModuleType:
    """Raises CameraUnusable where it is not installed or does not run."""
    # Every opening would tell its progress; libcamera reads this once, when it is loaded.
    os.environ.setdefault("LIBCAMERA_LOG_LEVELS", "*:WARN")
    try:
        import picamera2  # noqa: PLC0415 - only who has such a camera needs it
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        raise CameraUnusable(
            f"Picamera2 does not load: {error}. On Raspberry Pi OS: `sudo apt install "
            f"python3-picamera2`, and a virtual environment made with --system-site-packages; "
            f"elsewhere: `pip install 'inspectd[picamera]'` beside libcamera's Python module"
        ) from error
    logging.getLogger("picamera2").setLevel(logging.WARNING)
    module: ModuleType = picamera2
    return module


def _acquire(picamera2: ModuleType, number: int) -> Any:
    """The Picamera2 object of a camera that is now ours; raises CameraLost."""
    cameras = picamera2.Picamera2.global_camera_info()
    if number >= len(cameras):
        names = ", ".join(f"{place} ({found['Model']})" for place, found in enumerate(cameras))
        raise CameraLost(
            f"camera {number} is not there; found: {names or 'none'}. Correct camera.camera, or "
            f"check both ends of its ribbon cable with the power off; `rpicam-hello "
            f"--list-cameras` shows what there is"
        )
    device = picamera2.Picamera2.__new__(picamera2.Picamera2)
    try:
        device.__init__(number, tuning=_fixed_tuning(picamera2, cameras[number]["Model"]))
    except RuntimeError as error:
        _discard(device)
        raise CameraLost(
            f"camera {number} ({cameras[number]['Model']}) cannot be had: "
            f"{error.__cause__ or error}; is another program using it? `sudo fuser -v /dev/media*` "
            f"names it"
        ) from error
    # Picamera2 would close it at the end of the process: one that hangs would never let it end.
    atexit.unregister(device.close)
    return device


def _fixed_tuning(picamera2: ModuleType, model: str) -> Tuning | None:
    """The sensor's own tuning, without what adapts to the scene; None where there is none."""
    try:
        return without_adaptation(picamera2.Picamera2.load_tuning_file(f"{model}.json"))
    except RuntimeError:
        log.info("there is no tuning of %s; what its image pipeline adapts is left alone", model)
        return None


def _discard(device: Any) -> None:
    """Frees what a Picamera2 object holds whose making failed; its own close() does not."""
    if device.is_open:
        device.camera.release()
        device.is_open = False
    device.notifymeread.close()
    os.close(device.notifyme_w)


def _give_back(device: Any, number: int) -> None:
    """Closes a Picamera2 object in whatever state it is."""
    try:
        # stop() would wait behind a job that waits for a frame.
        device.cancel_all_and_flush()
        device.close()
    except (RuntimeError, OSError):
        log.warning("camera %d could not be closed properly", number, exc_info=True)


def _start(
    picamera2: ModuleType,
    device: Any,
    settings: Picamera2Camera,
    region: RegionOfInterest | None,
) -> _Opening:
    """Configures and starts the camera; whoever called gives it back if this raises."""
    _require_locks(device, settings)
    frame = (settings.width, settings.height)
    can_cut = "ScalerCrop" in device.camera_controls
    part = part_to_cut(region if can_cut else None, frame)
    _configure(picamera2, device, settings, part[2:])

    controls = device.camera_controls  # the limits of this mode from here on
    beyond = out_of_reach(settings, controls)
    if beyond:
        raise CameraUnusable(f"camera {settings.camera} ({_model(device)}): {beyond}")
    field = SensorField(frame, controls["ScalerCrop"][1] if can_cut else (0, 0, *frame))
    crop = field.to_sensor(part) if can_cut else None
    device.set_controls(_wanted(settings, controls, crop))
    device.start()
    return _Opening(
        picamera2, device, settings, _Demand(_exposure_lock(settings, controls), field, crop)
    )


def _require_locks(device: Any, settings: Picamera2Camera) -> None:
    """Raises CameraUnusable for a camera that is no bare sensor whose exposure can be fixed."""
    # Picamera2 too knows sensors by their filters; a USB camera's settings it would not honour.
    sensor = "ColorFilterArrangement" in device.camera_properties
    if sensor and "ExposureTime" in device.camera_controls:
        return
    raise CameraUnusable(
        f"camera {settings.camera} ({_model(device)}) lets nobody fix its exposure here; for a "
        f"USB camera set `driver: opencv`"
    )


def _configure(picamera2: ModuleType, device: Any, settings: Picamera2Camera, part: Size) -> None:
    """Chooses the sensor mode and the two streams; raises CameraUnusable where that cannot be."""
    frame = (settings.width, settings.height)
    depths = _modes(picamera2, device)
    if frame not in depths:
        sizes = ", ".join(f"{width}x{height}" for width, height in sorted(depths))
        raise CameraUnusable(
            f"camera {settings.camera} ({_model(device)}) has no mode of {frame[0]}x{frame[1]} "
            f"pixels; set camera.width and camera.height to one of {sizes}"
        )
    asked = device.create_video_configuration(
        main={"size": part, "format": "RGB888"},  # in memory blue, green, red, as OpenCV has it
        lores={"size": reduced(part, settings.reduce), "format": "YUV420"},
        raw=None,
        sensor={"output_size": frame, "bit_depth": depths[frame]},
        colour_space=picamera2.libcamera.ColorSpace.Sycc(),  # full range
        buffer_count=_BUFFERS,
        queue=False,  # or it would keep an old frame at hand
        display=None,
        encode=None,
    )
    device.configure(asked)
    given = device.camera_configuration()
    for name, pixel_format in (("main", "RGB888"), ("lores", "YUV420")):
        if given[name]["format"] != pixel_format:
            raise CameraUnusable(
                f"camera {settings.camera} ({_model(device)}) gives {given[name]['format']} in "
                f"place of {pixel_format} as its {name} stream"
            )
    if given["sensor"]["output_size"] != frame:
        raise CameraUnusable(
            f"camera {settings.camera} ({_model(device)}) chose the mode "
            f"{given['sensor']['output_size']} in place of {frame}"
        )


def _modes(picamera2: ModuleType, device: Any) -> dict[Size, int]:
    """The sizes that the sensor reads out, each with its largest bit depth."""
    roles = [picamera2.libcamera.StreamRole.Raw]
    formats = device.camera.generate_configuration(roles).at(0).formats
    depths: dict[Size, int] = {}
    for pixel_format in formats.pixel_formats:
        depth = picamera2.SensorFormat(str(pixel_format)).bit_depth
        for size in formats.sizes(pixel_format):
            key = (size.width, size.height)
            depths[key] = max(depth, depths.get(key, 0))
    return depths


def _wanted(
    settings: Picamera2Camera, controls: Mapping[str, Any], crop: Rectangle | None
) -> dict[str, Any]:
    """The libcamera controls to set; what the camera does not know is left out and logged."""
    frame_us = round(1e6 / settings.rate)
    wanted: dict[str, Any] = {
        "AeEnable": False,
        "AwbEnable": False,
        "ExposureTime": settings.exposure_us,
        "AnalogueGain": settings.gain,
        "ColourGains": settings.white_balance,
        "FrameDurationLimits": (frame_us, frame_us),
    }
    unknown = sorted(wanted.keys() - controls.keys())
    if unknown:  # a monochrome sensor has no white balance
        log.info("camera %d has no control %s; left alone", settings.camera, ", ".join(unknown))
    known = {name: value for name, value in wanted.items() if name in controls}
    if crop is None:
        return known
    # Picamera2 sets a crop for each stream where it can, which would overrule the one for all.
    return known | (
        {"ScalerCrops": [crop] * 2} if "ScalerCrops" in controls else {"ScalerCrop": crop}
    )


def _exposure_lock(settings: Picamera2Camera, controls: Mapping[str, Any]) -> ExposureLock:
    frame_us = 1e6 / settings.rate
    shortest_us = controls.get("FrameDurationLimits", (frame_us,))[0]
    return ExposureLock(
        exposure_us=settings.exposure_us,
        line_us=shortest_us / settings.height,
        gain=settings.gain if "AnalogueGain" in controls else None,
        white_balance=settings.white_balance if "ColourGains" in controls else None,
        frame_us=frame_us if "FrameDurationLimits" in controls else None,
    )


def _is_limited(device: Any) -> bool:
    """Whether the low-resolution stream has black at 16 and white at 235.

    libcamera's own word for that stream: Picamera2 names the colour space by its primaries alone.
    """
    space = device.libcamera_config.at(device.lores_index).color_space
    return str(space.range).endswith("Limited")


def _exposure_end(metadata: Mapping[str, Any]) -> int:
    """When the exposure of the frame's first line ended, in `time.monotonic_ns`."""
    return on_monotonic_clock(
        metadata.get("SensorTimestamp", 0),
        time.monotonic_ns(),
        time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    )


def _model(device: Any) -> str:
    return str(device.camera_properties.get("Model", "unknown model"))
