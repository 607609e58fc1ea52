"""The station's report of itself: counters, latencies, warnings, and when it goes out."""

import itertools
import json
import logging
import queue
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from broker import eventually
from jsonschema import Draft202012Validator

from inspectd import health
from inspectd.health import HealthMonitor
from inspectd.machine import Disk, Machine, Throttle, Throttling, decode_throttled
from inspectd.payload import ExposureHealth, StationHealth, json_schemas
from inspectd.records import (
    Exposure,
    Frame,
    Inspection,
    Measure,
    PictureHealth,
    Reason,
    Verdict,
)

WAIT_S = 10.0
GB = 10**9
MACHINE = Machine(
    model="Raspberry Pi 5 Model B Rev 1.0",
    cpu_temperature_c=51.1,
    throttling=decode_throttled(0),
    disk=Disk(Path("/var/lib/inspectd"), free_bytes=20 * GB, total_bytes=32 * GB),
    rss_bytes=180_000_000,
    memory_available_bytes=3 * GB,
    load_1min=0.8,
    process_uptime_s=3600.25,
)
LOW_VOLTAGE, SLOW = 0x1, 0x4
EVER = 16


def picture(value: float = 1.0) -> PictureHealth:
    measure = Measure("focus", value, usual=1.0, low=0.4)
    return PictureHealth(
        brightness=0.4, contrast=0.2, black=0.0, white=0.0, focus=value, measures=(measure,)
    )


def passed(value: float = 1.0) -> Inspection:
    return Inspection(Verdict.PASS, health=picture(value))


def not_judged(reason: Reason, value: float | None = None) -> Inspection:
    return Inspection(Verdict.NOT_JUDGED, reason, health=None if value is None else picture(value))


def frame(exposure: Exposure | None = None) -> Frame:
    return Frame(
        pixels=np.zeros((2, 2), np.uint8),
        name="1",
        captured_at=datetime.now(UTC),
        captured_ns=0,
        copied_ns=0,
        exposure=exposure,
    )


class Bench:
    """A monitor whose clock and machine are set by hand, and what it has published."""

    def __init__(self) -> None:
        self.now = 1003.0  # reports and minutes do not fall together
        self.machine = MACHINE
        self.lost = 0
        self.published: list[StationHealth] = []
        self.monitor = HealthMonitor(
            "line1",
            "connector",
            times_lost=lambda: self.lost,
            read_machine=lambda: self.machine,
            publish=self.publish,
            clock=lambda: self.now,
        )

    def publish(self, raw: bytes) -> None:
        Draft202012Validator(json_schemas()["health"]).validate(json.loads(raw))
        self.published.append(msgspec.json.decode(raw, type=StationHealth))

    def tend(self) -> StationHealth:
        """After a period, so that there is a report; the last one."""
        self.now += health.HEALTH_PERIOD_S
        self.monitor.tend()
        return self.published[-1]

    def minutes(self, count: int, value: float) -> None:
        """A picture every five seconds, and a look after each."""
        for _ in range(12 * count):
            self.monitor.note(passed(value), frame(), {})
            self.now += 5.0
            self.monitor.tend()


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- counters ----------------------------------------------------------------------------------


def test_a_station_that_has_done_nothing(bench):
    report = bench.tend()
    assert (report.station, report.program) == ("line1", "connector")
    assert abs(datetime.now(UTC) - report.at) < timedelta(minutes=1)
    assert report.uptime_s == 3600.2
    assert report.warnings == ()
    assert report.picture == {}
    assert report.triggers.answered == 0
    assert report.triggers.by_verdict == {"PASS": 0, "FAIL": 0, "NOT_JUDGED": 0}
    assert report.triggers.by_reason == {}
    assert report.triggers.latency is None
    assert report.camera.reopened == 0
    assert report.camera.exposure is None
    assert report.camera.capture is None
    assert report.machine.cpu_temperature_c == 51.1
    assert report.machine.throttling_now == ()
    assert report.machine.disk_free_bytes == 20 * GB


