"""What is read of a whole frame, in plain loops: the oracle that its kernels are compared with.

Written for reading, in exact fractions, without numba and without anything from the package.
"""

from fractions import Fraction

import numpy as np


def mean_areas(picture, rows, cols):
    """The mean over each of rows x cols equal areas, shares of pixels included."""
    height, width = picture.shape
    out = np.zeros((rows, cols))
    for row in range(rows):
        for col in range(cols):
            total = Fraction(0)
            for y, down in covered(row, rows, height):
                for x, across in covered(col, cols, width):
                    total += down * across * int(picture[y, x])
            out[row, col] = total * rows * cols / (height * width)
    return out


def covered(part, parts, length):
    """The pixels of a line that one of its equal parts covers, each with the share of it."""
    begin, end = Fraction(part * length, parts), Fraction((part + 1) * length, parts)
    for pixel in range(length):
        share = min(end, pixel + 1) - max(begin, pixel)
        if share > 0:
            yield pixel, share


def clipped(picture, black, white):
    pixels = [int(pixel) for row in picture for pixel in row]
    return sum(pixel <= black for pixel in pixels), sum(pixel >= white for pixel in pixels)


def mean_common_slopes(picture):
    height, width = picture.shape
    values = [[int(pixel) for pixel in row] for row in picture]
    across = [
        (values[y][x + 2] - values[y][x]) * (values[y + 1][x + 2] - values[y + 1][x])
        for y in range(height - 1)
        for x in range(width - 2)
    ]
    along = [
        (values[y + 2][x] - values[y][x]) * (values[y + 2][x + 1] - values[y][x + 1])
        for y in range(height - 2)
        for x in range(width - 1)
    ]
    return sum(across) / len(across) + sum(along) / len(along)
