"""What becomes of a request: checked, done once, answered; with nothing around it."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from broker import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspectd import requests
from inspectd.clock import SLEWED_S, ClockWatch
from inspectd.errors import ControlError
from inspectd.journal import Answer
from inspectd.mqtt.messages import RequestMessage
from inspectd.mqtt.outbox import ReplyTo
from inspectd.payload import REQUESTS, Response
from inspectd.requests import REPEATED_WITHIN_S, WAITING, Requests


class Answers:
    """Remembers as the journal does."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}
        self.at = datetime.now(UTC)

    def find_answer(self, request: str, transaction: str) -> Answer | None:
        response = self.kept.get((request, transaction))
        return None if response is None else Answer(self.at, response)

    def keep_answer(self, request: str, transaction: str, response: bytes) -> None:
        self.kept[request, transaction] = response


class Bench:
    """Requests with everything around them recorded, in the order in which it happened."""

    def __init__(self, answers: Answers) -> None:
        self.happened: list[str] = []
        self.responses: list[tuple[ReplyTo, Response]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.requests = Requests(
            lambda: REQUESTS,
            lambda request, _message, _at: self.happened.append(f"trigger {request.part_id}"),
            {name: self.act(name) for name in REQUESTS if name != "trigger"},
            answers,
            lambda where, response: self.responses.append((where, response)),
        )
        self.requests.start()

    def act(self, name: str) -> Callable[[object], str]:
        def do(_request: object) -> str:
            assert self.go_on.wait(30)
            self.happened.append(name)
            if name == "snapshot":
                raise ControlError("no picture")
            if name == "resend":
                raise ZeroDivisionError("a mistake in the program")
            return f"did {name}"

        return do

    def ask(self, name: str, payload: bytes = b"") -> None:
        message = RequestMessage(payload, None, None, retain=False)
        self.requests.receive(name, message)

    def answered(self, count: int) -> Response:
        assert eventually(lambda: len(self.responses) >= count)
        return self.responses[count - 1][1]


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def bench(answers: Answers) -> Iterator[Bench]:
    bench = Bench(answers)
    yield bench
    bench.go_on.set()
    bench.requests.stop()


def test_what_was_done_is_done_once_by_its_transaction(bench: Bench, answers: Answers):
    bench.ask("reload", b'{"transaction": "t"}')
    first = bench.answered(1)
    assert (first.ok, first.transaction, first.detail) == (True, "t", "did reload")
    again = Bench(answers)  # after a restart
    again.ask("reload", b'{"transaction": "t"}')
    assert again.answered(1) == first
    assert again.happened == []
    again.ask("lot", b'{"name": null, "transaction": "t"}')  # of another request: another one
    assert again.answered(2).detail == "did lot"
    again.requests.stop()


def test_a_transaction_that_is_used_for_something_else_is_refused(bench: Bench, answers: Answers):
    """As a requester does that counts from 1 again after a restart."""
    bench.ask("program", b'{"program": "a", "transaction": "1"}')
    assert bench.answered(1).ok
    again = Bench(answers)
    again.ask("program", b'{"program": "b", "transaction": "1"}')
    refused = again.answered(1)
    assert not refused.ok
    assert refused.transaction == "1"
    assert '{"program":"a","transaction":"1"}' in (refused.error or "")
    again.ask("program", b'{ "transaction": "1", "program": "a"}')
    assert again.answered(2) == bench.responses[0][1]
    assert again.happened == []
    again.requests.stop()


@pytest.mark.parametrize("age_s", [REPEATED_WITHIN_S + 1, -60.0], ids=["old", "clock set back"])
def test_a_transaction_that_is_used_again_much_later_is_another_request(
    bench: Bench, answers: Answers, age_s: float
):
    bench.ask("program", b'{"program": "a", "transaction": "1"}')
    assert bench.answered(1).ok
    answers.at = datetime.now(UTC) - timedelta(seconds=age_s)
    bench.ask("program", b'{"program": "b", "transaction": "1"}')
    answer = bench.answered(2)
    assert not answer.ok
    assert "transaction of its own" in (answer.error or "")
    assert bench.happened == ["program"]


class Clocks:
    """A wall clock and the time since the machine's start, as a watch reads them."""

    def __init__(self, *, ahead_s: float = 0.0, uptime_s: float = 5000.0) -> None:
        self.ahead_s = ahead_s
        self.uptime_s = uptime_s
        self._begun = time.time() - uptime_s

    def wall_s(self) -> float:
        return self._begun + self.uptime_s + self.ahead_s

    def watch(self) -> ClockWatch:
        return ClockWatch(self.wall_s, lambda: self.uptime_s)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.wall_s(), UTC)


@pytest.mark.parametrize("set_s", [7200.0, 30.0, -30.0, -7200.0])
def test_what_was_answered_before_the_clock_was_set_is_of_unknown_age(set_s: float):
    clocks = Clocks()
    watch = clocks.watch()
    answered = clocks.now()
    assert answered > watch.since()
    clocks.uptime_s += 60.0
    clocks.ahead_s += set_s
    assert answered <= watch.since()
    assert clocks.now() <= watch.since()  # may have been shown before it was set back
    clocks.uptime_s += max(1.0, -set_s)
    assert clocks.now() >= watch.since()
    assert answered <= watch.since()


