"""The OpenCV camera: real streams, and a stand-in for what only a V4L2 device has."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from broker import eventually

from inspectd.camera import opencv, v4l2
from inspectd.camera.guard import Guarded
from inspectd.camera.opencv import Arrivals, OpencvCamera, device_of, shown
from inspectd.errors import CameraLost, CameraTimeout, CameraUnusable
from inspectd.settings import OpencvCamera as OpencvSettings

LONG_S = 30.0  # for what must come, on a busy machine too
BITS = 16


def picture_of(number: int, width: int = 160, height: int = 120) -> np.ndarray:
    """The number as black and white columns, its lowest bit to the left."""
    columns = (number >> (np.arange(width) * BITS // width)) & 1
    return np.repeat(np.uint8(255 * columns)[None, :, None], height, 0).repeat(3, 2)


def number_in(pixels: np.ndarray) -> int:
    middle = pixels.reshape(*pixels.shape[:2], -1)[len(pixels) // 2, :, 0]
    places = (np.arange(BITS) + 0.5) * len(middle) / BITS
    return sum(int(middle[int(place)] > 127) << bit for bit, place in enumerate(places))


class Source:
    """An MJPEG camera of the network: a new picture 30 times a second, for each who looks."""

    def __init__(self, *, length: bool = True, rate: float = 30.0) -> None:
        self.made_at: dict[int, int] = {}
        self.number = 0
        self.size = (160, 120)
        self.length = length
        self.rate = rate
        self.changed = threading.Condition()
        self.flowing = threading.Event()
        self.flowing.set()
        self.spoil = lambda data: data
        self.gone = threading.Event()
        self.lookers = 0
        source = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                source.serve(self)

            def log_message(self, *arguments) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def settings(self) -> OpencvSettings:
        return OpencvSettings(device=f"http://127.0.0.1:{self.server.server_port}/video")

    def make(self) -> bytes:
        """The next picture, as a part of the stream."""
        with self.changed:
            self.number += 1
            number = self.number
            self.made_at[number] = time.monotonic_ns()
            self.changed.notify_all()
        _, jpeg = cv2.imencode(".jpg", picture_of(number, *self.size))
        data = self.spoil(jpeg.tobytes())
        length = f"Content-Length: {len(data)}\r\n" if self.length else ""
        return f"Content-Type: image/jpeg\r\n{length}\r\n".encode() + data + b"\r\n--frame\r\n"

    def serve(self, handler) -> None:
        with self.changed:
            self.lookers += 1
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(b"--frame\r\n")
            while not self.gone.wait(1 / self.rate):
                if self.flowing.wait(0.01):
                    handler.wfile.write(self.make())
                elif looked_away(handler.connection):
                    break
        with self.changed:
            self.lookers -= 1
            self.changed.notify_all()

    def wait_for_pictures(self, more: int) -> None:
        with self.changed:
            wanted = self.number + more
            assert self.changed.wait_for(lambda: self.number >= wanted, LONG_S)

    def wait_until_unwatched(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.lookers == 0, LONG_S)

    def disconnect(self) -> None:
        """End all streams; new ones may begin afterwards."""
        self.gone.set()
        self.wait_until_unwatched()
        self.gone.clear()

    def close(self) -> None:
        self.gone.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def looked_away(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    finally:
        connection.setblocking(True)


@pytest.fixture
def source():
    source = Source()
    yield source
    source.close()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "opencv"]


# ---- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [True, False], ids=["length", "no-length"])
def test_the_picture_was_made_after_the_trigger(length):
    """However long nobody captured; and where the end of a picture is marked by the next one."""
    source = Source(length=length)
    try:
        with OpencvCamera(source.settings) as camera:
            for _ in range(5):
                source.wait_for_pictures(15)
                trigger = time.monotonic_ns()
                frame = camera.capture(trigger, LONG_S)
                assert source.made_at[number_in(frame.pixels)] > trigger
                assert trigger < frame.captured_ns <= frame.copied_ns <= time.monotonic_ns()
    finally:
        source.close()


def test_a_picture_of_the_delayed_trigger_is_made_after_the_delay(source):
    with OpencvCamera(source.settings) as camera:
        due = time.monotonic_ns() + 300_000_000
        frame = camera.capture(due, LONG_S)
    assert source.made_at[number_in(frame.pixels)] > due


def test_pictures_that_the_network_held_back_are_not_taken(source):
    """They come after the trigger, all at once, and show what was before it."""
    make = source.make
    held_back = []

    def make_with_what_was_held_back() -> bytes:
        late = b"".join(held_back)
        held_back.clear()
        return late + make()

    with OpencvCamera(source.settings) as camera:
        camera.capture(time.monotonic_ns(), LONG_S)
        source.flowing.clear()
        held_back += [make() for _ in range(20)]
        source.make = make_with_what_was_held_back
        trigger = time.monotonic_ns()
        source.flowing.set()
        frame = camera.capture(trigger, LONG_S)
    assert not held_back
    assert source.made_at[number_in(frame.pixels)] > trigger


def test_frames_are_whole_numbered_and_dated(source):
    with OpencvCamera(source.settings) as camera:
        assert camera.live
        first, second = (camera.capture(time.monotonic_ns(), LONG_S) for _ in range(2))
    assert first.pixels.shape == (120, 160, 3)
    assert first.pixels.dtype == np.uint8
    assert 0 < int(first.name) < int(second.name)
    assert abs((second.captured_at - first.captured_at).total_seconds()) == pytest.approx(
        (second.captured_ns - first.captured_ns) / 1e9, abs=0.05
    )
    assert first.whole is None
    assert first.view is None


def test_a_stall_is_a_timeout_and_passes(source):
    with OpencvCamera(source.settings) as camera:
        camera.capture(time.monotonic_ns(), LONG_S)
        source.flowing.clear()
        with pytest.raises(CameraTimeout, match=r"127.0.0.1:\d+/video gave no picture within 0.3"):
            camera.capture(time.monotonic_ns() + 200_000_000, 0.3)  # a picture is on its way yet
        source.flowing.set()
        trigger = time.monotonic_ns()
        frame = camera.capture(trigger, LONG_S)
        assert source.made_at[number_in(frame.pixels)] > trigger


def test_a_long_stall_is_a_loss(source):
    camera = OpencvCamera(source.settings)
    with camera:
        camera.capture(time.monotonic_ns(), LONG_S)
        source.flowing.clear()
        with pytest.raises(CameraLost, match=r"it ended, or it sent nothing for 3 s"):
            camera.capture(time.monotonic_ns(), LONG_S)
    source.flowing.set()
    with camera:
        camera.capture(time.monotonic_ns(), LONG_S)


def test_the_end_is_a_loss_and_it_can_be_opened_again(source):
    camera = OpencvCamera(source.settings)
    with camera:
        camera.capture(time.monotonic_ns(), LONG_S)
        source.disconnect()
        for _ in range(3):
            with pytest.raises(CameraLost, match="is lost: it was unplugged, it ended"):
                camera.capture(time.monotonic_ns(), LONG_S)
        camera.open()
        trigger = time.monotonic_ns()
        assert source.made_at[number_in(camera.capture(trigger, LONG_S).pixels)] > trigger


def test_close_ends_a_waiting_capture(source):
    camera = OpencvCamera(source.settings)
    camera.open()
    camera.capture(time.monotonic_ns(), LONG_S)
    source.flowing.clear()
    errors = []
    about_to_wait = threading.Event()

    def wait():
        about_to_wait.set()
        try:
            camera.capture(time.monotonic_ns() + 200_000_000, 1000.0)
        except CameraLost as error:
            errors.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    about_to_wait.wait(LONG_S)
    camera.close()
    waiting.join(LONG_S)
    assert errors
    assert "closed" in errors[0]


def test_pictures_cut_short_are_not_taken(source, caplog):
    """FFmpeg would fill up the lower half with that of an earlier picture."""

    def warnings() -> list[str]:
        said = [record.getMessage() for record in caplog.records]
        return [one for one in said if "cut short" in one]

    with OpencvCamera(source.settings) as camera:
        camera.capture(time.monotonic_ns(), LONG_S)
        spoiled = []

        def cut_until_one_is_refused(data: bytes) -> bytes:
            if warnings():
                return data
            spoiled.append(source.number)
            return data[: len(data) // 2]

        source.spoil = cut_until_one_is_refused
        frame = camera.capture(time.monotonic_ns(), LONG_S)
    assert number_in(frame.pixels) > spoiled[-1]
    assert "ends without its end mark" in warnings()[0]
    assert warnings()[0].endswith("; the next is taken")


def test_nothing_but_damaged_pictures_is_a_timeout(source):
    with OpencvCamera(source.settings) as camera:
        source.spoil = lambda data: data[: len(data) // 2]
        source.wait_for_pictures(10)
        with pytest.raises(
            CameraTimeout, match=r"no whole picture within 1 s \(\d+ were damaged\)"
        ):
            camera.capture(time.monotonic_ns(), 1.0)


def test_another_size_in_the_middle_is_a_loss(source):
    with OpencvCamera(source.settings) as camera:
        camera.capture(time.monotonic_ns(), LONG_S)
        source.size = (320, 240)
        source.wait_for_pictures(2)
        with pytest.raises(CameraLost, match="size of its pictures from 160x120 to 320x240"):
            camera.capture(time.monotonic_ns(), LONG_S)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_opening_often_leaves_nothing(source):
    camera = OpencvCamera(source.settings)
    with camera:
        pass
    source.wait_until_unwatched()
    threads, files = threading.active_count(), open_files()
    for _ in range(50):
        with camera:
            pass
    source.wait_until_unwatched()
    # The server's own threads end a moment after the last who looked.
    assert eventually(lambda: open_files() <= files and threading.active_count() <= threads)


def test_the_delay_of_a_stream_is_warned_of_once(source, caplog):
    camera = OpencvCamera(source.settings)
    for _ in range(2):
        with camera:
            pass
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "cannot be told from here: film a clock" in warnings[0].getMessage()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_nothing_there_is_a_loss_and_keeps_the_password_to_itself():
    address = f"http://user:secret@127.0.0.1:{free_port()}/video?key=secret"
    with pytest.raises(CameraLost, match=r"http://127.0.0.1:\d+/video cannot be opened") as caught:
        OpencvCamera(OpencvSettings(device=address)).open()
    assert "secret" not in str(caught.value)


def test_a_host_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(opencv, "OPEN_TIMEOUT_MS", 200)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(CameraLost, match="cannot be opened: nothing answers there"):
            OpencvCamera(OpencvSettings(device=address)).open()


def test_a_stream_refuses_what_it_cannot_be_told():
    settings = OpencvSettings(device="rtsp://127.0.0.1/", width=640, height=480, gain=2.0)
    with pytest.raises(
        CameraUnusable, match=r"told camera.width, camera.height, camera.gain: remove"
    ):
        OpencvCamera(settings).open()


def test_ffmpeg_and_opencv_say_nothing_on_stderr(source):
    """Their lines would stand among the service's own, without a time or a level."""
    program = f"""
import time
from inspectd.camera.opencv import OpencvCamera
from inspectd.errors import CameraLost
from inspectd.settings import OpencvCamera as Settings
with OpencvCamera(Settings(device={source.settings.device!r})) as camera:
    camera.capture(time.monotonic_ns(), 30.0)
for device in ("http://127.0.0.1:{free_port()}/", "/dev/null"):
    try:
        OpencvCamera(Settings(device=device)).open()
    except CameraLost:
        print("lost")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "lost\nlost\n"
    assert [line for line in done.stderr.splitlines() if "clock that counts" not in line] == []


def test_uncompressed_pictures_through_a_pipe(tmp_path):
    """Another container, without JPEG; and a pipe whose writer stops hangs FFmpeg: guarded."""
    pipe = tmp_path / "camera.y4m"
    os.mkfifo(pipe)
    writing, stop = threading.Event(), threading.Event()
    made_at: dict[int, int] = {}

    def write() -> None:
        with pipe.open("wb", buffering=0) as stream, contextlib.suppress(BrokenPipeError):
            stream.write(b"YUV4MPEG2 W160 H120 F30:1 Ip A1:1 Cmono\n")
            number = 0
            while not stop.is_set():
                if writing.wait(0.01) and not stop.wait(1 / 30):
                    number += 1
                    made_at[number] = time.monotonic_ns()
                    stream.write(b"FRAME\n" + picture_of(number)[:, :, 0].tobytes())

    writer = threading.Thread(target=write)
    writer.start()
    writing.set()
    camera = Guarded(OpencvCamera(OpencvSettings(device=str(pipe))), close_timeout_s=0.05)
    camera.open()
    trigger = time.monotonic_ns()
    assert made_at[number_in(camera.capture(trigger, LONG_S).pixels)] > trigger
    writing.clear()
    with pytest.raises(CameraTimeout, match="gave no picture"):
        camera.capture(time.monotonic_ns() + 200_000_000, 0.1)
    camera.close()
    with pytest.raises(CameraLost, match="hangs still in close"):
        camera.open()
    stop.set()
    writer.join(LONG_S)
    assert eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("camera")])


# ---- devices -----------------------------------------------------------------------------------


def test_an_index_is_a_device():
    assert str(device_of(OpencvSettings(index=3))) == "/dev/video3"
    assert str(device_of(OpencvSettings(device="/dev/v4l/by-id/usb-x"))) == "/dev/v4l/by-id/usb-x"
    assert device_of(OpencvSettings(device="rtsp://camera/" + 1000 * "x")) is None


def test_an_absent_device_is_a_loss():
    with pytest.raises(CameraLost, match="there is no /dev/video63: plug the camera in"):
        OpencvCamera(OpencvSettings(index=63)).open()


def test_what_is_no_camera_is_a_loss():
    with pytest.raises(CameraLost, match="/dev/null cannot be opened as a camera: another program"):
        OpencvCamera(OpencvSettings(device="/dev/null")).open()


@pytest.mark.parametrize("name", ["", "video.avi"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_recording_is_no_camera(tmp_path, name, scheme):
    if name:
        (tmp_path / name).touch()
    with pytest.raises(CameraUnusable, match=r"play it with camera\.driver: replay"):
        OpencvCamera(OpencvSettings(device=f"{scheme}{tmp_path / name}")).open()


def test_missing_rights_are_told(tmp_path):
    folder = tmp_path / "dev"
    folder.mkdir(mode=0o000)  # a device itself can be made by root alone
    try:
        if os.geteuid() == 0:
            os.seteuid(65534)
        with pytest.raises(CameraLost, match="add it to the group video"):
            opencv._reach(folder / "video0")
    finally:
        os.seteuid(os.getuid())
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("address", "what_is_shown"),
    [
        ("rtsp://me:word@cam:554/live?token=1", "rtsp://cam:554/live"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("/run/camera.y4m", "/run/camera.y4m"),
    ],
)
def test_addresses_are_shown_without_secrets(address, what_is_shown):
    assert shown(address) == what_is_shown


# ---- when a frame was exposed ------------------------------------------------------------------

MS = 1_000_000


def waited_for(arrivals: Arrivals, *instants_ms: int) -> None:
    for instant in instants_ms:
        arrivals.add((instant - 30) * MS, instant * MS, MS, 0.0)


def test_a_frame_counts_when_the_third_before_it_came_after_the_trigger():
    arrivals = Arrivals()
    waited_for(arrivals, 100, 133, 166)
    assert not arrivals.began_after(0)  # too few to know
    waited_for(arrivals, 200)
    assert arrivals.began_after(99 * MS)
    assert not arrivals.began_after(100 * MS)
    assert arrivals.newest_ns == 200 * MS


def test_a_known_exposure_time_makes_it_a_frame_less():
    arrivals = Arrivals(5000)
    waited_for(arrivals, 100, 133, 166)
    assert arrivals.began_after(94 * MS)
    assert not arrivals.began_after(95 * MS)


def test_a_frame_that_lay_ready_dates_nothing():
    arrivals = Arrivals()
    waited_for(arrivals, 100, 133, 166, 200)
    arrivals.add(201 * MS, 202 * MS, 0, 0.0)
    assert not arrivals.began_after(0)
    waited_for(arrivals, 233, 266, 300)
    assert not arrivals.began_after(0)
    waited_for(arrivals, 333)
    assert arrivals.began_after(232 * MS)


def test_time_spent_decoding_is_no_waiting():
    arrivals = Arrivals()
    for instant in range(100, 1000, 30):
        arrivals.add(instant * MS, (instant + 30) * MS, 29 * MS, 0.0)
    assert not arrivals.began_after(0)


def test_time_stamps_date_frames_that_lay_ready():
    arrivals = Arrivals(stamped=True)
    for stamp in (100, 133, 166, 200):
        arrivals.add(500 * MS, 500 * MS, 0, float(stamp))
    assert arrivals.began_after(99 * MS)
    assert not arrivals.began_after(100 * MS)
    assert arrivals.newest_ns == 200 * MS


@pytest.mark.parametrize("offset_ms", [-500_000.0, 1.0, 1.7e12], ids=["old", "future", "UTC"])
def test_time_stamps_of_another_clock_are_not_believed(offset_ms):
    now_ms = 1_000_000
    arrivals = Arrivals(stamped=True)
    for instant in range(now_ms, now_ms + 400, 100):
        arrivals.add((instant - 30) * MS, instant * MS, MS, instant + offset_ms)
    assert arrivals.began_after(now_ms * MS - 1)
    assert not arrivals.began_after(now_ms * MS)
    arrivals.add(now_ms * MS, now_ms * MS, 0, now_ms + offset_ms)
    assert not arrivals.began_after(0)


# ---- V4L2, by a stand-in for VideoCapture --------------------------------------------------------


def fourcc(letters: str) -> float:
    return float(int.from_bytes(letters.encode(), "little"))


class Controls:
    """Properties as OpenCV's V4L2 backend gives them: clamped, quantised or unknown (-1)."""

    def __init__(self) -> None:
        self.formats = {fourcc("YUYV"), fourcc("MJPG")}
        self.sizes = {(640, 480), (1280, 720)}
        self.ranges: dict[int, tuple[float, float]] = {
            cv2.CAP_PROP_EXPOSURE: (3, 2047),
            cv2.CAP_PROP_AUTO_EXPOSURE: (1, 3),
            cv2.CAP_PROP_GAIN: (0, 100),
            cv2.CAP_PROP_FOCUS: (0, 250),
            cv2.CAP_PROP_AUTOFOCUS: (0, 1),
            cv2.CAP_PROP_WB_TEMPERATURE: (2800, 6500),
            cv2.CAP_PROP_AUTO_WB: (0, 1),
            cv2.CAP_PROP_FPS: (5, 30),
            cv2.CAP_PROP_BUFFERSIZE: (1, 10),
            cv2.CAP_PROP_CONVERT_RGB: (0, 1),
        }
        self.values: dict[int, float] = {
            cv2.CAP_PROP_FOURCC: fourcc("YUYV"),
            cv2.CAP_PROP_FRAME_WIDTH: 640,
            cv2.CAP_PROP_FRAME_HEIGHT: 480,
            cv2.CAP_PROP_EXPOSURE: 156,
            cv2.CAP_PROP_AUTO_EXPOSURE: 3,
            cv2.CAP_PROP_GAIN: 0,
            cv2.CAP_PROP_FOCUS: 30,
            cv2.CAP_PROP_AUTOFOCUS: 1,
            cv2.CAP_PROP_WB_TEMPERATURE: 4600,
            cv2.CAP_PROP_AUTO_WB: 1,
            cv2.CAP_PROP_FPS: 30,
        }
        self.asked_width = 0.0

    def get(self, prop: int) -> float:
        return self.values.get(prop, -1.0)

    def set(self, prop: int, value: float) -> bool:
        if prop == cv2.CAP_PROP_FOURCC:
            return self.take(prop, value, value in self.formats)
        if prop == cv2.CAP_PROP_FRAME_WIDTH:
            self.asked_width = value
            return True
        if prop == cv2.CAP_PROP_FRAME_HEIGHT:
            fits = (self.asked_width, value) in self.sizes
            self.take(cv2.CAP_PROP_FRAME_WIDTH, self.asked_width, fits)
            return self.take(prop, value, fits)
        if prop not in self.ranges:
            return False
        least, most = self.ranges[prop]
        return self.take(prop, float(min(max(round(value), least), most)), True)

    def take(self, prop: int, value: float, taken: bool) -> bool:
        if taken:
            self.values[prop] = value
        return taken

    def lack(self, *props: int) -> None:
        for prop in props:
            self.ranges.pop(prop)
            self.values.pop(prop)


