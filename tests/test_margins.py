"""What known parts tell of a limit."""

from types import SimpleNamespace

import pytest

from inspectd.commands.margins import Group, Part, find, suggest
from inspectd.limits import limit_from_scores
from inspectd.records import Verdict
from inspectd.settings import LimitSettings, Program, Region

SPREAD = (0.4, 0.42, 0.45, 0.5, 0.52, 0.55, 0.6, 0.62, 0.7, 0.8)


def group(good, *scores, not_judged=0, unscored=0, references=0):
    parts = [Part("p", Verdict.FAIL if score > 1 else Verdict.PASS, score) for score in scores]
    parts += [Part("doubt", Verdict.NOT_JUDGED, None, "too dark")] * not_judged
    parts += [Part("askew", Verdict.FAIL, None, "part not in place")] * unscored
    parts += [Part("known", Verdict.PASS, 0.01, reference=True)] * references
    return Group(good, tuple(parts))


def good(*scores, **others):
    return group(True, *scores, **others)


def bad(*scores, **others):
    return group(False, *scores, **others)


# ---- groups ------------------------------------------------------------------------------------


def test_only_pictures_with_a_verdict_on_a_new_part_count():
    parts = good(0.5, 1.2, not_judged=2, references=3, unscored=1)
    assert len(parts.judged) == 3
    assert parts.scores == [0.5, 1.2]
    assert [part.name for part in parts.wrong] == ["p", "askew"]


def test_wrong_verdicts_at_other_limits():
    assert [good(0.5, 1.0, 1.2).wrong_at(bound) for bound in (0.4, 1.0, 1.2)] == [3, 1, 0]
    assert [bad(0.5, 1.0, 1.2).wrong_at(bound) for bound in (0.4, 1.0, 1.2)] == [0, 2, 3]
    # What is not in its place fails at any limit.
    assert good(0.5, unscored=2).wrong_at(9.0) == 2
    assert bad(0.5, unscored=2).wrong_at(0.1) == 0


# ---- the suggestion ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goods", "bads"),
    [(None, None), (good(*SPREAD), None), (None, bad(2, 3, 4, 5, 6)), (good(*SPREAD), bad(2, 3))],
)
def test_without_parts_enough_of_both_kinds_nothing_is_suggested(goods, bads):
    suggestion = suggest(goods, bads, 1.0)
    assert suggestion.threshold is None
    assert "at least 5 good and 5 bad parts" in suggestion.why


def test_references_and_doubtful_pictures_do_not_make_up_the_number():
    goods = good(0.5, 0.6, not_judged=5, references=5, unscored=5)
    assert "there are 2 and 5" in suggest(goods, bad(2, 3, 4, 5, 6), 1.0).why


def test_a_threshold_that_is_right_stays():
    suggestion = suggest(good(*SPREAD), bad(1.05, 2, 3, 4, 5), 1.0)
    assert suggestion.threshold is None
    assert suggestion.why.startswith("keep limit.threshold at 1: ")
    assert "good parts end at 0.80, bad ones begin at 1.05" in suggestion.why


@pytest.mark.parametrize(
    ("goods", "bads", "present", "suggested"),
    [
        # Up, clear of the last good part, but no further.
        ((0.5, 0.6, 0.7, 0.8, 1.2), (3, 4, 5, 6, 7), 1.0, 1.32),
        # Up, to the middle: there is no more room.
        ((0.5, 0.6, 0.7, 0.8, 1.2), (1.25, 4, 5, 6, 7), 1.0, 1.22),
        # Down, clear of the first bad part.
        ((0.1, 0.2, 0.2, 0.3, 0.3), (0.9, 4, 5, 6, 7), 1.0, 0.82),
        # Down, to the middle.
        ((0.1, 0.2, 0.2, 0.3, 0.86), (0.9, 4, 5, 6, 7), 1.0, 0.88),
        # Back to the limit as learned: 0.5 * 1.4 = 0.7 and 0.5 * 3 = 1.5 keep clear of it.
        ((0.5, 0.6, 0.7, 0.8, 1.4), (3, 4, 5, 6, 7), 0.5, 1.0),
        ((0.1, 0.1, 0.2, 0.2, 0.2), (0.9, 4, 5, 6, 7), 2.0, 1.0),
    ],
)
def test_a_threshold_is_moved_as_far_as_it_must(goods, bads, present, suggested):
    suggestion = suggest(good(*goods), bad(*bads), present)
    assert suggestion.threshold == suggested
    assert present * max(goods) < suggestion.threshold < present * min(bads)
    assert f"set limit.threshold to {suggested:g}: " in suggestion.why


def test_nothing_is_suggested_where_no_threshold_would_do():
    mixed = suggest(good(*SPREAD, 1.3), bad(1.1, 2, 3, 4, 5), 1.0)
    assert mixed.threshold is None
    assert "no threshold tells these parts apart (good parts end at 1.30" in mixed.why
    touching = suggest(good(*SPREAD, 1.201), bad(1.203, 2, 3, 4, 5), 1.0)
    assert touching.threshold is None
    assert "all but touch" in touching.why


def test_a_good_part_out_of_place_is_no_reason_to_move_the_threshold():
    suggestion = suggest(good(*SPREAD, unscored=1), bad(2, 3, 4, 5, 6), 1.0)
    assert suggestion.why.startswith("keep limit.threshold at 1: ")


# ---- findings ----------------------------------------------------------------------------------


def learned(scores, *zone_warnings, warnings=()):
    """As the inspector has it: scores in units of the limit as learned."""
    limit = limit_from_scores(scores, 0.02, 1.0)
    in_limits = tuple(score / limit.value for score in scores)
    zones = [SimpleNamespace(limit=3.0, learned=SimpleNamespace(warning=w)) for w in zone_warnings]
    return SimpleNamespace(
        leave_one_out=in_limits,
        zones=zones or [SimpleNamespace(limit=4.0, learned=limit)],
        warnings=(*warnings, *zone_warnings),
    )


@pytest.mark.parametrize("threshold", [0.5, 1.0, 1.5])
def test_expected_false_rejects_follow_the_threshold_of_the_settings(threshold):
    program = Program(limit=LimitSettings(threshold=threshold))
    found = find("block", program, learned(SPREAD), ["r"] * 10, (None, None))
    assert found.limit.value == pytest.approx(1 / threshold)
    assert found.expected(1.0).expected == pytest.approx(0.02)
    assert found.expected(0.8).expected > 0.04
    assert found.expected(1.2).expected < 0.01


def test_the_zones_warnings_become_one():
    told = learned(SPREAD[:5], "zone a", "zone b", warnings=("repeats",))
    found = find("block", Program(), told, ["r"] * 5, (None, None))
    assert found.warnings[0] == "repeats"
    assert found.warnings[1].startswith("from 5 good parts the limit for 2 % false rejects")
    assert len(found.warnings) == 2


def test_what_the_figures_leave_out_is_said():
    regions = tuple(
        Region(name=name, polygon=((0, 0), (1, 0), (1, 1)), threshold=threshold)
        for name, threshold in (("a", 1.0), ("b", 0.8))
    )
    parts = (good(0.5, references=2), bad(2.0, references=1))
    found = find("block", Program(regions=regions), learned(SPREAD), ["r"] * 10, parts)
    assert found.warnings == (
        "the references' scores and the false rejects expected are those without the thresholds "
        "of regions (b)",
        "2 of the 3 good pictures are references: they are left out here",
        "1 of the 2 bad pictures are references: take them out of the references",
    )
