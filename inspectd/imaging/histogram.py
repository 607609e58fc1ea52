"""The picture of a limit: what good parts score, where the limit lies, and what bad parts score.

One histogram under the other over one axis, in units of the limit and logarithmic, as the tail of
the good parts' scores is. The limit is an edge between two bars, so that whatever stands on its
wrong side is seen to do so; it is drawn bright, what is right is muted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log

import cv2
import numpy as np

from inspectd.imaging.style import (
    BACKGROUND,
    BAD,
    GOOD,
    HUGE,
    LARGE,
    MARGIN,
    MUTED,
    NEUTRAL,
    NORMAL,
    SMALL,
    STRIP_HEIGHT,
    TEXT,
    WHITE,
    Canvas,
    Colour,
    blank_canvas,
    shortened,
    text_size,
    write,
)

WIDTH = 860
BINS_PER_DOUBLING = 8
"""Bars from a score to twice the score; the limit is the edge of one."""
LEAST_SPAN = (0.4, 2.0)
"""The axis always covers this, in units of the limit, and reaches further for the scores' sake."""
MOST_SPAN = (1 / 64, 64.0)
"""Scores beyond are drawn at the end of the axis."""

_LANE_HEIGHT = 118
_LANE_GAP = 34
_HEAD = STRIP_HEIGHT + 26
_FLAG_ROW = 18
_FOOT = 58
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0)

_FLOOR: Colour = (46, 46, 46)
_BAND: Colour = (72, 64, 58)
_SUGGESTED: Colour = (240, 220, 120)
_REFERENCE: Colour = (190, 160, 120)
_PASSED: Colour = (110, 170, 70)
_FAILED: Colour = (85, 80, 205)
_WRONG: Colour = (40, 190, 255)


@dataclass(frozen=True, slots=True)
class Lane:
    """One group of parts.

    Attributes:
        title: what they are.
        scores: in units of the limit.
        good: whether they ought to lie below the limit, or above.
        references: whether they are those that the limit was learned from.
        note: stands in place of the bars, where there are no scores.
    """

    title: str
    scores: Sequence[float]
    good: bool
    references: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class LimitMarks:
    """What is marked on the axis, in units of the limit.

    Attributes:
        low: lower end of the limit's confidence interval; None where it is not known.
        high: its upper end.
        suggested: where the limit should lie; None for no suggestion.
        suggestion: its words.
    """

    low: float | None = None
    high: float | None = None
    suggested: float | None = None
    suggestion: str = ""


def render_histogram(
    lanes: Sequence[Lane], marks: LimitMarks, *, title: str, subtitle: str, limit: str
) -> Canvas:
    """Draw the lanes one under the other.

    Args:
        lanes: one at least.
        marks: the limit's interval and the suggestion.
        title: the program's name.
        subtitle: what the limit was learned from.
        limit: its value, for the upper right.

    Returns:
        uint8 (height, 860, 3) in the order blue, green, red.
    """
    head = _HEAD + (_FLAG_ROW if marks.suggested is not None else 0)
    height = head + len(lanes) * (_LANE_HEIGHT + _LANE_GAP) + _FOOT
    canvas = blank_canvas(height, WIDTH)
    axis = _Axis.over([score for lane in lanes for score in lane.scores], marks)
    tops = [head + _LANE_GAP + index * (_LANE_HEIGHT + _LANE_GAP) for index in range(len(lanes))]
    for top in tops:
        canvas[top : top + _LANE_HEIGHT, axis.left : axis.right + 1] = _FLOOR
    _draw_band(canvas, axis, marks, tops)
    _draw_ticks(canvas, axis, tops)
    for lane, top in zip(lanes, tops, strict=True):
        _draw_bars(canvas, axis, lane, top)
    _draw_marks(canvas, axis, marks, head, tops[-1] + _LANE_HEIGHT)
    for lane, top in zip(lanes, tops, strict=True):
        _draw_title(canvas, lane, top)
    _draw_head(canvas, lanes, title, subtitle, limit)
    return canvas