FIXED = OpencvSettings(
    index=0,
    format="MJPG",
    width=1280,
    height=720,
    rate=15.0,
    exposure_us=5000,
    gain=20,
    focus=40,
    white_balance_k=5000,
)


def test_every_setting_is_made():
    controls = Controls()
    assert v4l2.configure(controls, FIXED) == []
    expected = {
        cv2.CAP_PROP_FOURCC: fourcc("MJPG"),
        cv2.CAP_PROP_FRAME_WIDTH: 1280,
        cv2.CAP_PROP_FRAME_HEIGHT: 720,
        cv2.CAP_PROP_FPS: 15,
        cv2.CAP_PROP_AUTO_EXPOSURE: 1,
        cv2.CAP_PROP_EXPOSURE: 50,  # of 100 us
        cv2.CAP_PROP_GAIN: 20,
        cv2.CAP_PROP_AUTOFOCUS: 0,
        cv2.CAP_PROP_FOCUS: 40,
        cv2.CAP_PROP_AUTO_WB: 0,
        cv2.CAP_PROP_WB_TEMPERATURE: 5000,
    }
    assert controls.values == expected


def test_without_settings_the_automatics_are_on_and_named_with_their_values():
    controls = Controls()
    controls.values[cv2.CAP_PROP_AUTO_EXPOSURE] = 1  # left so by the program before
    unfixed = v4l2.configure(controls, OpencvSettings(index=0))
    assert unfixed == ["exposure_us: 15600", "white_balance_k: 4600", "focus: 30"]
    assert controls.values[cv2.CAP_PROP_AUTO_EXPOSURE] == 3


