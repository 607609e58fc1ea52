"""One program's judgement: a frame's pixels in, an `Inspection` out.

No input or output, no logging, no wall clock; a monotonic timer for its own stage timings is its
one impurity. Nothing here can turn a doubt into a PASS: a picture that cannot be trusted, a part
that is not in its place, too few references or a score that is not finite end as NOT_JUDGED.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import degrees, hypot
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ImageError, ReferencesError
from inspectd.eye import Eye, Sight
from inspectd.imaging import gate, preprocess
from inspectd.imaging.align import FOUND, to_picture
from inspectd.imaging.empty import EmptyStation
from inspectd.imaging.regions import region_patches
from inspectd.limits import (
    FEWEST_SCORES,
    Limit,
    limit_from_scores,
    near_duplicates,
    near_duplicates_warning,
)
from inspectd.records import (
    Alignment,
    Blob,
    FloatMap,
    GreyImage,
    Image,
    Inspection,
    Measure,
    PatchGrid,
    Peak,
    PictureHealth,
    Pose,
    Reason,
    RegionScore,
    Verdict,
    View,
)
from inspectd.settings import Program, Region

IN_VIEW = 0.75
"""Share of a region's patches, and of what there is to see in the remaining picture, that must be
seen: what was not seen was not judged. Plain ground around a part may leave the picture."""
LEAST_MATCH_SHARE = 0.5
"""What matches the references' common picture less than this share of the worst of them is not
taken for the part, whatever its score, unless the program says otherwise."""

MOST_LIGHT_SPREAD = 4.0
"""By how many times the references' own brightness is taken to differ at most."""


class _NotJudgedError(Exception):
    """Carries the reason out of the stages of one inspection; never leaves this module."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class _Work:
    """What is known so far of the frame at hand.

    Attributes:
        extent: where the region of interest lies, in frame pixels.
    """

    extent: View
    picture: GreyImage | None = None
    health: PictureHealth | None = None
    alignment: Alignment | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            before = self.timings_ms.get(stage, 0.0)
            self.timings_ms[stage] = before + (perf_counter() - start) * 1e3


@dataclass(frozen=True, slots=True, eq=False)
class ReducedCrop:
    """A region of interest after its reduction: all that is needed of a reference.

    At full resolution, a hundred references would take half a gigabyte.

    Attributes:
        size: (height, width) at full resolution.
        picture: uint8 (height, width), grey, reduced.
        health: its figures, those of full resolution among them.
    """

    size: tuple[int, int]
    picture: GreyImage
    health: PictureHealth

    @classmethod
    def of(cls, crop: Image, longest: int) -> ReducedCrop:
        """Reduce a crop until its longest side has so many pixels.

        Args:
            crop: uint8 (height, width) or (height, width, 3): the region of interest.
            longest: the program's ``resolution``.

        Raises:
            ImageError: another shape or type.
        """
        grey = preprocess.grey(crop)
        height, width = grey.shape
        reduced = preprocess.reduce(grey, longest)
        if np.may_share_memory(reduced, crop):
            reduced = reduced.copy()  # or a small view would keep a large frame
        return cls((height, width), reduced, gate.measure(grey, reduced))


@dataclass(frozen=True, slots=True, eq=False)
class Zone:
    """Patches that are judged together, against a limit of their own.

    Attributes:
        name: of the region; empty for the picture outside the regions.
        patches: bool (rows, cols).
        learned: the limit that the references set here.
        limit: the same with the thresholds of program and region, in raw units.
    """

    name: str
    patches: NDArray[np.bool_]
    learned: Limit
    limit: float


@dataclass(frozen=True, slots=True, eq=False)
class Studied:
    """What of a program's references is costly to learn, and does not depend on its limits.

    Attributes:
        program: it was learned for.
        references, empties: reduced.
        anchor: the picture in whose place the others are put.
        maps: float32 (n, rows, cols), the maps that the references get from all the others.
    """

    program: Program
    references: tuple[ReducedCrop, ...]
    empties: tuple[ReducedCrop, ...]
    anchor: ReducedCrop
    eye: Eye
    maps: NDArray[np.float32]

    def suits(self, program: Program) -> bool:
        """Whether another program would learn the same from the same references."""
        return _to_study(self.program) == _to_study(program)


def _to_study(program: Program) -> Program:
    """What of a program decides what is learned of pictures; of regions, only what is ignored."""
    ignored = [region for region in program.regions if region.ignore]
    return Program(
        roi=program.roi,
        resolution=program.resolution,
        light=program.light,
        alignment=program.alignment,
        soartc=program.soartc,
        method=program.method,
        regions=tuple(
            Region(name=str(index), box=region.box, polygon=region.polygon, ignore=True)
            for index, region in enumerate(ignored)
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What follows from a program's references: derived at each load, stored nowhere.

    Attributes:
        crop_shape: (height, width) of the references: the region of interest as the camera gives
            it.
        shape: (height, width) of the inspected picture.
        usual, usual_place: what the references' pictures are like, and how they lie, for the gate.
        least_match: the correlation without which nothing can PASS.
        zones: everything that is judged.
        empty: the station without a part; None where that was not taught.
        limits: float32 (rows, cols), the limit of each patch in raw units, the smallest of its
            zones'; infinite where nothing is judged.
        leave_one_out: the score that each reference gets from all the others, in units of the
            limit as learned, the thresholds not included.
        warnings: what makes the limits less sure than they could be, for a person.
    """

    studied: Studied
    crop_shape: tuple[int, int]
    shape: tuple[int, int]
    usual: gate.Usual
    usual_place: gate.UsualPlace
    least_match: float
    empty: EmptyStation | None
    zones: tuple[Zone, ...]
    limits: FloatMap
    leave_one_out: tuple[float, ...]
    warnings: tuple[str, ...]

    @property
    def eye(self) -> Eye:
        return self.studied.eye

    @property
    def grid(self) -> PatchGrid:
        return self.eye.grid


