"""Every numba kernel of imaging: a picture laid over the references' template.

Nothing is validated here (the wrappers beside this module do that) and nothing is allocated: the
caller owns the work arrays. All kernels are serial and release the GIL. Each picture row is first
sampled into a row buffer, the only scattered reads; what is summed over it then runs over
contiguous memory, which is what lets the compiler vectorise it.

A pose is float64 (3,): shift right, shift down, rotation. What the template shows at x lies in the
picture at R(rotation) (x - c) + c + shift, c being the middle (see `inspectd.records.Pose`). A
template comes as planes, float32 (5, height, width): its slope along x, along y, in the direction
of a turn about c, the template itself, and ones: the residual's derivatives by the five unknowns
shift right, shift down, rotation, gain and offset.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inspectd.jit import kernel

ACROSS, ALONG, TURN, TEMPLATE, ONES = range(5)
"""The planes of a template."""
UNKNOWNS = 5
CELL = 4
"""Side of a cell of the displacement grid, in pixels."""

_SLACK = 0.01
"""So far outside the outermost pixels' centres, in pixels, a picture still has values."""
_LEAST_SEEN = 0.25
"""Share of the template that must lie on the picture for another step."""
_DAMPING = 1e-3
"""Added to the normal matrix, as a share of its own diagonal."""
_STILL = 0.02
"""A step that moves the template's edge by less than so many pixels is the last."""
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


@kernel
def seen_span(x: float, dx: float, y: float, dy: float, shape: Any, count: int) -> Any:
    """First and one past the last of the points (x + j dx, y + j dy) that lie on a picture.

    Args:
        x: of point 0, pixels, 0 being the first pixel's centre; and y.
        dx: from one point to the next, not both 0; and dy.
        shape: the picture's height and width.
        count: the points are j = 0 to count - 1.
    """
    first, last = 0.0, count - 1.0
    for start, slope, largest in ((x, dx, shape[1] - 1.0), (y, dy, shape[0] - 1.0)):
        low, high = -_SLACK - start, largest + _SLACK - start
        if abs(slope) < 1e-12:
            if low > 0.0 or high < 0.0:
                last = -1.0
        else:
            first = max(first, min(low / slope, high / slope))
            last = min(last, max(low / slope, high / slope))
    if last < first:
        return 0, 0
    return math.ceil(first), math.floor(last) + 1


@kernel
def interpolated(picture: Any, x: Any, y: Any) -> Any:
    """The picture at a point on it, linear between the four pixels around."""
    column = min(max(int(x), 0), picture.shape[1] - 2)
    row = min(max(int(y), 0), picture.shape[0] - 2)
    right, down = x - np.float32(column), y - np.float32(row)
    upper = picture[row, column] + right * (picture[row, column + 1] - picture[row, column])
    lower = picture[row + 1, column] + right * (
        picture[row + 1, column + 1] - picture[row + 1, column]
    )
    return upper + down * (lower - upper)


@kernel
def sample_row(picture: Any, pose: Any, centre: Any, row: int, out: Any) -> Any:
    """A row of the template's frame as the picture shows it.

    Args:
        picture: float32 (height, width).
        pose: float64 (3,).
        centre: x and y of c.
        row: of the template's frame.
        out: float32 (width,); written where the picture has values.

    Returns:
        First and one past the last column written.
    """
    cosine, sine = math.cos(pose[2]), math.sin(pose[2])
    across, along = -centre[0], row - centre[1]
    x = cosine * across - sine * along + centre[0] + pose[0]
    y = sine * across + cosine * along + centre[1] + pose[1]
    first, last = seen_span(x, cosine, y, sine, picture.shape, out.shape[0])
    x_0, y_0, dx, dy = np.float32(x), np.float32(y), np.float32(cosine), np.float32(sine)
    for column in range(first, last):
        step = np.float32(column)
        out[column] = interpolated(picture, x_0 + dx * step, y_0 + dy * step)
    return first, last


@kernel
def warp(picture: Any, pose: Any, centre: Any, out: Any, seen: Any) -> None:
    """The picture in the template's frame, at a pose.

    Args:
        picture: float32 (height, width).
        pose: float64 (3,).
        centre: x and y of c.
        out: float32 (height, width); written, 0 outside the picture.
        seen: bool (height, width); written, whether on the picture.
    """
    out[:] = _ZERO
    seen[:] = False
    for row in range(out.shape[0]):
        first, last = sample_row(picture, pose, centre, row, out[row])
        seen[row, first:last] = True


