"""One program's judgement: a frame's pixels in, an `Inspection` out.

No input or output, no logging, no wall clock; a monotonic timer for its own stage timings is its
one impurity. Nothing here can turn a doubt into a PASS: a picture that cannot be trusted, too few
references or a score that is not finite end as NOT_JUDGED.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ImageError, ReferencesError
from inspectd.imaging import gate, preprocess
from inspectd.limits import limit_from_scores
from inspectd.records import (
    FloatMap,
    GreyImage,
    Image,
    Inspection,
    PatchGrid,
    Peak,
    PictureHealth,
    Reason,
    RegionScore,
    Verdict,
)
from inspectd.settings import Program, Region
from inspectd.soartc.compare import Comparison
from inspectd.soartc.features import PatchDescriber, PatchLayout
from inspectd.soartc.parts import part_bank

FEWEST = 2
"""References without which there is no leave-one-out, and so no limit."""


class _NotJudgedError(Exception):
    """Carries the reason out of the stages of one inspection; never leaves this module."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class _Work:
    """What is known so far of the frame at hand."""

    picture: GreyImage | None = None
    health: PictureHealth | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.timings_ms[stage] = (perf_counter() - start) * 1e3


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What follows from a program's references: derived at each load, stored nowhere.

    Attributes:
        crop_shape: (height, width) of the references: the region of interest at full resolution.
        describer: stage 1 for pictures of their reduced shape.
        comparison: stage 2 against what the references have in common.
        leave_one_out: raw score of each reference against all the others.
        limit: in raw units, the program's threshold included.
        focus: the references' median sharpness.
        tolerance: float32 (rows, cols), the threshold of each patch by its region; infinite where
            the patch is ignored.
        regions: the judged regions with the patches that belong to each, bool (rows, cols).
    """

    crop_shape: tuple[int, int]
    describer: PatchDescriber
    comparison: Comparison
    leave_one_out: tuple[float, ...]
    limit: float
    focus: float
    tolerance: FloatMap
    regions: tuple[tuple[Region, NDArray[np.bool_]], ...]

    @property
    def grid(self) -> PatchGrid:
        return self.describer.layout.grid


class Inspector:
    """Judges frames by one program and its references. Serves one thread."""

    def __init__(self, program: Program, references: Sequence[Image]) -> None:
        """Learn from the references.

        Too few references are no error here: everything is then NOT_JUDGED, and says so.

        Args:
            program: the program's settings.
            references: crops of the region of interest at full resolution, all of one shape.

        Raises:
            ReferencesError: references of different shapes, or all the same picture; regions that
                leave nothing to judge.
            ImageError: the inspected picture is smaller than one patch.
        """
        self.program = program
        self.reference_count = len(references)
        self.references_needed = max(program.references.minimum, FEWEST)
        enough = self.reference_count >= self.references_needed
        self.learned = learn(program, references) if enough else None
        self._planes = self.learned.describer.new_planes() if self.learned else None

    def inspect(self, pixels: Image) -> Inspection:
        """Judge one frame.

        Args:
            pixels: uint8 (height, width) or (height, width, 3), the whole frame.

        Returns:
            PASS only when the picture is healthy, there are references enough, and the score is
            finite and at most 1.
        """
        work = _Work()
        try:
            self._prepare(pixels, work)
            learned = self._require_references()
            raw = self._compare(learned, work)
        except _NotJudgedError as doubt:
            return Inspection(
                Verdict.NOT_JUDGED,
                doubt.reason,
                doubt.detail,
                picture=work.picture,
                health=work.health,
                timings_ms=work.timings_ms,
            )
        return self._conclude(learned, raw, work)

    def _prepare(self, pixels: Image, work: _Work) -> None:
        """Crop, grey and reduce; then ask whether the picture can be trusted at all."""
        learned = self.learned
        with work.timed("prepare"):
            try:
                grey = preprocess.grey(preprocess.crop(pixels, self.program.roi))
                work.picture = preprocess.reduce(grey, self.program.resolution)
            except ImageError as error:
                raise _NotJudgedError(Reason.WRONG_SIZE, str(error)) from error
            if learned and grey.shape != learned.crop_shape:
                raise _NotJudgedError(
                    Reason.WRONG_SIZE,
                    f"the picture is {grey.shape[1]} x {grey.shape[0]} pixels, the references are "
                    f"{learned.crop_shape[1]} x {learned.crop_shape[0]}: restore the camera's mode "
                    "and the region of interest, or teach again",
                )
        with work.timed("gate"):
            work.health = gate.measure(grey, work.picture, learned.focus if learned else None)
            doubt = gate.judge(work.health, self.program.health)
            if doubt:
                raise _NotJudgedError(*doubt)

    def _require_references(self) -> Learned:
        if self.learned is None:
            raise _NotJudgedError(
                Reason.TOO_FEW_REFERENCES,
                f"there are {self.reference_count} usable references of the "
                f"{self.references_needed} needed: teach more good parts",
            )
        return self.learned

    def _compare(self, learned: Learned, work: _Work) -> FloatMap:
        """The map of abnormality in raw units."""
        assert work.picture is not None
        assert self._planes is not None
        with work.timed("stage1"):
            learned.describer.describe(preprocess.to_unit(work.picture), self._planes)
        with work.timed("stage2"):
            raw = learned.comparison.smoothed_map(self._planes)
        if not np.isfinite(raw).all():
            raise _NotJudgedError(
                Reason.NOT_FINITE, "the comparison gave values that are no numbers"
            )
        return raw

    def _conclude(self, learned: Learned, raw: FloatMap, work: _Work) -> Inspection:
        """Score against the limit, region by region."""
        with work.timed("score"):
            in_limits = raw / np.float32(learned.limit)
            by_region = in_limits / learned.tolerance
            regions = tuple(
                RegionScore(region.name, score, failed=not score <= 1.0)
                for region, patches in learned.regions
                for score in [float(in_limits[patches].max()) / region.threshold]
            )
            row, column = np.unravel_index(int(np.argmax(by_region)), by_region.shape)
            score = max([float(by_region[row, column]), *(region.score for region in regions)])
            peak = self._peak(learned, int(row), int(column), score)
        passed = score <= 1.0
        return Inspection(
            Verdict.PASS if passed else Verdict.FAIL,
            None if passed else Reason.ABOVE_LIMIT,
            "" if passed else _above_limit(score, peak, regions),
            score=score,
            limit=learned.limit,
            regions=regions,
            peak=peak,
            map=by_region,
            picture=work.picture,
            health=work.health,
            timings_ms=work.timings_ms,
        )

    def _peak(self, learned: Learned, row: int, column: int, score: float) -> Peak:
        """A patch's place in the frame."""
        layout = learned.describer.layout
        x, y = learned.grid.centre(row, column)
        height, width = learned.crop_shape
        roi = self.program.roi
        return Peak(
            x=x * width / layout.width + (roi.x if roi else 0),
            y=y * height / layout.height + (roi.y if roi else 0),
            score=score,
        )


