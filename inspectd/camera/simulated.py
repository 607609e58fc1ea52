"""The `simulated` camera: a terminal block of 27 pins, rendered as a camera would see it.

Every frame is a pure function of the settings and its number: the same number of the same seed is
always the same picture, whatever was drawn before, so that whoever knows the settings knows the
truth of each frame (`truth_of`) without asking the camera. A part differs from the next by its
pose and by how its pins shine; the light drifts slowly with the number; the lens blurs a little
and darkens the corners; the sensor adds noise of reading and of counting photons.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.camera import Opened
from inspectd.camera.pacing import Pacer
from inspectd.camera.terminal_block import NEST, PINS, VIEW, Damage, TerminalBlock
from inspectd.errors import CameraLost
from inspectd.records import Defect, Frame, GreyImage, Truth
from inspectd.settings import SimulatedCamera as SimulatedSettings

Matrix = NDArray[np.float64]
"""float64 (3, 3), a homography."""

# Independent random numbers of one frame: a defect changes nothing else in it.
_POSE, _DEFECT, _NOISE, _DRIFT, _EMPTY = range(5)

_SHIFT = 0.004  # of the frame's width, at jitter 1
_ROTATION_DEG = 0.3
_TILT_DEG, _YAW_DEG = 5.5, -4.0
_DISTANCE = 200.0  # of the camera from the block, in units
_FINE = 1.5  # pixels of the canvas for one of the frame
_FINEST = 20.0  # pixels of the canvas a unit; finer would take seconds to draw
_LENS_BLUR = 0.65  # pixels
_INDICES = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])  # from edges to centres of pixels
_VIGNETTE = 0.10
_SLOPE = (0.05, 0.04)  # the lamp stands to the upper left
_METAL, _GLINT = 0.05, 0.25  # how much pins differ
_READ_NOISE = 0.35  # its share of the variance at grey level 128
_DRIFT_PERIODS = (173.0, 61.0, 229.0, 97.0)  # frames


class SimulatedCamera(Opened):
    """Renders frame 0, 1, 2 … of its settings each time it is opened.

    It runs free at the settings' rate as a real camera would, but the number in a frame's name
    grows by one with each frame captured, not with each frame instant, so that a sequence of parts
    is the same at any speed.
    """

    def __init__(self, settings: SimulatedSettings) -> None:
        self._settings = settings
        self._pacer: Pacer | None = None
        self._number = 0
        self._requests: deque[Defect | None] = deque()  # None: no part at all
        self._requests_lock = threading.Lock()

    @property
    def live(self) -> bool:
        return False

    def open(self) -> None:
        self.close()
        _view(self._settings.width, self._settings.height)  # what takes long, before the first
        self._number = 0
        self._pacer = Pacer(self._settings.rate)

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        """The frame of the first frame instant after ``after_ns``, as in `Camera.capture`.

        Raises:
            CameraTimeout: that instant is further away than ``timeout_s``.
            CameraLost: the camera is closed.
        """
        del whole  # its pictures are never reduced
        pacer = self._pacer
        if pacer is None:
            raise CameraLost("the simulated camera is closed; open it before capturing")
        captured_ns = pacer.wait(after_ns, timeout_s)
        number, self._number = self._number, self._number + 1
        pixels, truth = self._rendered(number)
        copied_ns = time.monotonic_ns()
        age = timedelta(microseconds=(copied_ns - captured_ns) / 1000)
        return Frame(
            pixels=pixels,
            name=str(number),
            captured_at=datetime.now(UTC) - age,
            captured_ns=captured_ns,
            copied_ns=copied_ns,
            truth=truth,
        )

    def close(self) -> None:
        pacer, self._pacer = self._pacer, None
        if pacer is not None:
            pacer.stop()

    def request_defect(self, defect: Defect) -> None:
        """The next frame captured shows this defect; several requests take one frame each."""
        with self._requests_lock:
            self._requests.append(defect)

    def request_empty(self) -> None:
        """The next frame captured shows the nest without a part; several requests as above."""
        with self._requests_lock:
            self._requests.append(None)

    def _rendered(self, number: int) -> tuple[GreyImage, Truth]:
        with self._requests_lock:
            if not self._requests:
                return render(self._settings, number)
            defect = self._requests.popleft()
        return render(self._settings, number, defect, empty=defect is None)


def render(
    settings: SimulatedSettings,
    number: int,
    defect: Defect | None = None,
    *,
    empty: bool = False,
) -> tuple[GreyImage, Truth]:
    """Frame ``number`` of the settings.

    Args:
        settings: size, seed, defects, jitter, light and noise.
        number: counted from 0.
        defect: shown instead of what the settings would draw; the rest of the frame stays the
            same.
        empty: show the nest without a part, whatever the settings would draw.

    Returns:
        uint8 (height, width), and what it shows.
    """
    view = _view(settings.width, settings.height)
    if empty or (defect is None and _is_empty(settings, number)):
        canvas, pose, truth = view.block.nest, np.eye(3), Truth(empty=True)
    else:
        part = _part(settings, number)
        damage = _damage(settings, number, view.block, defect)
        canvas, pose = view.block.canvas(part.metal, part.glint, damage).grey, part.pose
        truth = _truth(damage, view, pose)
    grey = cv2.warpPerspective(
        canvas,
        _INDICES @ view.homography @ pose @ view.to_units,
        (settings.width, settings.height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=NEST,
    )
    signal = cv2.GaussianBlur(grey, (0, 0), _LENS_BLUR).astype(np.float32)
    signal *= _light(settings, number, view)
    return _sensor(signal, settings, number), truth


def truth_of(settings: SimulatedSettings, number: int) -> Truth:
    """What frame ``number`` of the settings shows, without rendering it."""
    if _is_empty(settings, number):
        return Truth(empty=True)
    view = _view(settings.width, settings.height)
    damage = _damage(settings, number, view.block, None)
    return _truth(damage, view, _part(settings, number).pose)


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """What depends on the frame's size alone.

    Attributes:
        unit: frame pixels a unit of the block, in the middle of the view.
        block: the layers of the part.
        homography: units of the block at rest to frame pixels.
        to_units: pixel indices of the block's canvas to units.
        light: float32 (height, width), the light at rest with the lens's dark corners.
        x, y: float32 (1, width) and (height, 1), -1 to 1 across the frame.
    """

    unit: float
    block: TerminalBlock
    homography: Matrix
    to_units: Matrix
    light: NDArray[np.float32]
    x: NDArray[np.float32]
    y: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """How one part differs from the next.

    Attributes:
        pose: units of the part to units of the block at rest.
        metal: float32 (27,), how much brighter than usual each pin is, as a share.
        glint: float32 (27,), the same for its highlight.
    """

    pose: Matrix
    metal: NDArray[np.float32]
    glint: NDArray[np.float32]


@lru_cache(maxsize=2)
def _view(width: int, height: int) -> _View:
    unit = min(width / VIEW[0], height / VIEW[1])
    block = TerminalBlock(min(_FINE * unit, _FINEST))
    tilt, yaw = np.deg2rad(_TILT_DEG), np.deg2rad(_YAW_DEG)
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    plane = (about_x @ about_y)[:, :2]  # points of the block have no third coordinate
    lens = np.array(
        [[unit * _DISTANCE, 0, width / 2], [0, unit * _DISTANCE, height / 2], [0, 0, 1]]
    )
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    light = (1 - _VIGNETTE * (x**2 + y**2) / 2) * (1 - _SLOPE[0] * x - _SLOPE[1] * y)
    return _View(
        unit=unit,
        block=block,
        homography=lens @ np.column_stack([plane, [0, 0, _DISTANCE]]),
        to_units=block.to_units,
        light=np.asarray(light, np.float32),
        x=x,
        y=y,
    )


def _rng(settings: SimulatedSettings, number: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, number, stream])


def _part(settings: SimulatedSettings, number: int) -> _Part:
    rng = _rng(settings, number, _POSE)
    width = VIEW[0]
    shift = rng.uniform(-1, 1, 2) * (settings.jitter * _SHIFT * width)
    angle = np.deg2rad(rng.uniform(-1, 1) * settings.jitter * _ROTATION_DEG)
    cosine, sine = np.cos(angle), np.sin(angle)
    pose = np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]], [0, 0, 1]])
    metal = rng.uniform(-_METAL, _METAL, PINS).astype(np.float32)
    glint = rng.uniform(-_GLINT, _GLINT, PINS).astype(np.float32)
    return _Part(pose, metal, glint)


def _damage(
    settings: SimulatedSettings, number: int, block: TerminalBlock, defect: Defect | None
) -> Damage | None:
    rng = _rng(settings, number, _DEFECT)
    drawn = rng.random() < settings.defect_rate
    kind = Defect(settings.defects[rng.integers(len(settings.defects))])
    if defect is None and not drawn:
        return None
    return block.damage(defect or kind, rng)


def _is_empty(settings: SimulatedSettings, number: int) -> bool:
    return bool(_rng(settings, number, _EMPTY).random() < settings.empty_rate)


def _truth(damage: Damage | None, view: _View, pose: Matrix) -> Truth:
    if damage is None:
        return Truth()
    left, top, right, bottom = damage.changed
    corners = np.array([[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]])
    x, y, z = view.homography @ pose @ corners.T
    box = (x / z).min(), (y / z).min(), (x / z).max(), (y / z).max()
    margin = np.array([-1, -1, 1, 1]) * 3 * _LENS_BLUR
    limits = np.array([view.x.size, view.y.size] * 2)
    x0, y0, x1, y1 = np.clip(box + margin, 0, limits).tolist()
    return Truth(damage.defect, (x0, y0, x1, y1))


def _light(settings: SimulatedSettings, number: int, view: _View) -> NDArray[np.float32]:
    """float32 (height, width): the light falling on each pixel, about 1."""
    phases = _rng(settings, 0, _DRIFT).uniform(0, 2 * np.pi, len(_DRIFT_PERIODS))
    waves = np.sin(2 * np.pi * number / np.array(_DRIFT_PERIODS) + phases)
    slow, fast, across, down = (settings.light_drift * waves).tolist()
    lamp = 1 + 0.65 * slow + 0.35 * fast + 0.4 * across * view.x + 0.4 * down * view.y
    return np.asarray(view.light * lamp, np.float32)


def _sensor(signal: NDArray[np.float32], settings: SimulatedSettings, number: int) -> GreyImage:
    """Noise whose variance grows with the signal, then 8 bits."""
    noise = _rng(settings, number, _NOISE).standard_normal(signal.shape, np.float32)
    variance = (_READ_NOISE + (1 - _READ_NOISE) / 128 * signal) * np.float32(settings.noise**2)
    noise *= np.sqrt(variance)
    return np.asarray(np.clip(signal + noise + 0.5, 0, 255), np.uint8)
