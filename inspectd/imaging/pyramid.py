"""A template at several resolutions, and the refinement of a pose against it, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.imaging import kernels
from inspectd.records import FloatMap

Vector: TypeAlias = NDArray[np.float64]
"""A pose as the kernels take it: float64 (3,), shift right, shift down (pixels), rotation (rad)."""
Point: TypeAlias = tuple[float, float]

COARSEST_SIDE, NARROWEST_SIDE = 40, 8
"""The template is halved while its longest side stays at least the one, its shortest the other."""
STEPS = 10
"""Gauss-Newton steps a level, at most."""


@dataclass(frozen=True, slots=True)
class Match:
    """How well a picture agrees with a template at a pose.

    Attributes:
        cover: share of the template that lies on the picture.
        posed: correlation at the pose, over these pixels, -1 to 1.
        unposed: correlation of the picture as it is, over the same pixels of the template.
    """

    cover: float
    posed: float
    unposed: float

    @property
    def gain(self) -> float:
        """What the pose adds."""
        return self.posed - self.unposed


def halved(picture: FloatMap, out: FloatMap | None = None) -> FloatMap:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    even = picture[: 2 * height, : 2 * width]
    small = cv2.resize(even, (width, height), dst=out, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def middle(shape: tuple[int, int], level: int) -> Point:
    """The middle of a picture, x and y in its own pixels, after ``level`` halvings.

    That of the picture halved, not of the half picture: where a last row was left out they differ,
    and shifts would not double from level to level.
    """
    height, width = shape
    scale = 2**level
    return ((width - 1) / 2 - (scale - 1) / 2) / scale, ((height - 1) / 2 - (scale - 1) / 2) / scale


def template_planes(template: FloatMap, centre: Point) -> NDArray[np.float32]:
    """A template with its slopes, as the kernels take it: float32 (5, height, width)."""
    height, width = template.shape
    along, across = np.gradient(template)
    x = np.arange(width) - centre[0]
    y = np.arange(height)[:, np.newaxis] - centre[1]
    planes = (across, along, x * along - y * across, template, np.ones_like(template))
    return np.stack(planes).astype(np.float32)


class Pyramid:
    """A template at all its resolutions. Holds work arrays: one pyramid serves one thread."""

    def __init__(self, template: FloatMap, *, turning: bool) -> None:
        """Halve the template and take its slopes.

        Args:
            template: float32 (height, width), local contrast.
            turning: whether a refinement may change the rotation.
        """
        self._turning = turning
        shape = template.shape
        self.middle = middle(shape, 0)
        self._levels: list[tuple[NDArray[np.float32], Point]] = []
        while True:
            centre = middle(shape, len(self._levels))
            self._levels.append((template_planes(template, centre), centre))
            if (
                max(template.shape) // 2 < COARSEST_SIDE
                or min(template.shape) // 2 < NARROWEST_SIDE
            ):
                break
            template = halved(template)
        self._pictures = [np.empty_like(planes[0]) for planes, _ in self._levels]
        self._work = np.empty(shape[1], np.float32)
        self._sums = np.empty((kernels.UNKNOWNS, kernels.UNKNOWNS + 1))
        self._products = np.empty((2, 5))

    @property
    def planes(self) -> NDArray[np.float32]:
        """The template at full resolution, float32 (5, height, width)."""
        return self._levels[0][0]

    @property
    def template(self) -> FloatMap:
        template: FloatMap = self.planes[kernels.TEMPLATE]
        return template

    @property
    def halvings(self) -> int:
        return len(self._levels) - 1

    def load(self, contrast: FloatMap) -> None:
        """Take a picture, float32 (height, width), to be refined and matched."""
        self._pictures[0] = contrast
        for level in range(self.halvings):
            halved(self._pictures[level], self._pictures[level + 1])

    def refined(self, pose: Vector, halvings: int) -> Vector:
        """The pose improved, from the resolution after so many halvings to the full one.

        Args:
            pose: float64 (3,), in pixels of the full resolution.
            halvings: at most `halvings` of the pyramid.
        """
        better = pose.copy()
        better[:2] /= 2**halvings
        for level in range(halvings, -1, -1):
            planes, centre = self._levels[level]
            kernels.refine(
                planes,
                self._pictures[level],
                centre,
                self._turning,
                STEPS,
                better,
                self._work,
                self._sums,
            )
            if level:
                better[:2] *= 2
        return better

    def match(self, pose: Vector) -> Match:
        """How well the picture agrees with the template at a pose."""
        return Match(
            *kernels.match(
                self.template,
                self._pictures[0],
                self.middle,
                pose,
                self._work,
                self._products[0],
                self._products[1],
            )
        )