@kernel
def add_normal_row(planes: Any, row: int, first: int, residuals: Any, sums: Any) -> None:
    """Add one row's share of the normal equations.

    Args:
        planes: float32 (5, height, width) of the template.
        row: of the template; and first, the column where the residuals begin.
        residuals: float32 (n,).
        sums: float64 (5, 6): the matrix's lower triangle and, in the last column, the right-hand
            side; added to.
    """
    last = first + residuals.shape[0]
    for one in range(UNKNOWNS):
        slope = planes[one, row, first:last]
        total = _ZERO
        for column in range(residuals.shape[0]):
            total += slope[column] * residuals[column]
        sums[one, UNKNOWNS] += total
        for other in range(one + 1):
            partner = planes[other, row, first:last]
            total = _ZERO
            for column in range(residuals.shape[0]):
                total += slope[column] * partner[column]
            sums[one, other] += total


@kernel
def normal_equations(
    planes: Any, picture: Any, centre: Any, pose: Any, light: Any, work: Any, sums: Any
) -> int:
    """The normal equations of the picture, sampled at a pose, against the template.

    All pixels weigh alike: weights that fall with the residual take a flat noisy ground for the
    truth and the edges, which alone say where the part lies, for outliers.

    Args:
        planes: float32 (5, height, width) of the template.
        picture: float32 (height, width).
        centre: x and y of c.
        pose: float64 (3,).
        light: gain and offset of the picture, taken out before the comparison.
        work: float32 (width,).
        sums: float64 (5, 6): lower triangle and right-hand side; written.

    Returns:
        Pixels seen.
    """
    sums[:] = 0.0
    gain, offset = np.float32(1.0 / light[0]), np.float32(light[1])
    seen = 0
    for row in range(planes.shape[1]):
        first, last = sample_row(picture, pose, centre, row, work)
        residuals, template = work[first:last], planes[TEMPLATE, row, first:last]
        for column in range(last - first):
            residuals[column] = (residuals[column] - offset) * gain - template[column]
        add_normal_row(planes, row, first, residuals, sums)
        seen += last - first
    return seen


@kernel
def solve(sums: Any) -> bool:
    """Solve the damped normal equations in place by Cholesky's method.

    Args:
        sums: float64 (n, n + 1): the lower triangle and the right-hand side; the latter becomes
            the solution.

    Returns:
        Whether the matrix was positive definite.
    """
    size = sums.shape[0]
    for one in range(size):
        sums[one, one] += _DAMPING * sums[one, one] + 1e-9
        for other in range(one + 1):
            total = sums[one, other]
            for inner in range(other):
                total -= sums[one, inner] * sums[other, inner]
            if other < one:
                sums[one, other] = total / sums[other, other]
            elif total > 0.0:
                sums[one, one] = math.sqrt(total)
            else:
                return False
    for one in range(size):
        for inner in range(one):
            sums[one, size] -= sums[one, inner] * sums[inner, size]
        sums[one, size] /= sums[one, one]
    for one in range(size - 1, -1, -1):
        for inner in range(one + 1, size):
            sums[one, size] -= sums[inner, one] * sums[inner, size]
        sums[one, size] /= sums[one, one]
    return True


@kernel
def refine(
    planes: Any,
    picture: Any,
    centre: Any,
    turning: bool,
    steps: int,
    pose: Any,
    work: Any,
    sums: Any,
) -> None:
    """Improve a pose by inverse-compositional Gauss-Newton steps.

    Args:
        planes: float32 (5, height, width) of the template.
        picture: float32 (height, width).
        centre: x and y of c.
        turning: whether the rotation may change.
        steps: at most.
        pose: float64 (3,); improved in place.
        work: float32 (width,).
        sums: float64 (5, 6).
    """
    gain, offset = 1.0, 0.0
    step = (0.0, 0.0, 0.0)
    radius = 0.25 * (planes.shape[1] + planes.shape[2])
    least = _LEAST_SEEN * planes.shape[1] * planes.shape[2]
    for _ in range(steps):
        seen = normal_equations(planes, picture, centre, pose, (gain, offset), work, sums)
        if seen < least:
            break
        if not turning:
            sums[TURN] = 0.0
            sums[:, TURN] = 0.0
            sums[TURN, TURN] = 1.0
        if not solve(sums):
            break
        right, down, turn = sums[0, UNKNOWNS], sums[1, UNKNOWNS], sums[2, UNKNOWNS]
        if right * step[0] + down * step[1] + turn * step[2] * radius * radius < 0.0:
            # Back again: where the slopes promise too little, whole steps would swing for ever.
            right, down, turn = right / 2, down / 2, turn / 2
        step = (right, down, turn)
        # The picture at the pose shows the template moved by the step: the pose goes back by it.
        cosine, sine = math.cos(pose[2]), math.sin(pose[2])
        pose[0] -= cosine * right - sine * down
        pose[1] -= sine * right + cosine * down
        pose[2] -= turn
        offset += gain * sums[4, UNKNOWNS]
        gain *= min(max(1.0 + sums[3, UNKNOWNS], 0.5), 2.0)
        if abs(right) + abs(down) + abs(turn) * radius < _STILL:
            break


