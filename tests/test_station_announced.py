"""A station that Home Assistant and Sparkplug hosts see as well, as a process."""

from collections.abc import Callable
from pathlib import Path

from broker import Subscriber
from station import NAME, PROGRAM, SIMULATED, TOPICS, Station, wait_until_available

from inspectd.commands.private_broker import PrivateBroker

OTHERS = "homeassistant: {}, sparkplug: {group: plant1}"


def test_both_are_told_of_the_station_and_of_its_verdicts(
    tmp_path: Path, broker: PrivateBroker, subscribe: Callable[[PrivateBroker], Subscriber]
):
    station = Station(
        tmp_path,
        camera=SIMULATED % 100,
        trigger="{source: interval, interval_s: 0.1}",
        port=broker.port,
    )
    text = station.file.read_text()
    station.file.write_text(text.replace("mqtt: {", f"mqtt: {{{OTHERS}, "))
    station.teach()
    subscriber = subscribe(broker)
    service = station.start()
    wait_until_available(subscriber)
    node = f"spBv1.0/plant1/{{}}/{NAME}"
    subscriber.wait_for(node.format("NBIRTH"), 1)
    subscriber.wait_for(f"{node.format('DBIRTH')}/{PROGRAM}", 1)
    subscriber.wait_for(f"{node.format('DDATA')}/{PROGRAM}", 3)
    subscriber.wait_for(f"homeassistant/device/inspectd_{NAME}/config", 1)
    subscriber.wait_for(TOPICS.statistics, 1)
    subscriber.wait_for(TOPICS.heartbeat, 1)
    assert service.stop() == 0
    subscriber.wait_for(node.format("NDEATH"), 1)
    station.clean_up()
