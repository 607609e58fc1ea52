"""Topic `health`: how pictures, camera, triggers and machine do, and what should be seen to.

A warning comes before the station must refuse to judge; it keeps nothing from being judged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Mapping
from datetime import UTC, datetime

import numpy as np

from inspectd.clock import clock_synchronised
from inspectd.imaging.trend import Trend, TrendTracker
from inspectd.machine import Disk, Machine, Throttle, Throttling
from inspectd.payload import (
    CameraHealth,
    ExposureHealth,
    LatencyHealth,
    MachineHealth,
    MeasureHealth,
    StationHealth,
    TriggersHealth,
    encode,
)
from inspectd.periodic import Periodic
from inspectd.records import Exposure, Frame, Inspection, Measure, Reason, Verdict

_logger = logging.getLogger(__name__)

HEALTH_PERIOD_S = 10.0
"""The report goes out so often, whatever happens."""
WATCH_S = 1.0
"""It is looked this often whether a warning has come or gone."""
WAITING = 10_000
"""So many pictures' measures wait for the thread at most, should it hang; of more, the newest."""
RECENT = 1000
"""Latencies are of so many triggers."""

HOT_C = 80.0
"""A Raspberry Pi begins to slow down here."""
COOLED_C = 76.0
LEAST_FREE_SHARE = 0.05
LEAST_FREE_BYTES = 500_000_000
FREED = 1.1
"""The warning of a full disk stands until so many times the least is free."""

_SHOWS_NO_PART = frozenset({Reason.NO_PART, Reason.NOT_IN_VIEW})

Warnings = dict[str, str]
"""What they are about, which stays the same while one stands, and their words, which need not."""


