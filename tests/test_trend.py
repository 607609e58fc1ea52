"""Level, drift and warnings of the pictures' measures, over made-up hours."""

import math
import tracemalloc
from itertools import combinations
from statistics import median

import numpy as np
import pytest
from station import good_part

from inspectd.imaging import trend
from inspectd.imaging.trend import TrendTracker, theil_sen
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.records import Measure
from inspectd.settings import Program

MINUTE = 60.0
HOUR = 3600.0


def focus(value: float) -> Measure:
    return Measure("focus", value, usual=1.0, low=0.4)


class Station:
    """A picture every ``every_s``, and a look at the trend after each minute."""

    def __init__(self, measure=focus, every_s=2.0, noise=0.01, seed=1):
        self.tracker = TrendTracker()
        self.measure, self.every_s, self.noise = measure, every_s, noise
        self.random = np.random.default_rng(seed)
        self.now = 1234.5
        self.log: list[tuple[float, str]] = []

    def run(self, minutes, value):
        """``value`` by minutes since the call; returns the last trend."""
        begin = self.now
        while self.now < begin + minutes * MINUTE:
            mean = value((self.now - begin) / MINUTE) if callable(value) else value
            noise = self.noise * self.random.standard_normal()
            self.tracker.note(self.now, [self.measure(mean + noise)])
            before = self.now
            self.now += self.every_s
            if before // MINUTE != self.now // MINUTE:
                self.log.append((self.now, self.look().warning))
        return self.look()

    def look(self):
        (found,) = self.tracker.trends(self.now)
        return found

    @property
    def warned(self) -> bool:
        return any(warning for _, warning in self.log)

    @property
    def changes(self) -> int:
        """How often a warning came or went."""
        standing = [bool(warning) for _, warning in self.log]
        return sum(a != b for a, b in zip([False, *standing], standing, strict=False))


# ---- the line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_slope_is_the_median_of_all_pairs(seed):
    random = np.random.default_rng(seed)
    x = np.cumsum(random.integers(1, 4, 11 + seed)).astype(float)
    y = random.normal(size=len(x))
    slopes = [(y[b] - y[a]) / (x[b] - x[a]) for a, b in combinations(range(len(x)), 2)]
    line = theil_sen(x, y)
    assert line.slope == pytest.approx(median(slopes))
    assert line.offset == pytest.approx(median(y - line.slope * x))
    assert line.low < line.slope < line.high


def test_a_quarter_of_wild_points_does_not_turn_the_line():
    x = np.arange(40.0)
    y = 3.0 - 0.5 * x
    y[::4] = 1000.0
    line = theil_sen(x, y)
    assert line.slope == pytest.approx(-0.5)
    assert line.offset == pytest.approx(3.0)
    assert line.scatter == pytest.approx(0.0, abs=1e-9)


def test_the_scatter_is_the_noise():
    random = np.random.default_rng(2)
    x = np.arange(2000.0)[::5]
    line = theil_sen(x, 0.01 * x + 0.3 * random.standard_normal(len(x)))
    assert line.scatter == pytest.approx(0.3, rel=0.15)


def test_the_interval_holds_the_true_slope_as_often_as_it_says():
    random = np.random.default_rng(3)
    x = np.arange(30.0)
    lines = [theil_sen(x, 0.2 * x + random.standard_normal(30)) for _ in range(400)]
    missed = sum(not line.low <= 0.2 <= line.high for line in lines)
    assert missed <= 6  # 0.27 % of 400 is 1
    # The exact interval of a straight line with normal noise, for comparison.
    exact = 3.0 / math.sqrt(((x - x.mean()) ** 2).sum())
    assert np.median([line.high - line.slope for line in lines]) == pytest.approx(exact, rel=0.2)