class Inspector:
    """Judges frames by one program and its references. Serves one thread."""

    def __init__(
        self,
        program: Program,
        references: Sequence[ReducedCrop],
        hindrance: str = "",
        frame: ReducedCrop | None = None,
        empties: Sequence[ReducedCrop] = (),
    ) -> None:
        """Learn from the references.

        Too few references are no error here: everything is then NOT_JUDGED, and says so.

        Args:
            program: the program's settings.
            references: of good parts, reduced to the program's resolution.
            hindrance: why there are too few, where that is known; else their number is told.
            frame: the picture in whose place the others are put; the first one if absent.
            empties: pictures of the station without a part, reduced alike; none of them is a
                reference.

        Raises:
            ReferencesError: references of different sizes, or all the same picture; regions that
                leave nothing to judge; a picture of the empty station of another size.
            ImageError: the inspected picture is smaller than one patch.
        """
        self.program = program
        self.reference_count = len(references)
        self.references_needed = program.references.minimum
        enough = self.reference_count >= self.references_needed
        self.learned = learn(program, references, frame, empties) if enough else None
        self._hindrance = hindrance or (
            f"there are {self.reference_count} usable references of the "
            f"{self.references_needed} needed: teach more good parts"
        )

    def adapted(self, program: Program) -> Inspector | None:
        """An inspector by the same references for a program with other limits, regions or bounds,
        at little cost; it serves the same thread as this one.

        Returns:
            None where more is to be learned.

        Raises:
            ReferencesError: the regions leave nothing to judge.
        """
        known = self.learned
        if known is None or self.reference_count < program.references.minimum:
            return None
        if not known.studied.suits(program):
            return None
        adapted = Inspector(program, ())
        adapted.reference_count = self.reference_count
        adapted.learned = derive(program, known.studied)
        return adapted

    def inspect(self, pixels: Image, view: View | None = None) -> Inspection:
        """Judge one frame.

        Args:
            pixels: uint8 (height, width) or (height, width, 3).
            view: what part of the frame they show; None for the whole, pixel by pixel.

        Returns:
            PASS only when the picture is healthy, the part in its place and in view, there are
            references enough, and the score is finite and at most 1.
        """
        work = _Work(preprocess.shown(pixels, self.program.roi, view))
        try:
            health, reduced = self._prepare(pixels, view, work)
            learned = self._require_references(health)
            sight, health = self._look(learned, health, reduced, work)
            return self._conclude(learned, health, sight, work)
        except _NotJudgedError as doubt:
            misplaced = doubt.reason is Reason.MISPLACED
            fails = misplaced and self.program.alignment.beyond == "fail"
            return Inspection(
                Verdict.FAIL if fails else Verdict.NOT_JUDGED,
                doubt.reason,
                doubt.detail,
                picture=work.picture,
                health=work.health,
                alignment=work.alignment,
                timings_ms=work.timings_ms,
            )

    def _prepare(
        self, pixels: Image, view: View | None, work: _Work
    ) -> tuple[PictureHealth, GreyImage]:
        """Crop, grey, reduce, and measure the picture's own figures."""
        learned = self.learned
        with work.timed("prepare"):
            try:
                grey = preprocess.grey(preprocess.crop(pixels, self.program.roi, view))
                reduced = preprocess.reduce(grey, self.program.resolution)
            except ImageError as error:
                raise _NotJudgedError(Reason.WRONG_SIZE, str(error)) from error
            work.picture = reduced
            if learned and grey.shape != learned.crop_shape:
                raise _NotJudgedError(
                    Reason.WRONG_SIZE,
                    f"the picture is {grey.shape[1]} x {grey.shape[0]} pixels, the references are "
                    f"{learned.crop_shape[1]} x {learned.crop_shape[0]}: restore the camera's mode "
                    "and the region of interest, or teach again",
                )
        with work.timed("gate"):
            work.health = gate.measure(grey, reduced)
        return work.health, reduced

    def _require_references(self, health: PictureHealth) -> Learned:
        if self.learned is None:
            self._require_fit(health)
            raise _NotJudgedError(Reason.TOO_FEW_REFERENCES, self._hindrance)
        return self.learned

    def _require_fit(self, health: PictureHealth) -> None:
        """Ask whether the picture can be trusted at all."""
        doubt = gate.judge(health, self.program.health)
        if doubt:
            raise _NotJudgedError(*doubt)

    def _look(
        self, learned: Learned, health: PictureHealth, reduced: GreyImage, work: _Work
    ) -> tuple[Sight, PictureHealth]:
        """Align and compare; then ask whether picture and part are as they should be."""
        sight = learned.eye.look(reduced)
        work.timings_ms |= sight.timings_ms
        work.alignment = in_frame_pixels(sight.alignment, learned.shape, work.extent)
        with work.timed("gate"):
            work.health = health = self._compared(learned, health, reduced, sight.alignment)
            self._require_fit(health)
        if not sight.alignment.within:
            raise _NotJudgedError(Reason.MISPLACED, self._misplaced(work.alignment, work.extent))
        work.picture = sight.picture
        finite = np.isfinite(sight.map)
        if not finite.all():
            raise _NotJudgedError(
                Reason.NOT_FINITE,
                f"the comparison gave no finite number for {finite.size - int(finite.sum())} of "
                f"{finite.size} patches; report this as a bug, with the picture",
            )
        _require_view(learned, sight)
        return sight, health

    def _compared(
        self, learned: Learned, health: PictureHealth, reduced: GreyImage, alignment: Alignment
    ) -> PictureHealth:
        """The picture's figures, and how it and the part's place compare with the references."""
        program = self.program
        of_picture = gate.compare(health, reduced, learned.usual, program.health)
        of_place = gate.compare_place(
            alignment,
            max(learned.shape),
            learned.usual_place,
            learned.least_match,
            program.alignment,
        )
        of_station: tuple[Measure, ...] = ()
        if learned.empty:
            recognised = alignment.match >= learned.least_match
            of_station = learned.empty.compare(reduced, recognised=recognised)
        return replace(health, measures=of_picture + of_place + of_station)

    def _misplaced(self, alignment: Alignment, extent: View) -> str:
        settings, pose = self.program.alignment, alignment.pose
        allowed = settings.shift_limit * max(extent.width, extent.height)
        return (
            f"the part lies {hypot(pose.dx, pose.dy):.0f} pixels and "
            f"{degrees(pose.rotation):+.1f} degrees from its place (allowed: {allowed:.0f} pixels, "
            f"{settings.rotation_limit_deg:g} degrees; match {alignment.match:.2f}), or is not "
            "there: check fixture and camera, or widen `alignment`"
        )

    def _conclude(
        self, learned: Learned, health: PictureHealth, sight: Sight, work: _Work
    ) -> Inspection:
        """Score against the limits, zone by zone."""
        with work.timed("score"):
            # A threshold that is all but zero overflows here; the score is looked at below.
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                in_limits = sight.map / learned.limits
                regions = tuple(
                    RegionScore(zone.name, score, failed=not score <= 1.0)
                    for zone in learned.zones
                    if zone.name
                    # In float32, as the map: else a region could fail in a part that passes.
                    for score in [float(sight.map[zone.patches].max() / np.float32(zone.limit))]
                )
            row, column = divmod(int(np.argmax(in_limits)), in_limits.shape[1])
            score = float(in_limits[row, column])
            if not np.isfinite(score):
                raise _NotJudgedError(
                    Reason.NOT_FINITE,
                    f"the score is {score}: a limit or threshold is too small to divide by",
                )
            to_frame = _ToFrame(sight.alignment.pose, learned.shape, work.extent)
            x, y = to_frame(learned.grid.centre(row, column))
            peak = Peak(x, y, score)
            blobs = _blobs(learned.grid, to_frame, in_limits)
        passed = score <= 1.0
        doubt = gate.judge_good(health) if passed else None
        if doubt:
            reason, detail = doubt
            raise _NotJudgedError(reason, f"nothing is abnormal (score {score:.2f}), but {detail}")
        return Inspection(
            Verdict.PASS if passed else Verdict.FAIL,
            None if passed else Reason.ABOVE_LIMIT,
            "" if passed else _above_limit(score, peak, regions),
            score=score,
            limit=float(learned.limits[row, column]),
            regions=regions,
            peak=peak,
            blobs=blobs,
            map=in_limits,
            picture=work.picture,
            health=work.health,
            alignment=work.alignment,
            timings_ms=work.timings_ms,
        )


