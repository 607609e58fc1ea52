"""Every numba kernel: arrays and scalars in, arrays out.

Nothing is validated here (the wrappers beside this module do that) and nothing is allocated: the
caller owns the work arrays, so that judging a frame needs no memory. All kernels are serial and
release the GIL. Metrics lie as planes, (6 parts, 3 metrics, rows, cols): each inner loop then runs
along a row of patches over contiguous memory, which is what lets the compiler vectorise it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inspectd.jit import inline, kernel

EPSILON = np.float32(1e-4)
"""e of SPEC.md, "Stage 1"."""

ONE = np.float32(1.0)
HALF = np.float32(0.5)
SQRT2 = np.float32(1.41421356)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
MANTISSA = np.int32(0x007FFFFF)
EXPONENT_OF_ONE = np.int32(0x3F800000)


@inline
def natural_log(value: Any) -> Any:
    """The natural logarithm of a positive normal float32.

    The platform's ``log`` is called one value at a time; this one is arithmetic only, so that the
    loops it stands in go through the vector unit, on x86 and Arm alike. Range reduction to
    [sqrt(1/2), sqrt(2)) and the minimax polynomial of Cephes' ``logf``: within 2 units in the last
    place.
    """
    pattern = np.float32(value).view(np.int32)
    exponent = np.float32((pattern >> np.int32(23)) - np.int32(127))
    mantissa = np.int32((pattern & MANTISSA) | EXPONENT_OF_ONE).view(np.float32)
    high = mantissa > SQRT2
    mantissa = mantissa * HALF if high else mantissa
    exponent = exponent + ONE if high else exponent
    x = mantissa - ONE
    square = x * x
    y = np.float32(7.0376836292e-2)
    y = y * x + np.float32(-1.1514610310e-1)
    y = y * x + np.float32(1.1676998740e-1)
    y = y * x + np.float32(-1.2420140846e-1)
    y = y * x + np.float32(1.4249322787e-1)
    y = y * x + np.float32(-1.6668057665e-1)
    y = y * x + np.float32(2.0000714765e-1)
    y = y * x + np.float32(-2.4999993993e-1)
    y = y * x + np.float32(3.3333331174e-1)
    y = y * x * square
    y = y + exponent * LN2_LOW - HALF * square
    return x + y + exponent * LN2_HIGH


@kernel
def split_columns(image: Any, phases: Any) -> None:
    """Sort each row's pixels by their column modulo the window spacing.

    With that, the pixels that neighbouring windows weigh alike lie side by side.

    Args:
        image: float32 (height, width).
        phases: float32 (height, spacing, ceil(width / spacing)); written.
    """
    height, width = image.shape
    spacing = phases.shape[1]
    for row in range(height):
        for phase in range(spacing):
            for index in range((width - phase + spacing - 1) // spacing):
                phases[row, phase, index] = image[row, index * spacing + phase]


@kernel
def responses(phases: Any, cells: Any, weights: Any, row_spacing: int, out: Any) -> None:
    """The responses of all parts at all windows (SPEC.md, "Convolution parts").

    Args:
        phases: float32 (height, spacing, ...) from `split_columns`.
        cells: int64 (n, 4): part, row, column phase and column shift of each non-zero cell.
        weights: float32 (n,) of these cells.
        row_spacing: rows from one window to the next.
        out: float32 (7, window rows, window columns); written.
    """
    out[:] = np.float32(0.0)
    columns = out.shape[2]
    for row in range(out.shape[1]):
        for index in range(cells.shape[0]):
            part, down, phase, shift = cells[index]
            weight = weights[index]
            source = phases[row * row_spacing + down, phase, shift : shift + columns]
            target = out[part, row]
            for column in range(columns):
                target[column] += weight * source[column]


@inline
def gather_patch_row(
    windows: Any, top: int, step_column: int, reach: Any, cols: int, out: Any
) -> None:
    """One part's four responses of each patch of a row, in row-major order of the 2 x 2 windows.

    Args:
        windows: float32 (window rows, window columns) of the part.
        top: the patches' upper row of windows.
        step_column: windows from one patch to the next.
        reach: (rows, columns) from a patch's first window to its second, in windows.
        cols: patches in the row.
        out: float32 (4, cols); written.
    """
    for corner in range(4):
        source = windows[top + (corner >> 1) * reach[0], (corner & 1) * reach[1] :]
        target = out[corner]
        for column in range(cols):
            target[column] = source[column * step_column]


@kernel
def patch_metrics(windows: Any, step: Any, reach: Any, work: Any, metrics: Any) -> None:
    """Stage 1: ln beta, eta and gamma of every patch and part (SPEC.md, "Stage 1").

    Args:
        windows: float32 (7, window rows, window columns) from `responses`.
        step: (rows, columns) from one patch to the next, in windows.
        reach: (rows, columns) from a patch's first window to its second, in windows.
        work: float32 (11, cols): one row of patches at a time goes through it, gathered first so
            that the arithmetic runs over few and contiguous rows, or it would not be vectorised.
        metrics: float32 (6, 3, rows, cols); written.
    """
    parts, _, rows, cols = metrics.shape
    x, y, raw = work[0:4], work[4:8], work[8:11]
    for row in range(rows):
        top = row * step[0]
        gather_patch_row(windows[parts], top, step[1], reach, cols, y)
        for part in range(parts):
            gather_patch_row(windows[part], top, step[1], reach, cols, x)
            for column in range(cols):
                x0, x1, x2, x3 = x[0, column], x[1, column], x[2, column], x[3, column]
                y0, y1, y2, y3 = y[0, column], y[1, column], y[2, column], y[3, column]
                beta = (x0 * y0 + x1 * y1 + x2 * y2 + x3 * y3 + EPSILON) / (
                    x0 * x0 + x1 * x1 + x2 * x2 + x3 * x3 + EPSILON
                )
                d0, d1 = abs(y0 - beta * x0), abs(y1 - beta * x1)
                d2, d3 = abs(y2 - beta * x2), abs(y3 - beta * x3)
                raw[0, column] = beta
                raw[1, column] = ONE + ((d0 + d1) + (d2 + d3))
                raw[2, column] = ONE + max(d0, d1, d2, d3)
            ln_beta = metrics[part, 0, row]
            eta = metrics[part, 1, row]
            gamma = metrics[part, 2, row]
            for column in range(cols):
                ln_beta[column] = natural_log(raw[0, column])
                distance = natural_log(raw[1, column])
                eta[column] = distance
                gamma[column] = natural_log(raw[2, column]) - distance


@kernel
def minkowski(metrics: Any, reference: Any, p: float, out: Any) -> None:
    """Stage 2: distance over the parts, a metric at a time (SPEC.md, "Stage 2").

    Args:
        metrics: float32 (6, 3, rows, cols).
        reference: float32 (6, 3, rows, cols).
        p: exponent, at least 1. The published 4 is arithmetic only; another calls ``pow``.
        out: float32 (3, rows, cols); written.
    """
    parts, kinds, rows, cols = metrics.shape
    out[:] = np.float32(0.0)
    published = p == 4.0
    exponent = np.float32(p)
    root = np.float32(1.0 / p)
    for kind in range(kinds):
        for row in range(rows):
            total = out[kind, row]
            for part in range(parts):
                here, there = metrics[part, kind, row], reference[part, kind, row]
                if published:
                    for column in range(cols):
                        square = (here[column] - there[column]) ** 2
                        total[column] += square * square
                else:
                    for column in range(cols):
                        total[column] += abs(here[column] - there[column]) ** exponent
            if published:
                for column in range(cols):
                    total[column] = np.sqrt(np.sqrt(total[column]))
            else:
                for column in range(cols):
                    total[column] = total[column] ** root


@kernel
def add_scatter(metrics: Any, mean: Any, valid: Any, scatter: Any) -> None:
    """Add one reference's outer product of deviations, patch by patch.

    Args:
        metrics: float32 (18, n), a reference's metrics at n patches.
        mean: float32 (18, n), the references' mean.
        valid: float32 (n,), 1 where the reference counts, else 0.
        scatter: float64 (171, n), the lower triangle row by row; added to.
    """
    index = 0
    for first in range(metrics.shape[0]):
        for second in range(first + 1):
            total = scatter[index]
            a, b = metrics[first], metrics[second]
            mean_a, mean_b = mean[first], mean[second]
            for patch in range(valid.shape[0]):
                total[patch] += valid[patch] * (
                    (a[patch] - mean_a[patch]) * (b[patch] - mean_b[patch])
                )
            index += 1


@kernel
def mahalanobis(metrics: Any, mean: Any, factors: Any, work: Any, out: Any) -> None:
    """The squared Mahalanobis distance of every patch from the references' mean.

    Args:
        metrics: float32 (18, n).
        mean: float32 (18, n).
        factors: float32 (171, n), for each patch the lower triangle L, row by row, with
            L^T L the inverse of the covariance.
        work: float32 (19, block): so many patches go through at a time, few enough to stay in the
            processor's nearest memory.
        out: float32 (n,); written.
    """
    kinds, patches = metrics.shape
    block = work.shape[1]
    for start in range(0, patches, block):
        count = min(block, patches - start)
        square = out[start : start + count]
        square[:] = np.float32(0.0)
        for kind in range(kinds):
            here, there, deviation = metrics[kind, start:], mean[kind, start:], work[kind]
            for patch in range(count):
                deviation[patch] = here[patch] - there[patch]
        index = 0
        projected = work[kinds]
        for first in range(kinds):
            projected[:count] = np.float32(0.0)
            for second in range(first + 1):
                factor, deviation = factors[index, start:], work[second]
                for patch in range(count):
                    projected[patch] += factor[patch] * deviation[patch]
                index += 1
            for patch in range(count):
                square[patch] += projected[patch] * projected[patch]


@kernel
def nearest(metrics: Any, references: Any, candidates: Any, work: Any, out: Any) -> None:
    """The squared Euclidean distance of every patch from the nearest of its candidates.

    Patches lie in rows of one pitch, flat, so that a neighbour is a fixed number of places away
    and no edge needs a case of its own: between the rows the references hold what is far away.

    Args:
        metrics: float32 (18, n).
        references: float32 (m, 18, n + margin), margin at least the largest offset; metrics that
            no patch may match are far away.
        candidates: int64 (k, 2): reference, and how many places further on its patch lies.
        work: float32 (block,): so many patches go through at a time, few enough to stay in the
            processor's nearer memory.
        out: float32 (n,); written. Infinite if there are no candidates.
    """
    kinds, patches = metrics.shape
    block = work.shape[0]
    for start in range(0, patches, block):
        count = min(block, patches - start)
        best = out[start : start + count]
        best[:] = np.float32(np.inf)
        for index in range(candidates.shape[0]):
            reference, offset = candidates[index]
            there = start + offset
            work[:count] = np.float32(0.0)
            # Three at a time: fewer trips through the work array, and few enough arrays for the
            # compiler to see that none overlaps it, or it would not vectorise.
            for kind in range(0, kinds, 3):
                x0, y0 = metrics[kind, start:], references[reference, kind, there:]
                x1, y1 = metrics[kind + 1, start:], references[reference, kind + 1, there:]
                x2, y2 = metrics[kind + 2, start:], references[reference, kind + 2, there:]
                for patch in range(count):
                    d0, d1, d2 = (
                        x0[patch] - y0[patch],
                        x1[patch] - y1[patch],
                        x2[patch] - y2[patch],
                    )
                    work[patch] += d0 * d0 + d1 * d1 + d2 * d2
            for patch in range(count):
                best[patch] = min(best[patch], work[patch])
