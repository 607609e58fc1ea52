"""What a broker keeps for a station that is away, and what it acknowledges, with real brokers."""

import importlib.util
import logging
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from broker import TIMEOUT_S, eventually, payloads
from impostor import Impostor
from paho.mqtt.enums import CallbackAPIVersion
from soak.proxy import Proxy

from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.errors import BrokerState
from inspectd.mqtt import client as client_module
from inspectd.mqtt import connection as connection_module
from inspectd.mqtt import pace as pace_module
from inspectd.mqtt import standing as standing_module
from inspectd.mqtt.client import MqttClient
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings

TOPICS = Topics("line1-cell3")
TRIGGER = TOPICS.request("trigger")
APART_S = pace_module.APART_S


class Station:
    """A client that keeps its requests, and acknowledges none of itself."""

    def __init__(self, port):
        self.requests = []
        self.arrival = threading.Condition()
        self.stands = threading.Event()
        self.acknowledged_mids = []
        settings = MqttSettings(host=HOST, port=port)
        self.client = MqttClient(settings, TOPICS, "inspectd-line1-cell3", self.on_request, Path)
        self.client.start(self)

    def on_request(self, name, message):
        with self.arrival:
            self.requests.append(message)
            self.arrival.notify_all()

    def connected(self):
        self.stands.set()

    def lost(self):
        self.stands.clear()
        self.acknowledged_mids.clear()  # the next connection counts anew

    def acknowledged(self, mid, refusal):
        self.acknowledged_mids.append(mid)

    def wait_for(self, count):
        with self.arrival:
            came = self.arrival.wait_for(lambda: len(self.requests) >= count, TIMEOUT_S)
            assert came, f"{len(self.requests)} requests, not {count}"
            return list(self.requests)

    def knows_what_is_new(self):
        return eventually(lambda: (marker := self.client._marker) is None or not marker.waited)

    def told(self):
        return [(message.payload, message.queued) for message in self.requests]

    def acknowledge_all(self):
        for message in self.requests:
            message.acknowledge()


