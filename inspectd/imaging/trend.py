"""Where the pictures' measures are heading: level and drift over an hour, and a warning in time.

A lens that gathers dust or a lamp that ages is told of before its pictures are refused. All is made
of medians, since some of the pictures show defective parts. No clock of its own: instants come with
the values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inspectd.records import Measure

MINUTE_S = 60.0
MINUTES = 60
"""So far back values are kept: one median a minute."""
LEVEL_MINUTES = 5
"""The level is the median of so many minutes: two bad ones do not move it."""
TRUSTED_MINUTES = 3
"""A warning needs at least so many: of these one may be bad."""
DRIFT_MINUTES = 5
"""A drift needs at least so many."""
MOST_VALUES = 512
"""A minute's median is taken of at most so many values, spread over the minute."""
USED_UP = 0.7
"""It is warned of a level that has gone more than this share of the way from usual to a bound."""
USED_UP_STILL = 0.6
"""A warning stands until less than this is used up, or it would come and go with the noise."""
HORIZON_H = 1.0
"""It is warned of a bound that the drift reaches within so many hours."""
FARTHEST = 3.0
"""A drift is extended no further than so many times the time it was seen for."""
CONFIDENCE_SIGMAS = 3.0
"""Of the interval around a slope: 99.7 %."""
FARTHEST_TOLD_H = 48.0
"""Of a drift that takes longer to the bound nothing is said."""
BREAK_MINUTES = 3
BREAK_SIGMAS = 4.0
BREAK_ROOM = 0.1
BREAK_AFTER = 10
"""A jump is believed after BREAK_MINUTES that lie on one side of what at least BREAK_AFTER minutes
before let expect, by BREAK_SIGMAS of their scatter and by the share BREAK_ROOM of the room that the
bounds leave."""

