"""What becomes of a camera that is lost, hangs, is mute, shows the past, or has a faulty driver."""

import threading
import time
from datetime import UTC, datetime

import msgspec
import pytest
from unsteady import UnsteadyCamera

from inspectd import camera_keeper, settings
from inspectd.camera_keeper import CameraClosed, CameraKeeper
from inspectd.errors import (
    CameraError,
    CameraFrozen,
    CameraLost,
    CameraTimeout,
    CameraUnusable,
    ExposureNotSettled,
)
from inspectd.payload import StatePayload
from inspectd.records import Frame
from inspectd.state import State, StationState


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
    monkeypatch.setattr(camera_keeper, "FIRST_REOPENING_S", 0.0)


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
    monkeypatch.setattr(camera_keeper, "LONGEST_REOPENING_S", 4.0)
    monkeypatch.setattr(camera_keeper.random, "uniform", lambda _low, high: high)
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
    assert keeper._pause_s == camera_keeper.FIRST_REOPENING_S


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