def _require_view(learned: Learned, sight: Sight) -> None:
    """Ask whether enough of each zone is in the picture."""
    for zone in learned.zones:
        weights = None if zone.name else learned.eye.structure[zone.patches]
        share = float(np.average(sight.seen[zone.patches], weights=weights))
        if share < IN_VIEW:
            where = f"region {zone.name}" if zone.name else "the part"
            raise _NotJudgedError(
                Reason.NOT_IN_VIEW,
                f"only {share:.0%} of {where} is in the picture; move camera or part",
            )


@dataclass(frozen=True, slots=True)
class _ToFrame:
    """From points of the references' place to frame pixels, for one picture.

    Attributes:
        pose: of the part in the inspected picture.
        shape: (height, width) of the inspected picture.
        extent: what that shows of the frame.
    """

    pose: Pose
    shape: tuple[int, int]
    extent: View

    def __call__(self, point: tuple[float, float]) -> tuple[float, float]:
        x, y = to_picture(self.pose, *point, self.shape)
        height, width = self.shape
        return (
            self.extent.x + x * self.extent.width / width,
            self.extent.y + y * self.extent.height / height,
        )


def _blobs(grid: PatchGrid, to_frame: _ToFrame, in_limits: FloatMap) -> tuple[Blob, ...]:
    """The connected places above the limit, the worst first."""
    above = (in_limits > 1).astype(np.uint8)
    if not above.any():
        return ()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    blobs = []
    for label, (left, top, width, height, _) in enumerate(stats[1:], start=1):
        corners = np.array(
            [
                to_frame(grid.centre(row, column))
                for row in (top - 0.5, top + height - 0.5)
                for column in (left - 0.5, left + width - 0.5)
            ]
        )
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        score = float(in_limits[labels == label].max())
        blobs.append(Blob(float(x0), float(y0), float(x1), float(y1), score))
    return tuple(sorted(blobs, key=lambda blob: -blob.score))


