"""What every camera does alike, and how the settings choose one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import cv2
import numpy as np
import pytest

from inspectd.camera import Camera
from inspectd.camera.factory import make_camera
from inspectd.errors import CameraLost, CameraTimeout
from inspectd.settings import ReplayCamera, Settings, SimulatedCamera, Station

SLOW = 0.01  # pictures per second: the second one is not due in this test's life
FAST = 500.0


def settings_of(folder, camera) -> Settings:
    return Settings(
        path=folder / "station.yaml",
        station=Station(station="line1", program="connector", camera=camera),
        programs={},
        hash="0" * 12,
    )


@pytest.fixture(params=["replay", "simulated"])
def make(request, tmp_path):
    """A function from a rate to the camera of that kind; pictures are called 0, 1, 2 …"""
    if request.param == "simulated":
        return lambda rate: make_camera(
            settings_of(tmp_path, SimulatedCamera(rate=rate, width=160, height=120))
        )
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        picture = np.full((12, 16), 50 + number, np.uint8)
        cv2.imwrite(str(tmp_path / "pictures" / f"{number}.png"), picture)
    return lambda rate: make_camera(settings_of(tmp_path, ReplayCamera(path="pictures", rate=rate)))


def number_of(frame) -> int:
    return int(frame.name.removesuffix(".png"))


def test_frames_come_in_order_with_their_times(make):
    before_ns, before = time.monotonic_ns(), datetime.now(UTC)
    with make(FAST) as camera:
        frames = [camera.capture(0, 10.0) for _ in range(3)]
    after_ns, after = time.monotonic_ns(), datetime.now(UTC)
    assert [number_of(frame) for frame in frames] == [0, 1, 2]
    instants = [frame.captured_ns for frame in frames]
    assert before_ns <= instants[0] < instants[1] < instants[2] <= after_ns
    tick = timedelta(milliseconds=1)
    assert before - tick <= frames[0].captured_at <= frames[2].captured_at <= after + tick
    assert all(frame.captured_at.tzinfo is UTC for frame in frames)
    assert all(frame.pixels.dtype == np.uint8 for frame in frames)


def test_the_exposure_is_not_older_than_the_trigger(make):
    with make(FAST) as camera:
        for _ in range(3):
            trigger = time.monotonic_ns()
            assert camera.capture(trigger, 10.0).captured_ns > trigger


def test_pixels_belong_to_the_caller(make):
    with make(FAST) as camera:
        first = camera.capture(0, 10.0).pixels
        kept = first.copy()
        first[:] = 255 - first
        camera.capture(0, 10.0)
        assert np.array_equal(first, 255 - kept)
    with make(FAST) as camera:
        assert np.array_equal(camera.capture(0, 10.0).pixels, kept)


def test_closing_twice_or_before_opening_does_nothing(make):
    camera = make(FAST)
    camera.close()
    camera.open()
    camera.close()
    camera.close()
    with make(FAST) as again:
        assert again.capture(0, 10.0).pixels.size


def test_a_closed_camera_is_lost(make):
    camera = make(FAST)
    with pytest.raises(CameraLost, match="closed; open it"):
        camera.capture(0, 1.0)
    with camera:
        camera.capture(0, 10.0)
    with pytest.raises(CameraLost, match="closed; open it"):
        camera.capture(0, 1.0)


def test_a_picture_not_due_is_a_timeout(make):
    with make(SLOW) as camera:
        camera.capture(0, 10.0)
        with pytest.raises(CameraTimeout, match=r"the next is due .* s too late"):
            camera.capture(0, 1.0)


def test_the_picture_comes_with_the_capture_after_a_timeout(make):
    with make(2.0) as camera:
        numbers = []
        while len(numbers) < 2:
            try:
                numbers.append(number_of(camera.capture(0, 0.1)))
            except CameraTimeout:
                continue
    assert numbers == [0, 1]


def test_close_from_another_thread_ends_a_waiting_capture(make):
    camera = make(SLOW)
    camera.open()
    camera.capture(0, 10.0)
    errors = []
    about_to_wait = threading.Event()

    def wait():
        about_to_wait.set()
        try:
            camera.capture(0, 60.0)
        except CameraLost as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    about_to_wait.wait()
    camera.close()
    waiting.join(30.0)
    assert not waiting.is_alive()
    assert len(errors) == 1


def test_it_can_be_opened_again_and_begins_anew(make):
    camera = make(FAST)
    for _ in range(2):
        with camera:
            assert [number_of(camera.capture(0, 10.0)) for _ in range(2)] == [0, 1]
    with camera:
        camera.capture(0, 10.0)
        camera.open()
        assert number_of(camera.capture(0, 10.0)) == 0


def test_no_thread_outlives_the_opening(make):
    before = set(threading.enumerate())
    with make(FAST) as camera:
        camera.capture(0, 10.0)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("camera", "imported"),
    [('ReplayCamera(path="x")', "replay"), ("SimulatedCamera()", "simulated")],
)
def test_only_the_driver_asked_for_is_imported(camera, imported):
    program = f"""
import sys
from pathlib import Path
from inspectd.camera.factory import make_camera
from inspectd.settings import ReplayCamera, Settings, SimulatedCamera, Station
libraries = ["cv2"] if "cv2" in sys.modules else []
station = Station(station="a", program="b", camera={camera})
make_camera(Settings(path=Path("s.yaml"), station=station, programs={{}}, hash=""))
drivers = [name for name in ("replay", "simulated") if f"inspectd.camera.{{name}}" in sys.modules]
print(*libraries, *drivers)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.split() == [imported]


def test_a_relative_path_is_taken_from_the_station_file(tmp_path):
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "part.png"), np.zeros((12, 16), np.uint8))
    camera: Camera = make_camera(settings_of(tmp_path, ReplayCamera(path="pictures")))
    with camera:
        assert camera.capture(0, 10.0).name == "part.png"
