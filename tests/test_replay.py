"""The replay camera: folders and videos, whole or damaged."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from broker import eventually
from station import write_pictures

from inspectd.camera import replay
from inspectd.camera.replay import ReplayCamera
from inspectd.config import load_to_run
from inspectd.control import StatusRequest, ask
from inspectd.errors import (
    CameraLost,
    CameraTimeout,
    CameraUnusable,
    EndOfFrames,
    PictureUnreadable,
)

FAST = 1000.0


def save(path: Path, grey: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(grey).integers(0, 20, (48, 64, 3), np.uint8)
    cv2.imwrite(str(path), noise + np.uint8(grey))
    return path


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def play(camera: ReplayCamera, limit: int = 1000) -> list[tuple[str, np.ndarray]]:
    frames = []
    with camera:
        while len(frames) < limit:
            try:
                frame = camera.capture(0, 10.0)
            except EndOfFrames:
                break
            frames.append((frame.name, frame.pixels))
    return frames


def capture_on(camera: ReplayCamera) -> None:
    """More than are decoded already, or in the longest recording here."""
    for _ in range(30):
        camera.capture(0, 10.0)


def names(camera: ReplayCamera, limit: int = 1000) -> list[str]:
    return [name for name, _ in play(camera, limit)]


@pytest.fixture
def folder(tmp_path):
    for grey, name in enumerate(["good/1.png", "good/2.png", "good/10.jpg", "test/1.bmp"]):
        save(tmp_path / name, 40 * grey)
    return tmp_path


def test_a_folder_is_played_once_in_order(folder):
    frames = play(ReplayCamera(folder, FAST))
    assert [name for name, _ in frames] == ["good/1.png", "good/2.png", "good/10.jpg", "test/1.bmp"]
    assert [round((pixels.mean() - 9.5) / 40) for _, pixels in frames] == [0, 1, 2, 3]


def test_the_end_is_told_every_time(folder):
    with ReplayCamera(folder, FAST) as camera:
        for _ in range(4):
            camera.capture(0, 10.0)
        for _ in range(3):
            with pytest.raises(EndOfFrames, match="has come to its end"):
                camera.capture(0, 10.0)


def test_a_loop_begins_again(folder):
    played = names(ReplayCamera(folder, FAST, loop=True), limit=10)
    assert played == (["good/1.png", "good/2.png", "good/10.jpg", "test/1.bmp"] * 3)[:10]


def test_one_image_is_a_folder_of_one(folder):
    """OpenCV's video reader would go on with 2.png, the next of what it takes for a sequence."""
    assert names(ReplayCamera(folder / "good" / "1.png", FAST)) == ["1.png"]


def test_damaged_files_are_reported_once_and_skipped(folder, caplog):
    halve(folder / "good/2.png")
    halve(folder / "good/10.jpg")
    (folder / "good/3.png").touch()
    (folder / "good/4.png").symlink_to("nowhere.png")
    with caplog.at_level(logging.WARNING):
        played = names(ReplayCamera(folder, FAST, loop=True), limit=6)
    assert played == ["good/1.png", "test/1.bmp"] * 3
    told = [record.getMessage() for record in caplog.records]
    assert [message.split(": ")[0] for message in told] == [
        f"{folder}/good/2.png is cut short",
        f"{folder}/good/3.png is empty; skipped, not judged",
        f"{folder}/good/4.png cannot be read",
        f"{folder}/good/10.jpg is cut short",
    ]
    assert all("replace or delete it" in message for message in told)


@pytest.mark.parametrize("loop", [False, True])
def test_nothing_but_damaged_files_is_an_error_not_a_silence(folder, loop):
    for path in folder.rglob("*.*"):
        halve(path)
    camera = ReplayCamera(folder, FAST, loop)
    for _ in range(2):
        with pytest.raises(CameraUnusable, match=r"not one picture of .* can be read"):
            camera.open()
    with pytest.raises(CameraLost, match="is closed"):
        camera.capture(0, 10.0)


@pytest.mark.parametrize("whole_folder", [False, True])
def test_pictures_that_vanish_from_a_loop_are_a_loss_and_can_come_again(
    folder, tmp_path_factory, whole_folder
):
    away = tmp_path_factory.mktemp("away") / "pictures"
    with ReplayCamera(folder, FAST, loop=True) as camera:
        camera.capture(0, 10.0)
        folder.rename(away)
        if not whole_folder:
            folder.mkdir()
        with pytest.raises(CameraLost, match=r"not one picture of .* can be read"):
            capture_on(camera)
        with pytest.raises(CameraUnusable, match="no such folder" if whole_folder else "no pict"):
            camera.open()
        if not whole_folder:
            folder.rmdir()
        away.rename(folder)
        camera.open()
        assert camera.capture(0, 10.0).name == "good/1.png"


