"""What the way of a trigger does when the camera fails."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from broker import eventually
from station import SIMULATED, Station
from unsteady import UnsteadyCamera

from inspectd import camera_keeper, config
from inspectd import service as service_module
from inspectd.errors import (
    CameraError,
    CameraFrozen,
    CameraLost,
    CameraTimeout,
    ExposureNotSettled,
)
from inspectd.journal import Journal
from inspectd.payload import decode_verdict
from inspectd.records import Frame, TriggerSource
from inspectd.service import Service
from inspectd.state import State
from inspectd.trigger import trigger_now


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (CameraTimeout("no frame"), "camera timeout"),
        (ExposureNotSettled("8000 us"), "exposure not settled"),
        (CameraFrozen("the same again"), "frozen picture"),
        (CameraLost("the cable is out"), "camera lost"),
    ],
)
def test_each_fault_of_the_camera_has_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: CameraError, reason: str
):
    camera = UnsteadyCamera(live=True)
    monkeypatch.setattr(service_module, "make_camera", lambda _settings: camera)
    station = Station(tmp_path, camera=SIMULATED % 100, trigger="{source: mqtt}")
    service = Service(config.load(station.file))
    service._camera.tend()
    camera.failures = [failure]
    service._judge.answer(trigger_now(TriggerSource.MQTT, part_id="A-1"))
    (row,) = service._journal.read(1, 9)
    service._journal.close()
    verdict = decode_verdict(row.payload)
    assert (verdict.verdict, verdict.reason, verdict.part_id) == ("NOT_JUDGED", reason, "A-1")
    assert verdict.detail == str(failure)
    assert "total" in verdict.timings_ms


def test_whatever_fails_while_judging_is_answered_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    station = Station(
        tmp_path, camera=SIMULATED % 100, trigger="{source: interval, interval_s: 0.05}"
    )
    station.teach()
    service = Service(config.load(station.file))
    capture = service._camera.capture
    failing = iter([ZeroDivisionError("a fault in the driver")])

    def fail_once(after_ns: int, *, whole: bool = False) -> Frame:
        for error in failing:
            raise error
        return capture(after_ns, whole=whole)

    monkeypatch.setattr(service._camera, "capture", fail_once)
    running = threading.Thread(target=service.run)
    running.start()
    try:
        assert eventually(lambda: len(station.rows()) >= 2)
    finally:
        service.request_stop()
        running.join()
    with Journal.open(station.journal) as journal:
        failed, judged = (decode_verdict(row.payload) for row in journal.read(1, 2))
    assert (failed.verdict, failed.reason) == ("NOT_JUDGED", "internal error")
    assert failed.detail == "ZeroDivisionError: a fault in the driver"
    assert judged.score is not None


def test_a_lost_camera_does_not_fill_the_journal_when_every_picture_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(camera_keeper, "FIRST_REOPENING_S", 0.1)
    camera = UnsteadyCamera()
    camera.failures = [CameraLost("the cable is out")]
    monkeypatch.setattr(service_module, "make_camera", lambda _settings: camera)
    station = Station(tmp_path, camera=SIMULATED % 100, trigger="{source: continuous}")
    station.teach()
    service = Service(config.load(station.file))
    running = threading.Thread(target=service.run)
    running.start()
    try:
        assert eventually(lambda: len(station.rows()) >= 3)
    finally:
        service.request_stop()
        running.join()
    with Journal.open(station.journal) as journal:
        lost, *judged = (decode_verdict(row.payload) for row in journal.read(1, 3))
    assert (lost.verdict, lost.reason) == ("NOT_JUDGED", "camera lost")
    assert all(verdict.score is not None for verdict in judged)


@pytest.mark.parametrize(("waited_s", "stale"), [(1.0, False), (3.0, True)])
def test_a_trigger_that_waited_too_long_does_not_judge_the_next_part(
    tmp_path: Path, waited_s: float, stale: bool
):
    station = Station(
        tmp_path,
        camera=SIMULATED % 100,
        trigger="{source: mqtt}",
        extra="capture_timeout_s: 2.0\n",
    )
    station.teach()
    service = Service(config.load(station.file))
    service._programs.learn_first()
    trigger = trigger_now(TriggerSource.MQTT, part_id="A-1")
    late = replace(trigger, requested_ns=trigger.requested_ns - int(waited_s * 1e9))
    service._judge.answer(late)
    service._camera.close()
    (row,) = service._journal.read(1, 9)
    service._journal.close()
    verdict = decode_verdict(row.payload)
    assert verdict.part_id == "A-1"
    assert (verdict.reason == "stale trigger") is stale
    assert (verdict.score is None) is stale


def test_a_trigger_that_grew_old_while_the_camera_was_opened_does_not_judge_the_next_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Slow(UnsteadyCamera):
        def open(self) -> None:
            super().open()
            time.sleep(1.1)

    monkeypatch.setattr(service_module, "make_camera", lambda _settings: Slow(live=True))
    station = Station(
        tmp_path,
        camera=SIMULATED % 100,
        trigger="{source: mqtt}",
        extra="capture_timeout_s: 1.0\n",
    )
    service = Service(config.load(station.file))
    service._judge.answer(trigger_now(TriggerSource.MQTT, part_id="A-1"))
    service._judge.answer(trigger_now(TriggerSource.MQTT, part_id="A-2"))
    rows = service._journal.read(1, 9)
    service._journal.close()
    first, second = (decode_verdict(row.payload) for row in rows)
    assert (first.verdict, first.reason) == ("NOT_JUDGED", "stale trigger")
    assert second.captured_at is not None


class Waiting(UnsteadyCamera):
    """Hangs while it is opened, until it is closed."""

    def __init__(self) -> None:
        super().__init__(live=True)
        self.entered = threading.Event()

    def open(self) -> None:
        self.entered.set()
        assert self.closed.wait(30)
        raise CameraLost("the camera was closed")


def test_a_stop_does_not_wait_for_a_camera_that_hangs_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    camera = Waiting()
    monkeypatch.setattr(service_module, "make_camera", lambda _settings: camera)
    station = Station(tmp_path, camera=SIMULATED % 100, trigger="{source: mqtt}")
    service = Service(config.load(station.file))
    running = threading.Thread(target=service.run)
    running.start()
    assert camera.entered.wait(30)
    service.request_stop()
    running.join(25)
    assert not running.is_alive()


def test_the_station_is_starting_until_the_camera_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    camera = Waiting()
    monkeypatch.setattr(service_module, "make_camera", lambda _settings: camera)
    station = Station(tmp_path, camera=SIMULATED % 100, trigger="{source: mqtt}")
    station.teach()
    service = Service(config.load(station.file))
    running = threading.Thread(target=service.run)
    running.start()
    try:
        assert camera.entered.wait(30)
        assert service._state.payload.state == State.STARTING
        camera.closed.set()
        assert eventually(lambda: service._state.payload.state == State.CAMERA_FAULT)
    finally:
        service.request_stop()
        running.join()
