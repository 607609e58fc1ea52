"""The measurements of `inspectd evaluate`, one function each, on pictures as `labelled` reads them.

Nothing is chosen by the pictures that are judged: limits follow from the references alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import cos, sin
from statistics import fmean, median
from time import perf_counter
from typing import Protocol

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from inspectd.commands.labelled import (
    BoxPixels,
    LabelledSet,
    Pair,
    Picture,
    View,
    read_picture,
)
from inspectd.errors import PermanentError, ReferencesError
from inspectd.eye import Eye, Sight
from inspectd.imaging import preprocess
from inspectd.imaging.regions import region_patches
from inspectd.limits import FEWEST_SCORES, limit_from_scores
from inspectd.records import FloatMap, GreyImage, PatchGrid, Pose
from inspectd.settings import AlignmentSettings, Box, Program, Region, SoartcSettings
from inspectd.soartc import part_bank, scalar_map, stage1, stage2

DRAWS = 5
DRAW_SEED = 100
"""The draws of few references are those of this seed and the following ones."""
FEW_REFERENCES = (5, 3, 1)
PUBLISHED = SoartcSettings(part=5, band=1, stride=2, step=4)
"""The published production parameters (SPEC.md, "What was measured of it")."""
PUBLISHED_PROGRAM = Program(
    soartc=PUBLISHED,
    method="published",
    light="none",
    alignment=AlignmentSettings(mode="none"),
)
DEFAULT = "default"
GROWN_PX = 3
"""A region that comes so near to a box has found it."""
_WHITE = 127

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one labelled set.

    Attributes:
        references: how many were taught.
        draws: how often so many were drawn from all; the figures are the draws' means.
        missed: bad parts that are not above the limit, None where no limit follows.
        false_rejects: good parts above it.
        ms: a picture, the median, from the full picture to the score.
    """

    set: str
    method: str
    references: int
    draws: int
    auroc: float
    missed: float | None
    false_rejects: float | None
    ms: float


@dataclass(frozen=True, slots=True)
class Sites:
    """A set's sites, each judged by its own limit.

    Attributes:
        empty: sites that hold nothing.
        missed: empty sites that are not above their limit.
        filled: sites that hold their part.
        false_rejects: filled sites above it.
        right_by_site: pictures in which the site was judged right, in the order of the sites.
    """

    references: int
    pictures: int
    empty: int
    missed: int
    filled: int
    false_rejects: int
    right_by_site: tuple[int, ...]

    @property
    def sites(self) -> int:
        return self.empty + self.filled

    @property
    def right(self) -> int:
        return self.sites - self.missed - self.false_rejects


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """One view of a part without defects.

    Attributes:
        highest: the highest score, in units of the limit.
    """

    view: str
    references: int
    pictures: int
    false_alarms: int
    highest: float
    ms: float


@dataclass(frozen=True, slots=True)
class Found:
    """One pair with boxes, or many added up.

    Attributes:
        found: boxes that a region above the limit touches.
        false_regions: regions that touch no box.
    """

    pairs: int
    boxes: int
    found: int
    false_regions: int
    limit: float
    ms: float


class SiteBoxes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a set's sites are, in pixels of a picture of this width and height."""

    picture: tuple[int, int]
    boxes: tuple[BoxPixels, ...]

    def regions(self) -> tuple[Region, ...]:
        width, height = self.picture
        return tuple(
            Region(
                name=f"site-{number}",
                box=Box(x1 / width, y1 / height, x2 / width, y2 / height),
            )
            for number, (x1, y1, x2, y2) in enumerate(self.boxes, start=1)
        )


# ---- methods -----------------------------------------------------------------------------------


class Judge(Protocol):
    """References that a method has learned."""

    @property
    def stated_limit(self) -> float | None:
        """The limit of a method that has one for too few references."""

    def map(self, picture: GreyImage) -> FloatMap:
        """How abnormal a reduced picture is, place by place."""

    def leave_one_out(self) -> NDArray[np.float32]:
        """The maps that the references get from the others, float32 (n, rows, cols)."""


class EyeJudge:
    """A program, as the service judges by it."""

    def __init__(self, program: Program, references: Sequence[GreyImage]) -> None:
        self.eye = Eye(program, references)
        self.stated_limit: float | None = self.eye.stated_limit

    def map(self, picture: GreyImage) -> FloatMap:
        return self.eye.look(picture).map

    def leave_one_out(self) -> NDArray[np.float32]:
        return self.eye.leave_one_out()


