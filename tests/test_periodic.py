"""The thread that does the same again and again."""

import itertools
import math
import queue
import threading
from types import SimpleNamespace

import pytest
from broker import eventually

from inspectd import periodic as module
from inspectd.periodic import Periodic

WAIT_S = 10.0
NEVER_S = 86400.0


class Bench:
    """Puts a word into a queue at each time, and another at the end."""

    def __init__(self, every_s: float) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self.troubles: list[Exception] = []
        self.periodic = Periodic(
            "again", self.act, every_s, trouble="it went wrong", finish=self.finish
        )

    def act(self) -> None:
        if self.troubles:
            raise self.troubles.pop()
        self.said.put("acted")

    def finish(self) -> None:
        self.said.put("finished")

    def words(self, count: int) -> list[str]:
        return [self.said.get(timeout=WAIT_S) for _ in range(count)]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "again"]


def test_it_acts_again_and_again():
    bench = Bench(0.01)
    bench.periodic.start()
    assert bench.words(3) == ["acted"] * 3
    bench.periodic.stop()


def test_it_acts_at_once_and_when_it_is_woken_and_finishes_when_it_is_stopped():
    bench = Bench(NEVER_S)
    bench.periodic.start()
    assert bench.words(1) == ["acted"]
    bench.periodic.wake()
    assert bench.words(1) == ["acted"]
    bench.periodic.stop()
    assert eventually(lambda: not threads())
    assert bench.words(1) == ["finished"]
    assert bench.said.empty()


def test_a_time_that_fails_is_logged_and_the_next_one_comes(caplog):
    bench = Bench(0.01)
    bench.troubles = [ZeroDivisionError("a broken sensor")]
    bench.periodic.start()
    assert bench.words(1) == ["acted"]
    bench.periodic.stop()
    (record,) = caplog.records
    assert record.getMessage() == "it went wrong"
    assert "a broken sensor" in caplog.text


def test_an_end_that_fails_is_logged(caplog):
    def fail() -> None:
        raise OSError("a full disk")

    periodic = Periodic("again", lambda: None, NEVER_S, trouble="it went wrong", finish=fail)
    periodic.start()
    periodic.stop()
    assert eventually(lambda: not threads())
    assert "a full disk" in caplog.text


def test_what_was_not_started_can_be_stopped_and_does_nothing():
    bench = Bench(NEVER_S)
    bench.periodic.stop()
    assert bench.said.empty()


def test_a_stop_does_not_wait_for_what_hangs():
    begun, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        assert go_on.wait(WAIT_S)

    periodic = Periodic("again", hang, NEVER_S, trouble="it went wrong")
    periodic.start()
    assert begun.wait(WAIT_S)
    periodic.stop()
    assert threads()  # left behind
    go_on.set()
    assert eventually(lambda: not threads())


class Clock:
    """Moves by as long as is waited, without waiting; behind the last wait it stands still."""

    def __init__(self, longest_s: list[float]) -> None:
        """Args:
        longest_s: how long each wait lasts at most, before it is woken.
        """
        self.now = 1000.0
        self.stands = threading.Event()
        self._longest_s = iter(longest_s)
        self._woken = threading.Event()

    def wait(self, timeout_s: float) -> None:
        for longest_s in self._longest_s:
            self.now += min(timeout_s, longest_s)
            return
        self.stands.set()
        self._woken.wait(WAIT_S)

    def set(self) -> None:
        self._woken.set()

    def clear(self) -> None:
        self._woken.clear()


@pytest.mark.parametrize(
    ("held_up_s", "woken_after_s", "expected_s"),
    [
        (0.3, math.inf, [0.0, 2.0, 4.0, 6.0]),  # lateness does not add up
        (7.0, math.inf, [0.0, 7.0, 8.0, 10.0]),  # once for those of 2, 4 and 6
        (0.0, 0.5, [0.0, 0.5, 2.0, 4.0]),
    ],
    ids=["late", "held up", "woken"],
)
def test_the_times_keep_to_their_grid(monkeypatch, held_up_s, woken_after_s, expected_s):
    clock = Clock([woken_after_s, math.inf, math.inf])
    monkeypatch.setattr(
        module, "threading", SimpleNamespace(Event=lambda: clock, Thread=threading.Thread)
    )
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    held_up = itertools.chain([held_up_s], itertools.repeat(0.0))
    acted_s = []

    def act() -> None:
        acted_s.append(clock.now - 1000.0)
        clock.now += next(held_up)

    periodic = Periodic("again", act, 2.0, trouble="it went wrong")
    periodic.start()
    assert clock.stands.wait(WAIT_S)
    periodic.stop()
    assert acted_s == pytest.approx(expected_s)
