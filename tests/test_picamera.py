"""The driver of the Raspberry Pi's cameras, on the real Picamera2 before a simulated sensor.

The simulator shows the file LIBCAMERA_SIM_FRAME names, sends nothing while LIBCAMERA_SIM_STALL
exists, and frames in error while LIBCAMERA_SIM_ERROR does. Its grey values stand as they are in the
file at 10 ms and gain 1.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sensor import HEIGHT, WIDTH, on_the_sensor

from inspectd.camera.crop import SensorField
from inspectd.camera.exposure import ExposureLock
from inspectd.camera.picamera import FULL_RANGE, Picamera, _Demand, _wanted
from inspectd.errors import (
    CameraLost,
    CameraTimeout,
    CameraUnusable,
    ExposureNotSettled,
)
from inspectd.records import View
from inspectd.settings import Picamera2Camera, RegionOfInterest

ENOUGH_S = 20.0  # the machine may be busy; nothing waits that long when all is well
SHORT_S = 0.1  # long enough for six frames to be missed

# Picamera2's own: Thread.setDaemon() is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:setDaemon:DeprecationWarning")


def settings_of(**changes) -> Picamera2Camera:
    return Picamera2Camera(**({"exposure_us": 10_000, "reduce": 1} | changes))


def camera_of(region=None, **changes) -> Picamera:
    return Picamera(settings_of(**changes), None if region is None else RegionOfInterest(*region))


def take(camera, **options):
    return camera.capture(time.monotonic_ns(), ENOUGH_S, **options)


def take_until_refused(camera, pattern) -> None:
    """A control takes some frames to reach the sensor; until then they must be as they were."""
    for _ in range(30):
        assert np.array_equal(camera.capture(time.monotonic_ns(), 0.5).pixels, pattern)


def descriptors() -> int:
    """Open descriptors but files: the simulator opens the one it shows for each frame."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(descriptor.readlink()))
    return sum(":" in link for link in links)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.fixture
def limited_range(monkeypatch):
    """Picamera2 choosing the colour space that is usual for video: luma from 16 to 235."""
    import picamera2

    usual = picamera2.Picamera2.create_video_configuration

    def video(self, **options):
        return usual(self, **options | {"colour_space": picamera2.libcamera.ColorSpace.Rec709()})

    monkeypatch.setattr(picamera2.Picamera2, "create_video_configuration", video)


# ---- the picture -------------------------------------------------------------------------------


@on_the_sensor
def test_the_picture_is_the_luma_pixel_by_pixel(scene):
    with camera_of() as camera:
        frame = take(camera)
    assert frame.pixels.dtype == np.uint8
    assert frame.pixels.flags.c_contiguous
    assert frame.pixels.flags.owndata
    assert np.array_equal(frame.pixels, scene.pattern)
    assert frame.view == View(0, 0, WIDTH, HEIGHT)
    assert frame.whole is None


@on_the_sensor
def test_limited_range_is_expanded(scene, limited_range):
    with camera_of() as camera:
        assert np.array_equal(take(camera).pixels, FULL_RANGE[scene.pattern])


def test_full_range_begins_at_black_and_ends_at_white():
    assert FULL_RANGE[[0, 16, 17, 126, 235, 255]].tolist() == [0, 0, 1, 128, 255, 255]
    assert (np.diff(FULL_RANGE.astype(int)) >= 0).all()


@on_the_sensor
def test_the_image_pipeline_reduces_the_picture(scene):
    half = scene.pattern[::2, ::2]
    scene.show(half.repeat(2, axis=0).repeat(2, axis=1))
    with camera_of(reduce=2) as camera:
        frame = take(camera)
    assert np.array_equal(frame.pixels, half)
    assert frame.view == View(0, 0, WIDTH, HEIGHT)