class AverageJudge:
    """The plainest of comparisons: with the average of what the references show."""

    stated_limit: float | None = None

    def __init__(
        self,
        describe: Callable[[FloatMap], Values],
        distance: Callable[[Values, Values], FloatMap],
        references: Sequence[GreyImage],
    ) -> None:
        """Args:
        describe: what is averaged, of a picture from 0 to 1.
        distance: between a description and the average, place by place.
        references: reduced pictures.
        """
        self._describe = describe
        self._distance = distance
        self._references = [self._described(reference) for reference in references]
        self._total = np.asarray(np.sum(self._references, axis=0, dtype=np.float64))
        self._average = self._mean(self._total, len(references))

    def map(self, picture: GreyImage) -> FloatMap:
        return self._smoothed(self._described(picture), self._average)

    def leave_one_out(self) -> NDArray[np.float32]:
        others = len(self._references) - 1
        maps = [
            self._smoothed(reference, self._mean(self._total - reference, others))
            for reference in self._references
        ]
        return np.stack(maps)

    def _described(self, picture: GreyImage) -> Values:
        return self._describe(preprocess.to_unit(picture))

    @staticmethod
    def _mean(total: NDArray[np.float64], count: int) -> Values:
        return (total / max(count, 1)).astype(np.float32)

    def _smoothed(self, description: Values, average: Values) -> FloatMap:
        distance = self._distance(description, average)
        return np.asarray(cv2.blur(distance, (3, 3), borderType=cv2.BORDER_REFLECT_101))


def published_judge(references: Sequence[GreyImage]) -> Judge:
    """As published: against the description of the average picture."""
    return EyeJudge(PUBLISHED_PROGRAM, references)


def mean_judge(references: Sequence[GreyImage]) -> Judge:
    """The same against the mean of the references' descriptions."""
    bank = part_bank(PUBLISHED.part, PUBLISHED.band, PUBLISHED.centre_weight)

    def describe(picture: FloatMap) -> Values:
        return stage1(picture, bank, PUBLISHED.stride, PUBLISHED.step)

    def distance(metrics: Values, average: Values) -> FloatMap:
        return scalar_map(stage2(metrics, average, PUBLISHED.p), PUBLISHED.weights)

    return AverageJudge(describe, distance, references)


def difference_judge(references: Sequence[GreyImage]) -> Judge:
    """The absolute difference from the average picture."""
    return AverageJudge(lambda picture: picture, lambda one, other: abs(one - other), references)


BASELINES: dict[str, Callable[[Sequence[GreyImage]], Judge]] = {
    "published": published_judge,
    "mean": mean_judge,
    "difference": difference_judge,
}
"""What the default method is measured against."""


# ---- labelled sets -----------------------------------------------------------------------------


def auroc(good: Sequence[float] | Values, bad: Sequence[float] | Values) -> float:
    """The chance that a bad part scores higher than a good one; ties count half."""
    ordered, judged = np.sort(np.asarray(good)), np.asarray(bad)
    lower = np.searchsorted(ordered, judged, side="left")
    not_higher = np.searchsorted(ordered, judged, side="right")
    return float(np.mean(lower + not_higher) / (2 * len(ordered)))


def baseline_rows(labelled: LabelledSet, program: Program) -> list[Row]:
    """What plainer methods reach with all references."""
    references = reduced(labelled.references, program)
    return [
        measured(labelled, program, method, len(references), [make_judge(references)])
        for method, make_judge in BASELINES.items()
    ]


def default_row(labelled: LabelledSet, program: Program, eye: EyeJudge) -> Row:
    """The default method with all references."""
    return measured(labelled, program, DEFAULT, len(labelled.references), [eye])


def drawn_rows(labelled: LabelledSet, program: Program) -> list[Row]:
    """The default method with few references, as they are drawn from all."""
    references = reduced(labelled.references, program)
    rows = []
    for few in FEW_REFERENCES:
        if few < len(references):
            judges = (
                EyeJudge(program, [references[index] for index in drawn])
                for drawn in draws(len(references), few)
            )
            rows.append(measured(labelled, program, DEFAULT, few, judges))
    return rows


def draws(count: int, few: int) -> list[list[int]]:
    """Seeded draws of a few indices below ``count``, each in ascending order."""
    return [
        sorted(np.random.default_rng(DRAW_SEED + draw).permutation(count)[:few].tolist())
        for draw in range(DRAWS)
    ]