def in_frame_pixels(alignment: Alignment, shape: tuple[int, int], extent: View) -> Alignment:
    """An alignment of the inspected picture as one of the frame.

    Args:
        alignment: in pixels of the inspected picture.
        shape: (height, width) of that picture.
        extent: what it shows of the frame.
    """
    pose = alignment.pose
    right, down = extent.width / shape[1], extent.height / shape[0]
    return replace(alignment, pose=Pose(pose.dx * right, pose.dy * down, pose.rotation))


def _above_limit(score: float, peak: Peak, regions: Sequence[RegionScore]) -> str:
    failed = [region.name for region in regions if region.failed]
    where = f" in {', '.join(failed)}" if failed else ""
    return f"score {score:.2f}{where}, the peak at x {peak.x:.0f}, y {peak.y:.0f}"


def learn(
    program: Program,
    references: Sequence[ReducedCrop],
    frame: ReducedCrop | None = None,
    empties: Sequence[ReducedCrop] = (),
) -> Learned:
    """Derive from the references everything that judging needs.

    Args:
        program: the program's settings.
        references: one or more, all of one size.
        frame: the picture in whose place the others are put; the first one if absent.
        empties: of the station without a part.

    Raises:
        ReferencesError: they differ in size, or are all the same picture; or the regions leave
            nothing to judge.
        ImageError: the inspected picture is smaller than one patch.
    """
    return derive(program, study(program, references, frame, empties))


