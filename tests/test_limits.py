"""The limit, from the scores that good parts get."""

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photographs import photographs

from inspectd.camera.simulated import render
from inspectd.errors import ReferencesError
from inspectd.imaging import preprocess
from inspectd.limits import (
    COUNTING,
    STATED_DEFAULT,
    TAIL_MODEL,
    false_rejects,
    limit_from_scores,
    near_duplicates,
    near_duplicates_warning,
    student_t_quantile,
    student_t_share,
)
from inspectd.settings import SimulatedCamera


def good_scores(count, seed=0, spread=0.3):
    """What good parts get when the tail model is true: the median is 1."""
    return np.exp(spread * np.random.default_rng(seed).standard_normal(count))


# ---- Student's t -------------------------------------------------------------------------------

# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2 (but 318.309, where it prints 318.313).
T_TABLE = {
    1: (3.078, 6.314, 12.706, 31.821, 63.657, 318.309),
    2: (1.886, 2.920, 4.303, 6.965, 9.925, 22.327),
    3: (1.638, 2.353, 3.182, 4.541, 5.841, 10.215),
    4: (1.533, 2.132, 2.776, 3.747, 4.604, 7.173),
    5: (1.476, 2.015, 2.571, 3.365, 4.032, 5.893),
    9: (1.383, 1.833, 2.262, 2.821, 3.250, 4.297),
    10: (1.372, 1.812, 2.228, 2.764, 3.169, 4.144),
    22: (1.321, 1.717, 2.074, 2.508, 2.819, 3.505),
    29: (1.311, 1.699, 2.045, 2.462, 2.756, 3.396),
    40: (1.303, 1.684, 2.021, 2.423, 2.704, 3.307),
    60: (1.296, 1.671, 2.000, 2.390, 2.660, 3.232),
    100: (1.290, 1.660, 1.984, 2.364, 2.626, 3.174),
}
T_SHARES = (0.90, 0.95, 0.975, 0.99, 0.995, 0.999)


@pytest.mark.parametrize("freedom", T_TABLE)
def test_student_t_is_as_in_the_published_table(freedom):
    found = [student_t_quantile(share, freedom) for share in T_SHARES]
    assert found == pytest.approx(T_TABLE[freedom], abs=0.00051, rel=1e-5)


@given(st.floats(1e-6, 1 - 1e-6), st.integers(1, 400))
def test_student_t_quantile_and_share_are_inverse_and_symmetric(share, freedom):
    t = student_t_quantile(share, freedom)
    assert student_t_share(t, freedom) == pytest.approx(share, rel=1e-8, abs=1e-12)
    assert student_t_share(-t, freedom) == pytest.approx(1 - share, rel=1e-8, abs=1e-12)


def test_student_t_with_closed_forms():
    for t in (-30.0, -1.0, 0.0, 0.3, 5.0):
        assert student_t_share(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi)
        assert student_t_share(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))


# ---- the tail model ----------------------------------------------------------------------------


def test_the_tail_model_by_hand():
    """Three scores e^-0.2, 1 and e^0.2: mean 0, squares 0.08; 42 degrees of freedom."""
    limit = limit_from_scores((math.exp(-0.2), math.exp(0.2), 1.0), 0.01)
    deviation = math.sqrt((40 * 0.04 + 0.08) / 42)
    assert limit.value == pytest.approx(math.exp(2.4185 * deviation * math.sqrt(4 / 3)), rel=1e-4)
    assert (limit.method, limit.scores, limit.false_reject) == (TAIL_MODEL, 3, 0.01)


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=30, unique=True), st.floats(1e-3, 1e3))
def test_the_limit_grows_in_proportion_to_the_scores(scores, factor):
    limit, scaled = (limit_from_scores(np.array(scores) * unit) for unit in (1, factor))
    for one, other in ((limit.value, scaled.value), (limit.low, scaled.low)):
        assert other == pytest.approx(factor * one, rel=1e-6)
    assert limit.low < limit.value < limit.high


def test_a_smaller_rate_and_a_wider_spread_raise_the_limit():
    scores = good_scores(30)
    rates = (0.5, 0.1, 0.02, 0.002, 0.0001)
    limits = [limit_from_scores(scores, rate).value for rate in rates]
    assert limits == sorted(limits)
    assert limit_from_scores(scores**2).value > limits[2]


