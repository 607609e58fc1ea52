"""Short forms of `make test-soak`: the same scenarios with small numbers, timings unjudged."""

from datetime import UTC, datetime, timedelta

import pytest
from soak import accounts
from soak.chaos import chaos
from soak.consumer import Request
from soak.faults import FAULTS, faults
from soak.fuzz import fuzz
from soak.load import load
from soak.outage import outage
from soak.switch import switch

from inspectd.commands.private_broker import find_mosquitto

needs_mosquitto = pytest.mark.skipif(
    find_mosquitto() is None,
    reason="there is no mosquitto on this machine (Debian: apt install mosquitto)",
)


@needs_mosquitto
def test_every_part_is_accounted_for_whatever_fails():
    report = chaos(
        parts=120,
        broker_kills=1,
        daemon_kills=1,
        network_cuts=1,
        network_stalls=1,
        stall_s=3.0,
    )
    assert not report.violations, report


@needs_mosquitto
def test_nothing_is_lost_while_the_broker_is_away():
    report = outage(seconds=5.0, warm_up_s=2.0)
    assert not report.violations, report


@needs_mosquitto
def test_bad_settings_and_requests_are_told_and_do_no_harm():
    report = fuzz(files=8, requests=60)
    assert not report.violations, report


@needs_mosquitto
def test_full_size_frames_are_all_answered():
    report = load(rate=5.0, seconds=3.0, warm_up_s=1.0, requests=20)
    assert not report.violations, report


@needs_mosquitto
def test_a_switch_of_programs_loses_no_trigger():
    report = switch(switches=10)
    assert not report.violations, report


@needs_mosquitto
@pytest.mark.parametrize("name", FAULTS)
def test_a_broker_that_does_not_work_is_named_and_not_hammered(name):
    report = faults(watch_s=4.0, only=name)
    assert report.figures
    assert not report.violations, report


# ---- the bookkeeping finds what it is there to find ----------------------------------------------

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def verdict(seq, **others):
    return {
        "id": f"id-{seq}",
        "seq": seq,
        "journal_id": "j",
        "boot_id": "first",
        "part_id": f"p{seq}",
        "transaction": f"t-p{seq}",
        "verdict": "PASS",
        "captured_at": NOON.isoformat(),
        "historical": False,
        **others,
    }


ONE, TWO, THREE = verdict(1), verdict(2), verdict(3)


@pytest.mark.parametrize(
    ("check", "verdicts", "words"),
    [
        (accounts.gaps, [ONE, THREE], "missing up to 3: [2]"),
        (accounts.gaps, [TWO], "missing up to 2: [1]"),
        (accounts.gaps, [ONE, verdict(1, id="other")], "two inspections: [1]"),
        (accounts.gaps, [ONE, verdict(2, journal_id="k")], "2 journal ids: j, k"),
        (accounts.changed, [ONE, verdict(1, verdict="FAIL")], "with another verdict"),
        (accounts.disorder, [TWO, ONE], "live of boot first: seq 1 came after 2"),
        (
            accounts.disorder,
            [verdict(2, historical=True), verdict(1, historical=True)],
            "the backlog: seq 1 came after 2",
        ),
        (accounts.judged_twice, [ONE, verdict(2, transaction="t-p1")], "seq 1 and seq 2"),
    ],
)
def test_a_broken_account_is_found(check, verdicts, words):
    (found,) = check(verdicts)
    assert words in found


@pytest.mark.parametrize(
    "verdicts",
    [
        [ONE, TWO, ONE, THREE],
        [ONE, THREE, verdict(2, historical=True), verdict(3, historical=True)],
        [ONE, THREE, verdict(2, boot_id="second")],
    ],
    ids=["repeated", "backlog", "boots"],
)
def test_a_sound_account_is_not_complained_of(verdicts):
    for check in (accounts.gaps, accounts.changed, accounts.disorder, accounts.judged_twice):
        assert not list(check(verdicts))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([], "part p1 was never answered"),
        ([ONE, verdict(1, id="other")], "with 2 inspections"),
        ([verdict(1, verdict="FAIL")], "otherwise than published"),
        ([TWO], "with the verdict of another"),
        ([verdict(9)], "never a verdict"),
    ],
)
def test_a_part_without_its_answer_is_found(answers, words):
    request = Request("p1", sent_at=[NOON], answers=answers)
    assert any(words in found for found in accounts.unanswered({"t-p1": request}, [ONE, TWO]))
    request.answers = [verdict(1, historical=True)]
    assert not list(accounts.unanswered({"t-p1": request}, [ONE, TWO]))


@pytest.mark.parametrize(("waited_s", "old"), [(1, False), (5, True), (-1, True)])
def test_a_picture_of_another_part_is_found(waited_s, old):
    request = Request("p1", sent_at=[NOON - timedelta(seconds=waited_s)])
    within = timedelta(seconds=4)
    assert bool(list(accounts.old_pictures({"t-p1": request}, [ONE], within))) == old
    not_judged = verdict(1, verdict="NOT_JUDGED")
    assert not list(accounts.old_pictures({"t-p1": request}, [not_judged], within))