def _above_limit(score: float, peak: Peak, regions: Sequence[RegionScore]) -> str:
    failed = [region.name for region in regions if region.failed]
    where = f" in {', '.join(failed)}" if failed else ""
    return f"score {score:.2f}{where}, the peak at x {peak.x:.0f}, y {peak.y:.0f}"


def learn(program: Program, references: Sequence[Image]) -> Learned:
    """Derive from the references everything that judging needs.

    Args:
        program: the program's settings.
        references: two or more crops of the region of interest, all of one shape.

    Raises:
        ReferencesError: they differ in shape, or are all the same picture; or the regions leave
            nothing to judge.
        ImageError: the inspected picture is smaller than one patch.
    """
    greys = [preprocess.grey(reference) for reference in references]
    shapes = sorted({grey.shape for grey in greys})
    if len(shapes) > 1:
        sizes = ", ".join(f"{width} x {height}" for height, width in shapes)
        raise ReferencesError(
            f"the references differ in size ({sizes} pixels): remove those of the old region of "
            "interest or camera mode, or teach anew"
        )
    soartc = program.soartc
    units = np.stack(
        [preprocess.to_unit(preprocess.reduce(grey, program.resolution)) for grey in greys]
    )
    describer = PatchDescriber(
        PatchLayout(
            units.shape[1],
            units.shape[2],
            soartc.part,
            (soartc.stride, soartc.stride),
            (soartc.step, soartc.step),
        ),
        part_bank(soartc.part, soartc.band, soartc.centre_weight),
    )
    planes = np.stack([describer.described(unit) for unit in units])
    regions = tuple((region, region_patches(region, describer)) for region in program.regions)
    tolerance = tolerance_map(describer.layout.grid, regions)
    judged = np.isfinite(tolerance)
    learn_from = units if program.method == "published" else planes
    scores = leave_one_out(program, describer, learn_from, planes, judged)
    return Learned(
        crop_shape=shapes[0],
        describer=describer,
        comparison=compare_with_average(program, describer, learn_from.mean(axis=0)),
        leave_one_out=scores,
        limit=limit_from_scores(scores, program.limit.threshold),
        focus=float(np.median([gate.focus_measure(grey) for grey in greys])),
        tolerance=tolerance,
        regions=tuple(
            (region, patches & judged) for region, patches in regions if not region.ignore
        ),
    )


