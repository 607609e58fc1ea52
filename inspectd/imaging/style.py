"""What all drawings have in common: the canvas, the dark ground, the colours and the lettering."""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Canvas: TypeAlias = NDArray[np.uint8]
"""uint8 (height, width, 3), blue, green, red."""
Colour: TypeAlias = tuple[int, int, int]
"""Blue, green, red."""

BACKGROUND = 30
WHITE: Colour = (255, 255, 255)
TEXT: Colour = (225, 225, 225)
MUTED: Colour = (150, 150, 150)
GOOD: Colour = (70, 125, 20)
BAD: Colour = (40, 35, 190)
"""Ground of the words PASS and FAIL."""
NEUTRAL: Colour = (84, 70, 58)

MARGIN = 12
STRIP_HEIGHT = 66
SMALL, NORMAL, LARGE, HUGE = 0.4, 0.46, 0.8, 1.0
"""Sizes of the text."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def blank_canvas(height: int, width: int) -> Canvas:
    """The dark ground to draw on."""
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def text_size(words: str, scale: float, thickness: int = 1) -> tuple[int, int]:
    """Width, and height above the base line, in pixels."""
    (width, height), _ = cv2.getTextSize(_plain(words), _FONT, scale, thickness)
    return int(width), int(height)


def write(
    canvas: Canvas,
    words: str,
    place: tuple[int, int],
    scale: float,
    colour: Colour = TEXT,
    thickness: int = 1,
    *,
    align: float = 0.0,
) -> int:
    """Write at ``place``, x and y on the base line; returns the width in pixels.

    Args:
        canvas: to write on.
        words: what OpenCV's own fonts cannot draw becomes a question mark.
        place: x and y.
        scale: size of the text.
        colour: of the text.
        thickness: of its strokes.
        align: the share of the words that stands left of ``place``: 0, 0.5 or 1.
    """
    width, _ = text_size(words, scale, thickness)
    start = (place[0] - round(align * width), place[1])
    options: tuple[Any, ...] = (_FONT, scale, colour, thickness, cv2.LINE_AA)
    cv2.putText(canvas, _plain(words), start, *options)
    return width


def shortened(words: str, scale: float, room: int, thickness: int = 1) -> str:
    """The words, or as many letters of them as the room in pixels takes, and dots."""
    if text_size(words, scale, thickness)[0] <= room:
        return words
    while words and text_size(words + "...", scale, thickness)[0] > room:
        words = words[:-1]
    return words + "..."


def _plain(words: str) -> str:
    return words.encode("ascii", "replace").decode("ascii")