_ADVICE = {
    "light": "clean lamp and lens, check the lamp's supply, the exposure and stray light",
    "contrast": "clean lamp and lens, check for stray light and for mist on the lens",
    "black": "check lamp, exposure and gain, and for shadows",
    "white": "check lamp, exposure and gain, and for reflections and stray light",
    "focus": "clean the lens, check its lock and the distance to the part",
    "match": "clean the lens, check lamp and mount, and whether the parts are still the same",
    "shift": "check the camera's mount and the stop that holds the part",
    "rotation": "check the camera's mount and the stop that holds the part",
}
"""By the name of the measure, as `imaging.gate` gives it."""
_OTHER_ADVICE = "compare a picture of now with the references"


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line through points, by medians.

    Attributes:
        slope: per unit of x.
        low, high: between which the true slope lies, with CONFIDENCE_SIGMAS; infinite where there
            are too few points to tell.
        offset: at x = 0.
        scatter: standard deviation of the points around it, by the median of the distances.
    """

    slope: float
    low: float
    high: float
    offset: float
    scatter: float

    def at(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.offset + self.slope * x


def theil_sen(x: ArrayLike, y: ArrayLike) -> Line:
    """The line whose slope is the median of the slopes between all pairs of points.

    It bears almost 30 % of wild points. The interval counts ranks: P. K. Sen, "Estimates of the
    regression coefficient based on Kendall's tau", J. Am. Stat. Assoc. 63 (1968), 1379-1389.

    Args:
        x: (n,) strictly increasing; n at least 2.
        y: (n,) finite.
    """
    at, value = np.asarray(x, np.float64), np.asarray(y, np.float64)
    count = len(at)
    first, second = np.triu_indices(count, 1)
    slopes = np.sort((value[second] - value[first]) / (at[second] - at[first]))
    slope = float(np.median(slopes))
    offset = float(np.median(value - slope * at))
    scatter = 1.4826 * float(np.median(np.abs(value - slope * at - offset)))
    spread = CONFIDENCE_SIGMAS * sqrt(count * (count - 1) * (2 * count + 5) / 18)
    outside = int((len(slopes) - spread) // 2)
    if outside < 0:
        return Line(slope, -inf, inf, offset, scatter)
    return Line(slope, float(slopes[outside]), float(slopes[-1 - outside]), offset, scatter)


@dataclass(frozen=True, slots=True)
class Trend:
    """One measure over the last hour.

    Attributes:
        level: median of the last minutes' medians.
        usual, low, high: as in `Measure`.
        drift_per_hour: None before there is enough to tell.
        warning: what goes wrong, how soon and what to do, for a technician; empty without.
    """

    name: str
    level: float
    usual: float
    low: float | None
    high: float | None
    drift_per_hour: float | None
    warning: str


class TrendTracker:
    """The courses of all measures. Belongs to one thread at a time."""

    def __init__(self) -> None:
        self._courses: dict[str, _Course] = {}

    def note(self, at_s: float, measures: Sequence[Measure]) -> None:
        """Take in one picture's measures.

        Args:
            at_s: monotonic seconds, not before any instant given earlier.
            measures: of a picture that shows a part; values that are no numbers are left out.
        """
        for measure in measures:
            if isfinite(measure.value):
                if measure.name not in self._courses:
                    self._courses[measure.name] = _Course(measure, _minute(at_s))
                self._courses[measure.name].note(_minute(at_s), measure)

    def trends(self, at_s: float) -> tuple[Trend, ...]:
        """All measures that came within the last hour, as they stand at the instant ``at_s``."""
        for course in self._courses.values():
            course.advance(_minute(at_s))
        self._courses = {name: one for name, one in self._courses.items() if one.known}
        return tuple(course.trend() for course in self._courses.values())

    def reset(self) -> None:
        """Start afresh: other bounds, references or parts."""
        self._courses.clear()


def _minute(at_s: float) -> int:
    return int(at_s // MINUTE_S)


class _Values:
    """The values of one minute, thinned out evenly when there are many."""

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._seen = 0
        self._every = 1

    def add(self, value: float) -> None:
        if self._seen % self._every == 0:
            if len(self._kept) == MOST_VALUES:
                self._kept = self._kept[::2]
                self._every *= 2
            self._kept.append(value)
        self._seen += 1

    def __bool__(self) -> bool:
        return bool(self._kept)

    @property
    def median(self) -> float:
        return float(np.median(self._kept))


class _Course:
    """One measure's last hour."""

    def __init__(self, measure: Measure, minute: int) -> None:
        self._measure = measure
        self._minute = minute
        self._values = _Values()
        self._past: deque[tuple[int, float]] = deque(maxlen=MINUTES)
        self._line: Line | None = None
        self._warned = False

    def note(self, minute: int, measure: Measure) -> None:
        self.advance(minute)
        self._measure = measure
        self._values.add(measure.value)

    def advance(self, minute: int) -> None:
        """Conclude the minutes before this one."""
        if minute <= self._minute:
            return
        if self._values:
            self._past.append((self._minute, self._values.median))
            self._values = _Values()
        self._minute = minute
        while self._past and self._past[0][0] < minute - MINUTES:
            self._past.popleft()
        self._forget_before_break()
        self._line = theil_sen(*self._points()) if len(self._past) >= DRIFT_MINUTES else None

    @property
    def known(self) -> bool:
        return bool(self._past or self._values)

    def trend(self) -> Trend:
        measure = self._measure
        level = self._level()
        warning = ""
        if len(self._past) >= TRUSTED_MINUTES:
            warning = next(filter(None, (self._danger(level, side) for side in (-1, 1))), "")
        self._warned = bool(warning)
        return Trend(
            name=measure.name,
            level=level,
            usual=measure.usual,
            low=measure.low,
            high=measure.high,
            drift_per_hour=self._line.slope * MINUTES if self._line else None,
            warning=warning,
        )

    def _level(self) -> float:
        """Of the minute that goes on only until there is a whole one."""
        if not self._past:
            return self._values.median
        return float(np.median([value for _, value in list(self._past)[-LEVEL_MINUTES:]]))

    def _points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Minutes from the first one on, and their values."""
        minutes, values = np.array(self._past, np.float64).T
        return minutes - minutes[0], values

    def _forget_before_break(self) -> None:
        """What was before a jump (a cleaned lens, another lamp) says nothing of the future."""
        if len(self._past) < BREAK_AFTER + BREAK_MINUTES:
            return
        minutes, values = self._points()
        line = theil_sen(minutes[:-BREAK_MINUTES], values[:-BREAK_MINUTES])
        off = values[-BREAK_MINUTES:] - line.at(minutes[-BREAK_MINUTES:])
        allowed = max(BREAK_SIGMAS * line.scatter, BREAK_ROOM * self._room())
        if (off > allowed).all() or (off < -allowed).all():
            self._past = deque(list(self._past)[-BREAK_MINUTES:], maxlen=MINUTES)

    def _room(self) -> float:
        """From what is usual to the nearer bound; 0.0 without bounds."""
        measure = self._measure
        bounds = [bound for bound in (measure.low, measure.high) if bound is not None]
        return min((abs(bound - measure.usual) for bound in bounds), default=0.0)

    def _danger(self, level: float, side: int) -> str:
        """What is to be said of the low (-1) or the high (1) bound; empty if nothing."""
        measure = self._measure
        bound = measure.low if side < 0 else measure.high
        if bound is None:
            return ""
        gone = side * (level - measure.usual)
        left = side * (bound - level)
        if left < 0:
            return _words(measure, level, bound, side, drift=0.0)
        share = USED_UP_STILL if self._warned else USED_UP
        drift = self._drift_towards(side)
        # On its way back to what is usual nothing is amiss yet, however fast it goes.
        reached = gone > 0 and self._reach(side) > left
        if reached or gone > share * (gone + left):
            return _words(measure, level, bound, side, drift)
        return ""

    def _drift_towards(self, side: int) -> float:
        """Per hour, where it is certain that it goes to this side; otherwise 0."""
        if self._line is None or side * _slowest(self._line, side) <= 0:
            return 0.0
        return side * self._line.slope * MINUTES

    def _reach(self, side: int) -> float:
        """How far it goes to this side within the horizon.

        By the slowest slope that the points allow, so that it is warned of nothing that may be
        scatter; a warning that stands does so by the likeliest, so that it does not come and go.
        """
        if self._line is None:
            return 0.0
        seen_h = (self._past[-1][0] - self._past[0][0]) / MINUTES
        slope = self._line.slope if self._warned else _slowest(self._line, side)
        return side * slope * MINUTES * min(HORIZON_H, FARTHEST * seen_h)


def _slowest(line: Line, side: int) -> float:
    """Of the slopes that may be true, the one that goes least to the low (-1) or high (1) side."""
    return line.low if side > 0 else line.high


def _words(measure: Measure, level: float, bound: float, side: int, drift: float) -> str:
    """Args: ``drift`` per hour towards the bound; 0 where there is none to speak of."""
    advice = _ADVICE.get(measure.name, _OTHER_ADVICE)
    left = side * (bound - level)
    moved = f"{measure.name} has {'risen' if side > 0 else 'fallen'} to {level:.3g}"
    usual = f"usually {measure.usual:.3g}"
    if left < 0:
        beyond = "above" if side > 0 else "below"
        return f"{moved} ({usual}), {beyond} its bound {bound:.3g}; {advice}"
    if drift * FARTHEST_TOLD_H > left:
        changes = "gains" if side > 0 else "loses"
        return (
            f"{moved} ({usual}) and {changes} {drift:.2g} an hour: it reaches its bound "
            f"{bound:.3g} in about {_duration(left / drift)}; {advice}"
        )
    used = 1.0 - left / abs(bound - measure.usual)
    return f"{moved} ({usual}): {used:.0%} of the way to its bound {bound:.3g}; {advice}"


def _duration(hours: float) -> str:
    """For a person: hours, or minutes to five."""
    if hours < 1.5:
        return f"{max(5, 5 * round(hours * 12))} minutes"
    return f"{hours:.0f} hours"
