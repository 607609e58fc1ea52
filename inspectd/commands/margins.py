"""What known parts tell of a limit: margins, wrong verdicts, and whether to move the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

from inspectd.inspector import Learned
from inspectd.limits import Limit, Rate, false_rejects, limit_from_scores
from inspectd.records import Verdict
from inspectd.settings import Program

FEWEST_JUDGED = 5
"""Parts of either kind without which no threshold is suggested."""
CLEARANCE = 1.1
"""A suggested threshold keeps away from the parts that it had to move for by this factor, where the
others leave the room."""


@dataclass(frozen=True, slots=True)
class Part:
    """How one picture came out.

    Attributes:
        score: in units of the limit; None where there is none.
        reason: why it did not pass, for a person.
        reference: whether the picture is one of the references themselves.
    """

    name: str
    verdict: Verdict
    score: float | None
    reason: str = ""
    reference: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """The pictures of one folder: all of good parts, or all of bad ones."""

    good: bool
    parts: tuple[Part, ...]

    @property
    def judged(self) -> list[Part]:
        """Those with a verdict that says something of a new part."""
        return [
            part
            for part in self.parts
            if part.verdict is not Verdict.NOT_JUDGED and not part.reference
        ]

    @property
    def scores(self) -> list[float]:
        return [part.score for part in self.judged if part.score is not None]

    @property
    def wrong(self) -> list[Part]:
        wanted = Verdict.PASS if self.good else Verdict.FAIL
        return [part for part in self.judged if part.verdict is not wanted]

    def wrong_at(self, bound: float) -> int:
        """How many would be judged wrongly with the limit at ``bound``."""
        beyond = above(self.scores, bound)
        # A part that fails without a score, as one that is not in its place, fails anyway.
        unscored = len(self.judged) - len(self.scores)
        return beyond + unscored if self.good else len(self.scores) - beyond


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A threshold, None where the present one stays, and why, for a person."""

    threshold: float | None
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """Everything that is told.

    Attributes:
        names: of the references, in the order of their scores.
        scores: leave-one-out, in units of the limit, the regions' thresholds not included.
        limit: learned from these scores; in their units.
        raw: the limit in raw units, thresholds included, as verdicts give it.
        warnings: for a person.
    """

    name: str
    program: Program
    names: tuple[str, ...]
    scores: tuple[float, ...]
    limit: Limit
    raw: float
    good: Group | None
    bad: Group | None
    suggestion: Suggestion
    warnings: tuple[str, ...]

    @property
    def groups(self) -> list[Group]:
        return [group for group in (self.good, self.bad) if group]

    def expected(self, threshold: float) -> Rate | None:
        """False rejects were the program's threshold this one."""
        bound = threshold / self.program.limit.threshold
        return false_rejects(self.scores, bound, self.program.limit.false_reject)


def above(scores: Sequence[float], bound: float) -> int:
    """How many scores exceed it."""
    return sum(score > bound for score in scores)


def find(
    name: str,
    program: Program,
    learned: Learned,
    names: Sequence[str],
    groups: Sequence[Group | None],
) -> Findings:
    """Put together what is told.

    Args:
        name: the program's.
        program: its settings.
        learned: from its references.
        names: of the references.
        groups: of good and of bad parts.
    """
    good, bad = groups
    settings = program.limit
    scores = tuple(score / settings.threshold for score in learned.leave_one_out)
    limit = limit_from_scores(scores, settings.false_reject, 1 / settings.threshold)
    # One warning of the whole limit, in place of one for each zone.
    of_zones = {zone.learned.warning for zone in learned.zones}
    said = [warning for warning in learned.warnings if warning not in of_zones]
    said += [limit.warning] if limit.warning else []
    return Findings(
        name=name,
        program=program,
        names=tuple(names),
        scores=scores,
        limit=limit,
        raw=min(zone.limit for zone in learned.zones),
        good=good,
        bad=bad,
        suggestion=suggest(good, bad, settings.threshold),
        warnings=(*said, *thresholds_apart(program), *taught_again(good, bad)),
    )


def thresholds_apart(program: Program) -> Iterator[str]:
    """A warning of what the references' scores leave out of account."""
    names = [region.name for region in program.regions if region.threshold != 1.0]
    if names:
        yield (
            "the references' scores and the false rejects expected are those without the "
            f"thresholds of regions ({', '.join(names)})"
        )


def taught_again(*groups: Group | None) -> Iterator[str]:
    """Warnings of folders that hold references, which say nothing of the next part."""
    for group in groups:
        count = sum(part.reference for part in group.parts) if group else 0
        if group and count:
            kind = "good" if group.good else "bad"
            harm = "they are left out here" if group.good else "take them out of the references"
            yield f"{count} of the {len(group.parts)} {kind} pictures are references: {harm}"


def suggest(good: Group | None, bad: Group | None, threshold: float) -> Suggestion:
    """A threshold with every score on its right side, where the present one is not.

    That is 1, as the references speak for it too, where both kinds keep clear of it. Else it moves
    no further than it must: by `CLEARANCE` beyond the last score on the wrong side, and at
    most to the middle between good and bad ones.

    Args:
        good: parts that ought to pass.
        bad: parts that ought to fail.
        threshold: the program's present one.
    """
    counts = [len(group.scores) if group else 0 for group in (good, bad)]
    if good is None or bad is None or min(counts) < FEWEST_JUDGED:
        return Suggestion(
            None,
            f"no threshold is suggested: that takes at least {FEWEST_JUDGED} good and "
            f"{FEWEST_JUDGED} bad parts with a score (--good DIR --bad DIR), there are "
            f"{counts[0]} and {counts[1]}",
        )
    largest_good, smallest_bad = threshold * max(good.scores), threshold * min(bad.scores)
    ends = f"good parts end at {largest_good:.2f}, bad ones begin at {smallest_bad:.2f}"
    if largest_good >= smallest_bad:
        return Suggestion(
            None,
            f"no threshold tells these parts apart ({ends}). Look at the heatmaps of the "
            "parts named above (inspectd inspect): regions, alignment or light may help",
        )
    if largest_good <= threshold < smallest_bad:
        return Suggestion(
            None,
            f"keep limit.threshold at {threshold:g}: every score is on its right side ({ends})",
        )
    up = largest_good > threshold
    moved = round(moved_threshold(largest_good, smallest_bad, up=up), 2)
    if not largest_good < moved < smallest_bad:
        return Suggestion(
            None, f"no threshold is suggested: good and bad parts all but touch ({ends})"
        )
    return Suggestion(
        moved, f"set limit.threshold to {moved:g}: every score is then on its right side ({ends})"
    )


def moved_threshold(largest_good: float, smallest_bad: float, *, up: bool) -> float:
    """Between good and bad parts, as `suggest` says."""
    lowest, highest = CLEARANCE * largest_good, smallest_bad / CLEARANCE
    if lowest <= 1.0 <= highest:
        return 1.0
    middle = sqrt(largest_good * smallest_bad)
    return min(middle, lowest) if up else max(middle, highest)