def test_every_answer_is_counted_by_verdict_and_reason(bench):
    answers = [
        *[passed()] * 4,
        *[Inspection(Verdict.FAIL, Reason.ABOVE_LIMIT)] * 3,
        *[not_judged(Reason.OVERRUN)] * 2,
        *[not_judged(reason) for reason in Reason if reason is not Reason.ABOVE_LIMIT],
    ]
    for answer in answers:
        bench.monitor.note(answer, None, {})
    triggers = bench.tend().triggers
    others = len(Reason) - 1
    assert triggers.answered == len(answers) == 9 + others
    assert triggers.by_verdict == {"PASS": 4, "FAIL": 3, "NOT_JUDGED": 2 + others}
    assert triggers.by_reason == {
        **{reason.value: 1 for reason in Reason},
        "above limit": 3,
        "overrun": 3,
    }


def test_nothing_is_lost_when_several_threads_count(bench):
    def count() -> None:
        for _ in range(500):
            bench.monitor.note(passed(), frame(), {"total": 1.0, "capture": 1.0})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        bench.monitor.report()
    for thread in threads:
        thread.join()
    assert bench.monitor.report().triggers.answered == 2000


def test_how_often_the_camera_was_given_up(bench):
    bench.lost = 3
    assert bench.tend().camera.reopened == 3


# ---- latencies and exposure --------------------------------------------------------------------


def test_latencies(bench):
    for ms in range(1, 101):
        bench.monitor.note(passed(), frame(), {"total": float(ms), "capture": ms / 2, "align": 9.0})
    report = bench.tend()
    total, capture = report.triggers.latency, report.camera.capture
    assert (total.p50_ms, total.p99_ms, total.count) == (50.5, 99.01, 100)
    assert (capture.p50_ms, capture.p99_ms, capture.count) == (25.25, 49.51, 100)


def test_latencies_are_of_the_last_triggers(bench):
    for _ in range(5000):
        bench.monitor.note(passed(), frame(), {"total": 900.0})
    for _ in range(health.RECENT):
        bench.monitor.note(passed(), frame(), {"total": 30.0})
    latency = bench.tend().triggers.latency
    assert (latency.p50_ms, latency.p99_ms, latency.count) == (30.0, 30.0, health.RECENT)


def test_what_was_refused_without_a_picture_has_no_capture_latency(bench):
    bench.monitor.note(not_judged(Reason.OVERRUN), None, {"total": 0.5})
    report = bench.tend()
    assert report.camera.capture is None
    assert report.triggers.latency.count == 1


def test_the_last_measured_exposure(bench):
    bench.monitor.note(passed(), frame(Exposure(4000.0, 1.0)), {})
    bench.monitor.note(passed(), frame(Exposure(4998.0, 2.00004, 1.0, (1.9, 1.5), 41.0)), {})
    bench.monitor.note(passed(), frame(), {})
    bench.monitor.note(not_judged(Reason.CAMERA_TIMEOUT), None, {})
    assert bench.tend().camera.exposure == ExposureHealth(
        exposure_us=4998.0,
        gain=2.0,
        digital_gain=1.0,
        white_balance=(1.9, 1.5),
        temperature_c=41.0,
    )


# ---- the picture -------------------------------------------------------------------------------


def test_the_pictures_measures(bench):
    bench.minutes(10, 0.9)
    focus = bench.tend().picture["focus"]
    assert (focus.value, focus.usual, focus.low, focus.high) == (0.9, 1.0, 0.4, None)
    assert (focus.drift_per_hour, focus.warning) == (0.0, None)


def test_a_loss_of_focus_is_warned_of_once_and_taken_back(bench, caplog):
    caplog.set_level(logging.INFO, "inspectd.health")
    bench.minutes(20, 1.0)
    bench.minutes(20, 0.5)
    report = bench.tend()
    assert report.warnings == (report.picture["focus"].warning,)
    assert report.warnings[0].startswith("focus has fallen to 0.5 (usually 1)")
    bench.minutes(20, 1.0)
    assert bench.tend().warnings == ()
    assert [(record.levelname, record.getMessage()[:26]) for record in caplog.records] == [
        ("WARNING", "focus has fallen to 0.5 (u"),
        ("INFO", "no warning of focus any mo"),
    ]


