"""The whole station on the real Picamera2, before a simulated sensor."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker import Subscriber, eventually
from sensor import HEIGHT, WIDTH, Scene, on_the_sensor
from station import (
    PROGRAM,
    TOPICS,
    Station,
    decoded,
    request,
    wait_for_state,
    wait_for_verdicts,
    wait_until_available,
)

from inspectd.camera.simulated import render
from inspectd.commands.private_broker import PrivateBroker
from inspectd.control import TeachRequest, ask
from inspectd.records import Defect
from inspectd.settings import SimulatedCamera

pytestmark = on_the_sensor

PARTS = SimulatedCamera(width=WIDTH, height=HEIGHT, seed=3, light_drift=0.01)
CAMERA = "{driver: picamera2, exposure_us: 10000, rate: 60}"
TAUGHT = 16


@pytest.fixture
def subscriber(
    broker: PrivateBroker, subscribe: Callable[[PrivateBroker], Subscriber]
) -> Subscriber:
    return subscribe(broker)


@contextmanager
def passing_by(scene: Scene, numbers: range) -> Iterator[None]:
    """Good parts, one after the other, as often as there is time."""
    pictures = [render(PARTS, number)[0] for number in numbers]
    leaving = threading.Event()

    def pass_by() -> None:
        for picture in itertools.cycle(pictures):
            scene.show(picture)
            if leaving.wait(0.05):
                return

    thread = threading.Thread(target=pass_by)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()


def teach(station: Station, scene: Scene) -> None:
    """On the running station, from its camera."""
    socket = station.folder / "state" / "cell" / "control.sock"
    with passing_by(scene, range(TAUGHT)):
        reply = ask(socket, TeachRequest(program=PROGRAM, frames=3 * TAUGHT))
    assert reply is not None
    assert reply.taught is not None
    assert reply.taught.total >= TAUGHT // 2


def taught_station(folder: Path, scene: Scene, broker: PrivateBroker, extra: str) -> Station:
    station = Station(
        folder, camera=CAMERA, trigger="{source: mqtt}", port=broker.port, extra=extra
    )
    scene.show(render(PARTS, 0)[0])
    return station


def judge(subscriber: Subscriber, part_id: str, count: int) -> dict:
    request(subscriber, {"part_id": part_id})
    found = wait_for_verdicts(subscriber, count)[-1]
    assert found["part_id"] == part_id
    return found


def test_it_teaches_from_the_sensor_and_tells_a_missing_pin_from_a_good_part(
    tmp_path: Path, scene: Scene, broker: PrivateBroker, subscriber: Subscriber
):
    station = taught_station(tmp_path, scene, broker, "frozen_after: 0\n")
    service = station.start()
    wait_for_state(subscriber, "not_ready")
    teach(station, scene)
    wait_until_available(subscriber)
    good, _ = render(PARTS, 40)
    bad, truth = render(PARTS, 41, Defect.MISSING_PIN)
    answers = []
    for count, (picture, name) in enumerate([(good, "good"), (bad, "bad"), (good, "again")], 1):
        scene.show(picture)
        answers.append(judge(subscriber, name, count))
    assert [answer["verdict"] for answer in answers] == ["PASS", "FAIL", "PASS"], answers
    x0, y0, x1, y1 = truth.box
    peak = answers[1]["peak"]
    assert x0 - 30 < peak["x"] < x1 + 30
    assert y0 - 30 < peak["y"] < y1 + 30
    assert all(answer["timings_ms"]["capture"] > 0 for answer in answers)
    assert service.stop() == 0
    station.clean_up()


def test_a_stalled_camera_is_told_and_comes_back(
    tmp_path: Path, scene: Scene, broker: PrivateBroker, subscriber: Subscriber
):
    station = taught_station(
        tmp_path, scene, broker, "frozen_after: 0\ncapture_timeout_s: 0.5\nreopen_after: 2\n"
    )
    service = station.start()
    wait_for_state(subscriber, "not_ready")
    teach(station, scene)
    wait_until_available(subscriber)
    with scene.ailing("stall"):
        for count, name in enumerate("abc", 1):
            answer = judge(subscriber, name, count)
            assert answer["verdict"] == "NOT_JUDGED"
            assert answer["reason"] in {"camera timeout", "camera lost"}
        availability = [m.payload for m in subscriber.received(TOPICS.availability)]
        assert availability[-1] == b"offline"
        state = decoded(subscriber, TOPICS.state)[-1]
        assert state["state"] == "camera_fault"
        assert state["detail"]
    wait_until_available(subscriber, times=2)  # by itself, without a trigger
    assert judge(subscriber, "d", 4)["score"] is not None
    assert service.stop() == 0
    station.clean_up()


def test_frames_in_error_are_not_judged(
    tmp_path: Path, scene: Scene, broker: PrivateBroker, subscriber: Subscriber
):
    station = taught_station(tmp_path, scene, broker, "frozen_after: 0\ncapture_timeout_s: 0.5\n")
    service = station.start()
    wait_for_state(subscriber, "not_ready")
    with scene.ailing("error"):
        answer = judge(subscriber, "a", 1)
    assert (answer["verdict"], answer["reason"]) == ("NOT_JUDGED", "camera timeout")
    assert service.stop() == 0
    station.clean_up()


def test_a_stop_during_a_stall_is_as_quick_as_ever(
    tmp_path: Path, scene: Scene, broker: PrivateBroker, subscriber: Subscriber
):
    station = taught_station(tmp_path, scene, broker, "capture_timeout_s: 60\n")
    service = station.start()
    wait_for_state(subscriber, "not_ready")
    with scene.ailing("stall"):
        request(subscriber, {"part_id": "a"})
        assert service.stop(timeout_s=20.0) == 0
    (answer,) = wait_for_verdicts(subscriber, 1)
    assert (answer["verdict"], answer["reason"]) == ("NOT_JUDGED", "stopping")
    station.clean_up()


def test_a_sensor_that_shows_the_same_for_ever_is_a_fault(
    tmp_path: Path, scene: Scene, broker: PrivateBroker, subscriber: Subscriber
):
    station = taught_station(tmp_path, scene, broker, "reopen_after: 1000\n")
    service = station.start()
    wait_until_frozen = eventually(
        lambda: any(
            "shows the past" in state["detail"] for state in decoded(subscriber, TOPICS.state)
        )
    )
    assert wait_until_frozen
    answer = judge(subscriber, "a", 1)
    assert (answer["verdict"], answer["reason"]) == ("NOT_JUDGED", "frozen picture")
    assert service.stop() == 0
    station.clean_up()
