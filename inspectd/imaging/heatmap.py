"""The picture for the eye: what was inspected, with the map over it and the verdict above it.

The colours mean the same in every picture: the scale runs from 0 to twice the limit and nothing
stretches it. Below half the limit the part shows undisturbed; from there the colour comes in, and
at the limit it is strong and has a white line around it. The colours are matplotlib's plasma
(CC0): even steps for the eye, also a colour-blind one, and in no place grey like the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ImageError
from inspectd.imaging.style import (
    BAD,
    GOOD,
    HUGE,
    LARGE,
    MARGIN,
    MUTED,
    NORMAL,
    SMALL,
    STRIP_HEIGHT,
    WHITE,
    Canvas,
    Colour,
    blank_canvas,
    shortened,
    text_size,
    write,
)
from inspectd.records import FloatMap, GreyImage, Inspection, PatchGrid, Verdict
from inspectd.settings import Region

PICTURE_SIDE = 480
"""Longest side of the inspected picture as it is drawn, in pixels."""
SCALE_TOP = 2.0
"""Upper end of the colour scale in units of the limit."""
_LIMIT_STEP = 128
"""Step of the scale, of 0 to 255, at which the limit lies: what is at the limit or above it, and
nothing else, is drawn with this step or a higher one."""
VISIBLE_FROM = 0.5
"""Below this, in units of the limit, the map is transparent."""

_LEAST_WIDTH, _LEAST_HEIGHT = 420, 240
"""Room for the text above, and for the colour bar beside, an elongated picture."""
_BAR_WIDTH, _BAR_ROOM = 18, 74
_DETAIL_HEIGHT = 46
_DETAIL_LINES = 2

_DARK: Colour = (20, 20, 20)
_REGION: Colour = (230, 220, 160)
_FAILED: Colour = (60, 60, 255)
_IGNORED: Colour = (160, 160, 160)
_BLANK = 70
_VERDICTS: dict[Verdict, tuple[str, Colour, Colour]] = {
    Verdict.PASS: ("PASS", GOOD, WHITE),
    Verdict.FAIL: ("FAIL", BAD, WHITE),
    Verdict.NOT_JUDGED: ("NOT JUDGED", (30, 170, 245), _DARK),
}
"""Words, background and colour of the text."""


def render_heatmap(
    inspection: Inspection,
    *,
    program: str,
    regions: Sequence[Region] = (),
    grid: PatchGrid | None = None,
) -> Canvas:
    """Draw an inspection.

    Inspections with a picture of one size give drawings of one size. One without a map shows the
    picture alone, one without a picture a blank; neither has any colour of the scale over it.

    Args:
        inspection: its picture and map are drawn; its verdict, score, limit, reason and detail
            are written. The cross stands on the map's largest value, when that is at or above
            half the limit.
        program: the program's name.
        regions: the program's regions, outlined and named.
        grid: where the map's patches lie on the picture; needed with a map.

    Returns:
        uint8 (height, width, 3) in the order blue, green, red.

    Raises:
        ImageError: the map does not fit the grid, or the grid the picture.
    """
    picture, values = inspection.picture, inspection.map
    if picture is None:
        scene = _blank()
    elif values is None:
        scene = _in_colour(_enlarged(picture))
        _draw_regions(scene, regions, inspection)
    else:
        enlarged = _enlarged(picture)
        placement = _placement(picture, values, grid, enlarged)
        scene = _with_map(enlarged, values, placement)
        _draw_regions(scene, regions, inspection)
        _draw_peak(scene, values, placement)
    return _laid_out(scene, inspection, program)


def encode_png(canvas: Canvas) -> bytes:
    """The drawing as a PNG file."""
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    written, data = cv2.imencode(".png", canvas, fast)
    assert written, "every uint8 canvas can be written as PNG"
    return data.tobytes()


# ---- the inspected picture ---------------------------------------------------------------------


def _enlarged(picture: GreyImage) -> GreyImage:
    """The picture at its drawn size; its edges stay at the edges."""
    height, width = picture.shape
    scale = PICTURE_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smooth = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, size, interpolation=smooth), np.uint8)


def _in_colour(picture: GreyImage) -> Canvas:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), np.uint8)


def _blank() -> Canvas:
    scene = np.full((PICTURE_SIDE * 3 // 4, PICTURE_SIDE, 3), _BLANK, np.uint8)
    words = "no picture"
    _, height = text_size(words, LARGE)
    middle = (scene.shape[1] // 2, (scene.shape[0] + height) // 2)
    write(scene, words, middle, LARGE, align=0.5)
    return scene


# ---- the map -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where a map lies on the drawn picture.

    Attributes:
        grid: on the inspected picture.
        scale_x: drawn pixels to a pixel of the inspected picture, across.
        scale_y: the same, along.
    """

    grid: PatchGrid
    scale_x: float
    scale_y: float

    def centre(self, row: int, col: int) -> tuple[float, float]:
        """x, y of a patch's centre on the drawn picture, pixel k reaching from k to k + 1."""
        x, y = self.grid.centre(row, col)
        return x * self.scale_x, y * self.scale_y

    @property
    def spacing(self) -> tuple[float, float]:
        """Drawn pixels from one patch to the next: along, across."""
        return self.grid.step[0] * self.scale_y, self.grid.step[1] * self.scale_x


