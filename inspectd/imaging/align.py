"""A part laid over the references: position adjustment, and the elastic step after it.

The references' common picture, the template, is a mean of local contrast (see `light`) in the
frame of one of them, the anchor: taking out another does not move the regions. A pose is found by
Gauss-Newton steps down a pyramid, in mode search after a coarse search over all places and
angles; it is kept only where it measurably improved the match. The elastic step then takes out
the small displacements of details that a good part may have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ImageError
from inspectd.imaging.elastic import Elastic
from inspectd.imaging.light import local_contrast
from inspectd.imaging.pyramid import Match, Pyramid, Vector, middle
from inspectd.imaging.search import ANGLE_STEP_DEG, CoarseSearch, angles_within, search_picture
from inspectd.records import Alignment, FloatMap, Pose
from inspectd.settings import AlignmentSettings

SMALLEST_SIDE = 16
"""Pixels that both sides of a picture must have for its place to be adjusted."""
GAIN, SEARCH_GAIN = 0.002, 0.02
"""Correlation that a pose must add to be kept: a small one, and one that the search found."""
CANDIDATES, NEAR_CANDIDATES = 6, 3
"""Places of the coarse search that are refined: in mode search, and where it is but asked."""
TETHER_SHARE, TETHER_RADIANS = 0.12, 0.3
"""A refinement that runs further from its candidate (share of the longest side) has lost it."""
FULL_COVER = 0.9
"""A pose that sees a smaller share of the template counts for less."""
FOUND = 0.3
"""Correlation that a part must reach to count as found: no pose with less is kept. The search finds
places with up to 0.27 in pictures of other things and 0.34 in blurred noise; good parts have 0.37,
against a single reference, to 0.99."""
DOUBTFUL = 0.7
"""A part that matches less after a small adjustment may lie further off than is allowed: the search
is asked."""
CLEARLY = 0.1
"""Correlation that a place further off than is allowed must add to be believed. Parts that were
moved there add 0.1 to 1; on defective ones in their place the search adds up to 0.02."""
BEYOND_DEG = 18.0
"""So far beyond the rotation allowed a turned part is still recognised."""
ROUNDS = 2
"""How often the template is made anew from the placed references: rigidly, then elastically."""
TEMPLATE_PICTURES = 100
"""The template is made of so many references at most, spread over the list."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """A picture laid over the references.

    Attributes:
        picture: float32 (height, width), the picture resampled once into the references' place;
            what lies outside it is 0. A picture whose part is not within the allowed shift and
            rotation stays as it is.
        seen: bool (height, width), whether the pixel comes from inside the picture.
        alignment: the pose and how well it matches.
    """

    picture: FloatMap
    seen: NDArray[np.bool_]
    alignment: Alignment


def to_picture(pose: Pose, x: float, y: float, shape: tuple[int, int]) -> tuple[float, float]:
    """Where in the picture a point of the references lies, the elastic step left out.

    Args:
        pose: of the picture's part.
        x: pixels, 0 being the edge of the first pixel; and y.
        shape: height and width of the picture.
    """
    middle_x, middle_y = shape[1] / 2, shape[0] / 2
    cosine, sine = math.cos(pose.rotation), math.sin(pose.rotation)
    across, along = x - middle_x, y - middle_y
    return (
        cosine * across - sine * along + middle_x + pose.dx,
        sine * across + cosine * along + middle_y + pose.dy,
    )


class Aligner:
    """The template of the good parts, and the adjustment of any picture to it.

    Holds work arrays: one aligner serves one thread.
    """

    def __init__(
        self, template: FloatMap, settings: AlignmentSettings, *, elastic: bool = False
    ) -> None:
        """Adjust to a template as it is; `learn` makes one from pictures.

        Args:
            template: float32 (height, width), local contrast.
            settings: the mode and its limits.
            elastic: whether the elastic step follows.
        """
        self._settings = settings
        self._shift_limit = settings.shift_limit * max(template.shape)
        self._rotation_limit = math.radians(settings.rotation_limit_deg)
        self._shape = template.shape
        self._contrast = np.empty_like(template)
        self._elastic_step = elastic
        self._pyramid = Pyramid(template, turning=settings.mode != "shift")
        self._elastic = Elastic(self._pyramid.planes, self._pyramid.middle)

    @classmethod
    def learn(
        cls, pictures: Sequence[FloatMap], anchor: FloatMap, settings: AlignmentSettings
    ) -> tuple[Aligner, list[Placement]]:
        """Make the template of good pictures, and lay them over each other.

        Args:
            pictures: float32 (height, width) each, or (n, height, width); 0 to 1, of one shape.
            anchor: float32 (height, width), the picture whose frame is the template's; one of the
                pictures or not.
            settings: the mode and its limits.

        Returns:
            The aligner, and where it places each picture.

        Raises:
            ImageError: pictures too small to be adjusted.
        """
        height, width = anchor.shape
        if settings.mode != "none" and min(height, width) < SMALLEST_SIDE:
            raise ImageError(
                f"a picture of {width} x {height} pixels is too small to adjust its place, both "
                f"sides need at least {SMALLEST_SIDE}; raise resolution, or set alignment.mode "
                "to none"
            )
        aligner = cls(local_contrast(anchor), settings)
        apart = -(-len(pictures) // TEMPLATE_PICTURES)
        contrasts = [local_contrast(picture) for picture in pictures[::apart]]
        if settings.mode == "none":
            aligner = cls(np.mean(contrasts, axis=0, dtype=np.float32), settings)
        else:
            poses: list[Vector | None] = [None] * len(contrasts)
            elastic_rounds = ROUNDS if len(pictures) > 1 else 0
            for elastic in [False] * ROUNDS + [True] * elastic_rounds:
                poses = list(map(aligner._pose_of, contrasts, poses))
                template = aligner._common(contrasts, poses, elastic=elastic)
                aligner = cls(template, settings, elastic=elastic_rounds > 0)
        return aligner, [aligner.place(picture) for picture in pictures]

    def place(self, picture: FloatMap) -> Placement:
        """Lay a picture over the references.

        With mode none the picture comes back as it is, and only its match is measured.

        Args:
            picture: float32 (height, width), 0 to 1, of the references' shape.
        """
        local_contrast(picture, self._contrast)
        if self._settings.mode == "none":
            self._pyramid.load(self._contrast)
            match = self._unmoved().match.posed
            seen = np.ones(picture.shape, np.bool_)
            return Placement(picture, seen, Alignment(Pose(), match, match, within=True))
        pose, alignment = self._locate(self._contrast)
        self._elastic.clear()
        if not alignment.within:
            pose = np.zeros(3)
        elif self._elastic_step:
            self._elastic.fit(self._contrast, pose)
        resampled, seen = self._elastic.resampled(picture, pose)
        return Placement(resampled, seen, alignment)

    # ---- the template ----------------------------------------------------------------------------

    @cached_property
    def _search(self) -> CoarseSearch:
        """Made when it is first asked: most templates of a learning, and mode none, need none."""
        halvings = self._pyramid.halvings
        limit = self._settings.rotation_limit_deg
        angles = {
            "search": angles_within(limit + ANGLE_STEP_DEG),
            "rigid": angles_within(limit + BEYOND_DEG),
        }
        return CoarseSearch(
            search_picture(self._pyramid.template, halvings),
            middle(self._shape, halvings),
            angles.get(self._settings.mode, [0.0]),
        )

    def _pose_of(self, contrast: FloatMap, known: Vector | None) -> Vector | None:
        """The pose of one of the pictures that the template is made of; None if not within.

        Args:
            contrast: float32 (height, width).
            known: its pose against the template before this one.
        """
        if self._settings.mode != "search" or known is None:
            pose, alignment = self._locate(contrast)
            return pose if alignment.within else None
        self._pyramid.load(contrast)
        better = self._pyramid.refined(known, 0)
        improved = self._pyramid.match(better).posed > self._pyramid.match(known).posed
        return better if improved else known

    def _common(
        self, contrasts: Sequence[FloatMap], poses: Sequence[Vector | None], *, elastic: bool
    ) -> FloatMap:
        """The mean of the pictures in the template's frame; 0 where less than half are seen."""
        total, count = np.zeros(self._shape), np.zeros(self._shape)
        found = 0
        for contrast, pose in zip(contrasts, poses, strict=True):
            if pose is None:
                continue
            found += 1
            self._elastic.clear()
            if elastic:
                self._elastic.fit(contrast, pose)
            resampled, seen = self._elastic.resampled(contrast, pose)
            total += resampled
            count += seen
        if not found:
            return self._pyramid.template
        mean = np.where(count > found / 2, total / np.maximum(count, 1), 0.0)
        return mean.astype(np.float32)

    # ---- the pose --------------------------------------------------------------------------------

    def _locate(self, contrast: FloatMap) -> tuple[Vector, Alignment]:
        """Where the part lies, for the kernels and for the record."""
        self._pyramid.load(contrast)
        searching = self._settings.mode == "search"
        place = self._unmoved() if searching else self._nearby()
        if searching:
            place = self._elsewhere(contrast, place, SEARCH_GAIN, CANDIDATES)
        elif place.match.posed < DOUBTFUL:
            place = self._elsewhere(contrast, place, CLEARLY, NEAR_CANDIDATES)
        place = self._turned_back(place)
        within = self._allowed(place.pose) and not (searching and place.match.posed < FOUND)
        pose, match = as_pose(place.pose), place.match
        return place.pose, Alignment(pose, match.posed, match.unposed, within=within)

    def _unmoved(self) -> _Place:
        return self._at(np.zeros(3))

    def _at(self, pose: Vector) -> _Place:
        return _Place(pose, self._pyramid.match(pose))

    def _nearby(self) -> _Place:
        """The place refined from no shift, where that improves the match.

        The coarse picture may mislead: where its place is not allowed, the full one has a try. A
        place that is not allowed is the answer only where it matches clearly better.
        """
        best = unmoved = self._unmoved()
        for halvings in dict.fromkeys((self._pyramid.halvings, 0)):
            place = self._at(self._pyramid.refined(unmoved.pose, halvings))
            if place.match.posed < FOUND:
                continue
            if not self._allowed(place.pose):
                if place.score > best.score + CLEARLY:
                    best = place
            elif place.match.gain > GAIN and place.score > best.score - CLEARLY:
                return place
        return best

    def _elsewhere(self, contrast: FloatMap, best: _Place, margin: float, count: int) -> _Place:
        """The best place of all that the coarse search finds, if better than ``best`` by a margin.

        Args:
            contrast: float32 (height, width).
            best: the place so far.
            margin: correlation that another must add.
            count: places to refine.
        """
        halvings = self._pyramid.halvings
        scale = 2.0**halvings
        least = best.score + margin
        picture = search_picture(contrast, halvings)
        for candidate in self._search.candidates(picture, count):
            start = np.array([candidate.right * scale, candidate.down * scale, candidate.rotation])
            place = self._at(self._refined_near(start))
            if place.match.posed > FOUND and place.score > least:
                best, least = place, place.score
        return best

    def _turned_back(self, place: _Place) -> _Place:
        """The place without its rotation, where that is beyond the limit and adds little.

        A round part looks alike at any angle: which one it got is chance.
        """
        if abs(_wrapped(place.pose[2])) <= self._rotation_limit:
            return place
        upright = self._at(self._pyramid.refined(np.array([*place.pose[:2], 0.0]), 0))
        believed = self._allowed(upright.pose) and upright.score > place.score - CLEARLY
        return upright if believed else place

    def _refined_near(self, start: Vector) -> Vector:
        """The refinement of a place, or the place itself where that was lost."""
        pose = self._pyramid.refined(start, self._pyramid.halvings)
        ran, turned = math.dist(pose[:2], start[:2]), abs(pose[2] - start[2])
        lost = ran > TETHER_SHARE * max(self._shape) or turned > TETHER_RADIANS
        return start if lost else pose

    def _allowed(self, pose: Vector) -> bool:
        near = math.hypot(pose[0], pose[1]) <= self._shift_limit
        return near and abs(_wrapped(pose[2])) <= self._rotation_limit


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A pose and how the picture matches there."""

    pose: Vector
    match: Match

    @property
    def score(self) -> float:
        """The correlation, worth less where little of the template is seen."""
        return self.match.posed * math.sqrt(min(1.0, self.match.cover / FULL_COVER))


def as_pose(vector: Vector) -> Pose:
    """A pose as it is recorded, from the kernels' form."""
    return Pose(float(vector[0]), float(vector[1]), _wrapped(float(vector[2])))


def _wrapped(angle: float) -> float:
    """The angle between -pi and pi."""
    return math.remainder(angle, math.tau)