@pytest.fixture
def start(monkeypatch, caplog):
    """Starts stations that try again at once, and stops them at the end."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(pace_module, "APART_S", 0.0)
    monkeypatch.setattr(standing_module, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(standing_module, "LONGEST_RETRY_S", 0.2)
    monkeypatch.setattr(standing_module, "REFUSED_RETRY_S", 0.2)
    stations = []

    def make(port, *, settle=True):
        stations.append(Station(port))
        assert stations[-1].stands.wait(TIMEOUT_S)
        assert not settle or settled(stations[-1])  # which includes the subscription
        return stations[-1]

    yield make
    for station in stations:
        station.client.stop()


@pytest.fixture
def silence():
    """Lets everybody in, and then says nothing."""
    server = Impostor(b"\x20\x03\x00\x00\x00", hang_up=False)
    yield server
    server.close()


def ask(subscriber, *payloads):
    for payload in payloads:
        subscriber.publish(TRIGGER, payload, properties=None)


def ask_at_once(subscriber, numbers):
    infos = [subscriber._client.publish(TRIGGER, b"%d" % number, 1) for number in numbers]
    for info in infos:
        info.wait_for_publish(TIMEOUT_S)


def settled(station):
    """Whether the broker has what the station sent before."""
    mid = station.client.publish(TOPICS.doctor, b"")
    return eventually(lambda: mid in station.acknowledged_mids)


# ---- requests ----------------------------------------------------------------------------------


def test_what_waited_for_the_station_is_known_from_what_is_new(broker, start, subscribe):
    requester = subscribe(broker)
    first = start(broker.port)
    ask(requester, b"live")
    first.wait_for(1)
    first.acknowledge_all()
    first.client.stop()
    ask_at_once(requester, range(60))
    second = start(broker.port)
    second.wait_for(20)  # as many as Mosquitto delivers without an acknowledgement
    for number in range(60):
        second.wait_for(number + 1)[number].acknowledge()
    assert second.knows_what_is_new()
    ask(requester, b"new")
    second.wait_for(61)
    assert first.told() == [(b"live", False)]
    assert second.told() == [
        *((b"%d" % number, True) for number in range(60)),
        (b"new", False),
    ]


def test_a_request_is_delivered_again_until_it_is_acknowledged(broker, start, subscribe):
    requester = subscribe(broker)
    first = start(broker.port)
    ask(requester, b"done", b"lost")
    first.wait_for(2)[0].acknowledge()
    assert settled(first)
    first.client.stop()
    second = start(broker.port)
    second.wait_for(1)
    assert second.told() == [(b"lost", True)]
    assert second.knows_what_is_new()
    second.acknowledge_all()
    assert settled(second)
    second.client.stop()
    third = start(broker.port)
    ask(requester, b"new")
    third.wait_for(1)
    assert third.requests[-1].payload == b"new"
    assert len(third.requests) == 1


def test_acknowledgements_keep_the_order_of_the_requests(broker, start, subscribe):
    requester = subscribe(broker)
    first = start(broker.port)
    ask(requester, b"slow", b"quick")
    first.wait_for(2)[1].acknowledge()
    assert settled(first)
    first.client.stop()
    second = start(broker.port)
    second.wait_for(2)
    assert second.told() == [(b"slow", True), (b"quick", True)]
    # Late, on a connection that is over, an acknowledgement does nothing; not even to the new one.
    first.acknowledge_all()
    second.requests[0].acknowledge()
    second.requests[0].acknowledge()
    assert settled(second)
    second.client.stop()
    third = start(broker.port)
    third.wait_for(1)
    assert third.told() == [(b"quick", True)]


def test_hundreds_of_requests_do_not_stall_when_they_are_acknowledged_late(
    broker, start, subscribe
):
    requester = subscribe(broker)
    station = start(broker.port)
    sending = threading.Thread(target=ask_at_once, args=(requester, range(400)))
    sending.start()

    def has_come(number):
        # Later than this the broker would wait for us, its window being full of requests and of
        # the station's own markers behind them.
        if station.client._connection.owed >= 16:
            station.acknowledge_all()
        return len(station.requests) > number

    for number in range(400):
        assert eventually(lambda wanted=number: has_come(wanted))
        message = station.requests[number]
        assert (message.payload, message.queued) == (b"%d" % number, False)
    sending.join()


CHILD = f"""
import sys, time
from pathlib import Path
from inspectd.mqtt.client import MqttClient
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings
class Nobody:
    connected = lost = lambda self: None
    acknowledged = lambda self, mid, refusal: None
def on_request(name, message):
    print(message.payload.decode(), message.queued, flush=True)
    if message.payload.isdigit() and int(message.payload) % 2 == 0:
        return
    message.acknowledge()