def test_a_camera_without_automatics_has_nothing_to_warn_of():
    controls = Controls()
    controls.lack(cv2.CAP_PROP_AUTO_EXPOSURE, cv2.CAP_PROP_AUTOFOCUS, cv2.CAP_PROP_AUTO_WB)
    assert v4l2.configure(controls, OpencvSettings(index=0)) == []
    assert v4l2.configure(controls, FIXED) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "H264"}, r"camera.format H264, it gives YUYV: `v4l2-ctl --list-formats-ext`"),
        (
            {"width": 800, "height": 600},
            r"camera.width 800 and camera.height 600, it gives 640x480 as YUYV",
        ),
        ({"rate": 60.0}, r"camera.rate 60, it gives 30 frames per second at 640x480 as YUYV"),
        ({"exposure_us": 500_000}, r"camera.exposure_us 500000, it gives 204700: .*--list-ctrls"),
        ({"exposure_us": 50}, r"camera.exposure_us 50, it gives 300: .* remove camera.exposure_us"),
        ({"gain": 2.5}, r"camera.gain 2.5, it gives 2: .* remove camera.gain"),
        ({"focus": 1000.0}, r"camera.focus 1000, it gives 250"),
        ({"white_balance_k": 9000}, r"camera.white_balance_k 9000, it gives 6500"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_the_camera_does_not_take_is_refused_and_named(settings, message):
    with pytest.raises(CameraUnusable, match=message):
        v4l2.configure(Controls(), OpencvSettings(index=0, **settings))


@pytest.mark.parametrize("key", ["exposure_us", "gain", "focus", "white_balance_k"])
def test_a_control_that_is_not_there_is_refused(key):
    controls = Controls()
    controls.lack(
        *(control.value for control in v4l2._CONTROLS if control.key == key),
        *(c.automatic for c in v4l2._CONTROLS if c.key == key and c.automatic is not None),
    )
    with pytest.raises(CameraUnusable, match=f"has no camera.{key} to be set"):
        v4l2.configure(controls, OpencvSettings(index=0, **{key: 3000}))


def test_an_automatic_that_stays_on_is_refused():
    controls = Controls()
    controls.ranges[cv2.CAP_PROP_AUTO_EXPOSURE] = (3, 3)
    with pytest.raises(CameraUnusable, match="exposure_us cannot be fixed: the camera does not"):
        v4l2.configure(controls, OpencvSettings(index=0, exposure_us=5000))


def test_a_setting_undone_by_a_later_one_is_refused():
    class Coupled(Controls):
        def set(self, prop: int, value: float) -> bool:
            if prop == cv2.CAP_PROP_GAIN:
                self.values[cv2.CAP_PROP_EXPOSURE] = 156
            return super().set(prop, value)

    with pytest.raises(CameraUnusable, match=r"exposure_us 5000, it gives 15600"):
        v4l2.configure(Coupled(), FIXED)


def test_the_exposure_may_be_off_by_half_a_unit():
    controls = Controls()
    v4l2.configure(controls, OpencvSettings(index=0, exposure_us=5040))
    assert controls.values[cv2.CAP_PROP_EXPOSURE] == 50  # of 100 us


class Device(Controls):
    """A V4L2 camera for VideoCapture: frames with time stamps, stalls, and its loss."""

    def __init__(self, retrieve=None) -> None:
        super().__init__()
        self.number = 0
        self.stalled = threading.Event()
        self.unplugged = threading.Event()
        self.released = threading.Event()
        self.stamp_ms = 0.0
        self.retrieve_as = retrieve or (lambda number: picture_of(number, 640, 480))
        self.made_at: dict[int, int] = {}

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        self.released.set()

    def get(self, prop: int) -> float:
        return self.stamp_ms if prop == cv2.CAP_PROP_POS_MSEC else super().get(prop)

    def grab(self) -> bool:
        if self.unplugged.is_set() or self.unplugged.wait(0.01):
            return False
        if self.stalled.is_set():
            self.unplugged.wait(0.6)  # as OpenCV's select does, more than half its time
            return False
        self.number += 1
        self.made_at[self.number] = time.monotonic_ns()
        self.stamp_ms = time.monotonic_ns() / 1e6
        return True

    def retrieve(self):
        picture = self.retrieve_as(self.number)
        return picture is not None, picture


@pytest.fixture
def plug_in(monkeypatch):
    """Makes VideoCapture a stand-in; /dev/null is there and may be opened, as a camera would."""

    def plug(device: Device, **settings) -> OpencvCamera:
        monkeypatch.setattr(cv2, "VideoCapture", lambda path, api: device)
        return OpencvCamera(OpencvSettings(device="/dev/null", **settings))

    return plug


def test_a_device_is_read_and_given_back(plug_in, caplog):
    device = Device()
    camera = plug_in(device)
    for _ in range(2):
        with camera:
            trigger = time.monotonic_ns()
            frame = camera.capture(trigger, LONG_S)
            assert device.made_at[number_in(frame.pixels)] > trigger
        assert device.released.is_set()
    assert device.values[cv2.CAP_PROP_BUFFERSIZE] == 2
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1  # once, though opened twice
    assert warnings[0].endswith(
        "fix it by, under camera, exposure_us: 15600, white_balance_k: 4600, focus: 30"
    )


def test_a_device_that_stalls_is_a_timeout_and_comes_back(plug_in):
    device = Device()
    with plug_in(device) as camera:
        camera.capture(time.monotonic_ns(), LONG_S)
        device.stalled.set()
        with pytest.raises(CameraTimeout, match="/dev/null gave no picture within 1 s"):
            camera.capture(time.monotonic_ns() + 100 * MS, 1.0)
        device.stalled.clear()
        trigger = time.monotonic_ns()
        assert device.made_at[number_in(camera.capture(trigger, LONG_S).pixels)] > trigger


def test_a_device_unplugged_is_a_loss(plug_in):
    device = Device()
    with plug_in(device) as camera:
        camera.capture(time.monotonic_ns(), LONG_S)
        device.unplugged.set()
        with pytest.raises(CameraLost, match="/dev/null is lost: it was unplugged, it answers"):
            camera.capture(time.monotonic_ns(), LONG_S)
        assert device.released.wait(LONG_S)


def test_a_device_that_refuses_a_setting_is_given_back(plug_in):
    device = Device()
    with pytest.raises(CameraUnusable, match=r"camera\.gain 500"):
        plug_in(device, gain=500).open()
    assert device.released.is_set()


def test_a_device_unplugged_while_it_is_set_up_is_a_loss(plug_in, monkeypatch):
    """Not an error of the settings, which would end the service."""
    device = Device()
    camera = plug_in(device, gain=500)
    monkeypatch.setattr(opencv.Path, "exists", lambda path: False)
    with pytest.raises(CameraLost, match="went away while it was set up"):
        camera.open()


def test_jpeg_of_a_device_is_decoded_here_and_whole(plug_in, caplog):
    whole = threading.Event()

    def jpeg(number: int) -> np.ndarray:
        _, data = cv2.imencode(".jpg", picture_of(number, 640, 480))
        if whole.is_set():
            return data.reshape(1, -1)
        whole.set()
        return data.reshape(1, -1)[:, : data.size // 2]

    device = Device(jpeg)
    with plug_in(device, format="MJPG") as camera:
        trigger = time.monotonic_ns()
        frame = camera.capture(trigger, LONG_S)
    assert device.values[cv2.CAP_PROP_CONVERT_RGB] == 0
    assert frame.pixels.shape == (480, 640, 3)
    assert device.made_at[number_in(frame.pixels)] > trigger
    assert "is cut short: the JPEG ends without its end marker; the next is taken" in caplog.text


@pytest.mark.parametrize(
    "retrieve",
    [lambda number: None, lambda number: cv2.cvtColor(np.zeros((2, 2), np.uint8), -1)],
    ids=["nothing", "cv2.error"],
)
def test_a_picture_that_opencv_cannot_decode_is_damaged(plug_in, retrieve):
    with (
        plug_in(Device(retrieve)) as camera,
        pytest.raises(CameraTimeout, match=r"\(\d+ were damaged\)"),
    ):
        camera.capture(time.monotonic_ns(), 0.5)


def test_an_unexpected_error_is_a_loss_not_a_silence(plug_in, caplog):
    def fail(number: int) -> None:
        raise ZeroDivisionError("by chance")

    device = Device(fail)
    with (
        plug_in(device) as camera,
        pytest.raises(CameraLost, match="reading /dev/null failed: ZeroDivisionError: by chance"),
    ):
        camera.capture(time.monotonic_ns(), LONG_S)
    assert device.released.is_set()
    assert "Traceback" in caplog.text
