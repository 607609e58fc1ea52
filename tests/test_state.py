"""What the station says of itself."""

import itertools
import logging
from datetime import UTC, datetime

import pytest

from inspectd.errors import BrokerState
from inspectd.payload import StatePayload
from inspectd.state import State, StationState

HINDRANCES = [state for state in State if state is not State.JUDGING]


class Published(list):
    """Each (payload, available) that was told."""

    def __call__(self, payload: StatePayload, available: bool) -> None:
        self.append((payload, available))

    @property
    def words(self) -> list[tuple[str, bool]]:
        return [(payload.state, available) for payload, available in self]


def first() -> StatePayload:
    return StatePayload(
        state="starting",
        station="line1",
        program="connector",
        settings_hash="0123456789ab",
        versions={"inspectd": "1"},
        journal_id="journal",
        boot_id="boot",
        clock_synchronised=False,
        since=datetime(2020, 1, 1, tzinfo=UTC),
    )


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
def state(published: Published) -> StationState:
    return StationState(first(), published)


@pytest.fixture
def judging(state: StationState, published: Published) -> StationState:
    """A station that has started."""
    state.clear(State.STARTING)
    published.clear()
    return state


def test_it_starts_as_starting_and_is_available_once_nothing_hinders(state, published):
    assert state.payload.state == "starting"
    assert published == []
    state.clear(State.STARTING)
    assert published.words == [("judging", True)]
    assert state.payload == published[0][0]


def test_what_hinders_during_the_start_keeps_it_unavailable(state, published):
    state.hinder(State.NOT_READY, "3 references of 5")
    state.clear(State.STARTING)
    assert published.words == [("starting", False), ("not_ready", False)]
    assert state.payload.detail == "3 references of 5"
    state.clear(State.NOT_READY)
    assert published.words[-1] == ("judging", True)


@pytest.mark.parametrize(("first_of", "second_of"), list(itertools.combinations(HINDRANCES, 2)))
@pytest.mark.parametrize("order", [1, -1])
def test_the_graver_of_two_is_told_and_the_other_when_it_is_over(
    judging, published, first_of, second_of, order
):
    for hindrance in (first_of, second_of)[::order]:
        judging.hinder(hindrance, f"about {hindrance}")
    assert judging.payload.state == first_of
    assert judging.payload.detail == f"about {first_of}"
    judging.clear(first_of)
    assert judging.payload.state == second_of
    assert judging.payload.detail == f"about {second_of}"
    assert not any(available for _, available in published)
    judging.clear(second_of)
    assert published.words[-1] == ("judging", True)
    assert judging.payload.detail == ""


def test_stopping_is_told_above_everything():
    assert next(iter(State)) is State.STOPPING


def test_available_exactly_while_nothing_hinders(judging, published):
    judging.hinder(State.CAMERA_FAULT, "unplugged")
    judging.hinder(State.NOT_READY, "none taught")
    judging.note(references=0, references_hash=None)
    judging.clear(State.CAMERA_FAULT)
    judging.clear(State.NOT_READY)
    judging.note(references=9, references_hash="abc")
    for payload, available in published:
        assert available is (payload.state == "judging")
    assert published.words[-1] == ("judging", True)


def test_the_same_trouble_again_is_no_news(judging, published):
    judging.hinder(State.CAMERA_FAULT, "unplugged")
    judging.hinder(State.CAMERA_FAULT, "unplugged")
    assert len(published) == 1


def test_clearing_what_does_not_hinder_is_no_news(judging, published):
    judging.clear(State.CAMERA_FAULT)
    assert published == []


def test_the_last_error_stays_when_the_trouble_is_over(judging):
    assert judging.payload.last_error is None
    judging.hinder(State.CAMERA_FAULT, "unplugged")
    judging.clear(State.CAMERA_FAULT)
    assert judging.payload.last_error == "unplugged"


def test_an_error_behind_a_graver_one_is_told_as_the_last(judging):
    judging.hinder(State.JOURNAL_FAULT, "disk full")
    judging.hinder(State.NOT_READY, "none taught")
    assert judging.payload.state == "journal_fault"
    assert judging.payload.last_error == "none taught"


def test_stopping_is_no_error(judging):
    judging.hinder(State.STOPPING, "")
    assert judging.payload.state == "stopping"
    assert judging.payload.last_error is None


def test_an_alarm_is_told_at_once_and_the_station_stays_available(judging, published):
    judging.alarm("5 FAILs in a row")
    judging.alarm("5 FAILs in a row")
    assert [payload.alarm for payload, _ in published] == ["5 FAILs in a row"]
    judging.hinder(State.CAMERA_FAULT, "unplugged")
    judging.clear(State.CAMERA_FAULT)
    assert judging.payload.alarm == "5 FAILs in a row"
    judging.alarm(None)
    assert judging.payload.alarm is None
    assert published.words == [("judging", True), ("camera_fault", False)] + [("judging", True)] * 2
    assert judging.payload.last_error == "unplugged"


def test_how_the_connections_to_the_broker_are_is_news_only_when_it_changes(judging, published):
    judging.note_broker(BrokerState.CONNECTED, None)
    judging.note_broker(BrokerState.CONNECTED, None)
    judging.note_broker(BrokerState.CONNECTED, BrokerState.REFUSED_CREDENTIALS)
    judging.note_broker(BrokerState.CONNECTED, None)
    assert [(payload.broker, payload.sparkplug) for payload, _ in published] == [
        ("connected", None),
        ("connected", "refused_credentials"),
        ("connected", None),
    ]
    assert {available for _, available in published} == {True}


def test_since_is_when_the_state_began_and_not_when_it_was_told(judging):
    judging.hinder(State.CAMERA_FAULT, "unplugged")
    began = judging.payload.since
    assert began > datetime(2020, 1, 1, tzinfo=UTC)
    judging.hinder(State.CAMERA_FAULT, "still unplugged")
    judging.note(references=3, references_hash="abc")
    assert judging.payload.since == began
    judging.clear(State.CAMERA_FAULT)
    assert judging.payload.since != began


def test_references_are_noted_beside_everything_else(judging, published):
    judging.note(references=12, references_hash="0011aabbccdd")
    payload, available = published[-1]
    assert (payload.references, payload.references_hash) == (12, "0011aabbccdd")
    assert (payload.station, payload.boot_id, payload.journal_id) == ("line1", "boot", "journal")
    assert available


def test_each_new_trouble_is_logged_once_and_its_end_too(judging, caplog):
    with caplog.at_level(logging.INFO, "inspectd"):
        judging.hinder(State.CAMERA_FAULT, "unplugged")
        judging.hinder(State.CAMERA_FAULT, "unplugged")
        judging.hinder(State.CAMERA_FAULT, "no such mode")
        judging.note(references=1, references_hash="abc")
        judging.clear(State.CAMERA_FAULT)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "camera fault: unplugged"),
        ("WARNING", "camera fault: no such mode"),
        ("INFO", "judging"),
    ]
