"""The pacer on a clock of the test's own: waiting for an event moves the clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from inspectd.camera import pacing
from inspectd.errors import CameraLost, CameraTimeout

SECOND = 1_000_000_000
START = 7 * SECOND


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(ns=START)

    class Event:
        def __init__(self):
            self.stopped = False

        def set(self):
            self.stopped = True

        def is_set(self):
            return self.stopped

        def wait(self, seconds):
            if not self.stopped:
                now.ns += round(seconds * 1e9)
            return self.stopped

    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic_ns=lambda: now.ns))
    monkeypatch.setattr(pacing, "threading", SimpleNamespace(Event=Event))
    return now


def test_instants_keep_to_the_grid_whatever_the_consumer_does(clock):
    pacer = pacing.Pacer(rate=10)
    for number in range(500):
        due = pacer.wait(0, 1.0)
        assert due == START + number * SECOND // 10
        assert clock.ns == due
        clock.ns += (number * 7919) % 90 * 1_000_000  # busy for up to 89 ms of the 100


def test_a_late_consumer_gets_the_newest_instant_at_once_and_no_burst(clock):
    pacer = pacing.Pacer(rate=10)
    pacer.wait(0, 1.0)
    clock.ns = START + round(0.95 * SECOND)
    assert pacer.wait(0, 1.0) == START + round(0.9 * SECOND)
    assert clock.ns == START + round(0.95 * SECOND)
    assert pacer.wait(0, 1.0) == START + SECOND == clock.ns


def test_the_instant_lies_after_the_trigger(clock):
    pacer = pacing.Pacer(rate=10)
    clock.ns = START + SECOND
    assert pacer.wait(after_ns=START + SECOND, timeout_s=1.0) == START + round(1.1 * SECOND)
    trigger = START + round(1.15 * SECOND)
    clock.ns = START + round(1.22 * SECOND)
    assert pacer.wait(trigger, 1.0) == START + round(1.2 * SECOND)
    assert clock.ns == START + round(1.22 * SECOND)


def test_a_timeout_is_waited_out_and_uses_nothing_up(clock):
    pacer = pacing.Pacer(rate=0.5)
    pacer.wait(0, 1.0)
    with pytest.raises(CameraTimeout, match=r"at 0\.5 pictures per second .* 1\.5 s too late"):
        pacer.wait(0, 0.5)
    assert clock.ns == START + SECOND // 2
    assert pacer.wait(0, 1.5) == START + 2 * SECOND


def test_the_timeout_counts_from_a_trigger_that_is_still_to_come(clock):
    pacer = pacing.Pacer(rate=10)
    assert pacer.wait(START + 5 * SECOND, 0.2) == START + round(5.1 * SECOND) == clock.ns


def test_after_stop_every_wait_ends(clock):
    pacer = pacing.Pacer(rate=10)
    pacer.stop()
    with pytest.raises(CameraLost):
        pacer.wait(0, 1.0)
    with pytest.raises(CameraLost):
        pacer.wait(0, 1.0)
    assert clock.ns == START
