"""What is counted of a production, and into which shift it falls."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from datetime import time as time_of_day
from math import ceil, log
from typing import Annotated

import msgspec
from msgspec import Meta

from inspectd.payload import CountStatistics, DurationStatistics, VerdictPayload
from inspectd.records import Verdict

TENTHS = 20
SCORE_EDGES = tuple(tenth / 10 for tenth in range(TENTHS + 1))
RATIO = 1.05
"""From one class of durations to the next."""
LEAST_MS = 0.1

Instant = Annotated[datetime, Meta(tz=True)]


class Durations(msgspec.Struct):
    """Durations in classes, each a twentieth longer than the one before: quantiles of millions.

    Attributes:
        classes: by the power of RATIO that is the upper edge in milliseconds, how many.
    """

    classes: dict[int, int] = {}
    longest_ms: float = 0.0

    def count(self, ms: float) -> None:
        power = ceil(log(max(ms, LEAST_MS), RATIO))
        self.classes[power] = self.classes.get(power, 0) + 1
        self.longest_ms = max(self.longest_ms, ms)

    def report(self) -> DurationStatistics | None:
        """None without any."""
        total = sum(self.classes.values())
        if not total:
            return None
        return DurationStatistics(
            p50_ms=self._quantile(0.50 * total),
            p99_ms=self._quantile(0.99 * total),
            longest_ms=round(self.longest_ms, 2),
            count=total,
        )

    def _quantile(self, rank: float) -> float:
        """The upper edge of the class in which the rank lies."""
        reached, power = 0, 0
        for power in sorted(self.classes):
            reached += self.classes[power]
            if reached >= rank:
                break
        return round(min(RATIO**power, self.longest_ms), 2)


class Tally(msgspec.Struct, kw_only=True):
    """What was counted in one scope; fields as in `CountStatistics`.

    Attributes:
        begins: of a shift, when it begins in local time, whenever the counting did.
    """

    name: str | None = None
    begins: Annotated[datetime, Meta(tz=False)] | None = None
    started_at: Instant
    ended_at: Instant | None = None
    by_verdict: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(Verdict, 0))
    by_reason: dict[str, int] = {}
    by_region: dict[str, int] = {}
    scores: list[int] = msgspec.field(default_factory=lambda: [0] * len(SCORE_EDGES))
    fail_run: int = 0
    longest_fail_run: int = 0
    latency: Durations = msgspec.field(default_factory=Durations)
    capture: Durations = msgspec.field(default_factory=Durations)

    def __post_init__(self) -> None:
        if len(self.scores) != len(SCORE_EDGES):
            raise ValueError(f"{len(self.scores)} classes of scores, not {len(SCORE_EDGES)}")

    def count(self, verdict: VerdictPayload) -> None:
        self.by_verdict[verdict.verdict] += 1
        if verdict.reason is not None:
            _add(self.by_reason, verdict.reason)
        for region in verdict.regions:
            if region.failed:
                _add(self.by_region, region.name)
        if verdict.score is not None:
            self.scores[_score_class(verdict.score)] += 1
        self.fail_run = fails_in_a_row(self.fail_run, verdict)
        self.longest_fail_run = max(self.longest_fail_run, self.fail_run)
        for durations, stage in ((self.latency, "total"), (self.capture, "capture")):
            if stage in verdict.timings_ms:
                durations.count(verdict.timings_ms[stage])

    def report(self) -> CountStatistics:
        passed, failed = self.by_verdict[Verdict.PASS], self.by_verdict[Verdict.FAIL]
        return CountStatistics(
            name=self.name,
            started_at=self.started_at,
            ended_at=self.ended_at,
            inspected=sum(self.by_verdict.values()),
            by_verdict=self.by_verdict.copy(),
            by_reason=self.by_reason.copy(),
            by_region=self.by_region.copy(),
            yield_=round(passed / (passed + failed), 6) if passed + failed else None,
            longest_fail_run=self.longest_fail_run,
            scores=tuple(self.scores),
            latency=self.latency.report(),
            capture=self.capture.report(),
        )


def fails_in_a_row(row: int, verdict: VerdictPayload) -> int:
    """The row with this verdict; NOT_JUDGED tells nothing of the parts, so it stays."""
    match verdict.verdict:
        case Verdict.FAIL:
            return row + 1
        case Verdict.PASS:
            return 0
        case _:
            return row


def shift_beginning(local: datetime, beginnings: Sequence[time_of_day]) -> datetime:
    """When the shift of a local time began: the last beginning before, maybe yesterday's.

    Args:
        local: without zone, as a clock on the wall shows it.
        beginnings: at least one, ascending.
    """
    begun = [beginning for beginning in beginnings if beginning <= local.time()]
    if begun:
        return datetime.combine(local.date(), begun[-1])
    return datetime.combine(local.date() - timedelta(days=1), beginnings[-1])


def shift_end(begun: datetime, beginnings: Sequence[time_of_day]) -> datetime:
    """When the shift that began then ends: the next beginning, maybe tomorrow's."""
    later = [beginning for beginning in beginnings if beginning > begun.time()]
    if later:
        return datetime.combine(begun.date(), later[0])
    return datetime.combine(begun.date() + timedelta(days=1), beginnings[0])


def _score_class(score: float) -> int:
    """The index into `Tally.scores`: the class above one edge and up to the next."""
    return min(max(ceil(round(score * 10, 6)) - 1, 0), TENTHS)


def _add(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