@pytest.mark.parametrize("count", [3, 7, 12, 50, 100])
def test_good_parts_are_rejected_at_the_rate_aimed_at_where_the_model_is_true(count):
    rng = np.random.default_rng(1)
    rejected = []
    for _ in range(400):
        scores = np.exp(0.2 * rng.standard_normal(count))
        limit = limit_from_scores(scores).value
        rejected.append(0.5 * math.erfc(math.log(limit) / 0.2 / math.sqrt(2)))
    assert np.mean(rejected) == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize(
    ("count", "method"), [(50, TAIL_MODEL), (200, TAIL_MODEL), (800, COUNTING)]
)
def test_the_interval_holds_the_true_limit_nine_times_in_ten(count, method):
    true = math.exp(0.2 * 2.0537)  # the 98 % quantile
    rng = np.random.default_rng(2)
    limits = [limit_from_scores(np.exp(0.2 * rng.standard_normal(count))) for _ in range(400)]
    assert {limit.method for limit in limits} == {method}
    held = np.mean([limit.low <= true <= limit.high for limit in limits])
    assert 0.86 <= held <= 0.97


def test_more_scores_narrow_the_interval():
    widths = []
    for count in (5, 20, 100, 400):
        limit = limit_from_scores(good_scores(count))
        widths.append(math.log(limit.high / limit.low))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.5 * widths[0]


def test_a_reference_that_shows_nothing_of_a_region_does_not_blow_up_the_limit():
    scores = good_scores(12)
    largest = limit_from_scores([*scores, scores.max()]).value
    assert limit_from_scores([*scores, 0.0]).value < 10 * largest


# ---- counting ----------------------------------------------------------------------------------


def test_counting_takes_over_when_ten_scores_lie_beyond():
    scores = np.arange(1.0, 500.0)
    assert limit_from_scores(scores).method == TAIL_MODEL
    limit = limit_from_scores([*scores, 500.0])
    assert limit.method == COUNTING
    assert limit.value == pytest.approx(501 * 0.98)
    assert limit.low < limit.value < limit.high <= 500
    assert limit_from_scores(scores, 0.1).method == COUNTING


def test_counting_is_right_whatever_the_distribution():
    rng = np.random.default_rng(3)
    rejected = []
    for _ in range(200):
        two_kinds = np.where(rng.random(600) < 0.04, 5.0, 1.0) * rng.uniform(0.9, 1.1, 600)
        limit = limit_from_scores(two_kinds).value
        rejected.append(0.04 * np.clip((5.5 - limit) / 1.0, 0, 1))
    assert np.mean(rejected) == pytest.approx(0.02, rel=0.15)


# ---- few scores, and none that are usable ------------------------------------------------------


@pytest.mark.parametrize("scores", [(), (0.4, 0.5), (0.5, 0.5)])
def test_fewer_than_three_scores_take_the_stated_default_and_say_so(scores):
    limit = limit_from_scores(scores, 0.02, stated_default=7.5)
    assert (limit.value, limit.low, limit.high) == (7.5, None, None)
    assert limit.method == STATED_DEFAULT
    assert "fewer than 3 good parts" in limit.warning
    assert f"teach {9 if not scores else 8} more good parts" in limit.warning
    assert false_rejects(scores, 7.5, 0.02) is None


@pytest.mark.parametrize(("scores", "told"), [((), "there is 1"), ((4.0, 5.0), "there are 2")])
def test_without_a_default_few_scores_make_no_limit(scores, told):
    with pytest.raises(ReferencesError, match=f"at least 3 references .*{told}; teach more"):
        limit_from_scores(scores)


@pytest.mark.parametrize("count", [2, 3, 30])
def test_references_that_are_all_the_same_make_no_limit(count):
    with pytest.raises(ReferencesError, match=r"from each other is 0; .*the same picture"):
        limit_from_scores([0.0] * count, stated_default=4.0)


def test_scores_that_are_all_alike_make_no_limit():
    with pytest.raises(ReferencesError, match=r"all 5 score 2\.5 against .*copies"):
        limit_from_scores([2.5] * 5)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_that_is_no_finite_number_makes_no_limit(odd, place):
    scores = [1.0, 2.0, 3.0]
    scores[place] = odd
    with pytest.raises(ReferencesError, match="1 of their 3 scores are no finite numbers"):
        limit_from_scores(scores)


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.6, 1.0, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match=r"false-reject rate is above 0 and at most 0\.5"):
        limit_from_scores((1.0, 2.0, 3.0), rate)


def test_few_good_parts_come_with_an_honest_warning():
    limit = limit_from_scores(good_scores(5))
    assert limit.warning.startswith(
        "from 5 good parts the limit for 2 % false rejects is only known to within "
        f"{limit.low / limit.value:.2f} to {limit.high / limit.value:.2f} of its value; teach "
    )
    assert not limit_from_scores(good_scores(10)).warning


def test_the_warning_asks_for_as_many_parts_as_it_takes():
    def asked(scores):
        return int(limit_from_scores(scores).warning.split("; teach ")[1].split()[0])

    alike, different = (np.linspace(1 - reach, 1 + reach, 7) for reach in (0.05, 0.9))
    assert asked(alike) == 3
    assert asked(different) > 10


