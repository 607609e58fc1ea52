"""What V4L2 (USB cameras) lets be set: each setting is made, read back, and refused if not taken.

Pure of any device: everything goes through the `get` and `set` of OpenCV's VideoCapture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2

from inspectd.errors import CameraUnusable
from inspectd.settings import OpencvCamera

ABSENT = -1.0
"""What OpenCV answers for a control that the camera does not have."""


class Properties(Protocol):
    """The part of `cv2.VideoCapture` that is needed here."""

    def get(self, propId: int, /) -> float: ...  # noqa: N803 - OpenCV's own name

    def set(self, propId: int, value: float, /) -> bool: ...  # noqa: N803 - as above


@dataclass(frozen=True, slots=True)
class _Control:
    """A value that the camera has, and the automatic that may change it.

    Attributes:
        key: in the settings.
        value: OpenCV's property.
        unit: of the setting, in one unit of the camera's.
        automatic: OpenCV's property of the automatic, where there is one.
        fixed: its value for "by hand".
        adapting: its values for "by itself", the usual one first.
        released: whether an absent setting means the automatic, rather than "as it is".
    """

    key: str
    value: int
    unit: int = 1
    automatic: int | None = None
    fixed: float = 0.0
    adapting: tuple[float, ...] = (1.0,)
    released: bool = False


# V4L2_CID_EXPOSURE_ABSOLUTE counts 100 us; V4L2_CID_EXPOSURE_AUTO is a menu: 0 auto, 1 manual,
# 2 shutter priority, 3 aperture priority, which is what UVC cameras call automatic.
_CONTROLS = (
    _Control(
        "exposure_us",
        cv2.CAP_PROP_EXPOSURE,
        unit=100,
        automatic=cv2.CAP_PROP_AUTO_EXPOSURE,
        fixed=1.0,
        adapting=(3.0, 0.0, 2.0),
        released=True,
    ),
    _Control(
        "white_balance_k",
        cv2.CAP_PROP_WB_TEMPERATURE,
        automatic=cv2.CAP_PROP_AUTO_WB,
        released=True,
    ),
    _Control("gain", cv2.CAP_PROP_GAIN),
    _Control("focus", cv2.CAP_PROP_FOCUS, automatic=cv2.CAP_PROP_AUTOFOCUS),
)
SETTABLE = ("width", "height", "rate", "format", *(control.key for control in _CONTROLS))
"""The keys of the settings that only a V4L2 camera obeys."""


def configure(camera: Properties, settings: OpencvCamera) -> list[str]:
    """Make every setting and read it back.

    Everything is set before the first value is read back: one may have changed another.

    Returns:
        What the camera changes by itself, as the lines of the settings that would stop it, such as
        ``exposure_us: 15600`` with its present value.

    Raises:
        CameraUnusable: something that was asked for was not taken; names it, and what there is.
    """
    _set_picture(camera, settings)
    _check_picture(camera, settings)
    wanted = {control: getattr(settings, control.key) for control in _CONTROLS}
    for control, value in wanted.items():
        _set(camera, control, value)
    for control, value in wanted.items():
        if value is not None:
            _check(camera, control, value)
    return list(_unfixed(camera, settings))


def four_letters(code: float) -> str:
    """A FOURCC as text."""
    return round(code).to_bytes(4, "little", signed=code < 0).decode("latin-1").rstrip(" \0")


def _set_picture(camera: Properties, settings: OpencvCamera) -> None:
    """Format first: which sizes and rates there are depends on it."""
    if settings.format is not None:
        code = int.from_bytes(settings.format.encode("latin-1", "replace"), "little")
        camera.set(cv2.CAP_PROP_FOURCC, code)
    if settings.width is not None and settings.height is not None:
        camera.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width)
        camera.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height)
    if settings.rate is not None:
        camera.set(cv2.CAP_PROP_FPS, settings.rate)


def _check_picture(camera: Properties, settings: OpencvCamera) -> None:
    modes = "`v4l2-ctl --list-formats-ext` lists what it has"
    given = four_letters(camera.get(cv2.CAP_PROP_FOURCC))
    if settings.format is not None and settings.format.rstrip() != given:
        raise CameraUnusable(
            f"the camera does not take camera.format {settings.format}, it gives {given}: {modes}"
        )
    size = round(camera.get(cv2.CAP_PROP_FRAME_WIDTH)), round(camera.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if settings.width is not None and size != (settings.width, settings.height):
        raise CameraUnusable(
            f"the camera does not take camera.width {settings.width} and camera.height "
            f"{settings.height}, it gives {size[0]}x{size[1]} as {given}: {modes}"
        )
    rate = camera.get(cv2.CAP_PROP_FPS)
    # OpenCV asks for whole frames per second; a camera that says 29.97 means 30.
    if settings.rate is not None and abs(rate - settings.rate) > 0.02 * settings.rate:
        raise CameraUnusable(
            f"the camera does not take camera.rate {settings.rate:g}, it gives {rate:.4g} frames "
            f"per second at {size[0]}x{size[1]} as {given}: {modes}"
        )


def _set(camera: Properties, control: _Control, value: float | None) -> None:
    """What was not taken shows when it is read back."""
    if value is not None:
        if control.automatic is not None:
            camera.set(control.automatic, control.fixed)
        camera.set(
            control.value, max(1, round(value / control.unit)) if control.unit > 1 else value
        )
    elif control.automatic is not None and control.released:
        any(camera.set(control.automatic, mode) for mode in control.adapting)


def _check(camera: Properties, control: _Control, value: float) -> None:
    key = f"camera.{control.key}"
    controls = f"`v4l2-ctl --list-ctrls` lists what it has; or remove {key}"
    if control.automatic is not None and camera.get(control.automatic) in control.adapting:
        raise CameraUnusable(
            f"{key} cannot be fixed: the camera does not let its automatic be switched off: "
            f"{controls}"
        )
    units = camera.get(control.value)
    given = units * control.unit
    tolerance = max(control.unit / 2 if control.unit > 1 else 0.0, 0.01 * abs(value))
    if abs(given - value) <= tolerance:
        return
    if units == ABSENT:
        raise CameraUnusable(f"the camera has no {key} to be set: {controls}")
    raise CameraUnusable(
        f"the camera does not take {key} {value:g}, it gives {given:g}: {controls}"
    )


def _unfixed(camera: Properties, settings: OpencvCamera) -> Iterator[str]:
    for control in _CONTROLS:
        if control.automatic is None or getattr(settings, control.key) is not None:
            continue
        if camera.get(control.automatic) in control.adapting:
            units = camera.get(control.value)
            now = "" if units == ABSENT else f" {units * control.unit:g}"
            yield f"{control.key}:{now}"
