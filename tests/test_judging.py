"""What the way of a trigger does when the camera fails, and the drawing of heatmaps."""

import threading
import time
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from broker import eventually
from station import SIMULATED, Station, good_part
from verdicts import a_verdict

from inspectd import config, judging, settings
from inspectd import service as service_module
from inspectd.errors import (
    CameraError,
    CameraFrozen,
    CameraLost,
    CameraTimeout,
    CameraUnusable,
    ExposureNotSettled,
)
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.journal import Journal
from inspectd.judging import CameraClosed, CameraKeeper, Conclusion, Painter
from inspectd.payload import MapPayload, StatePayload, VerdictPayload, decode_verdict
from inspectd.records import Frame, TriggerSource
from inspectd.service import Service
from inspectd.settings import Program
from inspectd.state import State, StationState
from inspectd.trigger import trigger_now


class UnsteadyCamera:
    """Fails as often as it is told to, at opening and at capturing."""

    def __init__(self, *, live: bool = False) -> None:
        self.live = live
        self.openings_to_fail = 0
        self.failures: list[CameraError] = []
        self.frozen = False
        self.openings = 0
        self.captures = 0
        self.closed = threading.Event()

    def open(self) -> None:
        if self.openings_to_fail:
            self.openings_to_fail -= 1
            raise CameraLost("the cable is out")
        self.openings += 1

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        if self.failures:
            raise self.failures.pop()
        self.captures += not self.frozen
        pixels = good_part(self.captures % 4)
        return Frame(pixels, str(self.captures), datetime.now(UTC), after_ns, after_ns)

    def close(self) -> None:
        self.closed.set()


class SlowCamera(UnsteadyCamera):
    """Its picture never comes; like every camera, it is lost to whoever waits when it is closed."""

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
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


def keeper_of(camera: UnsteadyCamera, state: StationState, **changes: object) -> CameraKeeper:
    station = settings.Station(station="cell", program="block", camera=settings.SimulatedCamera())
    return CameraKeeper(camera, msgspec.structs.replace(station, **changes), state)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "FIRST_REOPENING_S", 0.0)


def test_a_lost_camera_is_opened_again(state: StationState, no_pause: None):
    camera = UnsteadyCamera()
    keeper = keeper_of(camera, state)
    assert keeper.capture(0).name == "1"
    camera.failures, camera.openings_to_fail = [CameraLost("the cable is out")], 1
    for _ in range(2):  # it is lost, and cannot be opened the first time
        with pytest.raises(CameraLost, match="the cable is out"):
            keeper.capture(0)
        assert camera.closed.is_set()
        assert state.payload.state == State.CAMERA_FAULT
        assert state.payload.detail == "the cable is out"
    assert keeper.capture(0).name == "2"
    assert state.payload.state == State.JUDGING


def test_a_lost_camera_is_not_tried_without_pause(state: StationState):
    camera = UnsteadyCamera()
    camera.openings_to_fail = 1
    keeper = keeper_of(camera, state)
    for _ in range(2):
        with pytest.raises(CameraLost, match="the cable is out"):
            keeper.capture(0)


