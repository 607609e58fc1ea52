"""Is the station empty? A picture against pictures of the station without a part.

What is asked is not whether the part is missing, but whether anything besides the empty station is
there: wherever the picture differs from it by more than light, noise and a pixel's play explain,
something lies there, be it a part, half of one, another product, or what fell in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, hypot, radians, sin
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.imaging.align import SMALLEST_SIDE
from inspectd.imaging.light import local_contrast
from inspectd.imaging.preprocess import to_unit
from inspectd.imaging.pyramid import Pyramid, Vector
from inspectd.records import FloatMap, GreyImage, Measure
from inspectd.settings import Program

Light: TypeAlias = NDArray[np.float64]
"""float64 (3,), a plane of gains: in the middle, and what is added at the right and lower edge."""

LEAST_PRESENCE = 0.05
"""Grey levels (of 1) by which a picture must differ somewhere from the empty station for anything
to be there. In the worst noise and light tried, empty stations reach 0.04; the faintest of the
simulator's objects has 0.09, a part 0.13 (docs/accuracy.md)."""
PARTS_SHARE = 0.5
"""Nor is more needed than this share of what every reference has: a faint part is a part."""
BARE_SHARE = 0.5
"""Share of what the barest reference covers of the station that must be bare for a picture not to
show a good part, whatever its score."""
WINDOW = 3
"""Pixels of the inspected picture, both sides, over which a difference is averaged: one pixel's
noise is no object."""
PLAY = 0.5
"""Pixels by which a detail of the station may lie elsewhere: vibration, and where the reduction
happens to cut. With a whole one, small objects hide among the details of a ground."""
STEADY = 2.0 / 255.0
"""Grey levels of noise that the light is fitted against: on black ground it stays as it was."""

DARK = 13.0 / 255.0
"""What is not brighter than this tells nothing of the light."""
WHOLLY = 0.999
"""A pixel of which less comes from inside the picture is not seen."""
LEAST_SEEN = 0.75
"""Share of the station that must be seen: what was not seen may hide something."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is in a picture besides the empty station.

    Attributes:
        presence: by how many grey levels (of 1) it differs where it differs most.
        ground: share of the picture that differs by less than `LEAST_PRESENCE`; 0 where the light
            is not that of the station, and nothing can be said.
    """

    presence: float
    ground: float