def test_a_folder_that_vanishes_ends_no_service_and_is_played_again_when_it_is_back(
    make_station,
):
    station = make_station(
        camera="{driver: replay, path: parts, rate: 50, loop: true}",
        trigger="{source: continuous}",
    )
    station.teach()
    parts = write_pictures(station.folder / "parts", range(20, 24))
    service = station.start()
    control = load_to_run(station.file)[0].control_socket

    def state() -> tuple[str, str]:
        reply = ask(control, StatusRequest())
        assert reply is None or reply.state is not None
        return (reply.state.state, reply.state.detail) if reply else ("", "")

    assert eventually(lambda: state()[0] == "judging", 60.0), service.log
    assert eventually(lambda: len(station.rows()) > 4, 60.0), service.log
    parts.rename(station.folder / "away")
    assert eventually(lambda: "no such folder or file" in state()[1], 60.0), state()
    assert state()[0] == "camera_fault"
    parts.mkdir()
    halve(write_pictures(parts, [20]) / "20.png")
    assert eventually(lambda: "not one picture of" in state()[1], 60.0), state()
    assert state()[0] == "camera_fault"
    shutil.rmtree(parts)
    (station.folder / "away").rename(parts)
    assert eventually(lambda: state()[0] == "judging", 60.0), state()
    count = len(station.rows())
    assert eventually(lambda: len(station.rows()) > count, 60.0)
    assert service.stop() == 0, service.log
    assert "Traceback" not in service.log


class Decoder:
    """In place of `read_image`: waits before each picture until that one is allowed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed = self._begun = 0
        self._picture = np.zeros((48, 64), np.uint8)

    def __call__(self, _path: Path) -> np.ndarray:
        with self._changed:
            self._begun += 1
            number = self._begun
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: number <= self._allowed, 30.0)
        return self._picture

    def allow(self, count: int) -> None:
        """So many in all."""
        with self._changed:
            self._allowed = count
            self._changed.notify_all()

    def begun(self, count: int) -> bool:
        """Whether so many are begun, once they are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._begun >= count, 30.0)


@pytest.fixture
def decoder(monkeypatch):
    decoder = Decoder()
    monkeypatch.setattr(replay, "read_image", decoder)
    monkeypatch.setattr(replay, "find_images", lambda _: [Path(f"{n}.png") for n in range(100)])
    yield decoder
    decoder.allow(1000)


def test_a_picture_is_given_while_a_later_one_is_being_decoded(folder, decoder):
    decoder.allow(2)
    with ReplayCamera(folder, FAST) as camera:
        assert camera.capture(0, 30.0).name == "0.png"
        assert decoder.begun(3)
        assert camera.capture(0, 30.0).name == "1.png"
        with pytest.raises(CameraTimeout, match="was decoded within 0 s"):
            camera.capture(0, 0.0)
        decoder.allow(3)
        assert camera.capture(0, 30.0).name == "2.png"
        decoder.allow(1000)


def test_only_so_many_pictures_are_decoded_ahead(folder, decoder, monkeypatch):
    """The worker says that it waits by asking whether one more is wanted."""
    decoder.allow(1000)
    wanted, asked = replay._Playback._wanted, threading.Semaphore(0)

    def wanted_told(playback: replay._Playback) -> bool:
        asked.release()
        return wanted(playback)

    monkeypatch.setattr(replay._Playback, "_wanted", wanted_told)
    with ReplayCamera(folder, FAST) as camera:
        for taken in range(4):
            for _ in range(1 if taken else replay._AHEAD + 1):
                assert asked.acquire(timeout=30.0)
            assert decoder._begun == replay._AHEAD + taken
            assert camera.capture(0, 30.0).name == f"{taken}.png"


@pytest.mark.parametrize("allowed", [0, 1], ids=["open", "capture"])
def test_close_ends_who_waits_for_a_picture(folder, decoder, allowed):
    decoder.allow(allowed)
    camera = ReplayCamera(folder, FAST)
    ended = []

    def wait() -> None:
        try:
            camera.open()
            camera.capture(0, 30.0)
            camera.capture(0, 30.0)
        except CameraLost as error:
            ended.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert decoder.begun(allowed + 1)
    closing = threading.Thread(target=camera.close)
    closing.start()
    waiting.join(30.0)  # before the picture is decoded
    assert len(ended) == 1
    assert "closed" in ended[0]
    decoder.allow(1000)
    closing.join(30.0)
    assert not closing.is_alive()