@kernel
def correlation(count: float, sums: Any) -> Any:
    """The correlation coefficient of two rows of figures from their sums.

    Args:
        count: of the figures.
        sums: of a, b, a^2, b^2 and ab.
    """
    one = sums[2] - sums[0] * sums[0] / count
    other = sums[3] - sums[1] * sums[1] / count
    both = sums[4] - sums[0] * sums[1] / count
    return both / math.sqrt(max(one * other, 1e-12))


@kernel
def match(
    template: Any, picture: Any, centre: Any, pose: Any, work: Any, posed: Any, unposed: Any
) -> Any:
    """How well template and picture agree at a pose, and over the same pixels without it.

    Args:
        template: float32 (height, width).
        picture: float32 (height, width).
        centre: x and y of c.
        pose: float64 (3,).
        work: float32 (width,).
        posed: float64 (5,); written; and unposed.

    Returns:
        The share of the template that lies on the picture, the correlation at the pose, and the
        correlation of the picture as it is over the same pixels of the template.
    """
    posed[:] = 0.0
    unposed[:] = 0.0
    seen = 0
    for row in range(template.shape[0]):
        first, last = sample_row(picture, pose, centre, row, work)
        seen += last - first
        expected = template[row, first:last]
        add_products(expected, work[first:last], posed)
        add_products(expected, picture[row, first:last], unposed)
    if seen == 0:
        return 0.0, 0.0, 0.0
    return seen / template.size, correlation(seen, posed), correlation(seen, unposed)


@kernel
def add_products(one: Any, other: Any, sums: Any) -> None:
    """Add a row's a, b, a^2, b^2 and ab to their sums.

    Args:
        one: float32 (n,), a; and other, b.
        sums: float64 (5,); added to.
    """
    a, b, aa, bb, ab = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for column in range(one.shape[0]):
        a += one[column]
        b += other[column]
        aa += one[column] * one[column]
        bb += other[column] * other[column]
        ab += one[column] * other[column]
    sums[0] += a
    sums[1] += b
    sums[2] += aa
    sums[3] += bb
    sums[4] += ab


# ---- the elastic step ---------------------------------------------------------------------------