def test_the_pause_grows_until_there_is_a_picture_again(
    state: StationState, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(judging, "LONGEST_REOPENING_S", 4.0)
    monkeypatch.setattr(judging.random, "uniform", lambda _low, high: high)
    camera = UnsteadyCamera(live=True)
    keeper = keeper_of(camera, state, reopen_after=1)
    pauses = []
    for _ in range(4):  # it opens each time, which proves nothing
        camera.failures = [CameraTimeout("no frame")]
        monkeypatch.setattr(keeper, "_try_at", 0.0)
        keeper.tend_idle()
        pauses.append(round(keeper._try_at - time.monotonic()))
    assert pauses == [1, 2, 4, 4]
    monkeypatch.setattr(keeper, "_try_at", 0.0)
    keeper.capture(0)
    assert keeper._pause_s == judging.FIRST_REOPENING_S


@pytest.mark.parametrize(
    "failure", [CameraTimeout("no frame"), ExposureNotSettled("8000 us, not 5000")]
)
def test_a_live_camera_without_pictures_is_opened_again_after_so_many(
    state: StationState, no_pause: None, failure: CameraError
):
    camera = UnsteadyCamera(live=True)
    keeper = keeper_of(camera, state, reopen_after=3)
    keeper.capture(0)
    camera.failures = [failure] * 3
    for openings in (1, 1, 1):
        with pytest.raises(type(failure)):
            keeper.capture(0)
        assert state.payload.state == State.CAMERA_FAULT
        assert camera.openings == openings
    assert camera.closed.is_set()
    keeper.capture(0)
    assert camera.openings == 2
    assert keeper.times_lost == 1
    assert state.payload.state == State.JUDGING


def test_one_picture_in_between_begins_the_count_anew(state: StationState):
    camera = UnsteadyCamera(live=True)
    keeper = keeper_of(camera, state, reopen_after=2)
    keeper.capture(0)
    for _ in range(3):
        camera.failures = [CameraTimeout("no frame")]
        with pytest.raises(CameraTimeout):
            keeper.capture(0)
        keeper.capture(0)
    assert not camera.closed.is_set()


def test_a_recording_that_has_no_picture_ready_is_no_fault(state: StationState):
    camera = UnsteadyCamera(live=False)
    keeper = keeper_of(camera, state, reopen_after=1)
    keeper.tend()
    camera.failures = [CameraTimeout("not due yet")]
    with pytest.raises(CameraTimeout):
        keeper.capture(0)
    assert state.payload.state == State.JUDGING
    assert not camera.closed.is_set()


def test_a_live_camera_that_opens_must_give_a_picture_before_the_fault_is_over(
    state: StationState, no_pause: None
):
    camera = UnsteadyCamera(live=True)
    camera.openings_to_fail = 1
    camera.failures = [CameraTimeout("no frame")]
    keeper = keeper_of(camera, state)
    keeper.tend_idle()  # not there
    keeper.tend_idle()  # there, but mute
    assert state.payload.detail == "no frame"
    keeper.tend_idle()
    assert state.payload.state == State.JUDGING


def test_an_idle_live_camera_is_asked_now_and_then(
    state: StationState, monkeypatch: pytest.MonkeyPatch
):
    camera = UnsteadyCamera(live=True)
    keeper = keeper_of(camera, state)
    keeper.tend_idle()
    keeper.tend_idle()
    assert camera.captures == 1
    monkeypatch.setattr(keeper, "_probe_at", 0.0)
    camera.failures = [CameraTimeout("no frame")]
    keeper.tend_idle()
    assert state.payload.state == State.CAMERA_FAULT
    keeper.tend_idle()  # at once: it is a fault now
    assert state.payload.state == State.JUDGING
    assert camera.captures == 2


def test_an_idle_recording_loses_no_picture(state: StationState, monkeypatch: pytest.MonkeyPatch):
    camera = UnsteadyCamera(live=False)
    keeper = keeper_of(camera, state)
    keeper.tend()
    monkeypatch.setattr(keeper, "_probe_at", 0.0)
    keeper.tend_idle()
    assert camera.captures == 0


@pytest.mark.parametrize("after", [1, 3])
def test_the_same_picture_again_is_a_fault(state: StationState, no_pause: None, after: int):
    camera = UnsteadyCamera(live=True)
    keeper = keeper_of(camera, state, frozen_after=after, reopen_after=2)
    keeper.capture(0)
    camera.frozen = True
    for _ in range(after - 1):
        keeper.capture(0)
    for _ in range(2):
        with pytest.raises(CameraFrozen, match="shows the past"):
            keeper.capture(0)
        assert state.payload.state == State.CAMERA_FAULT
    assert camera.closed.is_set()
    keeper.tend_idle()  # opened again, it shows the same as ever
    assert camera.openings == 2
    assert state.payload.state == State.CAMERA_FAULT
    camera.frozen = False
    keeper.capture(0)
    assert state.payload.state == State.JUDGING


def test_a_camera_without_noise_may_give_the_same_picture_if_it_is_said(state: StationState):
    camera = UnsteadyCamera(live=True)
    camera.frozen = True
    keeper = keeper_of(camera, state, frozen_after=0)
    assert {keeper.capture(0).name for _ in range(3)} == {"0"}


def test_a_recording_may_show_the_same_picture_again(state: StationState):
    camera = UnsteadyCamera(live=False)
    camera.frozen = True
    keeper = keeper_of(camera, state)
    assert {keeper.capture(0).name for _ in range(3)} == {"0"}


class FailingDriver(UnsteadyCamera):
    """Its library raises what it was not meant to, in one method, while it is told to."""

    def __init__(self, method: str) -> None:
        super().__init__(live=True)
        self.method: str | None = method

    def _fail(self, method: str) -> None:
        if self.method == method:
            raise ValueError("a fault in the library")

    def open(self) -> None:
        self._fail("open")
        super().open()

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        self._fail("capture")
        return super().capture(after_ns, timeout_s)

    def close(self) -> None:
        self._fail("close")
        super().close()


@pytest.mark.parametrize("method", ["open", "capture"])
def test_whatever_a_driver_fails_with_it_is_opened_again(
    state: StationState, no_pause: None, caplog: pytest.LogCaptureFixture, method: str
):
    camera = FailingDriver(method)
    keeper = keeper_of(camera, state)
    keeper.tend_idle()  # with nobody who asks
    assert state.payload.state == State.CAMERA_FAULT
    assert "driver failed: ValueError: a fault in the library" in state.payload.detail
    assert caplog.records[0].exc_info is not None
    with pytest.raises(CameraLost, match="a fault in the library"):
        keeper.capture(0)
    camera.method = None
    keeper.tend_idle()
    assert state.payload.state == State.JUDGING


def test_a_driver_that_fails_to_close_stops_nothing(state: StationState, no_pause: None):
    camera = FailingDriver("close")
    keeper = keeper_of(camera, state)
    keeper.tend_idle()
    camera.failures = [CameraLost("the cable is out")]
    with pytest.raises(CameraLost, match="the cable is out"):
        keeper.capture(0)
    keeper.capture(0)
    assert camera.openings == 2
    keeper.close()


def test_a_camera_that_never_was_as_it_is_set_is_unusable_and_later_it_is_lost(
    state: StationState, no_pause: None
):
    class Changing(UnsteadyCamera):
        refuses = True

        def open(self) -> None:
            if self.refuses:
                raise CameraUnusable("it has no such mode")
            super().open()

    camera = Changing(live=True)
    keeper = keeper_of(camera, state)
    with pytest.raises(CameraUnusable):
        keeper.tend()
    camera.refuses = False
    keeper.capture(0)
    camera.refuses, camera.failures = True, [CameraLost("unplugged")]
    for said in ("unplugged", "it has no such mode"):
        with pytest.raises(CameraLost, match=said):
            keeper.capture(0)
    camera.refuses = False
    keeper.capture(0)
    assert state.payload.state == State.JUDGING


def test_an_attempt_to_open_is_not_one_more_loss(state: StationState, no_pause: None):
    camera = UnsteadyCamera(live=True)
    keeper = keeper_of(camera, state)
    keeper.capture(0)
    camera.failures, camera.openings_to_fail = [CameraLost("unplugged")], 5
    for _ in range(6):
        with pytest.raises(CameraLost):
            keeper.capture(0)
    assert keeper.times_lost == 1


def test_a_camera_closed_for_good_is_no_fault_and_stays_closed(state: StationState):
    keeper = keeper_of(SlowCamera(), state, capture_timeout_s=30.0)
    keeper.tend()
    ending = threading.Timer(0.05, keeper.close)
    ending.start()
    for _ in range(2):
        with pytest.raises(CameraClosed):
            keeper.capture(time.monotonic_ns())
    ending.join()
    assert state.payload.state == State.JUDGING


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
    monkeypatch.setattr(judging, "FIRST_REOPENING_S", 0.1)
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


def test_heatmaps_that_wait_keep_no_frame():
    pixels = good_part(5)
    frame = Frame(pixels, "5", datetime.now(UTC), captured_ns=0, copied_ns=0)
    inspector = Inspector(Program(), ())
    painter = Painter(Recorder(), lambda: True)  # not started: the order waits
    inspection = inspector.inspect(pixels)
    painter.paint(Conclusion(a_verdict(seq=1), inspection, frame, inspector))
    kept = weakref.ref(pixels)
    del pixels, frame
    assert kept() is None


@pytest.mark.parametrize("orders", [3, 9])
def test_heatmaps_that_wait_are_drawn_and_the_oldest_left_out(orders: int):
    references = [ReducedCrop.of(good_part(number), 100) for number in range(5)]
    inspector = Inspector(Program(), references)
    inspection = inspector.inspect(good_part(5))
    recorder = Recorder()
    painter = Painter(recorder, lambda: True)
    painter.start()
    painter.paint(Conclusion(a_verdict(seq=1), inspection, None, inspector))
    assert recorder.first_is_drawn.wait(30)
    for seq in range(2, orders + 1):
        painter.paint(Conclusion(a_verdict(seq=seq), inspection, None, inspector))
    ending = threading.Thread(target=painter.stop)
    ending.start()
    recorder.go_on.set()
    ending.join()
    assert painter.dropped == orders - len(recorder.drawn)
    assert recorder.drawn == [1, *range(max(2, orders + 1 - Painter.WAITING), orders + 1)]