def study(
    program: Program,
    references: Sequence[ReducedCrop],
    frame: ReducedCrop | None,
    empties: Sequence[ReducedCrop],
) -> Studied:
    """The costly part of `learn`.

    Raises:
        ReferencesError: the pictures differ in size, or are all the same.
        ImageError: the inspected picture is smaller than one patch.
    """
    anchor = references[0] if frame is None else frame
    sizes = sorted({picture.size for picture in [anchor, *references, *empties]})
    if len(sizes) > 1:
        named = ", ".join(f"{width} x {height}" for height, width in sizes)
        raise ReferencesError(
            f"the references differ in size ({named} pixels): remove those of the old region of "
            "interest or camera mode, or teach anew"
        )
    eye = Eye(program, [reference.picture for reference in references], anchor.picture)
    maps = eye.leave_one_out()
    return Studied(program, tuple(references), tuple(empties), anchor, eye, maps)


def derive(program: Program, studied: Studied) -> Learned:
    """The rest of `learn`: limits and bounds.

    Args:
        program: one that ``studied`` suits.
        studied: from `study`.

    Raises:
        ReferencesError: the regions leave nothing to judge, or no limit follows.
    """
    eye, maps, anchor = studied.eye, studied.maps, studied.anchor
    references, empties = studied.references, studied.empties
    pictures = [reference.picture for reference in references]
    shape = anchor.picture.shape
    zones = learn_zones(program, eye, maps, shape)
    limits = np.full(maps.shape[1:], np.inf, np.float32)
    for zone in zones:
        limits[zone.patches] = np.minimum(limits[zone.patches], zone.limit)
    alignments = [placement.alignment for placement in eye.placements]
    usual = gate.usual([reference.health for reference in references], pictures)
    empty = empty_station(program, empties, usual, pictures) if empties else None
    return Learned(
        studied=studied,
        crop_shape=anchor.size,
        shape=shape,
        usual=usual,
        usual_place=gate.usual_place(alignments, max(shape)),
        least_match=least_match(program, [alignment.match for alignment in alignments]),
        empty=empty,
        zones=zones,
        limits=limits,
        leave_one_out=tuple(in_learned_limits(maps, zones)),
        warnings=(*warnings(zones, pictures), *_warnings_of(empty)),
    )