settings = MqttSettings(host={HOST!r}, port=int(sys.argv[1]))
client = MqttClient(
    settings, Topics({TOPICS.station!r}), "inspectd-line1-cell3", on_request, Path
)
client.start(Nobody())
sys.stdin.read()
"""


@contextmanager
def child(port):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_nothing_is_lost_or_taken_for_new_when_the_station_is_killed(broker, start, subscribe):
    requester = subscribe(broker)
    with child(broker.port) as killed:
        requester.wait_for(TOPICS.availability)
        ask(requester, b"0")
        assert killed.stdout.readline() == "0 False\n"
        sending = threading.Thread(target=ask_at_once, args=(requester, range(1, 200)))
        sending.start()
        killed.stdout.readline()
        killed.kill()
        seen_before = 1 + len(killed.stdout.readlines())
    sending.join()
    station = start(broker.port)
    answered = 0
    while answered < 200:  # the last ones, too: the marker comes behind all that is owed
        for message in station.wait_for(answered + 1)[answered:]:
            message.acknowledge()
            answered += 1
    assert station.knows_what_is_new()
    ask(requester, b"new")
    assert eventually(lambda: station.requests[-1].payload == b"new")
    *waited, new = station.told()
    assert new == (b"new", False)
    assert all(queued for _, queued in waited)
    numbers = [int(payload) for payload, _ in waited]
    assert numbers == sorted(numbers)
    # The first was not acknowledged, so nothing after it was, for they keep their order.
    assert numbers == list(range(200))
    assert seen_before >= 1


def test_requests_outlive_a_restart_of_the_broker(broker, start, subscribe):
    requester = subscribe(broker)
    first = start(broker.port)
    first.client.stop()
    ask(requester, b"1", b"2")
    broker.restart()
    second = start(broker.port)
    second.wait_for(2)
    assert second.told() == [(b"1", True), (b"2", True)]
    second.acknowledge_all()
    assert second.knows_what_is_new()
    assert settled(second)
    # While the station lives, too.
    broker.stop()
    assert eventually(lambda: not second.stands.is_set())
    broker.start()
    assert second.stands.wait(TIMEOUT_S)
    assert second.knows_what_is_new()
    ask(subscribe(broker), b"new")
    second.wait_for(3)
    assert second.told()[2:] == [(b"new", False)]


def test_a_broker_that_does_not_take_the_marker_keeps_nothing(
    broker_directory, start, subscribe, caplog
):
    rules = broker_directory / "acl"
    rules.write_text(f"topic readwrite #\ntopic deny {TOPICS.request('marker')}\n")
    with PrivateBroker(broker_directory, settings=[f"acl_file {rules}"]) as broker:
        requester = subscribe(broker)
        start(broker.port).client.stop()
        ask(requester, b"old")
        second = start(broker.port, settle=False)
        assert eventually(lambda: "station is away from the MQTT broker are lost" in caplog.text)
        assert eventually(lambda: not second.client._keeps_session and second.knows_what_is_new())
        assert second.stands.wait(TIMEOUT_S)
        requester.wait_for(TOPICS.availability, 4)
        assert settled(second)  # with a subscription: a session that is given up leaves none
        ask(requester, b"new")
        assert eventually(lambda: (b"new", False) in second.told())
        assert (b"old", False) not in second.told()
    assert "Not authorized (the broker's access rules must allow this station)" in caplog.text


def test_a_marker_that_does_not_come_back_is_not_waited_for(
    broker_directory, start, subscribe, caplog, monkeypatch
):
    monkeypatch.setattr(client_module, "MARKER_WITHIN_S", 0.5)
    rules = broker_directory / "acl"
    # Taken from everybody, given to nobody.
    rules.write_text(f"topic write #\ntopic read {TRIGGER}\n")
    with PrivateBroker(broker_directory, settings=[f"acl_file {rules}"]) as broker:
        requester = subscribe(broker)
        start(broker.port).client.stop()
        second = start(broker.port, settle=False)
        assert eventually(lambda: "it did not come back in" in caplog.text)
        assert eventually(second.knows_what_is_new)
        assert eventually(lambda: second.client.is_connected)
        assert settled(second)  # with a subscription: a session that is given up leaves none
        ask(requester, b"new")
        second.wait_for(1)
        assert second.told() == [(b"new", False)]


@pytest.mark.usefixtures("start")  # for how soon stations try again
def test_a_marker_of_an_earlier_connection_is_not_missed(monkeypatch, caplog):
    monkeypatch.setattr(client_module, "MARKER_WITHIN_S", 0.2)
    monkeypatch.setattr(connection_module, "ANSWER_WITHIN_S", 1.0)
    came = []

    def only_the_first(connection):
        came.append(connection)
        if len(came) > 1:
            raise OSError("it stays open, and silent")
        return connection

    # It knows the station's session, and breaks before the marker is back.
    server = Impostor(b"\x20\x03\x01\x00\x00", only_the_first)
    station = Station(server.port)  # its connection stands too briefly to be waited for
    try:
        assert eventually(lambda: station.client.state is BrokerState.SILENT)
    finally:
        station.client.stop()
        server.close()
    assert "connected to the MQTT broker" in caplog.text
    assert station.client._keeps_session
    assert "are lost" not in caplog.text


def test_another_station_of_the_same_name_is_named(broker, start, caplog):
    start(broker.port)
    other = Station(broker.port)
    assert eventually(lambda: "has another station on it the same name?" in caplog.text)
    other.client.stop()


# ---- what is sent ------------------------------------------------------------------------------


def test_a_broker_that_takes_few_at_a_time_is_not_given_more(broker_directory, start, subscribe):
    with PrivateBroker(broker_directory, settings=["max_inflight_messages 3"]) as broker:
        subscriber = subscribe(broker)
        station = start(broker.port)
        for number in range(100):
            station.client.publish(TOPICS.health, b"%d" % number)
        messages = subscriber.wait_for(TOPICS.health, 100)
        assert payloads(messages) == [b"%d" % number for number in range(100)]
        assert station.client._terms.in_flight == 3


def test_a_broker_that_acknowledges_nothing_is_left(start, silence, monkeypatch):
    monkeypatch.setattr(connection_module, "ACKNOWLEDGE_WITHIN_S", 0.3)
    monkeypatch.setattr(connection_module, "_LOOP_S", 0.05)
    station = start(silence.port, settle=False)
    assert eventually(lambda: "has acknowledged none of the messages" in station.client.trouble)


def test_a_message_too_large_for_the_broker_ends_the_connection_once(
    broker_directory, start, subscribe, monkeypatch, caplog
):
    # As if the broker had not told its limit.
    monkeypatch.setattr(
        connection_module.Connection,
        "_announced_largest",
        property(lambda self: None, lambda self, value: None),
        raising=False,
    )
    with PrivateBroker(broker_directory, settings=["max_packet_size 1000"]) as broker:
        station = start(broker.port)
        station.client.publish(TOPICS.doctor, b"x" * 2000)
        assert eventually(lambda: "Packet too large (raise its limit" in caplog.text)
        assert station.stands.wait(TIMEOUT_S)
        assert eventually(lambda: station.client.is_connected)
        with pytest.raises(Exception, match="not 2"):
            station.client.publish(TOPICS.doctor, b"x" * 2000)
        station.client.publish(TOPICS.doctor, b"x" * 500)
        assert eventually(lambda: station.acknowledged_mids)


# ---- MQTT 3.1.1 --------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@pytest.fixture
def old_broker(tmp_path, monkeypatch):
    """The port of a broker that refuses MQTT 5, but never comes to it when asked for more."""
    monkeypatch.setattr(connection_module, "ANSWER_WITHIN_S", 1.0)
    if importlib.util.find_spec("amqtt") is None:
        pytest.skip("there is no broker here that refuses MQTT 5 (pip install amqtt)")
    port = free_port()
    script = Path(__file__).with_name("mqtt_3_1_1.py")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, script, str(port)], stdout=log, stderr=log)
    with process:
        try:
            assert eventually(lambda: answers(port)), (tmp_path / "log").read_text()
            yield port
        finally:
            process.kill()


def answers(port):
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


class OldSubscriber:
    """One that speaks MQTT 3.1.1."""

    def __init__(self, port):
        self.messages = []
        subscribed = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self.client.on_message = lambda client, userdata, message: self.messages.append(message)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect(HOST, port)
        self.client.loop_start()
        self.client.subscribe("inspectd/#", qos=1)
        assert subscribed.wait(TIMEOUT_S)

    def publish(self, topic, payload, *, properties):
        self.client.publish(topic, payload, 1).wait_for_publish(TIMEOUT_S)

    def payloads(self, topic):
        return [message.payload for message in self.messages if message.topic == topic]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def old_subscriber(old_broker):
    subscriber = OldSubscriber(old_broker)
    yield subscriber
    subscriber.close()


def test_mqtt_3_1_1_is_spoken_with_a_broker_that_refuses_mqtt_5(
    old_broker, old_subscriber, start, caplog
):
    station = start(old_broker)
    station.client.set_available(True)
    mid = station.client.publish(
        TOPICS.verdict, b"{}", content_type="application/json", user_properties=[("seq", "1")]
    )
    assert eventually(lambda: mid in station.acknowledged_mids)
    assert eventually(lambda: old_subscriber.payloads(TOPICS.verdict) == [b"{}"])
    ask(old_subscriber, b"1")
    (message,) = station.wait_for(1)
    message.acknowledge()
    assert (message.payload, message.queued) == (b"1", False)
    assert (message.response_topic, message.correlation_data) == (None, None)
    station.client.stop()
    assert eventually(lambda: old_subscriber.payloads(TOPICS.availability)[-1:] == [b"offline"])
    assert caplog.text.count("refuses MQTT 5") == 1


def test_the_search_for_the_version_takes_its_time(old_broker, start, monkeypatch):
    monkeypatch.setattr(pace_module, "APART_S", APART_S)
    with Proxy(old_broker) as proxy:
        station = start(proxy.port)
        assert station.client._connection.version == "3.1.1"
        waits = [later - at for at, later in pairwise(proxy.attempts)]
        assert len(waits) >= 2  # with MQTT 5 in full, for the version alone, and with MQTT 3.1.1
        assert min(waits) >= 1.0


def test_the_version_is_remembered_and_mqtt_5_tried_again_after_hours(
    old_broker, start, monkeypatch, caplog
):
    station = start(old_broker)
    for refusals in (1, 2):
        connection = station.client._connection
        assert connection.version == "3.1.1"
        station.stands.clear()
        if refusals == 2:
            monkeypatch.setattr(connection_module, "TRY_MQTT_5_AGAIN_S", 0.0)
        connection.close()
        assert station.stands.wait(TIMEOUT_S)
        assert caplog.text.count("refuses MQTT 5") == refusals


def test_the_last_will_speaks_in_mqtt_3_1_1(old_broker, old_subscriber):
    with child(old_broker) as killed:
        assert eventually(lambda: old_subscriber.payloads(TOPICS.availability) == [b"offline"])
        ask(old_subscriber, b"1")
        assert killed.stdout.readline() == "1 False\n"
        killed.kill()
        assert eventually(lambda: len(old_subscriber.payloads(TOPICS.availability)) == 2)


def test_mqtt_3_1_1_keeps_requests_too(broker, start, subscribe, monkeypatch):
    # The broker that knows nothing else keeps them less well than Mosquitto.
    monkeypatch.setattr(connection_module.Terms, "mqtt_5", False)
    requester = subscribe(broker)
    first = start(broker.port)
    ask(requester, b"1")
    first.wait_for(1)
    first.client.stop()
    ask(requester, b"2")
    second = start(broker.port)
    second.wait_for(2)
    second.acknowledge_all()
    assert second.knows_what_is_new()
    ask(requester, b"new")
    second.wait_for(3)
    assert first.told() == [(b"1", False)]
    assert second.told() == [(b"1", True), (b"2", True), (b"new", False)]


def test_a_broken_connection_is_no_refusal_of_the_version(start, broker_directory, monkeypatch):
    broker = PrivateBroker(broker_directory)
    with broker:
        station = start(broker.port)
        broker.process.send_signal(signal.SIGSTOP)
        broker.process.kill()
    assert eventually(lambda: not station.stands.is_set())
    with broker:
        assert station.stands.wait(TIMEOUT_S)
        assert station.client._connection.version == "5"