@kernel
def spread_row(grid: Any, row: int, line: Any, out: Any) -> None:
    """A row of pixels' values from those at the cells' middles, linear between them.

    Args:
        grid: float32 (cell rows, cell columns), both at least 2.
        row: of the pixels.
        line: float32 (at least cell columns,).
        out: float32 (cell columns * CELL,); written.
    """
    columns = grid.shape[1]
    place = min(max((row - 0.5 * (CELL - 1)) / CELL, 0.0), grid.shape[0] - 1.0)
    upper = min(int(place), grid.shape[0] - 2)
    share = np.float32(place - upper)
    above, below = grid[upper], grid[upper + 1]
    for column in range(columns):
        line[column] = above[column] + share * (below[column] - above[column])
    out[: CELL // 2] = line[0]
    for column in range(columns - 1):
        value = line[column]
        rise = (line[column + 1] - value) / np.float32(CELL)
        for pixel in range(CELL):
            place = np.float32(pixel) + _HALF
            out[column * CELL + CELL // 2 + pixel] = value + rise * place
    out[columns * CELL - CELL // 2 :] = line[columns - 1]


@kernel
def displaced_row(
    flow: Any, picture: Any, centre: Any, pose: Any, row: int, work: Any, out: Any, seen: Any
) -> None:
    """A row of the template's frame as the picture shows it, displaced by the flow.

    The picture is sampled at the pose of x + u(x), u being the flow.

    Args:
        flow: float32 (2, cell rows, cell columns): to the right and down, in pixels.
        picture: float32 (height, width).
        centre: x and y of c.
        pose: float64 (3,).
        row: of the template's frame.
        work: float32 (3, cell columns * CELL).
        out: float32 (width,); written, 0 outside the picture.
        seen: bool (width,); written, whether on the picture.
    """
    x, y = work[0], work[1]
    spread_row(flow[0], row, work[2], x)
    spread_row(flow[1], row, work[2], y)
    cosine, sine = np.float32(math.cos(pose[2])), np.float32(math.sin(pose[2]))
    middle, down = np.float32(centre[0]), np.float32(row - centre[1])
    x_0, y_0 = np.float32(centre[0] + pose[0]), np.float32(centre[1] + pose[1])
    for column in range(out.shape[0]):
        across, along = x[column] + np.float32(column) - middle, y[column] + down
        x[column] = cosine * across - sine * along + x_0
        y[column] = sine * across + cosine * along + y_0
    low = np.float32(-_SLACK)
    right = np.float32(picture.shape[1] - 1 + _SLACK)
    bottom = np.float32(picture.shape[0] - 1 + _SLACK)
    for column in range(out.shape[0]):
        value = interpolated(picture, x[column], y[column])
        inside = (x[column] >= low) & (x[column] <= right)
        inside &= (y[column] >= low) & (y[column] <= bottom)
        seen[column] = inside
        out[column] = value if inside else _ZERO


@kernel
def resample(
    flow: Any, picture: Any, centre: Any, pose: Any, work: Any, out: Any, seen: Any
) -> None:
    """The picture in the template's frame, at the pose and displaced by the flow.

    Args:
        flow: float32 (2, cell rows, cell columns).
        picture: float32 (height, width).
        centre: x and y of c.
        pose: float64 (3,).
        work: float32 (3, cell columns * CELL).
        out: float32 (height, width); written, 0 outside the picture.
        seen: bool (height, width); written, whether on the picture.
    """
    for row in range(out.shape[0]):
        displaced_row(flow, picture, centre, pose, row, work, out[row], seen[row])


@kernel
def elastic_sums(
    planes: Any, picture: Any, centre: Any, pose: Any, flow: Any, work: Any, seen: Any, pulls: Any
) -> None:
    """Cell by cell, the sums of slope times r / (1 + r^2), r being the residual.

    Args:
        planes: float32 (5, height, width) of the template.
        picture: float32 (height, width).
        centre: x and y of c.
        pose: float64 (3,).
        flow: float32 (2, cell rows, cell columns).
        work: float32 (4, cell columns * CELL).
        seen: bool (width,).
        pulls: float32 (2, cell rows, cell columns); written.
    """
    pulls[:] = _ZERO
    width = planes.shape[2]
    residuals = work[3, :width]
    for row in range(planes.shape[1]):
        displaced_row(flow, picture, centre, pose, row, work, residuals, seen)
        template = planes[TEMPLATE, row]
        for column in range(width):
            residual = residuals[column] - template[column]
            share = residual / (_ONE + residual * residual)
            residuals[column] = share if seen[column] else _ZERO
        for axis in range(2):
            slopes, totals = planes[axis, row], pulls[axis, row // CELL]
            for column in range(width):
                totals[column // CELL] += slopes[column] * residuals[column]


@kernel
def mirrored(index: int, length: int) -> int:
    """The index within 0 to length - 1 that stands for one outside, the edge not repeated."""
    last = length - 1
    index = abs(index) % (2 * last)
    return min(index, 2 * last - index)


@kernel
def smooth(field: Any, taps: Any, work: Any) -> None:
    """Blur a small field in place, in both directions, mirrored at its edges.

    Args:
        field: float32 (rows, cols), both at least 2.
        taps: float32 (odd n,), the weights from one side to the other.
        work: float32 (rows, cols).
    """
    rows, cols = field.shape
    reach = taps.shape[0] // 2
    for row in range(rows):
        target = work[row]
        target[:] = _ZERO
        for tap in range(taps.shape[0]):
            source = field[mirrored(row + tap - reach, rows)]
            for column in range(cols):
                target[column] += taps[tap] * source[column]
    for row in range(rows):
        source, target = work[row], field[row]
        target[:] = _ZERO
        for tap in range(taps.shape[0]):
            shift = tap - reach
            first, last = min(max(-shift, 0), cols), max(min(cols - shift, cols), 0)
            for column in range(first):
                target[column] += taps[tap] * source[mirrored(column + shift, cols)]
            for column in range(first, last):
                target[column] += taps[tap] * source[column + shift]
            for column in range(max(first, last), cols):
                target[column] += taps[tap] * source[mirrored(column + shift, cols)]


@kernel
def displace(
    planes: Any,
    picture: Any,
    centre: Any,
    pose: Any,
    inverse: Any,
    stiffness: float,
    largest: float,
    wide: Any,
    narrow: Any,
    steps: int,
    flow: Any,
    work: Any,
    seen: Any,
    pulls: Any,
) -> None:
    """Fit the smooth displacement that lays the picture's details over the template's.

    Lucas and Kanade's step in every cell, its sums blurred over the neighbouring cells, pulled
    towards no displacement.

    Args:
        planes: float32 (5, height, width) of the template.
        picture: float32 (height, width).
        centre: x and y of c.
        pose: float64 (3,).
        inverse: float32 (3, cell rows, cell columns): xx, xy and yy of the inverse of each cell's
            blurred sums of products of slopes, ``stiffness`` added to their diagonal.
        stiffness: pull towards no displacement, in the units of these sums.
        largest: displacement, in pixels.
        wide: float32 (odd,), taps of the blur of the sums; and narrow, of the displacement.
        steps: how many.
        flow: float32 (2, cell rows, cell columns); written.
        work: float32 (4, cell columns * CELL).
        seen: bool (width,).
        pulls: float32 (3, cell rows, cell columns).
    """
    flow[:] = _ZERO
    hold, most = np.float32(stiffness), np.float32(largest)
    rows, columns = flow.shape[1], flow.shape[2]
    for _ in range(steps):
        elastic_sums(planes, picture, centre, pose, flow, work, seen, pulls[:2])
        smooth(pulls[0], wide, pulls[2])
        smooth(pulls[1], wide, pulls[2])
        for row in range(rows):
            for column in range(columns):
                right, down = flow[0, row, column], flow[1, row, column]
                p = pulls[0, row, column] + hold * right
                q = pulls[1, row, column] + hold * down
                cross = inverse[1, row, column]
                right -= inverse[0, row, column] * p + cross * q
                down -= cross * p + inverse[2, row, column] * q
                flow[0, row, column] = min(max(right, -most), most)
                flow[1, row, column] = min(max(down, -most), most)
        smooth(flow[0], narrow, pulls[2])
        smooth(flow[1], narrow, pulls[2])


# ---- the search ---------------------------------------------------------------------------------


@kernel
def best_shifts(
    energy: Any, sums: Any, squares: Any, products: Any, known: Any, work: Any, peaks: Any
) -> None:
    """The two best shifts of every angle by normalised cross-correlation.

    Args:
        energy: the least variance sum of a part of the picture that counts as structured.
        sums: float32 (angles, period, period): the picture's sum under the turned template, by
            shift down and right, modulo the period; and squares, the sum of its squares; and
            products, the sum of products with the template.
        known: float32 (angles, 3, rows, cols), by shift from -reach to reach, what the template
            alone decides: its mean, one over the number of pixels in common, and the weight
            (0: too few).
        work: float32 (rows, cols).
        peaks: float32 (angles, 2, 3): score, shift right, shift down; written.
    """
    angles, _, rows, cols = known.shape
    reach_y, reach_x = rows // 2, cols // 2
    floor = np.float32(energy)
    for angle in range(angles):
        mean, share, weight = known[angle, 0], known[angle, 1], known[angle, 2]
        for row in range(rows):
            source = row - reach_y if row >= reach_y else row - reach_y + sums.shape[1]
            for column in range(cols):
                place = column - reach_x if column >= reach_x else column - reach_x + sums.shape[2]
                total = sums[angle, source, place]
                variance = squares[angle, source, place] - total * total * share[row, column]
                product = products[angle, source, place] - total * mean[row, column]
                work[row, column] = weight[row, column] * product / np.sqrt(max(variance, floor))
        for peak in range(2):
            best, top, left = work[0, 0], 0, 0
            for row in range(rows):
                for column in range(cols):
                    if work[row, column] > best:
                        best, top, left = work[row, column], row, column
            peaks[angle, peak, 0] = best
            peaks[angle, peak, 1] = left - reach_x
            peaks[angle, peak, 2] = top - reach_y
            work[max(0, top - 3) : top + 4, max(0, left - 3) : left + 4] = -_ONE
