"""Does a live camera show the present? No two pictures of a real sensor are quite alike."""

from __future__ import annotations

import numpy as np

from inspectd.records import Image

_SPARSE = 8
"""Every so manieth row is compared first: it settles nearly every case."""


def same_picture(one: Image, other: Image) -> bool:
    """Whether two pictures are alike to the last pixel, and show anything at all.

    A picture of one value throughout (a covered lens, a clipped sensor) has no noise to tell it by;
    it says nothing of its age, and is refused for what it is.

    Args:
        one, other: uint8 (height, width) or (height, width, 3).
    """
    if one.shape != other.shape or not np.array_equal(one[::_SPARSE], other[::_SPARSE]):
        return False
    return np.array_equal(one, other) and bool(one.min() < one.max())
