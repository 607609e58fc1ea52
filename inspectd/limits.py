"""Where good ends: the limit, from the scores that good parts get.

Each reference is scored against all the others (leave-one-out), which tells what the next good
part will get. The limit is the score that a stated share of good parts, the false-reject rate,
exceeds. With n scores, counting can tell a share no smaller than 1 / (n + 1); beyond, a tail model
extrapolates:

    **log-normal tail.** x = ln score is taken as normal. Its deviation is shrunk to 0.2 with the
    weight of 40 scores, s^2 = (40 * 0.2^2 + sum (x - mean)^2) / (40 + n - 1), and the limit is
    Student's prediction bound for one more score, mean + t(1 - rate; 40 + n - 1) s sqrt(1 + 1/n).

The shrinkage carries the small numbers: seven scores alone cannot tell their spread. Scores of good
parts had a deviation of 0.18 to 0.41 on the photographs it was measured on.

**When counting takes over.** Not as soon as it can, but from ten scores beyond the limit on (500
scores for 2 %). Measured on photographs, taught with 100 references, 2 % aimed at, eight random
divisions of the good pictures (transistor: 30 good and 20 bad to judge; bottle: 10 and 32):

    ===========  ======================  =======  =============
    pictures     limit                   missed   false rejects
    ===========  ======================  =======  =============
    transistor   tail model              15 %     2.9 %
    transistor   counting (n = 100)      66 %     0.4 %
    bottle       tail model              0 %      2.5 %
    bottle       counting (n = 100)      0.4 %    1.3 %
    ===========  ======================  =======  =============

Counting at n = 100 rests on the two largest scores, which are those of the oddest references, and
pays for them with missed defects; so would the larger of the two limits. On four sets of
photographs as they are divided (65 good, 118 bad) the tail model misses 4 with 3 false rejects,
counting where it can 10 with 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, ceil, exp, floor, inf, lgamma, log, pi, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ReferencesError

COUNTING = "counting"
TAIL_MODEL = "log-normal tail"
STATED_DEFAULT = "stated default"

FEWEST_SCORES = 3
"""Two references leave each other alone when one is left out: their scores say how one reference
judges, not how two do."""
COUNTED_BEYOND = 10
"""Scores that must lie beyond the limit before counting them is better than the tail model."""
PRIOR_WEIGHT = 40
PRIOR_SPREAD = 0.2
"""The deviation of ln score that is assumed with the weight of so many scores. Weight and spread of
(10, 0.15), (20, 0.2) and (40, 0.2) are equally good."""
CONFIDENCE = 0.90
"""Of the intervals."""
FEW = 10
"""Fewer good parts than this and the limit comes with a warning."""
WELL_KNOWN = 1.2
"""The limit is called well known when its interval reaches no further than this factor above it."""
MOST_WORTH_ASKING = 1000
_LEAST_SHARE = 0.01
"""Scores below this share of the median are raised to it: a region that a reference does not show
scores 0 there, and ln 0 would drown all the others."""

SAME_PART = 3 / 255
"""Two pictures nowhere further apart than this (in means over blocks) show one part that was not
moved in between. Of circuit boards photographed five times each, the nearest pictures are 0.002 to
0.011 apart; sensor noise of 10 grey levels of 255 makes 0.01 in a frame of 320 x 240. Of the good
parts on four sets of photographs none is nearer to another than 0.024, and most not nearer than
0.06."""
BLOCKS = 20
"""Blocks along the longer side of the picture."""
TOLERATED_REPEATS = 0.2
"""Share of the references that may be repeats of others before there is a warning."""

_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True)
class Limit:
    """Where good ends, and how well that is known.

    Attributes:
        value: in raw units of the comparison, the program's threshold not included.
        low: lower end of the 90 % confidence interval of the score that good parts exceed at the
            rate aimed at, raw units; None where nothing is known of it.
        high: its upper end.
        method: ``counting``, ``log-normal tail`` or ``stated default``.
        scores: how many leave-one-out scores it follows from.
        false_reject: the rate aimed at, 0 to 0.5.
        warning: for a person, what to do for a better one; empty when all is well.
    """

    value: float
    low: float | None
    high: float | None
    method: str
    scores: int
    false_reject: float
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of good parts, and its 90 % confidence interval."""

    expected: float
    low: float
    high: float


