"""Is the picture fit to be judged? Its light, contrast and focus, and whether a part is there.

A picture's figures are measured on their own, then compared with the references': each comparison
is a `Measure` with the bounds in force, and from these follows whether the picture is judged.
Whether a part that is there lies in its place is for the alignment to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import degrees, hypot

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.imaging.frame_kernels import count_clipped, mean_common_slopes
from inspectd.imaging.preprocess import for_kernels
from inspectd.records import Alignment, FloatMap, GreyImage, Measure, PictureHealth, Reason
from inspectd.settings import AlignmentSettings, HealthSettings

_FOCUS_SIDE = 1024
"""Focus is measured on the picture halved until its longest side is at most this."""
_FOCUS_HALVINGS = 3
"""The coarse slopes are taken at a scale of 2 to the power of this."""
_DIM, _BRIGHT = 13, 242
"""Grey levels between which a pixel follows the light."""
_BLACK, _WHITE = 2, 253
"""Grey levels up to and from which a pixel is clipped: the ends of the scale and what a lossy
compression makes of them."""
_FAINT = 0.5
"""Share of the contrast needed for a PASS below which a picture is not even good for a FAIL."""
_CLIPPED_MORE = 0.1
"""Share of clipped pixels that a picture may have more than any reference."""
_SMALLEST_SIDE = 4
"""A slope needs 3 pixels in a row, a common one a second row."""

Doubt = tuple[Reason, str]
"""Why a picture is not fit to be judged, and the figures for a person."""

_BEYOND = {
    "white": (
        Reason.CLIPPED,
        "{value:.1%} of the pixels are white, at most {high:.1%} allowed; check exposure, gain and "
        "reflections",
    ),
    "black": (
        Reason.CLIPPED,
        "{value:.1%} of the pixels are black, at most {high:.1%} allowed; check exposure, lamp and "
        "shadows",
    ),
    "focus": (
        Reason.OUT_OF_FOCUS,
        "sharpness {value:.3g}, at least {low:.3g} needed beside the references' {usual:.3g}; "
        "check focus, lens and motion of the part",
    ),
    "light": (
        Reason.LIGHT_CHANGED,
        "{value:.2f} times as bright as the references' mean, {low:.2f} to {high:.2f} allowed; "
        "check lamp, exposure and gain",
    ),
}
"""What is said of a measure beyond its bounds, in this order."""


def measure(grey: GreyImage, reduced: GreyImage) -> PictureHealth:
    """A picture's figures by themselves, not yet compared with the references'.

    Args:
        grey: uint8 (height, width), the region of interest before the reduction, which hides
            blur and clipped pixels.
        reduced: uint8 (height, width), the same reduced.
    """
    mean, deviation = cv2.meanStdDev(reduced)
    black, white = count_clipped(for_kernels(grey), _BLACK, _WHITE)
    return PictureHealth(
        brightness=float(mean[0, 0]) / 255.0,
        contrast=float(deviation[0, 0]) / 255.0,
        black=black / grey.size,
        white=white / grey.size,
        focus=focus_measure(grey),
    )


def focus_measure(picture: GreyImage) -> float:
    """How sharp the edges are: fine slopes over coarse slopes, without unit; larger is sharper.

    The mean squared slope at the scale of a pixel, divided by the same at 8 pixels. Blur flattens
    the fine slopes and leaves the coarse ones; contrast, brightness and the number of edges (a
    missing part) change both alike and cancel. The fine square is taken as the product of two
    neighbouring slopes, which share no pixel: sensor noise is independent in them and averages
    out, where the usual measures (such as the energy of the Laplacian) count it as sharpness.

    On photographs of four kinds of part, good and defective, the measure stays within 0.53 to
    1.33 of the good parts' median; a Gaussian blur by an eightieth of the longest side brings it
    below 0.4, with noise or without. It takes 0.3 ms at 1456 x 1088 and 2 ms at 4056 x 3040 on
    one x86 core.

    Args:
        picture: uint8 (height, width), before the reduction. Measures compare only between
            pictures of one size.

    Returns:
        0.0 where there are no slopes to measure.
    """
    while max(picture.shape) > _FOCUS_SIDE:
        picture = _halved(picture)
    coarse = picture
    scale = 1.0
    for _ in range(_FOCUS_HALVINGS):
        if min(coarse.shape) < 2 * _SMALLEST_SIDE:
            break
        coarse = _halved(coarse)
        scale *= 4.0
    if min(coarse.shape) < _SMALLEST_SIDE:
        return 0.0
    coarse_slope = _mean_squared_slope(coarse)
    if coarse_slope == 0.0:
        return 0.0
    return max(0.0, float(mean_common_slopes(for_kernels(picture)))) * scale / coarse_slope


@dataclass(frozen=True, slots=True)
class Spread:
    """What the references have of one figure."""

    least: float
    median: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return cls(min(values), float(np.median(values)), max(values))


@dataclass(frozen=True, slots=True, eq=False)
class Usual:
    """What the references' pictures are like.

    Attributes:
        picture: float32 (height, width), their mean, reduced, in grey levels.
        comparable: bool (height, width), where the mean is neither black nor clipped.
        light: of the `light_ratio` of each.
        contrast, black, white, focus: as in `PictureHealth`.
    """

    picture: FloatMap
    comparable: NDArray[np.bool_]
    light: Spread
    contrast: Spread
    black: Spread
    white: Spread
    focus: Spread


def usual(healths: Sequence[PictureHealth], reduced: Sequence[GreyImage]) -> Usual:
    """What good parts' pictures are like.

    Args:
        healths: the figures of one picture or more.
        reduced: the same pictures reduced, uint8 (height, width).
    """
    mean: FloatMap = np.stack(reduced).mean(axis=0, dtype=np.float32)
    comparable: NDArray[np.bool_] = (mean > _DIM) & (mean < _BRIGHT)
    return Usual(
        picture=mean,
        comparable=comparable,
        light=Spread.of([light_ratio(picture, mean, comparable) for picture in reduced]),
        contrast=Spread.of([health.contrast for health in healths]),
        black=Spread.of([health.black for health in healths]),
        white=Spread.of([health.white for health in healths]),
        focus=Spread.of([health.focus for health in healths]),
    )


def light_ratio(reduced: GreyImage, mean: FloatMap, comparable: NDArray[np.bool_]) -> float:
    """How bright a picture is against the references' mean: the median over its pixels.

    A median, because a part that is missing or foreign changes fewer than half of them; over those
    that are neither black nor clipped, because only they follow the light. 1.0 without any.
    """
    if not comparable.any():
        return 1.0
    return float(np.median(reduced[comparable] / mean[comparable]))


def compare(
    health: PictureHealth, reduced: GreyImage, references: Usual, bounds: HealthSettings
) -> tuple[Measure, ...]:
    """A picture's figures against the references': light, contrast, black, white and focus.

    Focus is left out where the references have no slopes to measure it by.

    Args:
        health: the picture's figures.
        reduced: uint8 (height, width), the picture reduced.
        references: what they are like.
        bounds: the program's.
    """
    light, contrast, focus = references.light, references.contrast, references.focus
    ratio = light_ratio(reduced, references.picture, references.comparable)
    change = 1.0 + bounds.max_light_change
    least_contrast = max(bounds.min_contrast, bounds.min_relative_contrast * contrast.median)
    measures = [
        Measure("light", ratio, light.median, light.least / change, light.largest * change),
        Measure("contrast", health.contrast, contrast.median, low=least_contrast),
        _clipped("black", health.black, references.black, bounds),
        _clipped("white", health.white, references.white, bounds),
    ]
    if focus.median > 0.0:
        least_focus = bounds.min_focus * focus.median
        measures.append(Measure("focus", health.focus, focus.median, low=least_focus))
    return tuple(measures)


def _clipped(name: str, share: float, references: Spread, bounds: HealthSettings) -> Measure:
    """Where the references' own ground is clipped there is no bound, unless one is set: a part that
    is missing bares more of the ground.
    """
    high = bounds.max_clipped
    if high is None and references.largest <= _CLIPPED_MORE:
        high = references.largest + _CLIPPED_MORE
    return Measure(name, share, references.median, high=high)


@dataclass(frozen=True, slots=True)
class UsualPlace:
    """How the references lie.

    Attributes:
        match: correlation with their common picture.
        shift: off its place, as a share of the longest side.
        rotation: degrees, clockwise.
    """

    match: Spread
    shift: Spread
    rotation: Spread


def usual_place(alignments: Sequence[Alignment], longest: int) -> UsualPlace:
    """How good parts lie.

    Args:
        alignments: of one picture or more, in pixels of the inspected picture.
        longest: its longest side.
    """
    return UsualPlace(
        match=Spread.of([alignment.match for alignment in alignments]),
        shift=Spread.of([_shift(alignment, longest) for alignment in alignments]),
        rotation=Spread.of([degrees(alignment.pose.rotation) for alignment in alignments]),
    )


def compare_place(
    alignment: Alignment,
    longest: int,
    references: UsualPlace,
    least_match: float,
    settings: AlignmentSettings,
) -> tuple[Measure, ...]:
    """How a part lies against the references: match, shift and rotation.

    Shift and rotation are left out where nothing like the part was found, and where they are not
    looked for.

    Args:
        alignment: in pixels of the inspected picture.
        longest: its longest side.
        references: how they lie.
        least_match: what does not match as well does not show the part.
        settings: bounds of shift and rotation.
    """
    match = Measure("match", alignment.match, references.match.median, low=least_match)
    if settings.mode == "none" or not match.within:
        return (match,)
    shift = Measure(
        "shift", _shift(alignment, longest), references.shift.median, high=settings.shift_limit
    )
    if settings.mode == "shift":
        return match, shift
    limit = settings.rotation_limit_deg
    bounds = (-limit, limit) if limit < 180.0 else (None, None)
    angle = degrees(alignment.pose.rotation)
    return match, shift, Measure("rotation", angle, references.rotation.median, *bounds)


def _shift(alignment: Alignment, longest: int) -> float:
    return hypot(alignment.pose.dx, alignment.pose.dy) / longest


def judge(health: PictureHealth, bounds: HealthSettings) -> Doubt | None:
    """Why the picture is not fit to be judged, with the figures for a person; None if it is.

    The first that applies of: too dark, no part (where the empty station was taught), too bright,
    no part (where it was not), no contrast, clipped, out of focus, light changed. What was not
    compared is not asked. A figure that is no number is never fit.
    """
    return next(_doubts(health, bounds), None)


def judge_good(health: PictureHealth) -> Doubt | None:
    """Why a picture that is fit, and in which nothing is abnormal, does not show a good part.

    A defective part may lack the references' pattern or their contrast, a good one has both.
    """
    match, contrast = health.measure("match"), health.measure("contrast")
    if match and not match.within:
        return Reason.MISPLACED, (
            f"the picture hardly resembles the references (match {match.value:.2f}, at least "
            f"{match.low:.2f} needed): check that it shows the part, and that the references all "
            "lie alike; where they do not, set alignment.mode to search"
        )
    if contrast and not contrast.within:
        return _no_contrast(contrast)
    ground = health.measure("ground")
    if ground and not ground.within:
        return Reason.MISPLACED, (
            f"{ground.value:.0%} of the picture are as in the empty station (at most "
            f"{ground.high:.0%} with a part in it): check that it shows the part"
        )
    return None


def _shows_something_else(health: PictureHealth) -> bool:
    """Whether it is the empty station but for something that is not the part, so that what differs
    from the references is due neither to light nor to lens.
    """
    ground = health.measure("ground")
    return ground is not None and not ground.within


def _doubts(health: PictureHealth, bounds: HealthSettings) -> Iterator[Doubt]:
    if not health.brightness >= bounds.min_brightness:
        yield (
            Reason.TOO_DARK,
            f"mean grey {health.brightness:.3f}, at least {bounds.min_brightness:g} needed; "
            "check lamp, exposure and lens cap",
        )
    presence = health.measure("presence")
    if presence and not presence.within:
        yield (
            Reason.NO_PART,
            f"the picture differs nowhere by more than {presence.value:.3f} from the empty station "
            f"(at least {presence.low:.3f} where anything lies, parts usually "
            f"{presence.usual:.3f})",
        )
    if _shows_something_else(health):
        return
    if not health.brightness <= bounds.max_brightness:
        yield (
            Reason.TOO_BRIGHT,
            f"mean grey {health.brightness:.3f}, at most {bounds.max_brightness:g} allowed; "
            "check exposure, gain and stray light",
        )
    match, contrast = health.measure("match"), health.measure("contrast")
    faint = contrast is not None and _faint(contrast)
    unlike = match is not None and match.low is not None and match.value < match.low
    if presence is None and match and contrast and faint and unlike:
        yield (
            Reason.NO_PART,
            f"there is neither the references' pattern (match {match.value:.2f}, at least "
            f"{match.low:.2f} needed) nor their contrast ({contrast.value:.3f}, usually "
            f"{contrast.usual:.3f}); if a part is there, check lens and lamp",
        )
    if not health.contrast >= bounds.min_contrast:
        yield (
            Reason.NO_CONTRAST,
            f"deviation of the grey values {health.contrast:.3f}, at least "
            f"{bounds.min_contrast:g} needed; check that the camera sees the part",
        )
    for name, (reason, words) in _BEYOND.items():
        figure = health.measure(name)
        if figure and not figure.within:
            yield reason, words.format(**asdict(figure))
    if contrast and faint:
        yield _no_contrast(contrast)


def _faint(contrast: Measure) -> bool:
    return contrast.low is not None and contrast.value < _FAINT * contrast.low


def _no_contrast(contrast: Measure) -> Doubt:
    return Reason.NO_CONTRAST, (
        f"deviation of the grey values {contrast.value:.3f}, at least {contrast.low:.3f} needed "
        f"beside the references' {contrast.usual:.3f}; check lens, lamp and stray light"
    )


def _halved(picture: GreyImage) -> GreyImage:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    even = picture[: 2 * height, : 2 * width]
    return np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _mean_squared_slope(picture: GreyImage) -> float:
    """Across plus along, in grey levels over 2 pixels."""
    across = cv2.subtract(picture[:, 2:], picture[:, :-2], dtype=cv2.CV_16S)
    along = cv2.subtract(picture[2:], picture[:-2], dtype=cv2.CV_16S)
    return sum(cv2.norm(slope, cv2.NORM_L2SQR) / slope.size for slope in (across, along))