@on_the_sensor
@pytest.mark.parametrize(
    ("region", "view"),
    [
        ((100, 50, 300, 200), View(100, 50, 300, 200)),  # rows of 300 are padded to 384
        ((101, 51, 300, 200), View(100, 50, 302, 202)),
        ((1156, 888, 300, 200), View(1156, 888, 300, 200)),
        ((1200, 900, 300, 200), View(0, 0, WIDTH, HEIGHT)),  # leaves the frame
    ],
)
def test_the_region_is_cut_by_the_sensor(scene, region, view):
    with camera_of(region) as camera:
        frame = take(camera)
    assert frame.view == view
    x, y, width, height = (int(value) for value in (view.x, view.y, view.width, view.height))
    assert np.array_equal(frame.pixels, scene.pattern[y : y + height, x : x + width])


@on_the_sensor
def test_a_region_is_counted_in_pixels_of_the_chosen_mode(scene):
    half = scene.pattern[::2, ::2]
    scene.show(half.repeat(2, axis=0).repeat(2, axis=1))
    with camera_of((50, 26, 150, 100), width=728, height=544) as camera:
        frame = take(camera)
    assert frame.view == View(50, 26, 150, 100)
    assert np.array_equal(frame.pixels, half[26:126, 50:200])


@on_the_sensor
def test_a_region_is_reduced_to_even_sides(scene):
    with camera_of((100, 50, 302, 202), reduce=3) as camera:
        frame = take(camera)
    assert frame.pixels.shape == (68, 100)
    assert frame.view == View(100, 50, 302, 202)