def limit_from_scores(
    leave_one_out: Sequence[float] | NDArray[np.floating[Any]],
    false_reject: float = 0.02,
    stated_default: float | None = None,
) -> Limit:
    """The score that good parts exceed at a given rate.

    Args:
        leave_one_out: raw score of each reference against all the others; of a single reference
            there is none.
        false_reject: the rate aimed at, above 0, at most 0.5.
        stated_default: the limit of the comparison method for fewer than three scores, raw units;
            None where it has none.

    Returns:
        The limit by counting, by the tail model or as stated, whichever the number of scores
        allows.

    Raises:
        ReferencesError: no limit follows: too few scores and no default, a score that is no finite
            number, or references that are all alike.
        ValueError: a false-reject rate that is none.
    """
    if not 0 < false_reject <= 0.5:
        raise ValueError(f"a false-reject rate is above 0 and at most 0.5, not {false_reject:g}")
    scores = np.asarray(leave_one_out, np.float64)
    _require_usable(scores)
    count = len(scores)
    if count < FEWEST_SCORES:
        return _stated(count, false_reject, stated_default)
    if _can_count(count, false_reject):
        low, value, high = _counted(scores, false_reject)
        return Limit(value, low, high, COUNTING, count, false_reject)
    tail = _Tail.of(scores)
    low, high = tail.interval(false_reject)
    return Limit(
        value=tail.limit(false_reject),
        low=low,
        high=high,
        method=TAIL_MODEL,
        scores=count,
        false_reject=false_reject,
        warning=_warning(tail, false_reject) if count < FEW else "",
    )


def false_rejects(
    leave_one_out: Sequence[float] | NDArray[np.floating[Any]], bound: float, false_reject: float
) -> Rate | None:
    """The share of good parts to expect above a score.

    Args:
        leave_one_out: as for `limit_from_scores`.
        bound: a score, in the unit of the others.
        false_reject: the rate that the limit is learned for; decides between counting and the tail
            model, as it does for the limit.

    Returns:
        None where nothing is known of it: from fewer than three scores.
    """
    scores = np.asarray(leave_one_out, np.float64)
    if len(scores) < FEWEST_SCORES:
        return None
    if _can_count(len(scores), false_reject):
        return _share(int((scores > bound).sum()), len(scores))
    return _Tail.of(scores).exceeding(bound)


def _require_usable(scores: NDArray[np.float64]) -> None:
    """Raises ReferencesError where the scores cannot be those of different good parts."""
    if not np.isfinite(scores).all():
        raise ReferencesError(
            f"no limit follows from the references: {int((~np.isfinite(scores)).sum())} of their "
            f"{len(scores)} scores are no finite numbers; report this as a bug, with the references"
        )
    if len(scores) and scores.max() <= 0:
        raise ReferencesError(
            f"no limit follows from the references: their largest distance from each other is "
            f"{scores.max():g}; they may all be the same picture. Teach different good parts"
        )
    if len(scores) >= FEWEST_SCORES and scores.min() == scores.max():
        raise ReferencesError(
            f"no limit follows from the references: all {len(scores)} score {scores[0]:g} against "
            "the others, which good parts never do; they may be copies of a few pictures. Teach "
            "different good parts"
        )


def _stated(count: int, false_reject: float, stated_default: float | None) -> Limit:
    if stated_default is None:
        raise ReferencesError(
            f"a limit needs at least {FEWEST_SCORES} references with this method, there "
            f"{'are 2' if count else 'is 1'}; teach more good parts"
        )
    return Limit(
        value=stated_default,
        low=None,
        high=None,
        method=STATED_DEFAULT,
        scores=count,
        false_reject=false_reject,
        warning=f"fewer than {FEWEST_SCORES} good parts cannot tell where good ends: the limit is "
        f"the method's default, and how many good parts exceed it is not known; teach "
        f"{FEW - max(count, 1)} more good parts",
    )


