"""The numba kernels that read a camera's whole frame: each once, row by row.

At 1456 x 1088 pixels what a frame is read and written by costs more than what is computed of it, so
nothing of its size is made of it. Nothing is validated here (the wrappers beside this module do
that) and nothing is allocated. All kernels are serial and release the GIL. A picture is uint8
(height, width), contiguous and writeable: for anything else they would be compiled once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inspectd.jit import kernel


@kernel
def mean_areas(
    picture: Any, down: Any, down_share: Any, across: Any, across_share: Any, work: Any, out: Any
) -> None:
    """The mean over each of the areas that a grid of borders parts a picture into.

    Args:
        picture: uint8 (height, width).
        down: intp (rows + 1,), ascending: the pixel row that each border lies in.
        down_share: float64 (rows + 1,): how much of that row lies above it.
        across: intp (cols + 1,) and across_share: the same from left to right.
        work: int32 (width,) and float64 (width,).
        out: uint8 (rows, cols), the result, rounded.
    """
    whole, line = work
    rows, cols = out.shape
    width = picture.shape[1]
    scale = rows * cols / picture.size
    for row in range(rows):
        top, bottom = down[row], down[row + 1]
        for x in range(width):
            whole[x] = 0
        for y in range(top, bottom):
            for x in range(width):
                whole[x] += picture[y, x]
        above, below = down_share[row], down_share[row + 1]
        for x in range(width):
            line[x] = whole[x] - above * picture[top, x] + below * picture[bottom, x]
        for col in range(cols):
            left, right = across[col], across[col + 1]
            total = across_share[col + 1] * line[right] - across_share[col] * line[left]
            for x in range(left, right):
                total += line[x]
            out[row, col] = np.uint8(np.rint(total * scale))


@kernel
def count_clipped(picture: Any, black: int, white: int) -> Any:
    """How many pixels are ``black`` or darker, and how many ``white`` or brighter.

    Args:
        picture: uint8 (height, width).
    """
    dark, bright = np.int64(0), np.int64(0)
    for y in range(picture.shape[0]):
        dark_here, bright_here = np.int32(0), np.int32(0)  # in int64 it would be vectorised less
        for x in range(picture.shape[1]):
            dark_here += np.int32(picture[y, x] <= black)
            bright_here += np.int32(picture[y, x] >= white)
        dark += dark_here
        bright += bright_here
    return dark, bright


@kernel
def mean_common_slopes(picture: Any) -> Any:
    """The mean product of slopes side by side, across plus along, in grey levels over 2 pixels.

    Args:
        picture: uint8 (height, width), both 3 or more, the width at most 2**15.
    """
    height, width = picture.shape
    across, along = np.int64(0), np.int64(0)
    for y in range(height - 1):
        total = np.int32(0)
        for x in range(width - 2):
            upper = np.int32(picture[y, x + 2]) - np.int32(picture[y, x])
            total += upper * (np.int32(picture[y + 1, x + 2]) - np.int32(picture[y + 1, x]))
        across += total
    for y in range(height - 2):
        total = np.int32(0)
        for x in range(width - 1):
            left = np.int32(picture[y + 2, x]) - np.int32(picture[y, x])
            total += left * (np.int32(picture[y + 2, x + 1]) - np.int32(picture[y, x + 1]))
        along += total
    return across / ((height - 1) * (width - 2)) + along / ((height - 2) * (width - 1))