def test_close_ends_a_worker_that_only_skips(folder, monkeypatch):
    """Else a folder full of damaged files would hold up the stop of the service."""
    tried = []
    third = threading.Event()

    def unreadable(path: Path) -> None:
        tried.append(path)
        time.sleep(0.01)
        if len(tried) == 3:
            third.set()
        raise PictureUnreadable("is damaged")

    monkeypatch.setattr(replay, "find_images", lambda _: [Path(f"{n}.png") for n in range(3000)])
    monkeypatch.setattr(replay, "read_image", unreadable)
    camera = ReplayCamera(folder, FAST)

    def open_it() -> None:
        with pytest.raises(CameraLost):
            camera.open()

    opening = threading.Thread(target=open_it)
    opening.start()
    assert third.wait(30.0)
    camera.close()
    opening.join(30.0)
    assert not opening.is_alive()
    assert len(tried) < 3000


@pytest.mark.parametrize("name", ["gone", "gone.mp4"])
def test_a_missing_path_is_named(tmp_path, name):
    with pytest.raises(CameraUnusable, match=rf"no such folder or file: {tmp_path}/{name};.*png"):
        ReplayCamera(tmp_path / name).open()


def test_a_folder_without_pictures_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(CameraUnusable, match=rf"no pictures in {tmp_path}: .* png, jpg, .*ppm"):
        ReplayCamera(tmp_path).open()


def test_a_file_that_is_no_video_is_refused_quietly(tmp_path, capfd):
    path = tmp_path / "no.mp4"
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(CameraUnusable, match=r"no.mp4 is neither a video"):
        ReplayCamera(path).open()
    assert capfd.readouterr() == ("", "")


@pytest.fixture(params=["MJPG", "FFV1"])
def video(request, tmp_path):
    """A video of 12 pictures, each brighter than the last."""
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*request.param), 10, (160, 120))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {request.param}")
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 10, (120, 160, 3), np.uint8)
        writer.write(noise + np.uint8(20 * number))
    writer.release()
    return path


def test_a_video_is_played_in_order_and_in_a_loop(video):
    frames = play(ReplayCamera(video, FAST))
    assert [name for name, _ in frames] == [f"line.avi#{number}" for number in range(12)]
    assert [round((pixels.mean() - 4.5) / 20) for _, pixels in frames] == list(range(12))
    looped = names(ReplayCamera(video, FAST, loop=True), limit=14)
    assert looped[11:] == ["line.avi#11", "line.avi#0", "line.avi#1"]


def test_of_a_video_cut_short_only_whole_pictures_come(video, caplog, capfd):
    whole = [pixels for _, pixels in play(ReplayCamera(video, FAST))]
    data = video.read_bytes()
    for share in (0.65, 0.75, 0.85):
        caplog.clear()
        video.write_bytes(data[: int(len(data) * share)])
        with caplog.at_level(logging.WARNING):
            frames = [pixels for _, pixels in play(ReplayCamera(video, FAST, loop=True), 30)]
        count = next(n for n in range(1, 12) if np.array_equal(frames[n], whole[0]))
        assert all(np.array_equal(frame, whole[n % count]) for n, frame in enumerate(frames))
        assert [record.getMessage().split(":")[0] for record in caplog.records] == [
            f"{video} ends at picture {count + 1} of 12"
        ]
    assert capfd.readouterr() == ("", "")


def test_a_video_that_vanishes_from_a_loop_is_a_loss(video):
    with ReplayCamera(video, FAST, loop=True) as camera:
        camera.capture(0, 10.0)
        video.unlink()
        with pytest.raises(CameraLost, match=r"line.avi is neither a video"):
            capture_on(camera)


def test_of_a_video_that_does_not_say_its_length_the_last_picture_is_not_judged(tmp_path, caplog):
    pictures = b"".join(save(tmp_path / f"{n}.jpg", 30 * n).read_bytes() for n in range(5))
    (tmp_path / "raw.mjpeg").write_bytes(pictures)
    with caplog.at_level(logging.WARNING):
        played = names(ReplayCamera(tmp_path / "raw.mjpeg", FAST))
    assert played == [f"raw.mjpeg#{number}" for number in range(4)]
    assert "does not say how many pictures it has" in caplog.text


def test_the_pictures_of_a_real_set_come_with_their_folders():
    shared = Path(__file__).parents[2] / "shared" / "data" / "transistor" / "test"
    if not shared.is_dir():
        pytest.skip("no photographs: ../shared/data is missing")
    expected = sorted(str(path.relative_to(shared)) for path in shared.rglob("*.*"))
    assert sorted(names(ReplayCamera(shared, FAST))) == expected
