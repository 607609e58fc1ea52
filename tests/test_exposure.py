"""How a frame was exposed, held against the settings: rounding is settled, all else is not."""

from __future__ import annotations

import pytest

from inspectd.camera.exposure import ExposureLock, exposure_of, on_monotonic_clock, out_of_reach
from inspectd.records import Exposure
from inspectd.settings import Picamera2Camera

LINE_US = 15.3
LOCK = ExposureLock(
    exposure_us=5000, line_us=LINE_US, gain=2.0, white_balance=(1.9, 1.5), frame_us=1e6 / 60
)
SETTLED = {
    "ExposureTime": 4996,
    "AnalogueGain": 1.995,
    "DigitalGain": 1.0033,
    "ColourGains": (1.9, 1.5),
    "FrameDuration": 16660,
}
LIMITS = {
    "FrameDurationLimits": (16562, 1_000_000, None),
    "ExposureTime": (29, 15_534_385, 20_000),
    "AnalogueGain": (1.0, 16.0, 1.0),
}


def test_a_frame_as_asked_is_settled():
    assert LOCK.faults(SETTLED) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ExposureTime", 4880, "exposure 4880 us instead of 5000"),
        ("ExposureTime", 20000, "exposure 20000 us instead of 5000"),
        ("ExposureTime", None, "exposure unknown us instead of 5000"),
        ("AnalogueGain", 2.06, "gain 2.06 instead of 2"),
        ("AnalogueGain", None, "gain unknown instead of 2"),
        ("DigitalGain", 1.1, "digital gain 1.1 instead of 1"),
        ("ColourGains", (2.1, 1.5), "white balance [2.1, 1.5] instead of [1.9, 1.5]"),
        ("ColourGains", (1.9, 1.3), "white balance [1.9, 1.3] instead of [1.9, 1.5]"),
        ("FrameDuration", 33333, "30 frames per second instead of 60"),
    ],
)
def test_each_difference_is_named_with_its_figures(key, value, said):
    assert LOCK.faults({**SETTLED, key: value}) == [said]


def test_what_the_camera_does_not_report_beyond_exposure_and_gain_is_not_held_against_it():
    assert LOCK.faults({"ExposureTime": 5000, "AnalogueGain": 2.0}) == []


def test_what_the_camera_does_not_control_is_not_looked_at():
    mono = ExposureLock(exposure_us=5000, line_us=LINE_US)
    assert mono.faults({**SETTLED, "AnalogueGain": 1.0, "ColourGains": (0.0, 0.0)}) == []


def test_a_short_exposure_may_lie_two_lines_off_with_the_digital_gain_that_makes_up_for_it():
    lock = ExposureLock(exposure_us=100, line_us=LINE_US, gain=1.0)
    rounded = {"ExposureTime": 89, "AnalogueGain": 1.0}
    assert lock.faults({**rounded, "DigitalGain": 100 / 89}) == []
    assert lock.faults({**rounded, "DigitalGain": 1.0}) == []
    assert lock.faults({**rounded, "DigitalGain": 1.3}) == ["digital gain 1.3 instead of 1"]
    assert lock.faults({**rounded, "ExposureTime": 68}) == ["exposure 68 us instead of 100"]


def test_colours_multiplied_by_less_than_one_lift_the_digital_gain():
    lock = ExposureLock(exposure_us=5000, line_us=LINE_US, gain=2.0, white_balance=(0.8, 1.5))
    settled = {**SETTLED, "ColourGains": (0.8, 1.5)}
    assert lock.faults(settled) == []
    assert lock.faults({**settled, "DigitalGain": 1.25}) == []
    assert lock.faults({**settled, "DigitalGain": 1.12}) == ["digital gain 1.12 instead of 1"]


def test_the_exposure_is_told_as_the_camera_measured_it():
    assert exposure_of({**SETTLED, "SensorTemperature": 41.0}) == Exposure(
        exposure_us=4996,
        gain=1.995,
        digital_gain=1.0033,
        white_balance=(1.9, 1.5),
        temperature_c=41.0,
    )
    assert exposure_of({}) == Exposure()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rate", 90.0, "rate cannot be 90: this camera does 1 to 60.38 frames per second at WxH"),
        ("rate", 0.5, "rate cannot be 0.5: this camera does 1 to 60.38 frames per second at WxH"),
        ("exposure_us", 20, "exposure_us cannot be 20: this camera does 29 to 15534385 us"),
        ("gain", 20.0, "gain cannot be 20: this camera does 1 to 16"),
    ],
)
def test_what_the_camera_cannot_do_is_named_with_what_it_can(key, value, said):
    assert out_of_reach(Picamera2Camera(**{key: value}), LIMITS) == said.replace("WxH", "1456x1088")


def test_the_limits_themselves_and_unknown_ones_are_within_reach():
    assert out_of_reach(Picamera2Camera(rate=60.4, gain=16.0), LIMITS) == ""
    assert out_of_reach(Picamera2Camera(rate=100.0, gain=64.0), {}) == ""
    assert out_of_reach(Picamera2Camera(exposure_us=9000), {"ExposureTime": (29, 0, 0)}) == ""


def test_either_clock_of_the_kernel_is_understood():
    slept = 3_600_000_000_000
    now = 50_000_000_000
    age = 20_000_000
    for stamp in (now - age, now - age + slept):
        assert on_monotonic_clock(stamp, now, now + slept) == now - age