def test_an_answer_of_a_clock_that_ran_ahead_stays_of_unknown_age():
    """Else it would be taken for a fresh one when its instant comes once more."""
    clocks = Clocks(ahead_s=3600.0)
    watch = clocks.watch()
    answered = clocks.now()
    clocks.ahead_s = 0.0
    clocks.uptime_s += 3600.0 + 60.0
    assert clocks.now() > answered
    assert answered <= watch.since()


def test_a_clock_that_is_slewed_was_not_set():
    clocks = Clocks()
    watch = clocks.watch()
    before = watch.since()
    clocks.ahead_s = SLEWED_S / 2
    assert watch.since() == before
    assert before == datetime.fromtimestamp(clocks.wall_s() - clocks.ahead_s - 5000.0, UTC)


def test_an_answer_from_before_the_machine_started_is_none(
    bench: Bench, answers: Answers, monkeypatch: pytest.MonkeyPatch
):
    """Without a battery the clock goes on from where it stood, however long that is ago."""
    bench.ask("program", b'{"program": "a", "transaction": "1"}')
    assert bench.answered(1).ok
    answers.at = datetime.now(UTC) - timedelta(seconds=120)
    bench.ask("program", b'{"program": "a", "transaction": "1"}')
    assert bench.answered(2) == bench.answered(1)
    monkeypatch.setattr(requests, "_clock", Clocks(uptime_s=60.0).watch())
    bench.ask("program", b'{"program": "a", "transaction": "1"}')
    answer = bench.answered(3)
    assert not answer.ok
    assert "before the machine was started or its clock set" in (answer.error or "")
    assert bench.happened == ["program"]


def test_each_request_looks_whether_the_clock_was_set(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    """So nothing is answered between a setting and its being noticed."""
    clocks = Clocks(ahead_s=300.0)
    monkeypatch.setattr(requests, "_clock", clocks.watch())
    clocks.ahead_s = 0.0
    bench.ask("trigger", b'{"part_id": "1"}')
    assert bench.happened == ["trigger 1"]
    clocks.ahead_s = 300.0
    clocks.uptime_s += 100.0
    used = requests.used_before("t", datetime.now(UTC) - timedelta(seconds=1))
    assert "its clock set" in used


@pytest.mark.parametrize(
    ("name", "payload", "words"),
    [
        ("snapshot", b'{"transaction": "t"}', "no picture"),
        ("resend", b'{"first": 1, "last": 2, "transaction": "t"}', "unexpected error"),
    ],
)
def test_what_failed_is_answered_and_tried_again(
    bench: Bench, name: str, payload: bytes, words: str
):
    for count in (1, 2):
        bench.ask(name, payload)
        answer = bench.answered(count)
        assert not answer.ok
        assert words in (answer.error or "")
        assert answer.transaction == "t"
    assert bench.happened == [name, name]


def test_a_trigger_after_a_switch_comes_after_it_and_never_waits_for_long_requests(bench: Bench):
    bench.go_on.clear()
    bench.ask("teach")
    bench.ask("trigger", b'{"part_id": "1"}')
    assert bench.happened == ["trigger 1"]
    bench.ask("program", b'{"program": "other"}')
    bench.ask("trigger", b'{"part_id": "2"}')
    assert bench.happened == ["trigger 1"]
    bench.go_on.set()
    assert eventually(lambda: len(bench.happened) == 4)
    assert bench.happened.index("program") < bench.happened.index("trigger 2")


def test_more_than_can_wait_is_refused_and_every_request_is_answered(bench: Bench):
    bench.go_on.clear()
    count = WAITING + 5
    for _ in range(count):
        bench.ask("reload")
    bench.go_on.set()
    bench.answered(count)
    refused = [answer for _, answer in bench.responses if not answer.ok]
    assert refused
    assert all("waiting already" in (answer.error or "") for answer in refused)


def test_a_request_nested_without_end_is_answered(bench: Bench):
    bench.ask("trigger", b'{"x":' + b"[" * 200_000)
    assert not bench.answered(1).ok


def test_when_the_service_stops_what_waits_is_refused(bench: Bench):
    bench.go_on.clear()
    for _ in range(3):
        bench.ask("reload")
    stopping = threading.Thread(target=bench.requests.stop)
    stopping.start()
    assert eventually(bench.requests._stopping.is_set)
    bench.ask("reload")
    bench.go_on.set()
    stopping.join()
    bench.answered(4)
    assert sum("stopping" in (answer.error or "") for _, answer in bench.responses) >= 3


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from([*REQUESTS, "nonsense", ""]),
    payload=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
            lambda inner: st.dictionaries(
                st.sampled_from(["transaction", "program", "name", "threshold", "first", "x"]),
                inner,
            ),
        ).map(msgspec.json.encode),
    ),
)
def test_whatever_is_sent_is_a_trigger_or_gets_one_answer(name: str, payload: bytes):
    bench = Bench(Answers())
    bench.ask(name, payload)
    bench.requests.stop()
    assert len(bench.responses) + sum(one.startswith("trigger") for one in bench.happened) == 1
