"""The line of waiting triggers, and the timer that fills it."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from inspectd import trigger as module
from inspectd.records import Trigger, TriggerSource
from inspectd.trigger import IntervalTimer, Overrun, TriggerLine, Work, trigger_now

PATIENCE_S = 20.0


def a_trigger(part: object) -> Trigger:
    return trigger_now(TriggerSource.MQTT, part_id=str(part))


def nothing() -> None:
    """Work that does nothing."""


def everything(line: TriggerLine) -> list[Work]:
    taken = []
    while (work := line.take(0)) is not None:
        taken.append(work)
    return taken


def in_words(taken: list[Work]) -> list[str]:
    """``1`` is a part to be judged, ``-1`` an overrun, ``call`` other work."""
    words = []
    for work in taken:
        match work:
            case Trigger(part_id=part):
                words.append(part)
            case Overrun(Trigger(part_id=part)):
                words.append(f"-{part}")
            case _:
                words.append("call")
    return words


# ---- a trigger ---------------------------------------------------------------------------------


def test_a_trigger_is_of_this_instant_and_carries_what_the_requester_gave():
    before, before_ns = datetime.now(UTC), time.monotonic_ns()
    trigger = trigger_now(
        TriggerSource.MQTT,
        part_id="A-17",
        transaction="t1",
        response_topic="plc/answers",
        correlation_data=b"\x01",
    )
    assert before <= trigger.requested_at <= datetime.now(UTC)
    assert before_ns <= trigger.requested_ns <= time.monotonic_ns()
    assert trigger.source is TriggerSource.MQTT
    assert (trigger.part_id, trigger.transaction) == ("A-17", "t1")
    assert (trigger.response_topic, trigger.correlation_data) == ("plc/answers", b"\x01")
    assert trigger.due_ns == trigger.requested_ns


def test_a_trigger_of_an_earlier_instant_has_both_clocks_of_that_instant():
    hour_ns = 3600 * 10**9
    before, earlier_ns = datetime.now(UTC), time.monotonic_ns() - hour_ns
    trigger = trigger_now(TriggerSource.GPIO, requested_ns=earlier_ns)
    assert trigger.requested_ns == earlier_ns
    hour = timedelta(hours=1)
    rounding = timedelta(microseconds=2)
    assert before - rounding <= trigger.requested_at + hour <= datetime.now(UTC) + rounding
    assert trigger.requested_at.tzinfo is UTC


def test_a_delay_puts_off_when_the_part_is_due_not_when_it_was_asked_for():
    trigger = trigger_now(TriggerSource.GPIO, requested_ns=5_000_000_000, delay_ms=12.5)
    assert trigger.requested_ns == 5_000_000_000
    assert trigger.due_ns == 5_012_500_000


# ---- the line ----------------------------------------------------------------------------------


def test_triggers_come_out_in_the_order_they_went_in():
    line = TriggerLine(10)
    triggers = [a_trigger(part) for part in range(10)]
    for trigger in triggers:
        line.put(trigger)
    assert everything(line) == triggers


def test_an_empty_line_gives_nothing():
    assert TriggerLine(3).take(0) is None


def test_beyond_the_bound_a_trigger_is_an_overrun_and_none_is_lost():
    line = TriggerLine(2)
    for part in range(5):
        line.put(a_trigger(part))
    assert in_words(everything(line)) == ["0", "1", "-2", "-3", "-4"]


def test_an_overrun_keeps_its_place_among_the_parts():
    line = TriggerLine(2)
    for part in (1, 2, 3):
        line.put(a_trigger(part))
    first = line.take(0)
    line.put(a_trigger(4))
    line.put(a_trigger(5))
    assert in_words([first, *everything(line)]) == ["1", "2", "-3", "4", "-5"]


def test_overruns_take_no_room_in_the_line():
    line = TriggerLine(1)
    for part in (1, 2, 3):
        line.put(a_trigger(part))
    assert in_words([line.take(0)]) == ["1"]
    line.put(a_trigger(4))
    assert in_words(everything(line)) == ["-2", "-3", "4"]


def test_other_work_goes_before_the_parts_that_wait():
    line = TriggerLine(5)
    line.put(a_trigger(1))
    line.call(nothing)
    assert in_words(everything(line)) == ["call", "1"]


def test_work_that_asks_for_more_of_itself_lets_a_part_through_each_time():
    line = TriggerLine(5)
    for part in range(1, 4):
        line.put(a_trigger(part))
    left = 5

    def again() -> None:
        nonlocal left
        left -= 1
        if left:
            line.call(again)

    line.call(again)
    taken = []
    while (work := line.take(0)) is not None:
        taken.append(work)
        if work is again:
            again()
    assert in_words(taken) == ["call", "1", "call", "2", "call", "3", "call", "call"]


def test_much_work_at_once_does_not_hold_the_parts_up():
    line = TriggerLine(5)
    for _ in range(3):
        line.call(nothing)
    line.put(a_trigger(1))
    assert in_words(everything(line)) == ["call", "1", "call", "call"]


def test_overruns_are_answered_between_other_work_too():
    line = TriggerLine(1)
    for part in (1, 2):
        line.put(a_trigger(part))
    for _ in range(3):
        line.call(nothing)
    assert in_words(everything(line)) == ["call", "1", "call", "-2", "call"]


@pytest.mark.parametrize(
    "fill",
    [lambda line: line.put(a_trigger(1)), lambda line: line.call(nothing), TriggerLine.wake],
    ids=["put", "call", "wake"],
)
def test_whatever_is_put_in_ends_the_waiting(fill):
    line = TriggerLine(5)
    taken: list[Work | None] = []
    waiting = threading.Thread(target=lambda: taken.append(line.take(PATIENCE_S)))
    waiting.start()
    fill(line)
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert taken[0] is not None


def test_none_is_lost_or_doubled_when_many_ask_at_once():
    line = TriggerLine(50)
    askers = [
        threading.Thread(
            target=lambda asker=asker: [line.put(a_trigger(f"{asker}.{n}")) for n in range(200)]
        )
        for asker in range(4)
    ]
    for asker in askers:
        asker.start()
    taken = []
    while len(taken) < 800 and (work := line.take(PATIENCE_S)) is not None:
        taken.append(work)
    for asker in askers:
        asker.join()
    assert everything(line) == []
    parts = [word.removeprefix("-") for word in in_words(taken)]
    for asker in range(4):
        own = [part for part in parts if part.startswith(f"{asker}.")]
        assert own == [f"{asker}.{n}" for n in range(200)]


# ---- the timer ---------------------------------------------------------------------------------


class LateClock:
    """A clock that moves only while someone waits, and whoever waits is woken too late."""

    def __init__(self, ticks: int, late_s: Callable[[int], float]) -> None:
        self.now = 1000.0
        self._ticks = ticks
        self._late_s = late_s
        self._waits = 0

    def wait(self, timeout_s: float) -> bool:
        """In place of the event that stops the timer."""
        if self._waits == self._ticks:
            return True
        self.now += max(timeout_s, 0.0) + self._late_s(self._waits)
        self._waits += 1
        return False


def ticks_of(monkeypatch, clock: LateClock, interval_s: float) -> list[float]:
    """When the timer asked, in seconds since its start, by the clock."""
    monkeypatch.setattr(
        module,
        "threading",
        SimpleNamespace(Event=lambda: clock, Thread=threading.Thread),
    )
    monkeypatch.setattr(
        module,
        "time",
        SimpleNamespace(monotonic=lambda: clock.now, monotonic_ns=lambda: int(clock.now * 1e9)),
    )
    asked = []
    finished = threading.Event()

    class Line:
        @staticmethod
        def put(trigger: Trigger) -> None:
            assert trigger.source is TriggerSource.INTERVAL
            asked.append(trigger.requested_ns / 1e9 - 1000.0)

    timer = IntervalTimer(interval_s, Line)
    clock.set = finished.set
    timer.start()
    timer.stop()
    assert finished.is_set()
    return asked


def test_lateness_does_not_add_up(monkeypatch, caplog):
    clock = LateClock(100, lambda _: 0.3)
    asked = ticks_of(monkeypatch, clock, 2.0)
    assert asked == pytest.approx([2.0 * tick + 0.3 for tick in range(100)])
    assert not caplog.records


def test_what_was_missed_in_a_long_delay_is_skipped_and_told_once(monkeypatch, caplog):
    clock = LateClock(6, lambda wait: 4.5 if wait == 2 else 0.0)
    asked = ticks_of(monkeypatch, clock, 1.0)
    assert asked == pytest.approx([0.0, 1.0, 6.5, 7.0, 8.0, 9.0])
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "4 of its instants passed without a verdict" in record.getMessage()


def test_the_timer_fills_the_line_until_it_is_stopped():
    line = TriggerLine(1000)
    timer = IntervalTimer(0.01, line)
    timer.start()
    taken = [line.take(PATIENCE_S) for _ in range(3)]
    assert all(work.source is TriggerSource.INTERVAL for work in taken)
    assert [work.requested_ns for work in taken] == sorted({work.requested_ns for work in taken})
    timer.stop()
    assert not timer_threads()


def timer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "interval"]


def test_a_timer_stops_at_once_in_the_middle_of_a_long_interval():
    line = TriggerLine(5)
    timer = IntervalTimer(86400.0, line)
    timer.start()
    assert line.take(PATIENCE_S) is not None  # the first comes at once
    timer.stop()
    assert not timer_threads()


def test_a_timer_that_was_never_started_can_be_stopped_and_asks_for_nothing():
    line = TriggerLine(5)
    IntervalTimer(1.0, line).stop()
    assert not timer_threads()
    assert everything(line) == []