@pytest.mark.parametrize("reason", [Reason.NO_PART, Reason.NOT_IN_VIEW])
def test_a_picture_without_a_part_tells_nothing_of_the_picture(bench, reason):
    for _ in range(200):
        bench.monitor.note(passed(1.0), frame(), {})
        for _ in range(3):
            bench.monitor.note(not_judged(reason, 0.1), frame(), {})
        bench.now += 5.0
    report = bench.tend()
    assert report.picture["focus"].value == 1.0
    assert report.warnings == ()


def test_a_picture_that_was_refused_tells_of_the_picture(bench):
    for _ in range(200):
        bench.monitor.note(not_judged(Reason.OUT_OF_FOCUS, 0.1), frame(), {})
        bench.now += 5.0
    assert "below its bound" in bench.tend().warnings[0]


def test_other_references_start_the_picture_afresh(bench, caplog):
    caplog.set_level(logging.INFO, "inspectd.health")
    bench.minutes(20, 0.5)
    assert bench.tend().warnings
    bench.monitor.reset("cover")
    report = bench.tend()
    assert (report.program, report.warnings, report.picture) == ("cover", (), {})
    assert report.triggers.answered == 240
    assert caplog.messages[-1] == "no warning of focus any more"


# ---- the machine -------------------------------------------------------------------------------


def disk(free: float, total: float = 32 * GB) -> Machine:
    return replace(MACHINE, disk=Disk(Path("/data"), round(free), round(total)))


@pytest.mark.parametrize(
    ("machine", "warned"),
    [
        (disk(1.61 * GB), False),
        (disk(1.59 * GB), True),
        (disk(0.51 * GB, 4 * GB), False),
        (disk(0.49 * GB, 4 * GB), True),
        (replace(MACHINE, disk=None), False),
    ],
    ids=["5 % left", "less", "500 MB left", "fewer", "unknown"],
)
def test_a_disk_that_is_nearly_full(bench, machine, warned):
    bench.machine = machine
    assert bool(bench.tend().warnings) is warned


def test_the_words_for_a_disk(bench):
    bench.machine = disk(0.31 * GB)
    assert bench.tend().warnings == (
        "the disk of /data has 310 MB of 32000 MB left: when it is full no verdict can be "
        "committed and the station stops judging; delete what is not needed",
    )


def heat(temperature_c: float | None) -> Machine:
    return replace(MACHINE, cpu_temperature_c=temperature_c)


def test_heat(bench):
    for temperature_c, warned in [
        (79.9, False),
        (80.0, True),
        (79.0, True),
        (76.0, True),
        (75.9, False),
        (79.0, False),
        (None, False),
    ]:
        bench.machine = heat(temperature_c)
        assert bool(bench.tend().warnings) is warned, temperature_c


def test_a_disk_that_is_filled_again_and_again_is_one_warning(bench, caplog):
    for _ in range(10):
        bench.machine = disk(1.59 * GB)
        bench.tend()
        bench.machine = disk(1.61 * GB)
        assert bench.tend().warnings
    assert len(caplog.records) == 1
    bench.machine = disk(1.8 * GB)
    assert bench.tend().warnings == ()


def throttled(bits: int) -> Machine:
    return replace(MACHINE, throttling=decode_throttled(bits))


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (LOW_VOLTAGE, ["the supply voltage is too low"]),
        (LOW_VOLTAGE << EVER, ["the supply voltage was since the machine was started too low"]),
        (SLOW, ["the processor is slowed down (throttled)"]),
        (SLOW << EVER, ["the processor was since the machine was started slowed down (throttled)"]),
        (0x8 | SLOW << EVER, ["the processor is slowed down (soft temperature limit)"]),
        (LOW_VOLTAGE | SLOW, ["the supply voltage is too low", "the processor is slowed down"]),
    ],
)
def test_power_and_speed(bench, bits, words):
    bench.machine = throttled(bits)
    report = bench.tend()
    assert len(report.warnings) == len(words)
    for warning, beginning in zip(report.warnings, words, strict=True):
        assert warning.startswith(beginning)
    assert report.machine.throttling_now == Throttle(bits & 0xF).words
    assert report.machine.throttling_since_boot == Throttle(bits >> EVER).words