class EmptyStation:
    """Pictures of a station without a part; holds work arrays, so it serves one thread.

    Attributes:
        faintest: presence of the reference that differs least from the empty station.
    """

    def __init__(
        self,
        pictures: Sequence[GreyImage],
        references: Sequence[GreyImage],
        program: Program,
        light_spread: float,
    ) -> None:
        """Learn how much of a difference makes a part.

        Args:
            pictures: one or more of the empty station, reduced, uint8 (height, width).
            references: one or more of good parts, reduced, of the same shape.
            program: how light and place may change.
            light_spread: how many times as bright as the darkest reference the brightest one is.
        """
        self._units = [to_unit(picture) for picture in pictures]
        self._program = program
        self._largest_gain = light_spread * (1.0 + program.health.max_light_change)
        height, width = pictures[0].shape
        self._shape = height, width
        x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        self._light = np.stack([np.ones_like(x), x, y]).reshape(3, -1).astype(np.float32)
        self._play = [_with_play(unit) for unit in self._units]
        self._pyramids: dict[int, Pyramid] = {}
        self._flat = np.stack(self._units).reshape(len(pictures), -1)
        self._pull = STEADY**2 * height * width
        self._normal = np.stack([self._normal_matrix(unit) for unit in self._flat])
        found = [self._at_rest(to_unit(reference))[0] for reference in references]
        self._usual = Found(
            float(np.median([one.presence for one in found])),
            float(np.median([one.ground for one in found])),
        )
        self._most_ground = max(one.ground for one in found)
        self._bare = self._most_ground + BARE_SHARE * (1.0 - self._most_ground)
        self.faintest = min(one.presence for one in found)
        self._least = min(LEAST_PRESENCE, PARTS_SHARE * self.faintest)

    @property
    def tells_parts_apart(self) -> bool:
        """Whether every reference differs clearly from the empty station."""
        return self._least == LEAST_PRESENCE

    def compare(self, picture: GreyImage, *, recognised: bool) -> tuple[Measure, Measure]:
        """A picture's presence, bounded by an empty station's, and ground, bounded by good parts'.

        Args:
            picture: uint8 (height, width), reduced.
            recognised: whether the part was recognised in it. Else, and where more of the station
                is bare than with any good part, the station itself may have moved, as far as the
                program allows a part to.
        """
        unit = to_unit(picture)
        found, index, light = self._at_rest(unit)
        likely = not recognised or found.ground > self._most_ground
        if likely and found.presence >= self._least:
            found = self._looked_into(unit, index, light, found)
        return (
            Measure("presence", found.presence, self._usual.presence, low=self._least),
            Measure("ground", found.ground, self._usual.ground, high=self._bare),
        )

    def _looked_into(self, unit: FloatMap, index: int, light: Light, found: Found) -> Found:
        """What is there in a picture that shows neither part nor empty station at first sight."""
        station = self._units[index]
        lit = station > DARK
        # A median, since the fit of the light follows what lies there.
        ratio = float(np.median(unit[lit] / station[lit])) if lit.any() else 1.0
        if not 1.0 / self._largest_gain <= ratio <= self._largest_gain:
            return Found(found.presence, 0.0)
        moved = self._moved(unit, index, light)
        return moved if moved is not None and moved.presence < found.presence else found

    # ---- at rest -----------------------------------------------------------------------------

    def _at_rest(self, unit: FloatMap) -> tuple[Found, int, Light]:
        """What is there, against which of the pictures, in which light."""
        index, light = self._nearest(unit)
        return _found(self._differences(unit, light, self._play[index])), index, light

    def _nearest(self, unit: FloatMap) -> tuple[int, Light]:
        """The picture that explains another best, and in which light."""
        flat = unit.reshape(-1)
        products = (self._flat @ (self._light * flat).T).astype(np.float64)
        lights = np.zeros_like(products)
        lights[:, 0] = 1.0
        if self._program.light != "none":
            products[:, 0] += self._pull
            solved = np.linalg.solve(self._normal, products[:, :, np.newaxis])
            lights = np.asarray(solved[:, :, 0], np.float64)
        fitted = np.einsum("ni,nij,nj->n", lights, self._normal, lights)
        index = int(np.argmin(fitted - 2 * (lights * products).sum(axis=1)))
        return index, lights[index]

    def _normal_matrix(self, flat: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of the fit of the light: a plane of gains, pulled towards 1. float64 (3, 3)."""
        lit = (self._light * flat).astype(np.float64)
        normal: NDArray[np.float64] = lit @ lit.T + self._pull * np.eye(3)
        return normal

    def _differences(
        self, unit: FloatMap, light: Light, station: tuple[FloatMap, FloatMap]
    ) -> FloatMap:
        """By how much each pixel differs from what the station may look like.

        Args:
            unit: the picture.
            light: in which the station is seen in it.
            station: the least and the largest of each pixel, in its own light.

        Returns:
            float32 (height, width), grey levels (of 1) in the station's own light.
        """
        gain = self._gain(light)
        least, largest = station
        above = cv2.subtract(unit, gain * largest)
        below = cv2.subtract(gain * least, unit)
        differences = np.maximum(np.maximum(above, below), 0.0) / gain
        return np.asarray(cv2.blur(differences, (WINDOW, WINDOW)), np.float32)

    def _gain(self, light: Light) -> FloatMap:
        """How much brighter each pixel may be, as far as the program allows."""
        plane = (light.astype(np.float32) @ self._light).reshape(self._shape)
        gain: FloatMap = np.clip(plane, 1.0 / self._largest_gain, self._largest_gain)
        return gain

    # ---- moved -------------------------------------------------------------------------------

    def _moved(self, unit: FloatMap, index: int, light: Light) -> Found | None:
        """What is there besides the station itself where that has moved.

        What has come into the picture beside it was not taught: it must not be darker or brighter
        than the station is about there.

        Returns:
            None where it cannot have moved, or not so far.
        """
        pose = self._pose(unit, index)
        if pose is None:
            return None
        height, width = self._shape
        x, y = (width - 1) / 2, (height - 1) / 2
        cosine, sine = cos(pose[2]), sin(pose[2])
        to_picture = np.array(
            [
                [cosine, -sine, x - cosine * x + sine * y + pose[0]],
                [sine, cosine, y - sine * x - cosine * y + pose[1]],
            ]
        )
        laid = _warped(unit, to_picture)
        seen = _warped(np.ones_like(unit), to_picture) > WHOLLY
        if seen.mean() < LEAST_SEEN:
            return None
        laid = np.where(seen, laid, self._units[index] * self._gain(light))
        reach = ceil(hypot(pose[0], pose[1]) + abs(pose[2]) * hypot(height, width) / 2) + 1
        beside = np.where(
            _warped(np.ones_like(unit), to_picture, back=False) > WHOLLY,
            0.0,
            self._differences(unit, light, _extremes(self._units[index], 2 * reach + 1)),
        )
        index, light = self._nearest(laid)
        within = np.where(seen, self._differences(laid, light, self._play[index]), 0.0)
        return _found(np.maximum(within, beside))

    def _pose(self, unit: FloatMap, index: int) -> Vector | None:
        """Where the station lies; None if the program lets nothing lie elsewhere so far."""
        settings = self._program.alignment
        if settings.mode not in ("shift", "rigid") or min(self._shape) < SMALLEST_SIDE:
            return None
        if index not in self._pyramids:
            contrast = local_contrast(self._units[index])
            self._pyramids[index] = Pyramid(contrast, turning=settings.mode == "rigid")
        pyramid = self._pyramids[index]
        pyramid.load(local_contrast(unit))
        pose = pyramid.refined(np.zeros(3), pyramid.halvings)
        near = hypot(pose[0], pose[1]) <= settings.shift_limit * max(self._shape)
        upright = abs(pose[2]) <= radians(settings.rotation_limit_deg)
        return pose if near and upright else None


def _found(differences: FloatMap) -> Found:
    return Found(float(differences.max()), float(np.mean(differences < LEAST_PRESENCE)))


def _with_play(unit: FloatMap) -> tuple[FloatMap, FloatMap]:
    """The least and the largest that a pixel may show: its neighbours' share in it is the play."""
    least, largest = _extremes(unit, 3)
    return unit + PLAY * (least - unit), unit + PLAY * (largest - unit)


def _extremes(unit: FloatMap, side: int) -> tuple[FloatMap, FloatMap]:
    """The least and the largest in a square around each pixel."""
    around = np.ones((side, side), np.uint8)
    least, largest = cv2.erode(unit, around), cv2.dilate(unit, around)
    return np.asarray(least, np.float32), np.asarray(largest, np.float32)


def _warped(unit: FloatMap, to_picture: NDArray[np.float64], *, back: bool = True) -> FloatMap:
    """A picture laid back, or the other way; 0 outside."""
    height, width = unit.shape
    flags = cv2.INTER_LINEAR | (cv2.WARP_INVERSE_MAP if back else 0)
    return np.asarray(cv2.warpAffine(unit, to_picture, (width, height), flags=flags), np.float32)
