"""Which part of the frame a camera is asked for, and where that lies on its sensor.

Frame pixels are those of the sensor mode the settings ask for. libcamera cuts in pixels of the
sensor's pixel array, of which a mode may read a part only, and may add several into one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from inspectd.records import View
from inspectd.settings import RegionOfInterest

Size: TypeAlias = tuple[int, int]
"""Width and height."""
Rectangle: TypeAlias = tuple[int, int, int, int]
"""x, y, width, height."""

_SMALLEST = 64  # pixels each way; image pipelines cut no less
_ROUNDING = 4  # frame pixels that libcamera may lay an edge elsewhere


@dataclass(frozen=True, slots=True)
class SensorField:
    """What a sensor mode sees.

    Attributes:
        frame: size of its frame.
        area: where the frame lies in the pixel array: libcamera's largest ScalerCrop.
    """

    frame: Size
    area: Rectangle

    def to_sensor(self, part: Rectangle) -> Rectangle:
        """A part of the frame in pixels of the pixel array."""
        across, down = self._scale
        left, top = round(part[0] * across), round(part[1] * down)
        right, bottom = round((part[0] + part[2]) * across), round((part[1] + part[3]) * down)
        return left + self.area[0], top + self.area[1], right - left, bottom - top

    def to_frame(self, crop: Rectangle) -> View:
        """A rectangle of the pixel array in frame pixels."""
        across, down = self._scale
        return View(
            x=(crop[0] - self.area[0]) / across,
            y=(crop[1] - self.area[1]) / down,
            width=crop[2] / across,
            height=crop[3] / down,
        )

    def alike(self, one: Rectangle, other: Rectangle) -> bool:
        """Whether two rectangles of the pixel array differ by libcamera's rounding at the most."""
        across, down = self._scale
        slack = (_ROUNDING * across, _ROUNDING * down) * 2
        return all(abs(a - b) <= most for a, b, most in zip(one, other, slack, strict=True))

    @property
    def _scale(self) -> tuple[float, float]:
        return self.area[2] / self.frame[0], self.area[3] / self.frame[1]


def part_to_cut(region: RegionOfInterest | None, frame: Size) -> Rectangle:
    """The part of the frame to ask a camera for, in frame pixels.

    It holds the region and is a little larger where that is odd or tiny: colour is kept for two
    pixels by two, and image pipelines cut no less than 64 pixels each way.

    Args:
        region: what is of interest; None for the whole frame, and where it leaves the frame the
            whole is cut too, so that whoever inspects it can say what is wrong.
        frame: even in width and height.
    """
    if region is None or region.x + region.width > frame[0] or region.y + region.height > frame[1]:
        return 0, 0, frame[0], frame[1]
    x, width = _even_span(region.x, region.width, frame[0])
    y, height = _even_span(region.y, region.height, frame[1])
    return x, y, width, height


def reduced(size: Size, times: int) -> Size:
    """A size made smaller, each side rounded to the nearest even number."""
    width, height = (max(2, 2 * round(side / times / 2)) for side in size)
    return width, height


def _even_span(start: int, length: int, whole: int) -> tuple[int, int]:
    """The smallest span of even ends that holds the given one and is no less than can be cut."""
    least = min(_SMALLEST, whole)
    first, last = start // 2 * 2, (start + length + 1) // 2 * 2
    if last - first < least:
        middle = start + length // 2
        first = min(max(0, middle - least // 2) // 2 * 2, whole - least)
        last = first + least
    return first, last - first