# ---- the tail model ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tail:
    """The normal distribution of ln score, as far as the scores tell.

    Attributes:
        mean: of ln score.
        spread: its deviation, shrunk.
        count: number of scores.
    """

    mean: float
    spread: float
    count: int

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> _Tail:
        x = np.log(np.maximum(scores, _LEAST_SHARE * (np.median(scores) or scores.max())))
        squares = PRIOR_WEIGHT * PRIOR_SPREAD**2 + float(((x - x.mean()) ** 2).sum())
        count = len(scores)
        return cls(float(x.mean()), sqrt(squares / (PRIOR_WEIGHT + count - 1)), count)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the spread."""
        return PRIOR_WEIGHT + self.count - 1

    def limit(self, rate: float) -> float:
        """Student's prediction bound for one more score."""
        deviations = student_t_quantile(1 - rate, self.freedom) * sqrt(1 + 1 / self.count)
        return exp(self.mean + deviations * self.spread)

    def interval(self, rate: float) -> tuple[float, float]:
        """Of the score that the share ``rate`` exceeds.

        The deviations k from the mean at which it lies are a noncentral t over sqrt(n). Its usual
        normal approximation (Natrella, Experimental Statistics, 1963, section 2-4) takes k to
        vary by sqrt(1/n + k^2 / (2 * freedom)) and solves for both ends; it serves from about 20
        degrees of freedom, and here there are never fewer than 22.
        """
        quantile = NormalDist().inv_cdf(1 - rate)
        a = 1 - _Z**2 / (2 * self.freedom)
        b = quantile**2 - _Z**2 / self.count
        root = sqrt(quantile**2 - a * b)
        low, high = ((quantile + sign * root) / a for sign in (-1, 1))
        return exp(self.mean + low * self.spread), exp(self.mean + high * self.spread)

    def exceeding(self, bound: float) -> Rate:
        """The share of good parts above a score; the interval by the same approximation."""
        deviations = (log(bound) - self.mean) / self.spread
        error = _Z * sqrt(1 / self.count + deviations**2 / (2 * self.freedom))
        normal = NormalDist()
        return Rate(
            expected=1 - student_t_share(deviations / sqrt(1 + 1 / self.count), self.freedom),
            low=normal.cdf(-deviations - error),
            high=normal.cdf(-deviations + error),
        )


def _warning(tail: _Tail, rate: float) -> str:
    value = tail.limit(rate)
    low, high = (end / value for end in tail.interval(rate))
    return (
        f"from {tail.count} good parts the limit for {100 * rate:.2g} % false rejects is only "
        f"known to within {low:.2f} to {high:.2f} of its value; teach "
        f"{_enough(tail, rate) - tail.count} more"
    )


def _enough(tail: _Tail, rate: float) -> int:
    """The number of good parts that make the limit well known, should they spread as these do."""
    for count in range(FEW, MOST_WORTH_ASKING):
        more = _Tail(tail.mean, tail.spread, count)
        if more.interval(rate)[1] <= WELL_KNOWN * more.limit(rate):
            return count
    return MOST_WORTH_ASKING


# ---- counting ----------------------------------------------------------------------------------


def _can_count(count: int, rate: float) -> bool:
    return count * rate >= COUNTED_BEYOND


def _counted(scores: NDArray[np.float64], rate: float) -> tuple[float, float, float]:
    """Low, value and high: order statistics of the scores.

    The k-th smallest of n scores is exceeded by the share 1 - k / (n + 1) of further ones, on
    average, whatever their distribution; between two, linear in k. How many of n scores lie below
    the true one is binomial, which gives the interval (in the normal approximation, and a rank
    wider on either side: counting needs ten scores beyond the limit anyway).
    """
    ordered = np.sort(scores)
    count = len(ordered)
    ranks = np.arange(1, count + 1)
    value = float(np.interp((count + 1) * (1 - rate), ranks, ordered))
    middle, error = count * (1 - rate), _Z * sqrt(count * rate * (1 - rate))
    low, high = max(floor(middle - error), 1), min(ceil(middle + error) + 1, count)
    return float(ordered[low - 1]), value, float(ordered[high - 1])


def _share(exceeding: int, count: int) -> Rate:
    """What was counted, with Wilson's interval."""
    share = exceeding / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    error = sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) * _Z / (1 + _Z**2 / count)
    return Rate(share, max(middle - error, 0.0), min(middle + error, 1.0))


# ---- Student's t -------------------------------------------------------------------------------


