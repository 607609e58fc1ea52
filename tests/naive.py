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