def measured(
    labelled: LabelledSet,
    program: Program,
    method: str,
    references: int,
    judges: Iterable[Judge],
) -> Row:
    """The means over the judges, one a draw.

    Raises:
        PermanentError: no limit follows from the references.
    """
    aurocs: list[float] = []
    missed: list[int] = []
    false_rejects: list[int] = []
    times: list[float] = []
    for judge in judges:
        good = timed_scores(judge, labelled.good, program, times)
        bad = timed_scores(judge, labelled.bad, program, times)
        aurocs.append(auroc(good, bad))
        try:
            limit = limit_of(judge, program)
        except ReferencesError as error:
            raise PermanentError(f"{labelled.name}, method {method}: {error}") from error
        if limit is not None:
            missed.append(sum(score <= limit for score in bad))
            false_rejects.append(sum(score > limit for score in good))
    return Row(
        set=labelled.name,
        method=method,
        references=references,
        draws=len(aurocs),
        auroc=fmean(aurocs),
        missed=fmean(missed) if missed else None,
        false_rejects=fmean(false_rejects) if false_rejects else None,
        ms=median(times),
    )


def timed_scores(
    judge: Judge, pictures: Sequence[Picture], program: Program, times: list[float]
) -> list[float]:
    """The largest value of each picture's map; milliseconds are added to ``times``."""
    scores = []
    for picture in pictures:
        start = perf_counter()
        scores.append(float(judge.map(picture.reduced(program.resolution)).max()))
        times.append((perf_counter() - start) * 1e3)
    return scores


def limit_of(judge: Judge, program: Program) -> float | None:
    """Where good ends, in raw units, from the references alone; None where that is not known.

    Raises:
        ReferencesError: the references are all alike.
    """
    return learned_limit(judge.leave_one_out(), program, judge.stated_limit)


def learned_limit(maps: Values, program: Program, stated_limit: float | None) -> float | None:
    """The limit for the largest values of maps, at the program's false-reject rate.

    Args:
        maps: float32, the first axis is that of the references left out; their places follow.
        program: its limit.
        stated_limit: the method's for too few references.

    Returns:
        None with too few references and nothing stated.

    Raises:
        ReferencesError: the references are all alike.
    """
    if len(maps) < FEWEST_SCORES and stated_limit is None:
        return None
    scores = maps.reshape(len(maps), -1).max(axis=1) if len(maps) else []
    return limit_from_scores(scores, program.limit.false_reject, stated_limit).value


def reduced(pictures: Sequence[Picture], program: Program) -> list[GreyImage]:
    """The pictures as the program looks at them."""
    return [picture.reduced(program.resolution) for picture in pictures]


# ---- where in the picture ----------------------------------------------------------------------


def pixel_auroc(labelled: LabelledSet, program: Program, eye: Eye) -> float | None:
    """How well the pixels of bad places are told from all others.

    Every pixel of the good pictures counts, and of the bad ones that have a mask.

    Returns:
        None where the set has no masks.
    """
    masks = {
        path: preprocess.grey(read_picture(mask).pixels) > _WHITE
        for path, mask in labelled.masks.items()
    }
    if not masks:
        return None
    nothing = np.zeros_like(next(iter(masks.values())))
    with_mask = [picture for picture in labelled.bad if picture.path in masks]
    good, bad = [], []
    for picture in (*labelled.good, *with_mask):
        mask = masks.get(picture.path, nothing)
        sight = eye.look(picture.reduced(program.resolution))
        values = map_in_picture(sight, eye.grid, mask.shape)
        good.append(values[~mask])
        bad.append(values[mask])
    return auroc(np.concatenate(good), np.concatenate(bad))