def student_t_share(t: float, freedom: int) -> float:
    """The distribution function: the share of Student's t distribution below ``t``.

    Exact, by the finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and
    26.7.4).
    """
    angle = atan(t / sqrt(freedom))
    cosine_squared = freedom / (freedom + t * t)
    sine = t / sqrt(freedom + t * t)
    # Odd: 1, 2/3, 2/3 * 4/5, ... times a cosine; even: 1, 1/2, 1/2 * 3/4, ...
    odd = freedom % 2
    steps = np.arange(1, (freedom - odd) // 2)
    series = np.cumprod((2 * steps - 1 + odd) / (2 * steps + odd) * cosine_squared)
    total = sine * (1 + float(series.sum()))
    if not odd:
        within = total
    elif freedom == 1:
        within = 2 * angle / pi
    else:
        within = 2 / pi * (angle + sqrt(cosine_squared) * total)
    return 0.5 + within / 2


def student_t_quantile(share: float, freedom: int) -> float:
    """The value below which a share of Student's t distribution lies.

    Newton's method from the normal quantile. Right of 0 that lies left of the solution and the
    distribution function is concave, so that every step goes towards the solution and none over
    it.

    Args:
        share: above 0, below 1.
        freedom: whole degrees of freedom, 1 or more.
    """
    if share < 0.5:
        return -student_t_quantile(1 - share, freedom)
    scale = lgamma((freedom + 1) / 2) - lgamma(freedom / 2) - log(freedom * pi) / 2
    t, step = NormalDist().inv_cdf(share), inf
    while step > 1e-12 * (1 + t):
        density = exp(scale - (freedom + 1) / 2 * log(1 + t * t / freedom))
        step = (share - student_t_share(t, freedom)) / density
        t += step
    return t


# ---- references of one burst -------------------------------------------------------------------


def near_duplicates(pictures: NDArray[np.float32]) -> tuple[tuple[int, ...], ...]:
    """Groups of pictures that show one part, taken one after the other without moving it.

    Left out, such a picture is judged by its own repeats: its score is that of the noise, and the
    limit would be too tight. Pictures are repeats when, their brightness made alike, no block of
    them differs in its mean by more than `SAME_PART`: sensor noise averages out in a block, while
    another part, or the same one placed anew, differs somewhere by more. Chains count as a group.

    Takes less than a second for 1,000 pictures.

    Args:
        pictures: float32 (n, height, width), 0 to 1, reduced, as they are inspected.

    Returns:
        The indices of each group of two or more, in ascending order.
    """
    means = _block_means(np.asarray(pictures, np.float32))
    group = list(range(len(means)))
    for index in range(len(means)):
        near = np.abs(means[index + 1 :] - means[index]).max(axis=1) <= SAME_PART
        for other in (np.flatnonzero(near) + index + 1).tolist():
            old, new = group[other], group[index]
            if old != new:
                group = [new if member == old else member for member in group]
    members: dict[int, list[int]] = {}
    for index, name in enumerate(group):
        members.setdefault(name, []).append(index)
    return tuple(tuple(indices) for indices in members.values() if len(indices) > 1)


def near_duplicates_warning(groups: Sequence[Sequence[int]], references: int) -> str:
    """What to tell a person of the groups that `near_duplicates` found; empty when they are few.

    Args:
        groups: of the references' indices.
        references: how many there are.
    """
    repeats = sum(len(group) for group in groups)
    if repeats < 2 or repeats < TOLERATED_REPEATS * references:
        return ""
    parts = references - repeats + len(groups)
    return (
        f"{repeats} of the {references} references are repeats: pictures of a part that was not "
        f"moved in between. They show {parts} different part{'s' if parts > 1 else ''}, and the "
        "limit will be too tight; teach each part once, placed anew"
    )


def _block_means(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over blocks, the pictures' brightness made alike: float32 (n, blocks)."""
    count, height, width = pictures.shape
    side = max(1, round(max(height, width) / BLOCKS))
    rows, cols = (np.arange(0, max(length - side, 0) + 1, side) for length in (height, width))
    sums = np.add.reduceat(np.add.reduceat(pictures, rows, axis=1), cols, axis=2)
    sizes = np.outer(np.diff(rows, append=height), np.diff(cols, append=width))
    means = (sums / sizes).reshape(count, -1)
    brightness = means.mean(axis=1, keepdims=True)
    alike = means * (brightness.mean() / np.maximum(brightness, 1e-6))
    return np.asarray(alike, np.float32)
