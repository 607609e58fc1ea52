"""The coarse search: where in a picture, and how turned, does the template lie?

Correlation of gradient strengths at about 50 pixels, over every shift up to half the picture and a
fan of angles at once, by Fourier transforms. What depends on the template alone is computed once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.imaging import kernels
from inspectd.imaging.pyramid import Point, halved
from inspectd.records import FloatMap

Spectrum: TypeAlias = NDArray[np.complex64]

ANGLE_STEP_DEG = 6.0
"""From one tried angle to the next; the refinement finds its way from half of it."""
_BLUR = 1.0
"""Gaussian blur of the gradient strengths, in pixels: it widens the peak over the angles."""
_LEAST_COMMON = 0.4
"""Share of the template that must lie on the picture."""
_FLAT = 1e-3
"""A part of a picture with less than this share of the whole picture's variance is no match."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place to refine from.

    Attributes:
        score: correlation of the gradient strengths times the root of the share in common.
        right: shift in pixels of the search picture; and down.
        rotation: radians.
    """

    score: float
    right: float
    down: float
    rotation: float


def search_picture(contrast: FloatMap, halvings: int) -> FloatMap:
    """Gradient strength, reduced and blurred.

    Args:
        contrast: float32 (height, width) from `light.local_contrast`.
        halvings: how often both sides are halved.

    Returns:
        float32, both sides divided by 2 to the power of ``halvings``.
    """
    across = cv2.Sobel(contrast, cv2.CV_32F, 1, 0, ksize=3)
    along = cv2.Sobel(contrast, cv2.CV_32F, 0, 1, ksize=3)
    strength = np.asarray(cv2.magnitude(across, along), np.float32)
    for _ in range(halvings):
        strength = halved(strength)
    return np.asarray(cv2.GaussianBlur(strength, (0, 0), _BLUR), np.float32)


def angles_within(limit_deg: float) -> list[float]:
    """The angles to try to reach a limit either way, in radians; once around at most."""
    steps = math.ceil(limit_deg / ANGLE_STEP_DEG)
    whole_turn = round(360.0 / ANGLE_STEP_DEG)
    if 2 * steps + 1 >= whole_turn:
        first, count = -(whole_turn // 2), whole_turn
    else:
        first, count = -steps, 2 * steps + 1
    return [math.radians(ANGLE_STEP_DEG * (first + index)) for index in range(count)]


class CoarseSearch:
    """The search for one template. Holds work arrays, so one search serves one thread.

    For a template of 50 x 50 pixels and 60 angles its tables take 5 MB.
    """

    def __init__(self, template: FloatMap, centre: Point, angles: list[float]) -> None:
        """Turn the template by every angle and transform it.

        Args:
            template: float32 (height, width) from `search_picture`.
            centre: x and y of the middle that it is turned about.
            angles: radians.
        """
        height, width = template.shape
        self._angles = angles
        reach_x, reach_y = width // 2, height // 2
        self._period = (
            cv2.getOptimalDFTSize(height + reach_y),
            cv2.getOptimalDFTSize(width + reach_x),
        )
        whole = self._transformed(np.ones_like(template))
        shape = (len(angles), self._period[0], self._period[1] // 2 + 1)
        self._templates, self._masks = np.empty(shape, np.complex64), np.empty(shape, np.complex64)
        lags = np.ix_(np.arange(-reach_y, reach_y + 1), np.arange(-reach_x, reach_x + 1))
        self._known = np.empty((len(angles), 3, 2 * reach_y + 1, 2 * reach_x + 1), np.float32)
        for index, angle in enumerate(angles):
            turned, seen = _turned(template, centre, angle)
            self._templates[index] = np.conj(self._transformed(turned))
            self._masks[index] = np.conj(self._transformed(seen))
            common, sums, squares = (
                self._inverse(whole * np.conj(self._transformed(field)))[lags]
                for field in (seen, turned, turned * turned)
            )
            common = np.maximum(common, 1.0)
            variance = squares - sums * sums / common
            structured = variance > _FLAT * template.size * float(template.var())
            enough = structured & (common >= _LEAST_COMMON * template.size)
            weight = np.sqrt(common / seen.sum() / np.where(enough, variance, 1.0))
            self._known[index] = sums / common, 1.0 / common, np.where(enough, weight, 0.0)
        self._work = np.empty(self._known.shape[2:], np.float32)
        self._peaks = np.empty((len(angles), 2, 3), np.float32)

    def candidates(self, picture: FloatMap, count: int) -> list[Candidate]:
        """The best places, the best first; at most two of one angle.

        Args:
            picture: float32, of the template's shape, from `search_picture`.
            count: how many.
        """
        spectrum = self._transformed(picture)
        kernels.best_shifts(
            _FLAT * picture.size * float(picture.var()) + 1e-6,
            self._inverse(spectrum * self._masks),
            self._inverse(self._transformed(picture * picture) * self._masks),
            self._inverse(spectrum * self._templates),
            self._known,
            self._work,
            self._peaks,
        )
        best = np.argsort(-self._peaks[:, :, 0], axis=None, kind="stable")[:count]
        found = []
        for angle, peak in (divmod(int(index), 2) for index in best):
            score, right, down = self._peaks[angle, peak]
            found.append(Candidate(float(score), float(right), float(down), self._angles[angle]))
        return found

    def _transformed(self, field: FloatMap) -> Spectrum:
        return np.fft.rfft2(field, self._period).astype(np.complex64, copy=False)

    def _inverse(self, spectrum: Spectrum) -> FloatMap:
        return np.fft.irfft2(spectrum, self._period).astype(np.float32, copy=False)


def _turned(template: FloatMap, centre: Point, angle: float) -> tuple[FloatMap, FloatMap]:
    """The template as a picture would show it turned, and 1 where it is known."""
    out, seen = np.empty_like(template), np.empty(template.shape, np.bool_)
    kernels.warp(template, np.array([0.0, 0.0, -angle]), centre, out, seen)
    return out, seen.astype(np.float32)