@on_the_sensor
def test_the_whole_picture_comes_along_in_colour_when_asked_for(scene, limited_range):
    scene.show(FULL_RANGE[scene.pattern // 2 + 64] // 2 + 64)
    with camera_of((100, 50, 302, 202), reduce=2) as camera:
        frame = take(camera, whole=True)
        scene.show(81, colour=(90, 240))  # pure red by BT.601
        red = take(camera, whole=True).whole
    assert frame.pixels.shape == (100, 152)
    assert frame.whole.shape == (202, 302, 3)
    assert frame.whole.flags.c_contiguous
    expected = FULL_RANGE[(FULL_RANGE[scene.pattern // 2 + 64] // 2 + 64)[50:252, 100:402]]
    assert np.abs(frame.whole.astype(int) - expected[..., None]).max() <= 2
    blue, green, red = red.reshape(-1, 3).mean(axis=0)
    assert red > 250
    assert max(blue, green) < 5


@on_the_sensor
def test_pixels_belong_to_the_caller(scene):
    with camera_of() as camera:
        first = take(camera, whole=True)
        kept = first.pixels.copy(), first.whole.copy()
        scene.show(200)
        for _ in range(8):  # every buffer is used again
            take(camera)
        assert np.array_equal(first.pixels, kept[0])
        assert np.array_equal(first.whole, kept[1])


@on_the_sensor
def test_a_camera_that_cannot_cut_or_colour_shows_the_whole_frame(scene, monkeypatch, caplog):
    import picamera2

    known = picamera2.Picamera2.camera_controls.fget

    def fewer(self):
        return {
            name: limits
            for name, limits in known(self).items()
            if name not in {"ScalerCrop", "ColourGains"}
        }

    monkeypatch.setattr(picamera2.Picamera2, "camera_controls", property(fewer))
    caplog.set_level(logging.INFO, "inspectd")
    with camera_of((100, 50, 300, 200)) as camera:
        frame = take(camera)
        take(camera)
    assert frame.view == View(0, 0, WIDTH, HEIGHT)
    assert np.array_equal(frame.pixels, scene.pattern)
    said = [record.getMessage() for record in caplog.records if "no control" in record.getMessage()]
    assert said == ["camera 0 has no control ColourGains; left alone"]


def test_where_each_stream_has_a_crop_of_its_own_both_get_the_same():
    controls = dict.fromkeys(["ExposureTime", "AnalogueGain", "ScalerCrop", "ScalerCrops"])
    wanted = _wanted(settings_of(), controls, (10, 20, 300, 200))
    assert wanted["ScalerCrops"] == [(10, 20, 300, 200)] * 2
    assert "ScalerCrop" not in wanted


def test_a_stream_with_another_crop_is_not_settled():
    field = SensorField((WIDTH, HEIGHT), (0, 0, WIDTH, HEIGHT))
    demand = _Demand(ExposureLock(exposure_us=5000, line_us=15), field, (10, 20, 300, 200))
    metadata = {"ExposureTime": 5000, "ScalerCrop": (10, 20, 300, 200)}
    assert demand.faults(metadata) == []
    both = {**metadata, "ScalerCrops": [(10, 20, 300, 200), (0, 0, WIDTH, HEIGHT)]}
    assert demand.faults(both) == [
        "part of the sensor (0, 0, 1456, 1088) instead of (10, 20, 300, 200)"
    ]
    assert demand.faults({"ExposureTime": 5000}) == [
        "part of the sensor None instead of (10, 20, 300, 200)"
    ]


# ---- its time ----------------------------------------------------------------------------------


@on_the_sensor
def test_a_frame_shows_what_lay_there_after_the_trigger(scene):
    with camera_of(reduce=2) as camera:
        for grey in range(40, 240, 10):
            scene.show(grey)
            trigger_ns = time.monotonic_ns()
            frame = camera.capture(trigger_ns, ENOUGH_S)
            assert (frame.pixels == grey).all()
            assert frame.captured_ns - 1000 * frame.exposure.exposure_us > trigger_ns


@on_the_sensor
def test_a_trigger_that_is_still_to_come_is_waited_for(scene):
    with camera_of() as camera:
        due_ns = time.monotonic_ns() + 150_000_000
        frame = camera.capture(due_ns, ENOUGH_S)
        assert frame.captured_ns - 10_000_000 > due_ns


@on_the_sensor
def test_the_timeout_counts_from_a_trigger_that_is_still_to_come(scene):
    with camera_of() as camera:
        take(camera)
        due_ns = time.monotonic_ns() + 1_500_000_000
        assert camera.capture(due_ns, 1.0).captured_ns > due_ns


@on_the_sensor
def test_instants_are_told_by_both_clocks(scene):
    with camera_of() as camera:
        before_ns, before = time.monotonic_ns(), datetime.now(UTC)
        frames = [take(camera) for _ in range(3)]
        after_ns, after = time.monotonic_ns(), datetime.now(UTC)
    instants = [instant for frame in frames for instant in (frame.captured_ns, frame.copied_ns)]
    assert [before_ns, *instants, after_ns] == sorted([before_ns, *instants, after_ns])
    tick = timedelta(milliseconds=1)
    assert before - tick <= frames[0].captured_at < frames[2].captured_at <= after + tick
    assert all(frame.captured_at.tzinfo is UTC for frame in frames)
    names = [int(frame.name) for frame in frames]
    assert names == sorted(set(names))


@on_the_sensor
def test_a_stamp_of_a_clock_that_counts_suspended_time_is_understood(scene, monkeypatch):
    import picamera2

    slept_ns = 3_600_000_000_000
    told = picamera2.CompletedRequest.get_metadata
    kernel_clock = time.clock_gettime_ns

    def boottime(self):
        metadata = told(self)
        return metadata | {"SensorTimestamp": metadata["SensorTimestamp"] + slept_ns}

    def clock(which):
        return kernel_clock(which) + (slept_ns if which == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(picamera2.CompletedRequest, "get_metadata", boottime)
    monkeypatch.setattr(time, "clock_gettime_ns", clock)
    with camera_of(reduce=2) as camera:
        for grey in range(40, 240, 20):
            scene.show(grey)
            trigger_ns = time.monotonic_ns()
            frame = camera.capture(trigger_ns, ENOUGH_S)
            assert (frame.pixels == grey).all()
            assert trigger_ns < frame.captured_ns < frame.copied_ns


# ---- its exposure ------------------------------------------------------------------------------


@on_the_sensor
def test_the_exposure_is_as_set_and_told(scene):
    scene.show(66)
    with camera_of(exposure_us=2500, gain=8.0, white_balance=(1.9, 1.5), rate=30.0) as camera:
        frame = take(camera)
    assert frame.exposure.exposure_us == 2500
    assert frame.exposure.gain == 8.0
    assert frame.exposure.digital_gain == 1.0
    assert frame.exposure.white_balance == pytest.approx((1.9, 1.5))
    assert frame.exposure.temperature_c is None
    assert (frame.pixels == 16 + (66 - 16) * 2).all()  # as the simulator exposes


@on_the_sensor
@pytest.mark.parametrize(
    ("name", "value", "asked", "said"),
    [
        ("ExposureTime", 2000, 10000, "exposure 2000 us instead of 10000"),
        ("AnalogueGain", 4.0, 1.0, "gain 4 instead of 1"),
        ("ColourGains", (2.0, 1.5), (1.0, 1.0), r"white balance \[2, 1.5\] instead of \[1, 1\]"),
        ("FrameDurationLimits", (40000, 40000), (16667, 16667), "25 frames per second instead of"),
        ("ScalerCrop", (0, 0, 728, 544), (0, 0, WIDTH, HEIGHT), "part of the sensor"),
    ],
)
def test_a_frame_exposed_otherwise_is_never_given(scene, name, value, asked, said):
    with camera_of() as camera:
        take(camera)
        camera._opening._device.set_controls({name: value})
        with pytest.raises(ExposureNotSettled, match=said):
            take_until_refused(camera, scene.pattern)
        camera._opening._device.set_controls({name: asked})
        assert np.array_equal(take(camera).pixels, scene.pattern)


@on_the_sensor
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 1000}, "no mode of 1000x1088 pixels; .* one of 728x544, 1456x1088"),
        ({"rate": 90.0}, "rate cannot be 90: this camera does 1 to 60 frames per second"),
        ({"gain": 20.0}, "gain cannot be 20: this camera does 1 to 16"),
        ({"exposure_us": 20}, "exposure_us cannot be 20: this camera does 29 to"),
    ],
)
def test_what_the_sensor_cannot_do_is_named(scene, changes, said):
    with pytest.raises(CameraUnusable, match=said):
        camera_of(**{"exposure_us": 5000, **changes}).open()
    with camera_of() as camera:  # it was given back
        take(camera)


# ---- what goes wrong ---------------------------------------------------------------------------


@on_the_sensor
@pytest.mark.parametrize("ailment", ["stall", "error"])
def test_five_timeouts_in_a_row_are_recovered_from(scene, ailment):
    with camera_of() as camera:
        take(camera)
        with scene.ailing(ailment):
            for _ in range(5):
                with pytest.raises(CameraTimeout, match="no frame from camera 0 within") as caught:
                    camera.capture(time.monotonic_ns(), SHORT_S)
                assert not isinstance(caught.value, ExposureNotSettled)
            scene.show(77)
        for _ in range(10):  # more than there are buffers
            assert (take(camera).pixels == 77).all()


@on_the_sensor
def test_a_timeout_leaves_nothing_queued(scene):
    with camera_of() as camera:
        with scene.ailing("stall"), pytest.raises(CameraTimeout):
            camera.capture(time.monotonic_ns(), SHORT_S)
        assert camera._opening._device._job_list == []


@on_the_sensor
def test_a_frame_that_comes_in_the_moment_of_the_timeout_is_not_lost(scene, monkeypatch):
    import picamera2

    with camera_of() as camera:
        take(camera)
        device = camera._opening._device
        waited = picamera2.Picamera2.wait

        def late(self, job, timeout=None):
            job.get_result(timeout=ENOUGH_S)  # it has been served
            monkeypatch.setattr(picamera2.Picamera2, "wait", waited)
            raise TimeoutError

        for _ in range(6):  # more than there are buffers
            monkeypatch.setattr(picamera2.Picamera2, "wait", late)
            assert np.array_equal(take(camera).pixels, scene.pattern)
        assert device._job_list == []


@on_the_sensor
@pytest.mark.parametrize("stalled", [False, True])
def test_close_from_another_thread_ends_a_waiting_capture(scene, stalled):
    camera = camera_of()
    camera.open()
    take(camera)
    errors = []

    def wait():
        try:
            camera.capture(time.monotonic_ns() + 10**12, 60.0)
        except CameraLost as error:
            errors.append(str(error))

    waiting = threading.Thread(target=wait)
    with scene.ailing("stall" if stalled else "nothing"):
        waiting.start()
        while not camera._opening._device._job_list:
            assert waiting.is_alive()
        camera.close()
        waiting.join(ENOUGH_S)
    assert errors == ["camera 0 was closed while a capture waited"]


@on_the_sensor
def test_a_camera_that_sends_nothing_is_closed_and_opened_again(scene):
    camera = camera_of()
    camera.open()
    with scene.ailing("stall"):
        with pytest.raises(CameraTimeout):
            camera.capture(time.monotonic_ns(), SHORT_S)
        closing = threading.Thread(target=camera.close)
        closing.start()
        closing.join(ENOUGH_S)
        assert not closing.is_alive()
        camera.open()
        with pytest.raises(CameraTimeout):
            camera.capture(time.monotonic_ns(), SHORT_S)
    assert np.array_equal(take(camera).pixels, scene.pattern)
    camera.close()


@on_the_sensor
def test_opening_an_open_camera_begins_anew(scene):
    with camera_of() as camera:
        for _ in range(5):
            last = take(camera)
        camera.open()
        assert int(take(camera).name) < int(last.name)


def test_a_closed_camera_is_lost():
    camera = camera_of()
    assert camera.live
    camera.close()
    camera.close()
    with pytest.raises(CameraLost, match="closed; open it"):
        camera.capture(0, 1.0)


@on_the_sensor
def test_a_camera_in_use_is_lost_until_it_is_given_back(scene):
    second = camera_of()
    with camera_of() as first:
        take(first)
        before = descriptors()
        for _ in range(3):
            with pytest.raises(CameraLost, match=r"camera 0 \(imx296\) cannot be had: .* busy"):
                second.open()
        assert descriptors() <= before
        assert np.array_equal(take(first).pixels, scene.pattern)
    with second:
        assert np.array_equal(take(second).pixels, scene.pattern)


@on_the_sensor
def test_a_camera_that_is_not_there_is_named_with_those_that_are(scene):
    with camera_of() as camera:  # libcamera stays loaded meanwhile
        take(camera)
        before = descriptors()
        for _ in range(3):
            with pytest.raises(CameraLost, match=r"camera 3 is not there; found: 0 \(imx296\)"):
                camera_of(camera=3).open()
        assert descriptors() <= before


@on_the_sensor
@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("create_preview_configuration", "cannot be had: Invalid argument"),  # as it is made
        ("configure", "does not start: Invalid argument"),
        ("start", "does not start: Invalid argument"),
    ],
)
def test_a_camera_that_fails_half_way_is_given_back(scene, monkeypatch, step, said):
    import picamera2

    def fail(self, *_):
        raise RuntimeError("Invalid argument")

    def use() -> int:
        with camera_of() as camera:
            take(camera)
            return descriptors()

    before = use()
    with monkeypatch.context() as patched:
        patched.setattr(picamera2.Picamera2, step, fail)
        for _ in range(3):
            with pytest.raises(CameraLost, match=said):
                camera_of().open()
    assert use() <= before


@on_the_sensor
def test_a_camera_that_hangs_in_closing_does_not_hold_up_the_end_of_the_process(scene):
    program = """
import threading
import picamera2
from inspectd.camera.guard import Guarded
from inspectd.camera.picamera import Picamera
from inspectd.settings import Picamera2Camera

camera = Guarded(Picamera(Picamera2Camera(exposure_us=10_000), None), close_timeout_s=0.1)
picamera2.Picamera2.close = lambda _: threading.Event().wait()
camera.open()
camera.close()
print("left behind")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    assert done.stdout == b"left behind\n"


@on_the_sensor
def test_opening_again_and_again_leaks_nothing(scene):
    camera = camera_of()

    def use() -> tuple[int, set[threading.Thread], float]:
        with camera:
            take(camera, whole=True)
        return descriptors(), set(threading.enumerate()), resident_mb()

    for _ in range(3):
        first = use()
    for _ in range(20):
        last = use()
    assert last[0] <= first[0]
    assert last[1] <= first[1]
    assert last[2] < first[2] + 60  # megabytes; the buffers of two openings


def test_without_picamera2_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(
        CameraUnusable, match=r"apt install python3-picamera2.*inspectd\[picamera\]"
    ):
        camera_of().open()