def empty_station(
    program: Program,
    empties: Sequence[ReducedCrop],
    usual: gate.Usual,
    pictures: Sequence[GreyImage],
) -> EmptyStation:
    """The station without a part, against good parts.

    Args:
        program: how light and place may change.
        empties: one picture or more.
        usual: what the references are like.
        pictures: the references, reduced, of the same shape.
    """
    light = usual.light
    # A reference that is all but black says nothing of the light.
    spread = min(light.largest / max(light.least, 1e-6), MOST_LIGHT_SPREAD)
    return EmptyStation([one.picture for one in empties], pictures, program, spread)


def least_match(program: Program, matches: Sequence[float]) -> float:
    """The correlation without which nothing can PASS.

    Args:
        program: may set it.
        matches: of the references with their common picture.
    """
    if program.health.min_match is not None:
        return program.health.min_match
    least = LEAST_MATCH_SHARE * min(matches)
    # One or two references match the template that they make better than any other part can.
    return least if len(matches) >= FEWEST_SCORES else min(least, FOUND)


def learn_zones(
    program: Program, eye: Eye, maps: NDArray[np.float32], shape: tuple[int, int]
) -> tuple[Zone, ...]:
    """The regions, and the picture outside them, each with the limit that good parts set there.

    Each is given the program's share of false rejects by itself: sharing it out among them would
    let more defects pass in each.

    Args:
        program: its regions and limit.
        eye: names the grid and the limit of few references.
        maps: float32 (n, rows, cols) from `Eye.leave_one_out`.
        shape: (height, width) of the inspected picture.

    Raises:
        ReferencesError: nothing is left to judge, or no limit follows.
    """
    patches = {region.name: region_patches(region, eye.grid, *shape) for region in program.regions}
    rest = eye.judged.copy()
    for region in program.regions:
        if not region.ignore:
            rest &= ~patches[region.name]
    wanted = [("", 1.0, rest)] if rest.any() else []
    for region in program.regions:
        if not region.ignore:
            judged = patches[region.name] & eye.judged
            if not judged.any():
                raise ReferencesError(
                    f"region {region.name} is to be judged, but lies wholly in ignored regions"
                )
            wanted.append((region.name, region.threshold, judged))
    if not wanted:
        raise ReferencesError(
            "the program's regions ignore the whole picture, nothing is left to judge: shrink the "
            "regions with `ignore: true`"
        )
    zones = []
    for name, threshold, inside in wanted:
        scores = maps[:, inside].max(axis=1)
        learned = limit_from_scores(scores, program.limit.false_reject, eye.stated_limit)
        limit = learned.value * threshold * program.limit.threshold
        zones.append(Zone(name, inside, learned, limit))
    return tuple(zones)


def in_learned_limits(maps: NDArray[np.float32], zones: Sequence[Zone]) -> list[float]:
    """The score of each map against the limits as they were learned.

    Args:
        maps: float32 (n, rows, cols), raw.
        zones: with their limits.
    """
    scores = [maps[:, zone.patches].max(axis=1) / zone.learned.value for zone in zones]
    return [float(score) for score in np.max(scores, axis=0)]


def warnings(zones: Sequence[Zone], pictures: Sequence[GreyImage]) -> tuple[str, ...]:
    """What a person should know of the limits; of the zones' only the least known one is told."""
    units = np.stack([preprocess.to_unit(picture) for picture in pictures])
    repeats = near_duplicates_warning(near_duplicates(units), len(pictures))
    doubtful = max((zone.learned for zone in zones), key=_doubt)
    return tuple(warning for warning in (repeats, doubtful.warning) if warning)


def _warnings_of(empty: EmptyStation | None) -> tuple[str, ...]:
    if empty is None or empty.tells_parts_apart:
        return ()
    return (
        "the empty station as it was taught hardly differs from a reference: nothing is called "
        '"no part" until it does. Look for a part in the pictures of `inspectd teach --empty '
        "--list`, or for an empty station among the references",
    )


def _doubt(limit: Limit) -> float:
    """How far, as a share of the limit, its interval reaches above it."""
    return np.inf if limit.high is None else limit.high / limit.value
