"""The replay camera: folders and videos, whole or damaged."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from inspectd.camera import replay
from inspectd.camera.replay import ReplayCamera
from inspectd.errors import CameraUnusable, EndOfFrames, PictureUnreadable

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
    with ReplayCamera(folder, FAST, loop) as camera:
        for _ in range(2):
            with pytest.raises(CameraUnusable, match=r"not one picture of .* can be read"):
                camera.capture(0, 10.0)


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
    with ReplayCamera(folder, FAST):
        assert third.wait(30.0)
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