class HealthMonitor:
    """Counts, watches and reports; has a thread of its own."""

    def __init__(
        self,
        station: str,
        program: str,
        *,
        times_lost: Callable[[], int],
        read_machine: Callable[[], Machine],
        publish: Callable[[bytes], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        times_lost: how often the camera had to be given up since the start.
        read_machine: reads the facts of the machine; may take a moment.
        publish: takes an encoded `StationHealth`.
        clock: monotonic seconds.
        """
        self._station = station
        self._program = program
        self._times_lost = times_lost
        self._read_machine = read_machine
        self._publish = publish
        self._clock = clock
        # Held for moments only: the thread that judges waits for it.
        self._lock = threading.Lock()
        self._pictures: deque[tuple[float, tuple[Measure, ...]]] = deque(maxlen=WAITING)
        self._verdicts: Counter[Verdict] = Counter()
        self._reasons: Counter[Reason] = Counter()
        self._exposure: Exposure | None = None
        self._capture_ms: deque[float] = deque(maxlen=RECENT)
        self._answer_ms: deque[float] = deque(maxlen=RECENT)
        # Held while the trends are computed; before the other lock where both are.
        self._tracking = threading.Lock()
        self._tracker = TrendTracker()
        self._machine = Machine()
        self._standing: Warnings = {}
        self._due = clock()
        self._periodic = Periodic(
            "health", self.tend, WATCH_S, trouble="the station's health could not be reported"
        )

    def start(self) -> None:
        """Report for the first time at once, and on and on from there."""
        self._periodic.start()

    def stop(self) -> None:
        """End the thread. A machine that hesitates to tell of itself is not waited for."""
        self._periodic.stop()

    def note(
        self, inspection: Inspection, frame: Frame | None, timings_ms: Mapping[str, float]
    ) -> None:
        """A trigger was answered. From any thread; does not wait.

        Args:
            inspection: what it was answered with.
            frame: that was looked at, if any.
            timings_ms: of these, ``capture`` and ``total`` are kept, where they are given.
        """
        health = inspection.health
        with self._lock:
            self._verdicts[inspection.verdict] += 1
            if inspection.reason is not None:
                self._reasons[inspection.reason] += 1
            if "capture" in timings_ms:
                self._capture_ms.append(timings_ms["capture"])
            if "total" in timings_ms:
                self._answer_ms.append(timings_ms["total"])
            if frame is not None and frame.exposure is not None:
                self._exposure = frame.exposure
            # A picture that is refused still tells where the light or the focus stands.
            if health is not None and inspection.reason not in _SHOWS_NO_PART:
                self._pictures.append((self._clock(), health.measures))

    def reset(self, program: str) -> None:
        """From now on it is judged by other references or bounds, or another program."""
        with self._tracking, self._lock:
            self._program = program
            self._pictures.clear()
            self._tracker.reset()

    def tend(self) -> None:
        """What the thread does every WATCH_S: report if it is time, or a warning came or went."""
        now = self._clock()
        due = now >= self._due
        if due:
            self._due = now + HEALTH_PERIOD_S
            self._machine = self._read_machine()
        trends = self._trends(now)
        warnings = picture_warnings(trends) | machine_warnings(self._machine, self._standing)
        changed = warnings.keys() != self._standing.keys()
        self._log_changes(warnings)
        self._standing = warnings
        if due or changed:
            self._publish(encode(self.report()))

    def report(self) -> StationHealth:
        """As it stands now; machine and warnings as of the last `tend`."""
        trends = self._trends(self._clock())
        with self._lock:
            verdicts, reasons = self._verdicts.copy(), self._reasons.copy()
            capture_ms, answer_ms = list(self._capture_ms), list(self._answer_ms)
            exposure, program = self._exposure, self._program
        machine, uptime_s = self._machine, self._machine.process_uptime_s
        return StationHealth(
            station=self._station,
            program=program,
            at=datetime.now(UTC),
            uptime_s=None if uptime_s is None else round(uptime_s, 1),
            warnings=tuple(self._standing.values()),
            picture={trend.name: _measure_health(trend) for trend in trends},
            camera=CameraHealth(
                reopened=self._times_lost(),
                exposure=_exposure_health(exposure) if exposure else None,
                capture=_latency(capture_ms),
            ),
            triggers=TriggersHealth(
                answered=verdicts.total(),
                by_verdict={verdict.value: verdicts[verdict] for verdict in Verdict},
                by_reason={reason.value: count for reason, count in reasons.items()},
                latency=_latency(answer_ms),
            ),
            machine=_machine_health(machine),
        )

    def _trends(self, at_s: float) -> tuple[Trend, ...]:
        with self._tracking:
            with self._lock:
                pictures = list(self._pictures)
                self._pictures.clear()
            for noted_s, measures in pictures:
                self._tracker.note(noted_s, measures)
            return self._tracker.trends(at_s)

    def _log_changes(self, warnings: Warnings) -> None:
        for about, words in warnings.items():
            if about not in self._standing:
                _logger.warning("%s", words)
        for about in self._standing:
            if about not in warnings:
                _logger.info("no warning of %s any more", about)


def picture_warnings(trends: Iterable[Trend]) -> Warnings:
    """Those of the measures' trends."""
    return {trend.name: trend.warning for trend in trends if trend.warning}


def machine_warnings(machine: Machine, standing: Container[str]) -> Warnings:
    """Those of the machine's facts. A warning that stands does so until the cause is well gone."""
    warnings: Warnings = {}
    if machine.disk is not None and _nearly_full(machine.disk, "disk" in standing):
        disk = machine.disk
        warnings["disk"] = (
            f"the disk of {disk.folder} has {disk.free_bytes / 1e6:.0f} MB of "
            f"{disk.total_bytes / 1e6:.0f} MB left: when it is full no verdict can be committed "
            "and the station stops judging; delete what is not needed"
        )
    heat_c = machine.cpu_temperature_c
    if heat_c is not None and heat_c >= (COOLED_C if "temperature" in standing else HOT_C):
        warnings["temperature"] = (
            f"the processor is at {heat_c:.0f} °C: from {HOT_C:.0f} °C on it is slowed down and "
            "answers take longer; give it a heat sink or more air"
        )
    if machine.throttling is not None:
        warnings |= _throttling_warnings(machine.throttling)
    return warnings


def _nearly_full(disk: Disk, stands: bool) -> bool:
    least = max(LEAST_FREE_SHARE * disk.total_bytes, LEAST_FREE_BYTES)
    return disk.free_bytes < least * (FREED if stands else 1.0)


def _throttling_warnings(throttling: Throttling) -> Warnings:
    warnings: Warnings = {}
    now, ever = throttling.now, throttling.now | throttling.since_boot
    if Throttle.UNDER_VOLTAGE in ever:
        when = "is" if Throttle.UNDER_VOLTAGE in now else "was since the machine was started"
        warnings["power supply"] = (
            f"the supply voltage {when} too low: camera and disk may fail; use the Raspberry Pi's "
            "own power supply and a short cable"
        )
    slow_now, slow_ever = now & ~Throttle.UNDER_VOLTAGE, ever & ~Throttle.UNDER_VOLTAGE
    if slow_ever:
        when = "is" if slow_now else "was since the machine was started"
        warnings["throttling"] = (
            f"the processor {when} slowed down ({', '.join((slow_now or slow_ever).words)}): "
            "answers take longer; give it a heat sink or more air, and check its power supply"
        )
    return warnings


def _latency(recent_ms: list[float]) -> LatencyHealth | None:
    if not recent_ms:
        return None
    half, most = np.percentile(recent_ms, (50, 99)).tolist()
    return LatencyHealth(p50_ms=round(half, 2), p99_ms=round(most, 2), count=len(recent_ms))


def _measure_health(trend: Trend) -> MeasureHealth:
    return MeasureHealth(
        value=round(trend.level, 4),
        usual=round(trend.usual, 4),
        low=_rounded(trend.low),
        high=_rounded(trend.high),
        drift_per_hour=_rounded(trend.drift_per_hour),
        warning=trend.warning or None,
    )


def _exposure_health(exposure: Exposure) -> ExposureHealth:
    return ExposureHealth(
        exposure_us=exposure.exposure_us,
        gain=_rounded(exposure.gain),
        digital_gain=_rounded(exposure.digital_gain),
        white_balance=exposure.white_balance,
        temperature_c=exposure.temperature_c,
    )


def _machine_health(machine: Machine) -> MachineHealth:
    disk, throttling = machine.disk, machine.throttling
    return MachineHealth(
        model=machine.model,
        cpu_temperature_c=machine.cpu_temperature_c,
        throttling_now=throttling.now.words if throttling else None,
        throttling_since_boot=throttling.since_boot.words if throttling else None,
        disk_free_bytes=disk.free_bytes if disk else None,
        disk_total_bytes=disk.total_bytes if disk else None,
        rss_bytes=machine.rss_bytes,
        memory_available_bytes=machine.memory_available_bytes,
        load_1min=machine.load_1min,
        clock_synchronised=clock_synchronised(),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
