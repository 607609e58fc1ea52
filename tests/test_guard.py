"""The guard: a driver that hangs hangs alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import traceback
from datetime import UTC, datetime

import numpy as np
import pytest

from inspectd.camera import Opened, guard
from inspectd.camera.guard import Guarded
from inspectd.errors import CameraLost, CameraTimeout, CameraUnusable, EndOfFrames
from inspectd.records import Frame

LONG_S = 30.0  # for what must come, on a busy machine too
SHORT_S = 0.05  # for what hangs and so never comes in time


def frame(name: str) -> Frame:
    now_ns = time.monotonic_ns()
    return Frame(np.zeros((2, 2), np.uint8), name, datetime.now(UTC), now_ns, now_ns)


class Driver(Opened):
    """Hangs where an event is set up for it, as a library does: nothing but the event ends it."""

    def __init__(self) -> None:
        self.hang: dict[str, threading.Event] = {}
        self.entered = {name: threading.Event() for name in ("open", "capture", "close")}
        self.faults: dict[str, BaseException] = {}
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.captured = 0

    live = True

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.entered[name].set()
        if name in self.hang:
            assert self.hang[name].wait(LONG_S)
        if name in self.faults:
            raise self.faults[name]

    def open(self) -> None:
        self._call("open")

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        self.threads.add(threading.current_thread())
        self.captured += 1
        number = self.captured
        self._call("capture")
        return frame(f"{number}{' whole' if whole else ''} after {after_ns} in {timeout_s:g}")

    def close(self) -> None:
        self._call("close")


class Waiting(Driver):
    """Waits for a picture that never comes, until it is closed, as a well-behaved driver does."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        self.entered["capture"].set()
        if self.closed.wait(timeout_s):
            raise CameraLost("the driver was closed")
        raise CameraTimeout("the driver saw nothing")

    def close(self) -> None:
        super().close()
        self.closed.set()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(guard, "GRACE_S", SHORT_S)


@pytest.fixture(autouse=True)
def leaves_no_thread():
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + LONG_S
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert set(threading.enumerate()) <= before


def camera_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("camera")]


def in_thread(function) -> tuple[threading.Thread, list]:
    """Runs it in a thread; the list takes what it returned or raised."""
    outcomes = []

    def run():
        try:
            outcomes.append(function())
        except BaseException as error:  # noqa: BLE001 - the test looks at what it was
            outcomes.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcomes


def test_arguments_and_frames_pass_through():
    driver = Driver()
    with Guarded(driver) as camera:
        assert camera.live
        assert camera.capture(5, 2.0).name == "1 after 5 in 2"
        assert camera.capture(6, 0.5, whole=True).name == "2 whole after 6 in 0.5"
    assert driver.calls == ["open", "capture", "capture", "close"]


def test_live_is_that_of_the_driver():
    driver = Driver()
    driver.live = False
    assert not Guarded(driver).live


def test_closing_leaves_no_thread_and_each_opening_has_one():
    driver = Driver()
    camera = Guarded(driver)
    for _ in range(3):
        with camera:
            for _ in range(4):
                camera.capture(0, LONG_S)
            assert len(camera_threads()) == 1
        assert camera_threads() == []
    assert len(driver.threads) == 3
    assert threading.current_thread() not in driver.threads


