"""The same picture by every way into the station: its verdict does not depend on the way."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from sensor import HEIGHT, WIDTH, Scene, on_the_sensor

from inspectd.camera import Camera
from inspectd.camera.guard import Guarded
from inspectd.camera.opencv import OpencvCamera
from inspectd.camera.replay import ReplayCamera
from inspectd.camera.simulated import render
from inspectd.imaging import preprocess
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.records import Defect, Frame, Image, Inspection, Verdict
from inspectd.settings import LimitSettings, Picamera2Camera, Program, SimulatedCamera
from inspectd.settings import OpencvCamera as OpencvSettings

ENOUGH_S = 20.0
TAUGHT = 12
# A good part's score lies where no rounding makes it a bad one.
PROGRAM = Program(limit=LimitSettings(threshold=1.3))
PARTS = SimulatedCamera(width=WIDTH, height=HEIGHT, seed=3, light_drift=0.01)

pytestmark = pytest.mark.filterwarnings("ignore:setDaemon:DeprecationWarning")


def by_replay(folder: Path, pictures: Sequence[Image]) -> Iterator[Frame]:
    for number, picture in enumerate(pictures):
        assert cv2.imwrite(str(folder / f"{number:03}.png"), picture)
    with ReplayCamera(folder, rate=1000.0) as camera:
        for _ in pictures:
            yield camera.capture(0, ENOUGH_S)


@contextmanager
def showing(pipe: Path, shown: list[Image]) -> Iterator[None]:
    """A camera that gives, 15 times a second, the last of what is shown, uncompressed."""
    os.mkfifo(pipe)
    leaving = threading.Event()

    def write() -> None:
        with pipe.open("wb", buffering=0) as stream, contextlib.suppress(BrokenPipeError):
            stream.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F15:1 Ip A1:1 Cmono\n".encode())
            while not leaving.wait(1 / 15):
                stream.write(b"FRAME\n" + shown[-1].tobytes())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        leaving.set()
        writer.join()


def by_opencv(folder: Path, pictures: Sequence[Image]) -> Iterator[Frame]:
    shown = [pictures[0]]
    pipe = folder / "camera.y4m"
    with showing(pipe, shown), Guarded(OpencvCamera(OpencvSettings(device=str(pipe)))) as camera:
        yield from one_by_one(camera, pictures, shown.append)


def by_picamera2(scene: Scene, pictures: Sequence[Image], reduce: int) -> Iterator[Frame]:
    from inspectd.camera.picamera import Picamera

    with Picamera(Picamera2Camera(exposure_us=10_000, reduce=reduce), None) as camera:
        yield from one_by_one(camera, pictures, scene.show)


def one_by_one(camera: Camera, pictures: Sequence[Image], show) -> Iterator[Frame]:
    for picture in pictures:
        show(picture)
        yield camera.capture(time.monotonic_ns(), ENOUGH_S)


def judged(frames: Iterator[Frame]) -> list[Inspection]:
    """Taught by the first of them, what becomes of the rest."""
    taught = [next(frames) for _ in range(TAUGHT)]
    crops = [preprocess.crop(frame.pixels, PROGRAM.roi, frame.view) for frame in taught]
    inspector = Inspector(PROGRAM, [ReducedCrop.of(crop, PROGRAM.resolution) for crop in crops])
    return [inspector.inspect(frame.pixels, frame.view) for frame in frames]


@pytest.fixture(scope="module")
def pictures() -> list[Image]:
    good = [render(PARTS, number)[0] for number in range(TAUGHT + 3)]
    return good + [render(PARTS, 40 + number, kind)[0] for number, kind in enumerate(Defect)]


@pytest.fixture
def expected(tmp_path: Path, pictures: list[Image]) -> list[Inspection]:
    (tmp_path / "replay").mkdir()
    return judged(by_replay(tmp_path / "replay", pictures))


def assert_alike(
    found: list[Inspection], expected: list[Inspection], in_limits: float = 0.0
) -> None:
    """Scores within 2 %, or within ``in_limits`` where that is more."""
    good = len(expected) - len(Defect)
    wanted = [Verdict.PASS] * good + [Verdict.FAIL] * len(Defect)
    assert [one.verdict for one in expected] == wanted
    assert [one.verdict for one in found] == wanted
    scores = [one.score for one in found]
    assert scores == pytest.approx([one.score for one in expected], rel=0.02, abs=in_limits)
    for one, other in zip(found, expected, strict=True):
        assert np.hypot(one.peak.x - other.peak.x, one.peak.y - other.peak.y) < 30


def test_opencv_judges_as_replay_does(
    tmp_path: Path, pictures: list[Image], expected: list[Inspection]
):
    assert_alike(judged(by_opencv(tmp_path, pictures)), expected)


@on_the_sensor
def test_picamera2_judges_as_replay_does(
    scene: Scene, pictures: list[Image], expected: list[Inspection]
):
    assert_alike(judged(by_picamera2(scene, pictures, reduce=1)), expected)


@on_the_sensor
def test_so_it_does_when_its_image_pipeline_reduces_the_picture(
    scene: Scene, pictures: list[Image], expected: list[Inspection]
):
    """It filters otherwise than area averaging, by a grey level or two: 2 % of the limit."""
    assert_alike(judged(by_picamera2(scene, pictures, reduce=2)), expected, in_limits=0.02)
