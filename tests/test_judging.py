"""What the way of a trigger does when the camera fails, and the drawing of heatmaps."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from broker import eventually
from station import SIMULATED, Station, good_part
from verdicts import a_verdict

from inspectd import config, judging
from inspectd import service as service_module
from inspectd.errors import CameraLost
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.journal import Journal
from inspectd.judging import CameraClosed, CameraKeeper, Painter
from inspectd.payload import MapPayload, StatePayload, VerdictPayload, decode_verdict
from inspectd.records import Frame, TriggerSource
from inspectd.service import Service
from inspectd.settings import Program
from inspectd.state import State, StationState
from inspectd.teaching import learn_program
from inspectd.trigger import trigger_now


class UnsteadyCamera:
    """Lost as often as it is told to be, at opening and at capturing."""

    def __init__(self) -> None:
        self.openings_to_fail = 0
        self.captures_to_fail = 0
        self.closed = threading.Event()

    def open(self) -> None:
        if self.openings_to_fail:
            self.openings_to_fail -= 1
            raise CameraLost("the cable is out")

    def capture(self, after_ns: int, timeout_s: float) -> Frame:
        if self.captures_to_fail:
            self.captures_to_fail -= 1
            raise CameraLost("the cable is out")
        return Frame(good_part(0), "0", datetime.now(UTC), after_ns, after_ns)

    def close(self) -> None:
        self.closed.set()


class SlowCamera(UnsteadyCamera):
    """Its picture never comes; like every camera, it is lost to whoever waits when it is closed."""

    def capture(self, after_ns: int, timeout_s: float) -> Frame:
        assert self.closed.wait(timeout_s)
        raise CameraLost("the camera was closed")


@pytest.fixture
def state() -> StationState:
    first = StatePayload(
        state=State.STARTING.value,
        station="cell",
        program="block",
        settings_hash="0" * 12,
        versions={},
        journal_id="journal",
        boot_id="boot",
        clock_synchronised=True,
        since=datetime.now(UTC),
    )
    made = StationState(first, lambda _payload, _available: None)
    made.clear(State.STARTING)
    return made


def test_a_lost_camera_is_opened_again(state: StationState, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "FIRST_REOPENING_S", 0.0)
    camera = UnsteadyCamera()
    keeper = CameraKeeper(camera, 1.0, state)
    assert keeper.capture(0).name == "0"
    camera.captures_to_fail, camera.openings_to_fail = 1, 1
    for _ in range(2):  # it is lost, and cannot be opened the first time
        with pytest.raises(CameraLost, match="the cable is out"):
            keeper.capture(0)
        assert camera.closed.is_set()
        assert state.payload.state == State.CAMERA_FAULT
        assert state.payload.detail == "the cable is out"
    assert keeper.capture(0).name == "0"
    assert state.payload.state == State.JUDGING


def test_a_lost_camera_is_not_tried_without_pause(state: StationState):
    camera = UnsteadyCamera()
    camera.openings_to_fail = 1
    keeper = CameraKeeper(camera, 1.0, state)
    for _ in range(2):
        with pytest.raises(CameraLost, match="the cable is out"):
            keeper.capture(0)


def test_a_camera_closed_for_good_is_no_fault_and_stays_closed(state: StationState):
    keeper = CameraKeeper(SlowCamera(), 30.0, state)
    keeper.tend()
    ending = threading.Timer(0.05, keeper.close)
    ending.start()
    for _ in range(2):
        with pytest.raises(CameraClosed):
            keeper.capture(time.monotonic_ns())
    ending.join()
    assert state.payload.state == State.JUDGING


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

    def fail_once(after_ns: int) -> Frame:
        for error in failing:
            raise error
        return capture(after_ns)

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
    monkeypatch.setattr(judging, "FIRST_REOPENING_S", 0.1)
    camera = UnsteadyCamera()
    camera.captures_to_fail, camera.openings_to_fail = 1, 0
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
    settings = config.load(station.file)
    service = Service(settings)
    service._judge.judge_by(learn_program(settings, settings.station.program))
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


class Recorder:
    """An outbox that only remembers what was offered, and can hold the painter up."""

    def __init__(self) -> None:
        self.drawn: list[int] = []
        self.first_is_drawn = threading.Event()
        self.go_on = threading.Event()

    def offer_pictures(
        self, verdict: VerdictPayload, heatmap: bytes, values: MapPayload | None
    ) -> None:
        assert heatmap.startswith(b"\x89PNG")
        assert values is not None
        self.drawn.append(verdict.seq)
        self.first_is_drawn.set()
        assert self.go_on.wait(30)


@pytest.mark.parametrize("orders", [3, 9])
def test_heatmaps_that_wait_are_drawn_and_the_oldest_left_out(tmp_path: Path, orders: int):
    station = Station(tmp_path, camera=SIMULATED % 100, trigger="{source: continuous}")
    references = [ReducedCrop.of(good_part(number), 100) for number in range(5)]
    inspector = Inspector(Program(), references)
    inspection = inspector.inspect(good_part(5))
    recorder = Recorder()
    painter = Painter(config.load(station.file), recorder, lambda: True)
    painter.start()
    painter.paint(a_verdict(seq=1), inspection, inspector)
    assert recorder.first_is_drawn.wait(30)
    for seq in range(2, orders + 1):
        painter.paint(a_verdict(seq=seq), inspection, inspector)
    ending = threading.Thread(target=painter.stop)
    ending.start()
    recorder.go_on.set()
    ending.join()
    assert recorder.drawn == [1, *range(max(2, orders + 1 - Painter.WAITING), orders + 1)]