@pytest.mark.parametrize(
    "error",
    [
        CameraTimeout("nothing came"),
        CameraLost("gone"),
        CameraUnusable("no such mode"),
        EndOfFrames("that was all"),
        RuntimeError("the library's own"),
        KeyboardInterrupt("whatever"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("method", ["open", "capture", "close"])
def test_exceptions_pass_unchanged_with_their_traceback(method, error):
    driver = Driver()
    driver.faults[method] = error
    camera = Guarded(driver)
    with pytest.raises(type(error)) as caught, camera:
        camera.capture(0, LONG_S)
    assert caught.value is error
    places = [entry.name for entry in traceback.extract_tb(error.__traceback__)]
    assert places[-1] == "_call"
    assert "test_exceptions_pass_unchanged_with_their_traceback" in places
    assert driver.calls.count("close") == (method != "open")  # what never opened is not closed


def test_the_camera_stays_open_after_a_timeout():
    driver = Driver()
    with Guarded(driver) as camera:
        driver.faults["capture"] = CameraTimeout("nothing came")
        with pytest.raises(CameraTimeout):
            camera.capture(0, LONG_S)
        driver.faults.clear()
        assert camera.capture(0, LONG_S).name.startswith("2 ")


def test_a_hanging_capture_is_given_up_and_its_frame_dropped():
    driver = Driver()
    camera = Guarded(driver)
    camera.open()
    hang = driver.hang["capture"] = threading.Event()
    with pytest.raises(CameraLost, match=r"does not answer: neither .* check the camera's cable"):
        camera.capture(0, SHORT_S)
    with pytest.raises(CameraLost, match="closed; open it"):
        camera.capture(0, SHORT_S)
    camera.close()
    (left,) = camera_threads()
    for _ in range(3):
        with pytest.raises(CameraLost, match="hangs still in capture; it can be opened when"):
            camera.open()
    assert camera_threads() == [left]
    hang.set()
    left.join(LONG_S)
    assert driver.calls == ["open", "capture", "close"]
    with camera:
        assert camera.capture(7, LONG_S).name == "2 after 7 in 30"


def test_a_hanging_open_is_given_up_and_closed_when_it_comes_back():
    driver = Driver()
    hang = driver.hang["open"] = threading.Event()
    camera = Guarded(driver, open_timeout_s=SHORT_S)
    with pytest.raises(CameraLost, match=r"it was not open within 0.05 s: check"):
        camera.open()
    with pytest.raises(CameraLost, match="hangs still in open"):
        camera.open()
    (left,) = camera_threads()
    hang.set()
    left.join(LONG_S)
    assert driver.calls == ["open", "close"]
    camera = Guarded(driver)
    with camera:
        camera.capture(0, LONG_S)


def test_close_during_a_hanging_open_returns(caplog):
    driver = Driver()
    hang = driver.hang["open"] = threading.Event()
    camera = Guarded(driver, open_timeout_s=LONG_S, close_timeout_s=SHORT_S)
    opener, outcomes = in_thread(camera.open)
    assert driver.entered["open"].wait(LONG_S)
    camera.close()
    opener.join(LONG_S)
    assert [str(error) for error in outcomes] == ["the camera was closed"]
    assert isinstance(outcomes[0], CameraLost)
    assert "does not come back from open within 0.05 s of closing" in caplog.text
    hang.set()
    for thread in camera_threads():
        thread.join(LONG_S)
    assert driver.calls == ["open", "close"]


def test_close_ends_a_waiting_capture_by_the_drivers_own_close(caplog):
    driver = Waiting()
    camera = Guarded(driver, close_timeout_s=LONG_S)
    camera.open()
    waiter, outcomes = in_thread(lambda: camera.capture(0, 1000.0))
    assert driver.entered["capture"].wait(LONG_S)
    camera.close()
    waiter.join(LONG_S)
    assert isinstance(outcomes[0], CameraLost)
    assert camera_threads() == []
    assert caplog.records == []


def test_close_ends_a_capture_whose_driver_hangs(caplog):
    driver = Driver()
    camera = Guarded(driver, close_timeout_s=SHORT_S)
    camera.open()
    hang = driver.hang["capture"] = threading.Event()
    waiter, outcomes = in_thread(lambda: camera.capture(0, 1000.0))
    assert driver.entered["capture"].wait(LONG_S)
    camera.close()
    waiter.join(LONG_S)
    assert isinstance(outcomes[0], CameraLost)
    assert "close" in driver.calls
    assert "does not come back from capture" in caplog.text
    hang.set()


def test_a_hanging_close_is_left_behind(caplog):
    driver = Driver()
    hang = driver.hang["close"] = threading.Event()
    camera = Guarded(driver, close_timeout_s=SHORT_S)
    camera.open()
    camera.close()
    assert "does not come back from close within 0.05 s" in caplog.text
    with pytest.raises(CameraLost, match="hangs still in close"):
        camera.open()
    (left,) = camera_threads()
    driver.faults["close"] = RuntimeError("too late")
    hang.set()
    left.join(LONG_S)
    assert "left behind, failed to close" in caplog.text
    assert "RuntimeError: too late" in caplog.text
    driver.faults.clear()
    with camera:
        camera.capture(0, LONG_S)


def test_a_trigger_with_a_delay_is_waited_for():
    """The driver may wait until the part is there, and only then for its own timeout."""
    driver = Driver()
    gate = driver.hang["capture"] = threading.Event()
    with Guarded(driver) as camera:
        due_ns = time.monotonic_ns() + round(LONG_S * 1e9)
        waiter, outcomes = in_thread(lambda: camera.capture(due_ns, 0.001))
        assert driver.entered["capture"].wait(LONG_S)
        waiter.join(0.001 + 2 * SHORT_S)  # by then a capture without delay was given up
        assert waiter.is_alive()
        gate.set()
        waiter.join(LONG_S)
    assert outcomes[0].name.startswith("1 after")


def test_opening_an_open_camera_closes_it_first():
    driver = Driver()
    with Guarded(driver) as camera:
        camera.open()
        camera.capture(0, LONG_S)
    assert driver.calls == ["open", "close", "open", "capture", "close"]


def test_a_left_behind_driver_does_not_hold_up_the_end_of_the_process():
    program = """
import threading
from inspectd.camera import Opened
from inspectd.camera.guard import Guarded
from inspectd.errors import CameraLost

class Hanging(Opened):
    live = True
    def open(self): threading.Event().wait()
    def close(self): pass

try:
    Guarded(Hanging(), open_timeout_s=0.01).open()
except CameraLost:
    print("given up")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "given up\n"
    assert done.stderr == ""


def test_frames_are_not_kept():
    """A frame is megabytes: the idle thread must not hold the last one."""
    import gc
    import weakref

    with Guarded(Driver()) as camera:
        picture = camera.capture(0, LONG_S).pixels
        kept = weakref.ref(picture)
        del picture
        gc.collect()
        assert kept() is None
