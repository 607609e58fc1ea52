"""The eye: what a program's references have taught, and how abnormal a picture is against them.

Learning is all there is: from the reduced pictures of good parts follow the template that parts are
aligned to, the mean and spread of their descriptions, and the scores that good parts get. None of
it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.imaging.align import Aligner, Placement
from inspectd.imaging.light import local_contrast
from inspectd.imaging.preprocess import to_unit
from inspectd.records import Alignment, FloatMap, GreyImage, PatchGrid
from inspectd.settings import Program
from inspectd.soartc.compare import Comparison, Described
from inspectd.soartc.features import PatchDescriber, PatchLayout
from inspectd.soartc.nearest import NearestComparison
from inspectd.soartc.parts import part_bank
from inspectd.soartc.spread import METRICS, SpreadComparison

LEVEL = 36.0
"""Mean of the pictures that are described with the light's gain taken out. Not 0.4, as of an
ordinary picture: eta = ln(1 + s) is linear where s is small, and there weak contrasts drown among
strong ones; far above 1 it is a logarithm, and a structure that is missing shows whatever its
contrast. 4 to 100 are equally good."""
FIXED_GAIN = 90.0
"""The same for light that never changes: brings an ordinary picture to about the same level."""
DARKEST = 0.02
"""Means below this are not amplified any further."""
SENSOR_NOISE = 0.004
"""Deviation of the noise, after the reduction, that good parts may always show: one grey level.
Without it, clipped white has no spread at all, and the least noise there is a defect. 0.002 to
0.008 are equally good."""
NOISE_SAMPLES = 8
PLAIN = 0.002
"""Slope, in grey levels (of 1) a pixel, that a plain ground counts for in a part's structure."""
SMOOTHING = (3, 3)
"""Patches over which the map is averaged, so that one patch's noise is no defect."""
STATED_LIMITS = {
    "auto": (3.75, 3.0),
    "statistics": (4.0, 3.0),
    "nearest": (5.5, 2.5),
    "published": (20.0, 20.0),
}
"""By the program's method: the raw limit with one reference, and with two, which cannot teach one.
No number suits every part (docs/accuracy.md). With one reference ``auto`` is meant for photographs,
``nearest`` for drawings and binarised scans."""
RELEARN_UP_TO = 12
"""Up to so many references, leave-one-out learns anew without each, alignment and all; beyond, the
closed form agrees with that to a hundredth."""


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What the eye saw in one picture.

    Attributes:
        map: float32 (rows, cols), abnormality in raw units; 0 where nothing was seen.
        seen: bool (rows, cols), the patches that lie wholly in the picture.
        alignment: how the part lay.
        picture: uint8 (height, width), aligned, what it does not show taken from the references.
        timings_ms: stage name to milliseconds.
    """

    map: FloatMap
    seen: NDArray[np.bool_]
    alignment: Alignment
    picture: GreyImage
    timings_ms: dict[str, float] = field(default_factory=dict)


class Eye:
    """One program's references, learned. Serves one thread.

    Attributes:
        placements: where each reference lies.
        structure: float32 (rows, cols), how much there is to see in each patch.
        judged: bool (rows, cols), the patches that show nothing of what the program ignores.
    """

    def __init__(
        self, program: Program, pictures: Sequence[GreyImage], frame: GreyImage | None = None
    ) -> None:
        """Learn.

        Args:
            program: the program's settings.
            pictures: one or more reduced pictures of good parts, uint8 (height, width), of one
                shape.
            frame: the picture in whose place the others are put, so that the regions stay where
                they were drawn; the first one if absent.

        Raises:
            ImageError: the pictures are smaller than one patch.
        """
        self._program = program
        self._pictures = pictures
        self._frame = pictures[0] if frame is None else frame
        soartc = program.soartc
        height, width = self._frame.shape
        stride, step = (soartc.stride, soartc.stride), (soartc.step, soartc.step)
        layout = PatchLayout(height, width, soartc.part, stride, step)
        self._bank = part_bank(soartc.part, soartc.band, soartc.centre_weight)
        self._describer = PatchDescriber(layout, self._bank)
        self._planes = self._describer.new_planes()
        self._raw = np.empty((layout.rows, layout.cols), np.float32)
        units = [to_unit(picture) for picture in pictures]
        self._aligner, self.placements = Aligner.learn(
            units, to_unit(self._frame), program.alignment
        )
        self._mean = mean_picture(self.placements)
        self.structure = structure(self._mean, layout.grid)
        self.judged = judged_patches(program, layout.grid, height, width)
        self._comparison = self._make_comparison()

    @property
    def grid(self) -> PatchGrid:
        return self._describer.layout.grid

    @property
    def stated_limit(self) -> float:
        """The limit in raw units where there are too few references to learn one."""
        by_count = STATED_LIMITS[self._program.method]
        return by_count[min(len(self._pictures), len(by_count)) - 1]

    def look(self, picture: GreyImage) -> Sight:
        """Compare one picture with what was learned.

        Args:
            picture: uint8 (height, width), of the references' shape.
        """
        start = perf_counter()
        placement = self._aligner.place(to_unit(picture))
        aligned = perf_counter()
        whole = self._filled(placement)
        lit = normalised(self._program, whole)
        seen = self._describe(lit, placement.seen, self._planes)
        described = perf_counter()
        self._comparison.distances(self._planes, seen & self.judged, self._raw)
        smoothed = _smoothed(self._raw)
        compared = perf_counter()
        return Sight(
            map=smoothed,
            seen=seen,
            alignment=placement.alignment,
            picture=np.rint(np.minimum(whole, 1) * 255).astype(np.uint8),
            timings_ms={
                "align": (aligned - start) * 1e3,
                "stage1": (described - aligned) * 1e3,
                "stage2": (compared - described) * 1e3,
            },
        )

    def leave_one_out(self) -> NDArray[np.float32]:
        """The maps that the references get from all the others: what good parts get.

        Returns:
            float32 (n, rows, cols); n is 0 with a single reference.
        """
        count = len(self._pictures)
        if count == 1:
            return np.empty((0, *self._raw.shape), np.float32)
        if count <= RELEARN_UP_TO:
            return np.stack([self._map_without(index) for index in range(count)])
        if isinstance(self._comparison, Comparison):
            raw = self._distances_from_averages()
        else:
            raw = map(self._comparison.leave_one_out, range(count))
        return np.stack([_smoothed(distances * self.judged) for distances in raw])

    def _distances_from_averages(self) -> Iterator[FloatMap]:
        """Of each reference, as it lies, from the average picture of all the others."""
        total, count = picture_sums(self.placements)
        for index, placement in enumerate(self.placements):
            others = total - placement.picture * placement.seen, count - placement.seen
            out = np.empty_like(self._raw)
            self._average_comparison(_mean(*others)).distances(*self.described(index), out)
            yield out

    def _map_without(self, index: int) -> FloatMap:
        others = [picture for other, picture in enumerate(self._pictures) if other != index]
        return Eye(self._program, others, self._frame).look(self._pictures[index]).map

    # ---- describing ------------------------------------------------------------------------------

    def described(self, index: int) -> Described:
        """The description of one of the references, in arrays of its own."""
        placement = self.placements[index]
        planes = self._describer.new_planes()
        return planes, self._describe(self._lit(placement), placement.seen, planes)

    def _lit(self, placement: Placement) -> FloatMap:
        """The aligned picture as it is described."""
        return normalised(self._program, self._filled(placement))

    def _filled(self, placement: Placement) -> FloatMap:
        if placement.seen.all():
            return placement.picture
        return filled(placement.picture, placement.seen, self._mean)

    def _describe(
        self, picture: FloatMap, seen: NDArray[np.bool_], planes: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Stage 1 of a picture; the patches that lie wholly where it was seen."""
        self._describer.describe(picture, planes)
        return seen_patches(seen, self.grid, self._program.soartc.blur)

    # ---- learning --------------------------------------------------------------------------------

    def _make_comparison(self) -> Comparison | NearestComparison | SpreadComparison:
        match self.method:
            case "published":
                return self._average_comparison(self._mean)
            case "nearest":
                return self._nearest()
            case _:
                return SpreadComparison(_References(self), self._noise_variance(), self._prior())

    def _average_comparison(self, average: FloatMap) -> Comparison:
        """The published comparison with an average picture."""
        soartc = self._program.soartc
        planes = self._describer.described(normalised(self._program, average))
        return Comparison(planes, soartc.p, soartc.weights)

    def _nearest(self) -> NearestComparison:
        """The nearest comparison, against a finer description of a single reference."""
        soartc = self._program.soartc
        if len(self.placements) > 1:
            tolerance = -(-soartc.tolerance // soartc.step)
            return NearestComparison(_References(self), tolerance=tolerance)
        placement, layout = self.placements[0], self._describer.layout
        dense = PatchDescriber(replace(layout, step=(1, 1)), self._bank)
        planes = dense.described(self._lit(placement))
        seen = seen_patches(placement.seen, dense.layout.grid, soartc.blur)
        return NearestComparison([(planes, seen)], finer=soartc.step, tolerance=soartc.tolerance)

    @property
    def method(self) -> str:
        """The comparison in use; ``auto`` chooses by the number of references."""
        chosen = self._program.method
        if chosen != "auto":
            return chosen
        return "nearest" if len(self._pictures) == 1 else "statistics"

    def _noise_variance(self) -> NDArray[np.float32]:
        """What the sensor's noise alone does to the metrics: float32 (6, 3, rows, cols)."""
        rng = np.random.default_rng(0)
        clean, noisy = self._describer.new_planes(), self._describer.new_planes()
        variance = np.zeros_like(clean)
        for sample in range(NOISE_SAMPLES):
            placement = self.placements[sample * len(self.placements) // NOISE_SAMPLES]
            noise = SENSOR_NOISE * rng.standard_normal(placement.picture.shape, np.float32)
            disturbed = replace(placement, picture=np.maximum(placement.picture + noise, 0))
            seen = self._describe(self._lit(placement), placement.seen, clean)
            self._describe(self._lit(disturbed), placement.seen, noisy)
            variance += np.where(seen, (noisy - clean) ** 2, 0) / NOISE_SAMPLES
        return variance

    def _prior(self) -> NDArray[np.float64] | None:
        """What is assumed of the spread when there is but one reference.

        Good parts are taken to differ from it as copies do that are shifted by up to 0.7 pixels,
        brighter or darker by 5 %, and noisy by 1 %.

        Returns:
            float64 (18, 18), the second moment of the metrics' change; None with more references.
        """
        if len(self.placements) > 1:
            return None
        rng = np.random.default_rng(0)
        original = self.placements[0]
        height, width = original.picture.shape
        clean, changed = self._describer.new_planes(), self._describer.new_planes()
        seen = self._describe(self._lit(original), original.seen, clean)
        changes = []
        for dx in (-0.7, 0.0, 0.7):
            for dy in (-0.7, 0.0, 0.7):
                shift = np.array([[1, 0, dx], [0, 1, dy]])
                moved = cv2.warpAffine(
                    original.picture, shift, (width, height), borderMode=cv2.BORDER_REPLICATE
                )
                gain = 1 + 0.05 * rng.standard_normal()
                noise = 0.01 * rng.standard_normal(moved.shape, np.float32)
                copy = replace(original, picture=np.maximum(moved * gain + noise, 0))
                self._describe(self._lit(copy), original.seen, changed)
                changes.append((changed - clean)[:, :, seen].reshape(METRICS, -1))
        deviations = np.concatenate(changes, axis=1, dtype=np.float64)
        moment: NDArray[np.float64] = deviations @ deviations.T / deviations.shape[1]
        return moment


class _References(Sequence[Described]):
    """The aligned references' descriptions, made when they are asked for.

    Describing takes a tenth of a millisecond; a thousand descriptions would take 150 MB.
    """

    def __init__(self, eye: Eye) -> None:
        self._eye = eye

    def __len__(self) -> int:
        return len(self._eye.placements)

    def __getitem__(self, index: int) -> Described:  # type: ignore[override]  # no slices
        return self._eye.described(index)


def judged_patches(program: Program, grid: PatchGrid, height: int, width: int) -> NDArray[np.bool_]:
    """The patches that show nothing of what the program ignores.

    Returns:
        bool (rows, cols).
    """
    ignored = np.zeros((height, width), np.uint8)
    for region in program.regions:
        if region.ignore:
            corners = np.array(region.outline) * (width, height)
            cv2.fillPoly(ignored, [np.rint(corners).astype(np.int32)], 1)
    return seen_patches(ignored == 0, grid, blur=0.0)


def mean_picture(placements: Sequence[Placement]) -> FloatMap:
    """The aligned pictures' mean over those that show each pixel; 0 where none does.

    Returns:
        float32 (height, width).
    """
    return _mean(*picture_sums(placements))


def picture_sums(
    placements: Sequence[Placement],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The aligned pictures' sum, and how many of them show each pixel: float64 (height, width)."""
    shape = placements[0].picture.shape
    total, count = np.zeros(shape), np.zeros(shape)
    for placement in placements:
        total += placement.picture * placement.seen
        count += placement.seen
    return total, count


def _mean(total: NDArray[np.float64], count: NDArray[np.float64]) -> FloatMap:
    return (total / np.maximum(count, 1)).astype(np.float32)


def filled(picture: FloatMap, seen: NDArray[np.bool_], mean: FloatMap) -> FloatMap:
    """A picture with what it does not show taken from the mean, in the picture's own light."""
    shown = float((mean * seen).sum())
    light = float((picture * seen).sum()) / max(shown, 1e-3)
    return np.where(seen, picture, mean * np.float32(light)).astype(np.float32)


def normalised(program: Program, picture: FloatMap) -> FloatMap:
    """The picture as it is described: blurred as the program says, its light evened out.

    Args:
        program: its ``light``, and blur and pedestal of ``soartc``.
        picture: float32 (height, width), 0 black and 1 white.
    """
    soartc = program.soartc
    if soartc.blur:
        blurred = np.empty_like(picture)
        cv2.GaussianBlur(
            picture, (0, 0), soartc.blur, dst=blurred, borderType=cv2.BORDER_REFLECT_101
        )
        picture = blurred
    if soartc.pedestal:
        picture = soartc.pedestal + (1 - soartc.pedestal) * picture
    match program.light:
        case "gain":
            gain = LEVEL / max(float(picture.mean()), DARKEST)
        case "local":
            picture = np.clip(0.5 + 0.2 * local_contrast(picture), 0, 1).astype(np.float32)
            gain = 2 * LEVEL
        case _:
            gain = 1.0 if program.method == "published" else FIXED_GAIN
    return picture * np.float32(gain)


def seen_patches(seen: NDArray[np.bool_], grid: PatchGrid, blur: float) -> NDArray[np.bool_]:
    """The patches that lie wholly in what was seen, with what the blur draws in from beside.

    Returns:
        bool (rows, cols).
    """
    if seen.all():
        return np.ones((grid.rows, grid.cols), np.bool_)
    return np.asarray(patch_sums((~seen).astype(np.uint8), grid, int(np.ceil(blur))) == 0)


def structure(mean: FloatMap, grid: PatchGrid) -> FloatMap:
    """How much there is to see in each patch of what good parts look like: the slopes in it.

    Args:
        mean: float32 (height, width), good parts' mean picture.
        grid: of the patches.

    Returns:
        float32 (rows, cols), above 0.
    """
    down, right = np.gradient(mean)
    return patch_sums(np.hypot(down, right) + PLAIN, grid).astype(np.float32)


def patch_sums(values: NDArray[Any], grid: PatchGrid, reach: int = 0) -> NDArray[Any]:
    """Sums over the pixels that each patch covers, and so many more to each side.

    Args:
        values: (height, width).
        grid: of the patches.
        reach: pixels.

    Returns:
        (rows, cols).
    """
    sums = np.asarray(cv2.integral(values))
    height, width = values.shape
    top = np.arange(grid.rows) * grid.step[0]
    left = np.arange(grid.cols) * grid.step[1]
    above, below = np.maximum(top - reach, 0), np.minimum(top + grid.extent[0] + reach, height)
    before, after = np.maximum(left - reach, 0), np.minimum(left + grid.extent[1] + reach, width)
    corners = [np.ix_(rows, cols) for rows in (below, above) for cols in (after, before)]
    lower_right, lower_left, upper_right, upper_left = (sums[corner] for corner in corners)
    return np.asarray(lower_right - upper_right - lower_left + upper_left)


def _smoothed(raw: FloatMap) -> FloatMap:
    smoothed = np.empty_like(raw)
    cv2.blur(raw, SMOOTHING, dst=smoothed, borderType=cv2.BORDER_REFLECT_101)
    return smoothed