def map_in_picture(sight: Sight, grid: PatchGrid, size: tuple[int, int]) -> FloatMap:
    """The map as it lies in the picture itself, not in the references' place.

    Args:
        sight: of the reduced picture.
        grid: of its map.
        size: height and width of the map to make.
    """
    rows, columns = patches_of_pixels(grid, sight.alignment.pose, sight.picture.shape, size)
    return np.asarray(
        cv2.remap(sight.map, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )


def patches_of_pixels(
    grid: PatchGrid, pose: Pose, shape: tuple[int, int], size: tuple[int, int]
) -> tuple[FloatMap, FloatMap]:
    """The patch of the references' place that lies under each pixel: `to_picture` turned round.

    Args:
        grid: of the patches.
        pose: of the picture's part.
        shape: height and width of the reduced picture.
        size: height and width of the picture whose pixels are meant.

    Returns:
        Row and column of the patch, two float32 arrays of ``size``.
    """
    down, right = np.indices(size, np.float32) + np.float32(0.5)
    down = down * (shape[0] / size[0]) - (shape[0] / 2 + pose.dy)
    right = right * (shape[1] / size[1]) - (shape[1] / 2 + pose.dx)
    cosine, sine = cos(pose.rotation), sin(pose.rotation)
    x = cosine * right + sine * down + shape[1] / 2
    y = cosine * down - sine * right + shape[0] / 2
    rows = (y - grid.extent[0] / 2) / grid.step[0]
    columns = (x - grid.extent[1] / 2) / grid.step[1]
    return rows.astype(np.float32), columns.astype(np.float32)


def measure_sites(labelled: LabelledSet, program: Program, sites: SiteBoxes) -> Sites | None:
    """Each site judged on its own, by the limit that the references set for it alone.

    The boxes are placed in the first reference, in whose place all others are put.

    Returns:
        None where the names of the test pictures do not tell what the sites hold.
    """
    digits = re.compile(rf".*_([01]{{{len(sites.boxes)}}})")
    truths = {
        picture: [digit == "1" for digit in match[1]]
        for picture in labelled.judged
        if (match := digits.fullmatch(picture.path.stem))
    }
    if not truths:
        return None
    eye = Eye(program, reduced(labelled.references, program))
    left_out = eye.leave_one_out()
    height, width = labelled.references[0].reduced(program.resolution).shape
    zones = [region_patches(region, eye.grid, height, width) for region in sites.regions()]
    limits = [learned_limit(left_out[:, zone], program, eye.stated_limit) for zone in zones]
    filled, rejected = [], []
    for picture, truth in truths.items():
        found = eye.look(picture.reduced(program.resolution)).map
        filled.append(truth)
        rejected.append(
            [found[zone].max() > limit for zone, limit in zip(zones, limits, strict=True)]
        )
    holds, fails = np.array(filled), np.array(rejected)
    return Sites(
        references=len(labelled.references),
        pictures=len(truths),
        empty=int((~holds).sum()),
        missed=int((~holds & ~fails).sum()),
        filled=int(holds.sum()),
        false_rejects=int((holds & fails).sum()),
        right_by_site=tuple((holds != fails).sum(axis=0).tolist()),
    )


# ---- views and pairs ---------------------------------------------------------------------------


def measure_view(view: View, program: Program) -> FalseAlarms:
    """How many pictures of a part without defects are rejected."""
    judge = EyeJudge(program, reduced(view.references, program))
    limit = limit_of(judge, program)
    assert limit is not None  # the eye states one where none follows
    times: list[float] = []
    scores = timed_scores(judge, view.judged, program, times)
    return FalseAlarms(
        view=view.name,
        references=len(view.references),
        pictures=len(scores),
        false_alarms=sum(score > limit for score in scores),
        highest=max(scores) / limit,
        ms=median(times),
    )


def measure_pair(pair: Pair, program: Program) -> Found:
    """Which boxes are found with one golden picture, and what is found beside them.

    The limit is the one that the method states for a single reference.
    """
    eye = Eye(program, [pair.template.reduced(program.resolution)])
    limit = eye.stated_limit * program.limit.threshold
    start = perf_counter()
    sight = eye.look(pair.test.reduced(program.resolution))
    ms = (perf_counter() - start) * 1e3
    values = map_in_picture(sight, eye.grid, pair.test.pixels.shape[:2])
    found, false_regions = regions_and_boxes(values > limit, pair.boxes)
    return Found(1, len(pair.boxes), found, false_regions, limit, ms)


def regions_and_boxes(above: NDArray[np.bool_], boxes: Sequence[BoxPixels]) -> tuple[int, int]:
    """How many boxes a region touches, and how many regions touch no box.

    Args:
        above: bool (height, width); a region is what hangs together, corners included.
        boxes: grown by `GROWN_PX` on each side.
    """
    count, labels = cv2.connectedComponents(above.astype(np.uint8), connectivity=8)
    true_regions: set[int] = set()
    found = 0
    for x1, y1, x2, y2 in boxes:
        rows = slice(max(y1 - GROWN_PX, 0), y2 + GROWN_PX + 1)
        columns = slice(max(x1 - GROWN_PX, 0), x2 + GROWN_PX + 1)
        touching = set(np.unique(labels[rows, columns]).tolist()) - {0}
        found += bool(touching)
        true_regions |= touching
    return found, count - 1 - len(true_regions)


def added_up(pairs: Sequence[Found]) -> Found:
    """All pairs together; they have one limit."""
    return Found(
        pairs=sum(pair.pairs for pair in pairs),
        boxes=sum(pair.boxes for pair in pairs),
        found=sum(pair.found for pair in pairs),
        false_regions=sum(pair.false_regions for pair in pairs),
        limit=pairs[0].limit,
        ms=median(pair.ms for pair in pairs),
    )