def test_few_points_say_nothing_certain():
    line = theil_sen([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert line.slope == 1
    assert (line.low, line.high) == (-math.inf, math.inf)


# ---- level and drift ---------------------------------------------------------------------------


def test_the_first_picture_has_a_level_and_no_drift():
    tracker = TrendTracker()
    tracker.note(5.0, [focus(0.9)])
    (found,) = tracker.trends(5.0)
    assert (found.level, found.drift_per_hour, found.warning) == (0.9, None, "")
    assert (found.name, found.usual, found.low, found.high) == ("focus", 1.0, 0.4, None)


def test_the_drift_is_told_from_five_minutes_on():
    station = Station()
    begin = station.now
    while station.look().drift_per_hour is None if station.log else True:
        station.run(1, lambda _: 1.0 - 0.1 * (station.now - begin) / HOUR)
    assert 5 * MINUTE <= station.now - begin <= 6 * MINUTE


def test_level_and_drift_of_a_steady_loss():
    found = Station().run(60, lambda minute: 1.0 - 0.2 * minute / 60)
    assert found.level == pytest.approx(0.8, abs=0.02)
    assert found.drift_per_hour == pytest.approx(-0.2, rel=0.05)


def test_defective_parts_change_neither():
    """Every third part of another focus: some of them at the bound."""
    station = Station()
    random = np.random.default_rng(8)
    found = station.run(60, lambda _: 1.0 if random.random() < 0.67 else random.uniform(0.3, 1.4))
    assert not station.warned
    assert found.level == pytest.approx(1.0, abs=0.01)
    assert found.drift_per_hour == pytest.approx(0.0, abs=0.01)


def test_of_a_slow_line_every_picture_counts_alike():
    """One part in four minutes, one in seven defective: no minute holds two pictures."""
    station = Station(every_s=241.0)
    number = iter(range(1000))
    found = station.run(8 * 60, lambda _: 0.3 if next(number) % 7 == 6 else 1.0)
    assert not station.warned
    assert found.level == pytest.approx(1.0, abs=0.02)


def test_what_is_older_than_an_hour_is_forgotten():
    station = Station()
    station.run(30, lambda minute: 1.0 - minute / 100)
    assert station.tracker.trends(station.now + 50 * MINUTE)
    assert station.tracker.trends(station.now + 62 * MINUTE) == ()


def test_a_value_that_is_no_number_is_left_out():
    tracker = TrendTracker()
    for value in (math.nan, 0.5, math.inf):
        tracker.note(1.0, [focus(value)])
    assert tracker.trends(1.0)[0].level == 0.5
    assert len(tracker.trends(1.0)) == 1


def test_measures_are_apart():
    tracker = TrendTracker()
    for minute in range(10):
        tracker.note(minute * MINUTE, [focus(1.0), Measure("light", 2.0 + minute, usual=2.0)])
    sharp, light = tracker.trends(10 * MINUTE)
    assert (sharp.name, sharp.level, sharp.drift_per_hour) == ("focus", 1.0, 0.0)
    assert (light.name, light.level) == ("light", 9.0)
    assert light.drift_per_hour == pytest.approx(60.0)


def test_many_pictures_take_no_more_memory_than_few():
    tracker = TrendTracker()
    tracker.note(0.0, [focus(1.0)])
    tracemalloc.start()
    try:
        for picture in range(100_000):
            tracker.note(picture * 1e-4, [focus(1.0 + picture)])
        after_one_minute = tracemalloc.get_traced_memory()[0]
        for minute in range(1, 1000):
            tracker.note(minute * MINUTE, [focus(float(minute))])
        after_many = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after_one_minute < 200_000
    assert after_many < 200_000


def test_a_minute_of_many_pictures_is_seen_from_its_beginning_to_its_end():
    values = trend._Values()
    for value in range(100_001):
        values.add(value)
    assert values.median == pytest.approx(50_000, rel=0.01)


# ---- warnings ----------------------------------------------------------------------------------


def test_nothing_is_said_of_noise():
    """Three days, with the bound six deviations of a picture away."""
    station = Station(noise=0.1, every_s=10.0)
    station.run(3 * 24 * 60, 1.0)
    assert not station.warned


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_not_taken_for_jumps(seed):
    """A jump would begin the drift anew."""
    station = Station(noise=0.1, every_s=10.0, seed=seed)
    station.run(7, 1.0)
    for _ in range(40):
        assert station.run(1, 1.0).drift_per_hour is not None


def test_no_drift_is_told_of_noise():
    station = Station(noise=0.05)
    for _ in range(300):
        assert " an hour" not in station.run(1, 0.5).warning
    assert station.warned


@pytest.mark.parametrize("toward", [-0.1, 0.1])
def test_nothing_is_said_of_a_lamp_that_warms_up(toward):
    """At its first speed it would reach the bound within the hour."""
    light = lambda value: Measure("light", value, usual=1.0, low=0.7, high=1.3)  # noqa: E731
    station = Station(light, noise=0.002)
    station.run(120, lambda minute: 1.0 + toward * (1.0 - math.exp(-minute / 10)))
    assert not station.warned


@pytest.mark.parametrize("seed", range(10))
def test_a_noisy_loss_is_warned_of_once(seed):
    station = Station(noise=0.1, every_s=10.0, seed=seed)
    station.run(100, lambda minute: 1.0 - 0.3 * minute / 60)
    assert station.changes == 1


def test_a_loss_is_warned_of_well_before_the_bound():
    """0.3 an hour: the bound is reached after two."""
    station = Station()
    begin = station.now
    station.run(119, lambda minute: 1.0 - 0.3 * minute / 60)
    came, words = next((at, words) for at, words in station.log if words)
    assert 50 * MINUTE <= came - begin <= 90 * MINUTE
    assert station.changes == 1
    assert words.startswith("focus has fallen to 0.")
    assert "(usually 1) and loses 0.3" in words
    assert "an hour: it reaches its bound 0.4 in about " in words
    assert words.endswith(" minutes; clean the lens, check its lock and the distance to the part")
    told = int(words.split("about ")[1].split()[0])
    assert told == pytest.approx((begin + 120 * MINUTE - came) / MINUTE, abs=10)


def test_a_quick_loss_is_warned_of_after_minutes():
    """1.8 an hour: the bound is reached after twenty minutes."""
    station = Station()
    begin = station.now
    station.run(20, lambda minute: 1.0 - 0.03 * minute)
    assert station.warned
    assert next(at for at, words in station.log if words) - begin <= 13 * MINUTE


def test_a_slow_loss_is_warned_of_when_most_of_the_way_is_gone():
    """0.02 an hour: no bound within an hour until the end, but 0.58 is 70 % of the way."""
    station = Station(every_s=20.0, noise=0.001)
    station.run(24 * 60, lambda minute: 1.0 - 0.02 * minute / 60)
    words = next(words for _, words in station.log if words)
    assert words.startswith("focus has fallen to 0.58 (usually 1) and loses 0.02 an hour: ")
    assert "its bound 0.4 in about 9 hours; " in words
    assert station.changes == 1


def test_a_jump_is_warned_of_when_it_lasts():
    station = Station()
    station.run(30, 1.0)
    found = station.run(4, 0.5)
    assert found.warning == (
        f"focus has fallen to {found.level:.3g} (usually 1): {(1 - found.level) / 0.6:.0%} of the "
        "way to its bound 0.4; clean the lens, check its lock and the distance to the part"
    )


@pytest.mark.parametrize("bad", [1, 2])
@pytest.mark.parametrize("before", [1, 2, 5, 40])
def test_one_bad_minute_is_no_drift(before, bad):
    station = Station()
    station.now = 1200.0
    station.run(before + bad - 1, 1.0)  # never more bad ones than good ones
    station.run(bad, 0.42)
    station.run(30, 1.0)
    assert not station.warned


def test_a_bad_first_minute_is_no_drift():
    """A part that was still being put right."""
    station = Station()
    station.now = 1200.0
    station.run(1, 0.42)
    station.run(30, 1.0)
    assert not station.warned


def test_a_warning_goes_when_the_cause_does():
    station = Station()
    assert station.run(100, lambda minute: 1.0 - 0.3 * minute / 60).warning
    begin = station.now
    found = station.run(30, 1.0)
    assert not found.warning
    gone = next(at for at, words in station.log if at > begin and not words)
    assert gone - begin <= 5 * MINUTE
    assert station.changes == 2
    assert found.drift_per_hour == pytest.approx(0.0, abs=0.02)  # of the time since


def test_a_loss_after_the_cleaning_is_told_anew():
    """What was before does not hide it."""
    station = Station()
    station.run(50, lambda minute: 0.9 - 0.006 * minute)
    assert not station.run(6, 1.0).warning
    assert station.run(40, lambda minute: 1.0 - 0.01 * minute).warning


def test_a_level_at_the_edge_does_not_come_and_go():
    station = Station(noise=0.05)
    station.run(12 * 60, 0.58)
    assert station.changes <= 2


def test_beyond_the_bound():
    found = Station().run(10, 0.35)
    assert f"fallen to {found.level:.3g} (usually 1), below its bound 0.4; clean" in found.warning


@pytest.mark.parametrize(("sign", "word"), [(1, "risen"), (-1, "fallen")])
def test_both_bounds_count(sign, word):
    rotation = lambda value: Measure("rotation", value, usual=0.0, low=-10.0, high=10.0)  # noqa: E731
    station = Station(rotation, noise=0.2)
    found = station.run(110, lambda minute: sign * 5 * minute / 60)
    changes = "gains" if sign > 0 else "loses"
    assert f"rotation has {word} to {found.level:.3g} (usually 0) and {changes} " in found.warning
    assert f"its bound {10 * sign} in about " in found.warning
    assert "mount" in found.warning


def test_on_the_way_back_to_what_is_usual_nothing_is_said():
    """It would cross the upper bound within the hour, if it went on for ever."""
    light = lambda value: Measure("light", value, usual=1.0, low=0.5, high=1.3)  # noqa: E731
    station = Station(light)
    station.run(24, lambda minute: 0.75 + 0.01 * minute)
    assert not station.warned


def test_without_bounds_nothing_is_said():
    station = Station(lambda value: Measure("match", value, usual=1.0))
    found = station.run(60, lambda minute: 1.0 - minute / 60)
    assert not station.warned
    assert found.drift_per_hour == pytest.approx(-1.0, rel=0.05)


def test_a_new_kind_of_measure_has_general_advice():
    station = Station(lambda value: Measure("haze", value, usual=0.0, high=1.0))
    assert station.run(5, 0.9).warning.endswith("; compare a picture of now with the references")


def test_every_measure_of_the_gate_has_advice_of_its_own():
    program = Program()
    good = [good_part(number) for number in range(8)]
    crops = [ReducedCrop.of(part, program.resolution) for part in good]
    health = Inspector(program, crops).inspect(good[0]).health
    assert health is not None
    names = {measure.name for measure in health.measures}
    assert len(names) == 8
    assert names == trend._ADVICE.keys()


def test_a_usual_value_at_its_bound_is_no_reason_to_warn():
    station = Station(lambda value: Measure("white", value, usual=0.0, low=0.0), noise=0.0)
    assert not station.run(60, 0.0).warning
    assert not station.run(60, 0.2).warning


def test_reset_starts_afresh():
    station = Station()
    assert station.run(100, lambda minute: 1.0 - 0.3 * minute / 60).warning
    station.tracker.reset()
    assert station.tracker.trends(station.now) == ()
    found = station.run(1, 0.5)
    assert (found.drift_per_hour, found.warning) == (None, "")