def _placement(
    picture: GreyImage, values: FloatMap, grid: PatchGrid | None, enlarged: GreyImage
) -> _Placement:
    if grid is None or values.shape != (grid.rows, grid.cols):
        patches = "no grid" if grid is None else f"a grid of {grid.rows} x {grid.cols} patches"
        raise ImageError(f"a map of the shape {values.shape} was given with {patches}")
    height, width = picture.shape
    last_x, last_y = grid.centre(grid.rows - 1, grid.cols - 1)
    if last_x > width or last_y > height:
        raise ImageError(
            f"the last patch of the grid lies at {last_x:g}, {last_y:g}, outside the picture of "
            f"{width} x {height} pixels"
        )
    return _Placement(grid, enlarged.shape[1] / width, enlarged.shape[0] / height)


def _with_map(enlarged: GreyImage, values: FloatMap, placement: _Placement) -> Canvas:
    """The drawn picture with the map over it, and a line along the limit."""
    steps = _resampled(_scale_steps(values), placement, enlarged.shape)
    coloured = _blended(enlarged, steps)
    # The line lies outside, with a dark one around it: it must not cover the small places.
    above = (steps >= _LIMIT_STEP).astype(np.uint8)
    line, shade = (cv2.dilate(above, np.ones((side, side), np.uint8)) for side in (3, 5))
    coloured[shade > line] //= 3
    coloured[line > above] = WHITE
    return coloured


def _scale_steps(values: FloatMap) -> NDArray[np.uint8]:
    """The map in steps of the colour scale; what is no number must not look harmless."""
    steps = np.floor(np.nan_to_num(values, nan=SCALE_TOP, posinf=SCALE_TOP) * _LIMIT_STEP)
    return np.clip(steps, 0, 255).astype(np.uint8)