# ---- what is to be expected --------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_at_the_limit_the_rate_aimed_at_is_expected(count):
    scores = good_scores(count)
    limit = limit_from_scores(scores, 0.02)
    rate = false_rejects(scores, limit.value, 0.02)
    assert rate.expected == pytest.approx(0.02, abs=1e-9 if limit.method == TAIL_MODEL else 0.001)
    assert rate.low < rate.expected < rate.high


def test_the_rates_interval_and_the_limits_interval_say_the_same():
    scores = good_scores(40)
    limit = limit_from_scores(scores, 0.02)
    assert false_rejects(scores, limit.high, 0.02).high == pytest.approx(0.02, rel=1e-6)
    assert false_rejects(scores, limit.low, 0.02).low == pytest.approx(0.02, rel=1e-6)


@pytest.mark.parametrize("count", [30, 700])
def test_a_larger_bound_rejects_less(count):
    scores = good_scores(count)
    rates = [false_rejects(scores, bound, 0.02) for bound in (0.5, 1.0, 1.5, 2.0, 4.0)]
    for one, other in pairwise(rates):
        assert other.expected <= one.expected
        assert other.high < one.high
    assert all(0 <= rate.low <= rate.expected <= rate.high <= 1 for rate in rates)


# ---- references of one burst -------------------------------------------------------------------


def reduced(picture):
    return preprocess.to_unit(preprocess.reduce(preprocess.grey(picture), 100))


def good_parts(count, **settings):
    simulated = SimulatedCamera(width=320, height=240, **settings)
    return [reduced(render(simulated, number)[0]) for number in range(count)]


def burst(part, count, noise=2.0, flicker=0.03):
    """One part of the simulated camera, photographed again and again without being moved."""
    rng = np.random.default_rng(part)
    picture = render(SimulatedCamera(width=320, height=240, noise=0.0), part)[0]
    light = 1 + flicker * rng.uniform(-1, 1, (count, 1, 1))
    noisy = picture * light + noise * rng.standard_normal((count, *picture.shape))
    return [reduced(np.clip(shot + 0.5, 0, 255).astype(np.uint8)) for shot in noisy]


@pytest.mark.parametrize("noise", [0.5, 2.0, 6.0])
def test_a_burst_of_one_part_is_found(noise):
    groups = near_duplicates(np.stack(burst(3, 8, noise)))
    assert groups == (tuple(range(8)),)
    warning = near_duplicates_warning(groups, 8)
    assert "8 of the 8 references are repeats" in warning
    assert "They show 1 different part, and the limit will be too tight" in warning


@pytest.mark.parametrize("jitter", [0.0, 0.1, 1.0])
def test_different_good_parts_are_no_repeats_even_in_one_place(jitter):
    parts = np.stack(good_parts(12, jitter=jitter, light_drift=0.0, noise=0.5))
    assert near_duplicates(parts) == ()
    assert near_duplicates_warning((), 12) == ""


def test_repeats_among_different_parts_are_found_as_groups():
    mixed = [*good_parts(4), *burst(20, 3), *good_parts(8)[4:], *burst(21, 2)]
    groups = near_duplicates(np.stack(mixed))
    assert groups == ((4, 5, 6), (11, 12))
    assert "5 of the 13 references are repeats" in near_duplicates_warning(groups, 13)
    assert "show 10 different parts" in near_duplicates_warning(groups, 13)


def test_a_pair_among_many_is_no_reason_to_warn():
    assert near_duplicates_warning(((4, 7),), 100) == ""
    assert near_duplicates_warning(((4, 7),), 10) != ""


def test_a_defect_of_one_block_makes_another_part():
    part = np.full((75, 100), 0.5, np.float32)
    scratched = part.copy()
    scratched[40:45, 50:55] += 0.1
    assert near_duplicates(np.stack([part, scratched])) == ()
    assert near_duplicates(np.stack([part, part])) == ((0, 1),)


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 13), (640, 480)])
def test_pictures_of_any_shape_are_compared(size):
    noise = np.random.default_rng(0).random((3, *size), np.float32)
    assert near_duplicates(np.concatenate([noise[:1] + 0.2, noise[:1] + 0.2])) == ((0, 1),)


def reduced_photographs(folder, pattern):
    return np.stack([reduced(cv2.imread(str(path))) for path in sorted(folder.glob(pattern))])


@pytest.mark.parametrize("part", ["transistor", "bottle", "aliens", "screws"])
def test_photographs_of_different_good_parts_are_no_repeats(part):
    assert near_duplicates(reduced_photographs(photographs(part, "good"), "*")) == ()


def test_photographs_of_one_board_are_repeats():
    groups = near_duplicates(reduced_photographs(photographs("boards"), "P2-UP-L1_*"))
    assert groups == ((0, 1, 2, 3, 4),)