def compare_with_average(
    program: Program, describer: PatchDescriber, average: NDArray[np.float32]
) -> Comparison:
    """Stage 2 against the average of the references.

    Args:
        program: names the method.
        describer: of the references' shape.
        average: float32 (height, width) the average picture, for the method ``published``; float32
            (6, 3, rows, cols) the average description, for ``mean``.
    """
    published = program.method == "published"
    reference = describer.described(average) if published else average
    return Comparison(reference, program.soartc.p, program.soartc.weights)


def leave_one_out(
    program: Program,
    describer: PatchDescriber,
    learn_from: NDArray[np.float32],
    planes: NDArray[np.float32],
    judged: NDArray[np.bool_],
) -> tuple[float, ...]:
    """The raw score that each reference gets from all the others: what good parts get.

    Args:
        program: names the method.
        describer: of the references' shape.
        learn_from: float32 (n, ...), the references' pictures or descriptions, as the method asks.
        planes: float32 (n, 6, 3, rows, cols), their descriptions.
        judged: bool (rows, cols), false where a region ignores the patch.
    """
    total = learn_from.sum(axis=0, dtype=np.float64)
    scores = []
    for own, described in zip(learn_from, planes, strict=True):
        others = ((total - own) / (len(planes) - 1)).astype(np.float32)
        # A difference of large sums can fall a hair below black.
        average = np.maximum(others, 0) if program.method == "published" else others
        comparison = compare_with_average(program, describer, average)
        scores.append(float(comparison.smoothed_map(described)[judged].max()))
    return tuple(scores)


def region_patches(region: Region, describer: PatchDescriber) -> NDArray[np.bool_]:
    """The patches whose centre lies in a region.

    Returns:
        bool (rows, cols). A judged region between the patches gets the one nearest to its middle.
    """
    layout = describer.layout
    corners = np.array(region.outline, np.float32) * np.array(
        [layout.width, layout.height], np.float32
    )
    inside = np.zeros((layout.rows, layout.cols), np.bool_)
    for row, column in np.ndindex(inside.shape):
        inside[row, column] = (
            cv2.pointPolygonTest(corners, layout.grid.centre(row, column), False) >= 0
        )
    if not inside.any() and not region.ignore:
        x, y = corners.mean(axis=0)
        row = round((y - layout.extent[0] / 2) / layout.step[0])
        column = round((x - layout.extent[1] / 2) / layout.step[1])
        inside[min(max(row, 0), layout.rows - 1), min(max(column, 0), layout.cols - 1)] = True
    return inside


def tolerance_map(grid: PatchGrid, regions: Sequence[tuple[Region, NDArray[np.bool_]]]) -> FloatMap:
    """The threshold of each patch, in units of the program's limit.

    Where regions overlap the stricter counts, and what one of them ignores is ignored.

    Returns:
        float32 (rows, cols); 1 outside all regions, infinite where ignored.

    Raises:
        ReferencesError: nothing is left to judge.
    """
    tolerance = np.full((grid.rows, grid.cols), np.nan, np.float32)
    for region, patches in regions:
        if not region.ignore:
            tolerance[patches] = np.fmin(tolerance[patches], region.threshold)
    tolerance[np.isnan(tolerance)] = 1.0
    for region, patches in regions:
        if region.ignore:
            tolerance[patches] = np.inf
    for region, patches in regions:
        if not region.ignore and not np.isfinite(tolerance[patches]).any():
            raise ReferencesError(
                f"region {region.name} is to be judged, but lies wholly in ignored regions"
            )
    if not np.isfinite(tolerance).any():
        raise ReferencesError(
            "the program's regions ignore the whole picture, nothing is left to judge: shrink the "
            "regions with `ignore: true`"
        )
    return tolerance
