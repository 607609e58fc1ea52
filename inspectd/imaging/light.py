"""Light taken out of a picture, so that pictures can be laid over each other."""

from __future__ import annotations

import cv2
import numpy as np

from inspectd.records import FloatMap

SIGMA = 8.0
"""Standard deviation of the Gaussian neighbourhood, in pixels."""
FLOOR = 0.05
"""Grey levels (of 1) of local deviation below which contrast is not raised fully."""
_COARSE = 4
"""The neighbourhood's sums are taken at this fraction of the picture's resolution."""


def local_contrast(picture: FloatMap, out: FloatMap | None = None) -> FloatMap:
    """How much brighter each pixel is than its neighbourhood, in units of the neighbourhood's own
    deviation: (I - m) / (s + 0.05), where m and s^2 are the Gaussian means of I and (I - m)^2.

    Brightness and contrast that change smoothly over the picture cancel.

    Args:
        picture: float32 (height, width), 0 black and 1 white.
        out: float32 of the same shape, written and returned; a new array if None.

    Returns:
        float32 (height, width), without unit.
    """
    out = np.subtract(picture, _neighbourhood(picture), out=out)
    spread = _neighbourhood(np.square(out))
    np.sqrt(spread, out=spread)
    spread += np.float32(FLOOR)
    return np.divide(out, spread, out=out)


def _neighbourhood(picture: FloatMap) -> FloatMap:
    """The Gaussian mean around every pixel; so smooth that a coarse picture of it says all."""
    height, width = picture.shape
    size = (-(-width // _COARSE), -(-height // _COARSE))
    coarse = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    sigma = SIGMA / _COARSE
    coarse = cv2.GaussianBlur(coarse, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(smooth, np.float32)
