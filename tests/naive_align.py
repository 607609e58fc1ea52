"""Alignment in plain loops: the oracle that its kernels are compared with.

Written for reading, in float64, without numba and without anything from the package.
"""

import math

import numpy as np

SLACK = 0.01


def sample(picture, x, y):
    """The picture at a point, linear between its pixels; None outside."""
    height, width = picture.shape
    if not (-SLACK <= x <= width - 1 + SLACK and -SLACK <= y <= height - 1 + SLACK):
        return None
    column, row = min(max(int(x), 0), width - 2), min(max(int(y), 0), height - 2)
    right, down = x - column, y - row
    return (
        (1 - down) * (1 - right) * float(picture[row, column])
        + (1 - down) * right * float(picture[row, column + 1])
        + down * (1 - right) * float(picture[row + 1, column])
        + down * right * float(picture[row + 1, column + 1])
    )


def posed(pose, centre, x, y):
    right, down, angle = pose
    across, along = x - centre[0], y - centre[1]
    return (
        math.cos(angle) * across - math.sin(angle) * along + centre[0] + right,
        math.sin(angle) * across + math.cos(angle) * along + centre[1] + down,
    )


def warp(picture, pose, centre, shape, flow=None):
    out, seen = np.zeros(shape), np.zeros(shape, bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            x, y = column, row
            if flow is not None:
                x, y = x + spread(flow[0], row, column), y + spread(flow[1], row, column)
            value = sample(picture, *posed(pose, centre, x, y))
            if value is not None:
                out[row, column], seen[row, column] = value, True
    return out, seen


def spread(grid, row, column, cell=4):
    """A grid's value at a pixel, linear between the cells' middles, flat outside them."""
    rows, cols = grid.shape
    y = min(max((row - (cell - 1) / 2) / cell, 0), rows - 1)
    x = min(max((column - (cell - 1) / 2) / cell, 0), cols - 1)
    return sample(grid, x, y)


def derivatives(template, centre, row, column):
    """By shift right, shift down, rotation, gain and offset."""
    height, width = template.shape

    def slope(before, after):
        distance = (after[0] - before[0]) + (after[1] - before[1])
        return (float(template[after]) - float(template[before])) / distance

    across = slope((row, max(column - 1, 0)), (row, min(column + 1, width - 1)))
    along = slope((max(row - 1, 0), column), (min(row + 1, height - 1), column))
    turn = (column - centre[0]) * along - (row - centre[1]) * across
    return across, along, turn, float(template[row, column]), 1.0


def normal_equations(template, picture, centre, pose, light):
    """(seen, matrix, right-hand side)."""
    matrix, side = np.zeros((5, 5)), np.zeros(5)
    shown, seen = warp(picture, pose, centre, template.shape)
    for row, column in np.argwhere(seen):
        residual = (shown[row, column] - light[1]) / light[0] - float(template[row, column])
        slopes = derivatives(template, centre, row, column)
        for one in range(5):
            side[one] += slopes[one] * residual
            for other in range(5):
                matrix[one, other] += slopes[one] * slopes[other]
    return int(seen.sum()), matrix, side


def correlation(one, other):
    mean_one, mean_other = sum(one) / len(one), sum(other) / len(other)
    both = sum((a - mean_one) * (b - mean_other) for a, b in zip(one, other, strict=True))
    square_one = sum((a - mean_one) ** 2 for a in one)
    square_other = sum((b - mean_other) ** 2 for b in other)
    return both / math.sqrt(square_one * square_other)


def elastic_sums(template, picture, centre, pose, flow, cell=4):
    pulls = np.zeros_like(flow, dtype=np.float64)
    shown, seen = warp(picture, pose, centre, template.shape, flow)
    for row, column in np.argwhere(seen):
        residual = shown[row, column] - float(template[row, column])
        across, along, *_ = derivatives(template, centre, row, column)
        share = residual / (1 + residual**2)
        pulls[0, row // cell, column // cell] += across * share
        pulls[1, row // cell, column // cell] += along * share
    return pulls


def smooth(field, taps):
    """Blurred in both directions, mirrored at the edges."""
    padded = np.pad(field, len(taps) // 2, mode="reflect")
    out = np.zeros(field.shape)
    for row in range(field.shape[0]):
        for column in range(field.shape[1]):
            for down, weight_down in enumerate(taps):
                for right, weight_right in enumerate(taps):
                    out[row, column] += (
                        weight_down * weight_right * padded[row + down, column + right]
                    )
    return out