def _resampled(
    steps: NDArray[np.uint8], placement: _Placement, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """The map at the drawn size: uint8 (height, width), each value at its patch's centre, linear
    between centres, and 0 farther out than half way to the next patch, had there been one.
    """
    along, across = placement.spacing
    if min(along, across) < 1:
        # More patches than drawn pixels: none may slip through between two of them.
        around = np.ones((_odd(1 / along), _odd(1 / across)), np.uint8)
        steps = np.asarray(cv2.dilate(steps, around), np.uint8)
    left, top = placement.centre(0, 0)
    # warpAffine counts from the middle of pixels, hence the halves.
    to_map = np.array(
        [[1 / across, 0, (0.5 - left) / across], [0, 1 / along, (0.5 - top) / along]], np.float64
    )
    drawn = cv2.warpAffine(
        steps,
        to_map,
        (shape[1], shape[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    right, bottom = placement.centre(placement.grid.rows - 1, placement.grid.cols - 1)
    drawn[: max(0, floor(top - along / 2))] = 0
    drawn[ceil(bottom + along / 2) :] = 0
    drawn[:, : max(0, floor(left - across / 2))] = 0
    drawn[:, ceil(right + across / 2) :] = 0
    return np.asarray(drawn, np.uint8)


def _odd(length: float) -> int:
    return 2 * ceil(length / 2) + 1


def _blended(picture: GreyImage, steps: NDArray[np.uint8]) -> Canvas:
    """The grey picture under the colours of the scale."""
    under = cv2.multiply(picture, cv2.LUT(steps, _CLEARNESS), scale=1 / 255)
    over = cv2.applyColorMap(steps, _COLOURS)
    return np.asarray(cv2.add(_in_colour(np.asarray(under, np.uint8)), over), np.uint8)


def _scale() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The colours of the scale's 256 steps times their opacity, uint8 (256, 1, 3), and what they
    leave of the picture, 255 for all of it, uint8 (256, 1).
    """
    steps = np.arange(256)[:, np.newaxis]
    score = steps / _LIMIT_STEP
    below = np.interp(score, [VISIBLE_FROM, 1.0], [0.0, 0.5])
    above = np.interp(score, [1.0, 1.5], [0.65, 0.8])
    opacity = np.where(steps < _LIMIT_STEP, below, above)
    plasma = cv2.applyColorMap(steps.astype(np.uint8), cv2.COLORMAP_PLASMA)
    colours = np.rint(plasma * opacity[:, :, np.newaxis])
    return colours.astype(np.uint8), np.rint(255 * (1 - opacity)).astype(np.uint8)


_COLOURS, _CLEARNESS = _scale()


# ---- what is drawn over it ---------------------------------------------------------------------


def _draw_regions(scene: Canvas, regions: Sequence[Region], inspection: Inspection) -> None:
    """Outline and name the regions; the failed ones last, above the others."""
    failed = {region.name: region.score for region in inspection.regions if region.failed}
    for region in sorted(regions, key=lambda region: region.name in failed):
        corners = _corners(region, scene)
        if region.ignore:
            _draw_dashed(scene, corners)
            _label(scene, [f"{region.name} ignored", region.name], corners, _IGNORED)
        elif region.name in failed:
            cv2.polylines(scene, [corners], True, _FAILED, 2, cv2.LINE_AA)
            scored = f"{region.name} {failed[region.name]:.2f}"
            _label(scene, [scored, region.name], corners, WHITE, _FAILED)
        else:
            cv2.polylines(scene, [corners], True, _REGION, 1, cv2.LINE_AA)
            _label(scene, [region.name], corners, _REGION)


def _corners(region: Region, scene: Canvas) -> NDArray[np.int32]:
    """The corners of a region in pixels of the scene: int32 (n, 2), x and y."""
    height, width = scene.shape[:2]
    corners: NDArray[np.float64] = np.asarray(region.outline) * np.array(
        [width - 1.0, height - 1.0]
    )
    return np.rint(corners).astype(np.int32)


def _draw_dashed(scene: Canvas, corners: NDArray[np.int32], dash: float = 7.0) -> None:
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        pieces = max(1, round(float(np.hypot(*(end - start))) / dash)) | 1
        points = np.linspace(start, end, pieces + 1).round().astype(int).tolist()
        for one, other in zip(points[::2], points[1::2], strict=True):
            cv2.line(scene, one, other, _IGNORED, 1, cv2.LINE_AA)


def _label(
    scene: Canvas,
    choices: Sequence[str],
    corners: NDArray[np.int32],
    colour: Colour,
    ground: Colour | None = None,
) -> None:
    """Write the first of the choices that is no wider than the region, or the last, inside its
    top left corner and within the scene; on the ground given, or on the darkened scene.
    """
    left, top, across, _ = cv2.boundingRect(corners)
    fitting = (words for words in choices if text_size(words, SMALL)[0] + 6 <= across)
    words = next(fitting, choices[-1])
    width, height = (length + 6 for length in text_size(words, SMALL))
    left = max(0, min(left, scene.shape[1] - width))
    top = max(0, min(top, scene.shape[0] - height))
    place = scene[top : top + height, left : left + width]
    place[:] = place // 4 if ground is None else ground
    write(scene, words, (left + 3, top + height - 3), SMALL, colour)


def _draw_peak(scene: Canvas, values: FloatMap, placement: _Placement) -> None:
    """A ringed cross at the map's largest value, if it is in the visible part of the scale."""
    row, col = np.unravel_index(int(np.argmax(values)), values.shape)
    if not values[row, col] >= VISIBLE_FROM:
        return
    x, y = (int(place) for place in placement.centre(int(row), int(col)))
    for colour, thickness in ((_DARK, 3), (WHITE, 1)):
        cv2.circle(scene, (x, y), 9, colour, thickness, cv2.LINE_AA)
        for across, along in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            inner, outer = (x + 5 * across, y + 5 * along), (x + 14 * across, y + 14 * along)
            cv2.line(scene, inner, outer, colour, thickness, cv2.LINE_AA)


# ---- around it ---------------------------------------------------------------------------------


def _laid_out(scene: Canvas, inspection: Inspection, program: str) -> Canvas:
    """The strip with the verdict, the detail, the scene in the middle, the colour bar."""
    height = max(scene.shape[0], _LEAST_HEIGHT)
    width = max(scene.shape[1], _LEAST_WIDTH)
    head = STRIP_HEIGHT + _DETAIL_HEIGHT
    canvas = blank_canvas(head + height + MARGIN, width + 2 * MARGIN + _BAR_ROOM)
    top = head + (height - scene.shape[0]) // 2
    left = MARGIN + (width - scene.shape[1]) // 2
    canvas[top : top + scene.shape[0], left : left + scene.shape[1]] = scene
    _draw_strip(canvas, inspection, program)
    _draw_detail(canvas, inspection)
    _draw_bar(canvas, MARGIN + width + MARGIN, head, height)
    return canvas


def _draw_strip(canvas: Canvas, inspection: Inspection, program: str) -> None:
    words, ground, colour = _VERDICTS[inspection.verdict]
    canvas[:STRIP_HEIGHT] = ground
    write(canvas, words, (MARGIN, 34), HUGE, colour, 2)
    right = canvas.shape[1] - MARGIN
    if inspection.score is not None:
        words = f"score {inspection.score:.2f}"
        write(canvas, words, (right, 32), LARGE, colour, 2, align=1.0)
    limit = "" if inspection.limit is None else f"limit {inspection.limit:.4g} raw"
    width = write(canvas, limit, (right, 56), NORMAL, colour, align=1.0)
    room = right - MARGIN - width
    name = shortened(f"program {program}", NORMAL, room - 16)
    write(canvas, name, (MARGIN, 56), NORMAL, colour)


def _draw_detail(canvas: Canvas, inspection: Inspection) -> None:
    reason = inspection.reason.value if inspection.reason else ""
    words = ": ".join(part for part in (reason, inspection.detail) if part)
    lines = list(_wrapped(words, NORMAL, canvas.shape[1] - 2 * MARGIN))
    if len(lines) > _DETAIL_LINES:
        lines[_DETAIL_LINES - 1] += " ..."
    for number, line in enumerate(lines[:_DETAIL_LINES]):
        short = shortened(line, NORMAL, canvas.shape[1] - 2 * MARGIN)
        write(canvas, short, (MARGIN, STRIP_HEIGHT + 18 + 18 * number), NORMAL)


def _draw_bar(canvas: Canvas, left: int, top: int, height: int) -> None:
    """The colour scale as it looks over a middle grey, with the limit marked."""
    top, height = top + 8, height - 16
    grey = np.full((height, _BAR_WIDTH), 128, np.uint8)
    steps = np.linspace(255, 0, height).round().astype(np.uint8)
    canvas[top : top + height, left : left + _BAR_WIDTH] = _blended(
        grey, np.tile(steps[:, np.newaxis], (1, _BAR_WIDTH))
    )
    right = left + _BAR_WIDTH
    for value, words in ((0.0, "0"), (0.5, "0.5"), (1.0, "limit"), (1.5, "1.5"), (2.0, "2")):
        y = top + round((height - 1) * (1 - value / SCALE_TOP))
        at_limit = value == 1.0
        colour = WHITE if at_limit else MUTED
        cv2.line(canvas, (left if at_limit else right, y), (right + 4, y), colour, 1)
        write(canvas, "1.0" if at_limit else words, (right + 8, y + 4), SMALL, colour)
        if at_limit:
            write(canvas, words, (right + 8, y + 18), SMALL, colour)


# ---- text --------------------------------------------------------------------------------------


def _wrapped(words: str, scale: float, room: int) -> Iterator[str]:
    """Lines of whole words, each within the room in pixels where its words are."""
    line = ""
    for word in words.split():
        longer = f"{line} {word}".strip()
        if line and text_size(longer, scale)[0] > room:
            yield line
            longer = word
        line = longer
    if line:
        yield line
