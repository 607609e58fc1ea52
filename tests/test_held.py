"""Requests that the broker holds back until earlier ones are acknowledged."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker import Subscriber, eventually
from station import SIMULATED, Station, request, verdicts, wait_until_available

from inspectd.commands.private_broker import PrivateBroker
from inspectd.mqtt.held import CAUGHT_UP_S, FULL, HeldBack

S = 1_000_000_000


def test_a_few_requests_came_at_once():
    held = HeldBack()
    assert not any(held.note_message(S, owed) for owed in range(FULL))
    assert held.since_ns is None


def test_from_a_full_window_on_a_request_may_be_as_old_as_that():
    held = HeldBack()
    assert held.note_message(5 * S, FULL)
    held.new_marker(5 * S)
    assert not held.note_message(7 * S, FULL)  # one marker at a time
    assert held.since_ns == 5 * S


def test_what_comes_behind_a_late_marker_was_sent_after_it():
    held = HeldBack()
    held.note_message(5 * S, FULL)
    marker = held.new_marker(6 * S)
    assert not held.take(b"another", 7 * S)
    assert held.take(marker, 9 * S)
    assert held.since_ns == 6 * S
    assert held.note_message(9 * S, 0)  # still behind: look again
    assert not held.waits_for_marker(9 * S, 30)


def test_a_prompt_marker_ends_the_doubt():
    held = HeldBack()
    held.note_message(5 * S, FULL)
    marker = held.new_marker(6 * S)
    assert held.take(marker, 6 * S + int(CAUGHT_UP_S * S) // 2)
    assert held.since_ns is None
    assert not held.note_message(7 * S, 1)


def test_a_marker_that_does_not_come_back_is_known():
    held = HeldBack()
    held.note_message(5 * S, FULL)
    held.new_marker(5 * S)
    assert held.waits_for_marker(36 * S, 30)
    held.forget_marker()
    assert held.note_message(36 * S, 1)


def test_no_burst_has_a_part_judged_by_the_picture_of_a_later_one(
    tmp_path: Path,
    broker: PrivateBroker,
    subscribe: Callable[[PrivateBroker], Subscriber],
):
    count, timeout_s = 200, 0.5
    station = Station(
        tmp_path,
        camera=SIMULATED % 10,  # a part that is only just not stale is seen 0.1 s later
        trigger="{source: mqtt}",
        port=broker.port,
        extra=f"queue: 1000\ncapture_timeout_s: {timeout_s}\n",
    )
    station.teach()
    subscriber = subscribe(broker)
    service = station.start()
    wait_until_available(subscriber)
    sent: dict[str, datetime] = {}
    for number in range(count):
        request(subscriber, {"part_id": str(number)})
        sent[str(number)] = datetime.now(UTC)  # a pause of this process is no delay of the station
    assert eventually(lambda: len(verdicts(subscriber)) == count, 30.0)
    late = [
        (datetime.fromisoformat(verdict["captured_at"]) - sent[verdict["part_id"]], verdict["seq"])
        for verdict in verdicts(subscriber)
        if verdict["score"] is not None
        and datetime.fromisoformat(verdict["captured_at"]) - sent[verdict["part_id"]]
        > timedelta(seconds=timeout_s + 0.25)
    ]
    assert late == []
    assert {v["reason"] for v in verdicts(subscriber)} >= {"stale trigger"}
    numbers = itertools.count(count)

    def next_is_judged() -> bool:
        part_id = str(next(numbers))
        request(subscriber, {"part_id": part_id})
        assert eventually(lambda: verdicts(subscriber)[-1]["part_id"] == part_id)
        return verdicts(subscriber)[-1]["score"] is not None

    # Once the burst is over, requests are fresh again; the last marker may be on its way yet.
    assert eventually(next_is_judged)
    assert service.stop() == 0
    station.clean_up()