@dataclass(frozen=True, slots=True)
class _Axis:
    """The score's place from left to right: ``first`` and ``last`` count bars from the limit."""

    first: int
    last: int
    left: int = MARGIN
    right: int = WIDTH - MARGIN - 1

    @classmethod
    def over(cls, scores: Sequence[float], marks: LimitMarks) -> _Axis:
        ends = [end for end in (marks.low, marks.high, marks.suggested) if end is not None]
        reach = np.clip([*scores, *ends, *LEAST_SPAN], *MOST_SPAN)
        low, high = (_bars(float(end)) for end in (reach.min(), reach.max()))
        return cls(floor(low) - 1, ceil(high) + 1)

    def x(self, bars: float) -> float:
        share = (bars - self.first) / (self.last - self.first)
        return self.left + share * (self.right - self.left)

    def of(self, score: float) -> int:
        """The pixel column of a score."""
        return round(self.x(_bars(score)))


def _bars(score: float) -> float:
    """A score as a number of bars right of the limit."""
    return BINS_PER_DOUBLING * log(max(score, MOST_SPAN[0] / 2)) / log(2)


def _counts(axis: _Axis, scores: Sequence[float]) -> dict[int, int]:
    """Number of parts in each bar; a score of exactly the limit lies left of it, as it passes."""
    counts: dict[int, int] = {}
    for score in scores:
        bar = min(max(ceil(_bars(score)) - 1, axis.first), axis.last - 1)
        counts[bar] = counts.get(bar, 0) + 1
    return counts


def _draw_band(canvas: Canvas, axis: _Axis, marks: LimitMarks, tops: Sequence[int]) -> None:
    """The limit's confidence interval, behind everything else."""
    if marks.low is None or marks.high is None:
        return
    left, right = axis.of(marks.low), axis.of(marks.high)
    canvas[tops[0] : tops[-1] + _LANE_HEIGHT, left : right + 1] = _BAND


def _draw_ticks(canvas: Canvas, axis: _Axis, tops: Sequence[int]) -> None:
    """The axis's numbers below the last lane, and a fine line for each through all of them."""
    bottom = tops[-1] + _LANE_HEIGHT
    taken = -100
    for value in _TICKS:
        x = axis.of(value)
        if not axis.left + 8 <= x <= axis.right - 8 or x - taken < 34:
            continue
        taken = x
        for top in tops:
            canvas[top : top + _LANE_HEIGHT : 3, x] = 90
        canvas[bottom : bottom + 5, x] = MUTED
        write(canvas, f"{value:g}", (x, bottom + 18), SMALL, MUTED, align=0.5)
    words = "score: 1 is the limit, a part above it fails"
    write(canvas, words, (axis.left, bottom + 44), SMALL, MUTED)