def test_a_voltage_that_recovers_is_no_new_warning(bench, caplog):
    for bits in (LOW_VOLTAGE | LOW_VOLTAGE << EVER, LOW_VOLTAGE << EVER) * 3:
        bench.machine = throttled(bits)
        bench.tend()
    assert len(caplog.records) == 1


def test_a_machine_that_tells_nothing(bench):
    bench.machine = Machine()
    report = bench.tend()
    assert report.warnings == ()
    assert report.uptime_s is None
    assert report.machine.throttling_now is None


def test_throttling_is_of_the_moment_it_was_read(bench):
    bench.machine = replace(MACHINE, throttling=Throttling(Throttle(0), Throttle(0)))
    assert bench.tend().machine.throttling_since_boot == ()


# ---- when it goes out --------------------------------------------------------------------------


def test_it_goes_out_at_once_and_then_every_period(bench):
    for _ in range(60):
        bench.monitor.tend()
        bench.now += 1.0
    assert len(bench.published) == 6


def test_a_warning_goes_out_when_it_comes_and_when_it_goes(bench):
    """Not at the next period: within the second in which the minute ends."""
    sent: list[tuple[float, bool]] = []
    for value, minutes in ((1.0, 10), (0.5, 10), (1.0, 10)):
        for _ in range(60 * minutes):
            bench.monitor.note(passed(value), frame(), {})
            before = len(bench.published)
            bench.monitor.tend()
            sent += [(bench.now, bool(report.warnings)) for report in bench.published[before:]]
            bench.now += 1.0
    changes = [b for a, b in itertools.pairwise(sent) if a[1] != b[1]]
    assert [warned for _, warned in changes] == [True, False]
    assert {at % 60 for at, _ in changes} == {0.0}
    others = [at for at, warned in sent if (at, warned) not in changes]
    assert others == [1003.0 + 10.0 * turn for turn in range(180)]


class Mailbox:
    """What a monitor with a thread of its own publishes."""

    def __init__(self, read_machine=lambda: MACHINE):
        self.messages: queue.Queue[StationHealth] = queue.Queue()
        self.monitor = HealthMonitor(
            "line1",
            "connector",
            times_lost=lambda: 0,
            read_machine=read_machine,
            publish=self.publish,
        )

    def publish(self, raw: bytes) -> None:
        self.messages.put(msgspec.json.decode(raw, type=StationHealth))


def threads_of_health() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "health"]


def test_the_thread_reports_at_once_and_ends():
    mailbox = Mailbox()
    mailbox.monitor.start()
    assert mailbox.messages.get(timeout=WAIT_S).station == "line1"
    mailbox.monitor.stop()
    assert eventually(lambda: not threads_of_health())


def test_what_was_not_started_can_be_stopped_and_reports_nothing():
    mailbox = Mailbox()
    mailbox.monitor.stop()
    assert mailbox.messages.empty()


def test_a_report_that_fails_is_logged_and_the_next_one_comes(caplog, monkeypatch):
    monkeypatch.setattr(health, "WATCH_S", 0.01)
    monkeypatch.setattr(health, "HEALTH_PERIOD_S", 0.01)
    troubles = iter([ZeroDivisionError("a broken sensor")])

    def read() -> Machine:
        for trouble in troubles:
            raise trouble
        return MACHINE

    mailbox = Mailbox(read)
    mailbox.monitor.start()
    assert mailbox.messages.get(timeout=WAIT_S).machine.load_1min == 0.8
    mailbox.monitor.stop()
    assert "a broken sensor" in caplog.text
    assert "the station's health could not be reported" in caplog.messages


def test_a_machine_that_hangs_does_not_hold_up_the_stop():
    asked, go_on = threading.Event(), threading.Event()

    def read() -> Machine:
        asked.set()
        go_on.wait(WAIT_S)
        return MACHINE

    mailbox = Mailbox(read)
    mailbox.monitor.start()
    assert asked.wait(WAIT_S)
    mailbox.monitor.stop()
    assert threads_of_health()  # left behind
    mailbox.monitor.note(passed(), frame(), {})  # and nobody waits for it
    assert mailbox.monitor.report().triggers.answered == 1
    go_on.set()
    assert eventually(lambda: not threads_of_health())
    go_on.set()
    assert eventually(lambda: not threads_of_health(), WAIT_S)
