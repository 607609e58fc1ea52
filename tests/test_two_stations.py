"""Two cameras on one machine: a process and a settings file each, one broker, nothing shared."""

import json
from collections.abc import Callable
from pathlib import Path

from broker import Subscriber, eventually
from station import SIMULATED, Station

from inspectd.commands.private_broker import PrivateBroker
from inspectd.mqtt.topics import Topics

EVERY_100_MS = "{source: interval, interval_s: 0.1}"


def pair(folder: Path, broker: PrivateBroker) -> list[Station]:
    """Files in one folder and journals in another: as on a machine with two cameras."""
    stations = [
        Station(folder, camera=SIMULATED % 100, trigger=EVERY_100_MS, port=broker.port, name=name)
        for name in ("left", "right")
    ]
    for station, first in zip(stations, (0, 8), strict=True):
        station.teach(range(first, first + 8))
    return stations


def test_two_stations_side_by_side(
    tmp_path: Path,
    broker: PrivateBroker,
    subscribe: Callable[[PrivateBroker], Subscriber],
):
    subscriber = subscribe(broker)
    left, right = pair(tmp_path, broker)
    topics = {station: Topics(station.file.stem) for station in (left, right)}

    def verdicts(station: Station) -> list[dict]:
        return [json.loads(m.payload) for m in subscriber.received(topics[station].verdict)]

    def availability(station: Station) -> bytes:
        return subscriber.received(topics[station].availability)[-1].payload

    services = {station: station.start() for station in (left, right)}
    for station in (left, right):
        assert eventually(lambda station=station: len(verdicts(station)) >= 5)
        found = verdicts(station)
        assert [one["seq"] for one in found] == list(range(1, len(found) + 1))
        assert {one["station"] for one in found} == {station.file.stem}
    journals, references = (
        {one[key] for station in (left, right) for one in verdicts(station)}
        for key in ("journal_id", "references_hash")
    )
    assert len(journals) == len(references) == 2

    services[left].kill()
    seen = len(verdicts(right))
    assert eventually(lambda: availability(left) == b"offline")
    assert eventually(lambda: len(verdicts(right)) >= seen + 5)
    assert availability(right) == b"online"
    assert services[right].stop() == 0
    for station in (left, right):
        station.clean_up()


def test_the_same_station_twice_is_refused(
    tmp_path: Path,
    broker: PrivateBroker,
    subscribe: Callable[[PrivateBroker], Subscriber],
):
    subscriber = subscribe(broker)
    left, _ = pair(tmp_path, broker)
    first = left.start()
    subscriber.wait_for(Topics("left").verdict, 1)
    second = left.start()
    assert second.wait() == 1
    assert "journal" in second.log
    assert first.process.poll() is None
    left.clean_up()