def _draw_bars(canvas: Canvas, axis: _Axis, lane: Lane, top: int) -> None:
    bottom = top + _LANE_HEIGHT
    counts = _counts(axis, lane.scores)
    usual = _REFERENCE if lane.references else _PASSED if lane.good else _FAILED
    widest = max((text_size(str(count), SMALL)[0] for count in counts.values()), default=0)
    for bar, count in counts.items():
        left, right = round(axis.x(bar)) + 1, round(axis.x(bar + 1)) - 1
        colour = _WRONG if (bar >= 0) == lane.good else usual
        height = max(3, round((_LANE_HEIGHT - 26) * count / max(counts.values())))
        canvas[bottom - height : bottom, left : right + 1] = colour
        if widest <= axis.x(1) - axis.x(0):
            place = ((left + right + 1) // 2, bottom - height - 5)
            write(canvas, str(count), place, SMALL, TEXT, align=0.5)
    if not lane.scores:
        write(canvas, lane.note, (axis.left + 10, top + _LANE_HEIGHT // 2 + 5), NORMAL, MUTED)
    canvas[bottom, axis.left : axis.right + 1] = MUTED


def _draw_title(canvas: Canvas, lane: Lane, top: int) -> None:
    """What the lane shows, and how many of its parts are on the wrong side; lines make room."""
    wrong = sum((score > 1.0) == lane.good for score in lane.scores)
    title = f"{lane.title}: {len(lane.scores)}"
    told = f"{wrong} {'above' if lane.good else 'below'} the limit" if wrong else ""
    width = text_size(title, NORMAL)[0] + (14 + text_size(told, NORMAL)[0] if told else 0)
    canvas[top - _LANE_GAP + 6 : top - 3, MARGIN : MARGIN + width + 4] = BACKGROUND
    used = write(canvas, title, (MARGIN, top - 10), NORMAL)
    write(canvas, told, (MARGIN + used + 14, top - 10), NORMAL, _WRONG)


def _draw_marks(canvas: Canvas, axis: _Axis, marks: LimitMarks, head: int, bottom: int) -> None:
    """The limit through all lanes, its interval in words, and the suggestion."""
    x = axis.of(1.0)
    cv2.line(canvas, (x, head - 8), (x, bottom + 4), WHITE, 2)
    away = marks.suggested is not None and marks.suggested > 1.0
    _flag(canvas, axis, (x, head), "limit 1.0", WHITE, to_the_left=away)
    if marks.low is not None and marks.high is not None:
        words = f"the limit is known to within {marks.low:.2f} to {marks.high:.2f} (90 % sure)"
        used = write(canvas, words, (axis.right, bottom + 44), SMALL, MUTED, align=1)
        right = axis.right - used - 8
        canvas[bottom + 34 : bottom + 46, right - 16 : right] = _BAND
    if marks.suggested is not None:
        x = axis.of(marks.suggested)
        for start in range(head - 8 - _FLAG_ROW, bottom, 10):
            cv2.line(canvas, (x, start), (x, min(start + 5, bottom)), _SUGGESTED, 2)
        _flag(canvas, axis, (x, head - _FLAG_ROW), marks.suggestion, _SUGGESTED)


def _flag(
    canvas: Canvas,
    axis: _Axis,
    place: tuple[int, int],
    words: str,
    colour: Colour,
    *,
    to_the_left: bool = False,
) -> None:
    """Words beside the upper end of a vertical line, on the side where there is room."""
    x, y = place
    left = to_the_left or text_size(words, NORMAL)[0] > axis.right - x - 8
    write(canvas, words, (x - 7 if left else x + 7, y), NORMAL, colour, align=1 if left else 0)


def _draw_head(
    canvas: Canvas, lanes: Sequence[Lane], title: str, subtitle: str, limit: str
) -> None:
    """The strip: the program, what its limit follows from, and in one word how parts came out."""
    wrong = sum((score > 1.0) == lane.good for lane in _judged(lanes) for score in lane.scores)
    parts = sum(len(lane.scores) for lane in _judged(lanes))
    canvas[:STRIP_HEIGHT] = NEUTRAL if not parts else BAD if wrong else GOOD
    told = f"{parts - wrong} of {parts} right" if parts else ""
    room = WIDTH - 2 * MARGIN - 24
    right = WIDTH - MARGIN
    used = write(canvas, told, (right, 34), LARGE, WHITE, 2, align=1)
    name = shortened(title, HUGE, room - used, 2)
    write(canvas, name, (MARGIN, 34), HUGE, WHITE, 2)
    used = write(canvas, limit, (right, 56), NORMAL, WHITE, align=1)
    write(canvas, shortened(subtitle, NORMAL, room - used), (MARGIN, 56), NORMAL, WHITE)


def _judged(lanes: Sequence[Lane]) -> list[Lane]:
    return [lane for lane in lanes if not lane.references]
