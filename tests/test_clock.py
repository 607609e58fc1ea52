import ctypes

import pytest

from inspectd import clock


def test_the_kernel_is_asked_without_privilege():
    timex = ctypes.create_string_buffer(512)
    state = ctypes.CDLL(None).adjtimex(timex)
    assert clock.clock_synchronised() is (state in range(5))


@pytest.mark.parametrize(
    ("state", "synchronised"),
    [(0, True), (1, True), (4, True), (5, False), (-1, False)],
    ids=["TIME_OK", "TIME_INS", "TIME_WAIT", "TIME_ERROR", "refused"],
)
def test_each_state_of_the_kernel_clock(monkeypatch, state, synchronised):
    class Libc:
        @staticmethod
        def adjtimex(_timex):
            return state

    monkeypatch.setattr(clock, "_libc", Libc)
    assert clock.clock_synchronised() is synchronised
