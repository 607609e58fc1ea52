"""The specification in plain loops: the oracle that every kernel is compared with.

Written for reading, in float64, without numba and without anything from the package.
"""

import math

import numpy as np

EPSILON = 1e-4


def part_bank(n=5, w=1, centre_weight=2):
    half = (w - 1) // 2
    middle = n // 2
    bank = np.zeros((7, n, n))
    for r in range(n):
        for c in range(n):
            top, bottom, left, right = r < w, r >= n - w, c < w, c >= n - w
            inner = n // 5 <= r < n - n // 5 and (n + 1) // 4 <= c < n - (n + 1) // 4
            bank[0, r, c] = top or right
            bank[1, r, c] = bottom or right
            bank[2, r, c] = bottom or left
            bank[3, r, c] = top or left
            bank[4, r, c] = (centre_weight if inner else 1) * (abs(r + c - (n - 1)) <= half)
            bank[5, r, c] = (centre_weight if inner else 1) * (abs(r - c) <= half)
            bank[6, r, c] = abs(r - middle) <= half or abs(c - middle) <= half
    return bank


def soart3(x, y):
    xy = xx = 0.0
    for a, b in zip(x, y, strict=True):
        xy += a * b
        xx += a * a
    beta = (xy + EPSILON) / (xx + EPSILON)
    total = largest = 0.0
    for a, b in zip(x, y, strict=True):
        distance = abs(b - beta * a)
        total += distance
        largest = max(largest, distance)
    eta = math.log(1 + total)
    return math.log(beta), eta, math.log(1 + largest) - eta


def response(image, part, top, left):
    n = len(part)
    total = 0.0
    for r in range(n):
        for c in range(n):
            total += float(part[r, c]) * float(image[top + r, left + c])
    return total


def stage1(image, bank, stride=(2, 2), step=None):
    n = bank.shape[1]
    step = step or (2 * stride[0], 2 * stride[1])
    height, width = image.shape
    rows = (height - stride[0] - n) // step[0] + 1
    cols = (width - stride[1] - n) // step[1] + 1
    metrics = np.zeros((rows, cols, 6, 3))
    for i in range(rows):
        for j in range(cols):
            vectors = [
                [
                    response(
                        image, part, i * step[0] + dr * stride[0], j * step[1] + dc * stride[1]
                    )
                    for dr in (0, 1)
                    for dc in (0, 1)
                ]
                for part in bank
            ]
            for k in range(6):
                metrics[i, j, k] = soart3(vectors[k], vectors[6])
    return metrics


def stage2(metrics, reference, p=4):
    rows, cols = metrics.shape[:2]
    distances = np.zeros((rows, cols, 3))
    for i in range(rows):
        for j in range(cols):
            for m in range(3):
                total = 0.0
                for k in range(6):
                    total += abs(float(metrics[i, j, k, m]) - float(reference[i, j, k, m])) ** p
                distances[i, j, m] = total ** (1 / p)
    return distances


def scalar_map(distances, weights=(1, 5, 10)):
    rows, cols = distances.shape[:2]
    result = np.zeros((rows, cols))
    for i in range(rows):
        for j in range(cols):
            for m in range(3):
                result[i, j] += weights[m] * float(distances[i, j, m])
    return result


def attention(scalar):
    rows, cols = scalar.shape
    root = math.sqrt(rows * cols)
    largest = max(float(scalar[i, j]) for i in range(rows) for j in range(cols))
    result = np.zeros((rows, cols))
    for i in range(rows):
        for j in range(cols):
            result[i, j] = math.exp(root * (float(scalar[i, j]) - largest))
    return result / result.sum()


def squared_distance(a, b):
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def nearest(metrics, seen, references, finer=1, tolerance=1):
    """Squared distance of each patch from the nearest seen patch of any reference within reach.

    metrics (rows, cols, 18), seen (rows, cols); references: the same of each, ``finer`` times as
    dense. 0 where the picture, or every reference, does not show the patch.
    """
    rows, cols = seen.shape
    squares = np.zeros((rows, cols))
    for i in range(rows):
        for j in range(cols):
            if not seen[i, j] or not any(shown[i * finer, j * finer] for _, shown in references):
                continue
            best = math.inf
            for values, shown in references:
                for r in range(i * finer - tolerance, i * finer + tolerance + 1):
                    for c in range(j * finer - tolerance, j * finer + tolerance + 1):
                        inside = 0 <= r < shown.shape[0] and 0 <= c < shown.shape[1]
                        if inside and shown[r, c]:
                            best = min(best, squared_distance(metrics[i, j], values[r, c]))
            squares[i, j] = best
    return squares


def whitening(references, least_variance):
    """The matrix that takes the metrics' covariance within the places, pooled, to one."""
    rows, cols = references[0][1].shape
    scatter, freedom = np.zeros((18, 18)), 0
    for i in range(rows):
        for j in range(cols):
            here = [values[i, j].astype(float) for values, shown in references if shown[i, j]]
            for values in here:
                deviation = values - sum(here) / len(here)
                scatter += np.outer(deviation, deviation)
            freedom += max(len(here) - 1, 0)
    covariance = scatter / freedom + least_variance * np.eye(18)
    return np.linalg.inv(np.linalg.cholesky(covariance))


def squared_spread(references, left_out=None, tolerance=1, side=11, share=0.5):
    """Mean square distance of the references from each other, round each place and overall.

    The references are whitened; ``left_out`` still counts as a neighbour of the others.
    """
    rows, cols = references[0][1].shape
    total, count = np.zeros((rows, cols)), np.zeros((rows, cols))
    for index, (values, shown) in enumerate(references):
        if index == left_out:
            continue
        others = [other for position, other in enumerate(references) if position != index]
        total += nearest(values, shown, others, 1, tolerance)
        count += shown & np.any([other for _, other in others], axis=0)
    pooled = total.sum() / count.sum()
    spread = np.zeros((rows, cols))
    half = side // 2
    mirrored = [np.pad(plane, half, mode="symmetric") for plane in (total, count)]
    for i in range(rows):
        for j in range(cols):
            totals, counts = (plane[i : i + side, j : j + side].sum() for plane in mirrored)
            local = totals / counts if counts else pooled
            spread[i, j] = share * local + (1 - share) * pooled
    return spread


# ---- references that know their own spread -----------------------------------------------------


def mean_and_scatter(references, seen):
    """Mean of the seen metrics, and the sum of the outer products of the deviations from it.

    references: n arrays (places, 18); seen: n arrays (places,) of truth values.
    """
    places, kinds = references[0].shape
    mean = np.zeros((places, kinds))
    scatter = np.zeros((places, kinds, kinds))
    for place in range(places):
        shown = [
            reference[place] for reference, at in zip(references, seen, strict=True) if at[place]
        ]
        for metrics in shown:
            mean[place] += metrics / len(shown)
        for metrics in shown:
            for a in range(kinds):
                for b in range(kinds):
                    scatter[place, a, b] += (metrics[a] - mean[place, a]) * (
                        metrics[b] - mean[place, b]
                    )
    return mean, scatter


def mahalanobis(metrics, mean, covariance):
    """Square root of d' C^-1 d / 18 at each place."""
    result = np.zeros(len(metrics))
    for place in range(len(metrics)):
        deviation = metrics[place] - mean[place]
        solved = np.linalg.solve(covariance[place], deviation)
        total = 0.0
        for a, b in zip(deviation, solved, strict=True):
            total += a * b
        result[place] = math.sqrt(total / len(deviation))
    return result
