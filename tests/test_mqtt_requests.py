"""A station that nobody can ask says so, on `state` and to `inspectd status`, with real brokers."""

import base64
import hashlib
import json
import logging
import signal
import threading
from pathlib import Path

import pytest
from broker import TIMEOUT_S, eventually
from station import NAME, SIMULATED

from inspectd import config
from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.control import StatusRequest, ask
from inspectd.errors import BrokerState
from inspectd.mqtt import client as client_module
from inspectd.mqtt import pace as pace_module
from inspectd.mqtt import standing as standing_module
from inspectd.mqtt.client import MqttClient
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings

TOPICS = Topics(NAME)
REQUESTS = TOPICS.request("+")
MARKER = TOPICS.request("marker")
PASSWORD = "secret"
USER = "cell"
EVERYTHING = "everything"


class Station:
    """A client and what it is asked."""

    def __init__(self, port, **settings):
        self.asked = []
        self.stands = threading.Event()
        self.client = MqttClient(
            MqttSettings(host=HOST, port=port, **settings),
            TOPICS,
            f"inspectd-{NAME}",
            lambda name, message: (
                self.asked.append((name, message.queued)),
                message.acknowledge(),
            ),
            Path,
        )
        self.client.start(self)

    def on_request(self, name, message):
        self.asked.append((name, message.queued))
        message.acknowledge()

    def connected(self):
        self.stands.set()

    def lost(self):
        self.stands.clear()

    def acknowledged(self, mid, refusal):
        pass

    def is_in(self, state):
        return eventually(lambda: self.client.state is state)


@pytest.fixture
def start(monkeypatch, caplog):
    """Starts stations, and stops them at the end."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(pace_module, "APART_S", 0.0)
    monkeypatch.setattr(standing_module, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(standing_module, "LONGEST_RETRY_S", 0.2)
    stations = []

    def make(port, **settings):
        stations.append(Station(port, **settings))
        return stations[-1]

    yield make
    for station in stations:
        station.client.stop()


def deaf(folder):
    """Settings of a broker that answers a subscription of the user `cell` with a refusal.

    Who comes without a name may do everything, and give `cell` the same role.
    """
    plugin = next(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"), None)
    if plugin is None:
        pytest.skip("there is no plugin of Mosquitto that refuses subscriptions")
    salt, rounds = b"0123456789ab", 101
    hashed = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), salt, rounds)
    user = {
        "username": USER,
        "password": base64.b64encode(hashed).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": rounds,
    }
    role = {
        "rolename": EVERYTHING,
        "acls": [
            {"acltype": kind, "topic": topic, "priority": 0, "allow": True}
            for kind, topic in (
                ("subscribePattern", "#"),
                ("publishClientSend", "$CONTROL/dynamic-security/v1"),
            )
        ],
    }
    file = folder / "users.json"
    file.write_text(
        json.dumps(
            {
                "defaultACLAccess": {
                    "publishClientSend": True,
                    "publishClientReceive": True,
                    "subscribe": False,
                    "unsubscribe": True,
                },
                "clients": [user],
                "groups": [{"groupname": "nameless", "roles": [{"rolename": EVERYTHING}]}],
                "roles": [role],
                "anonymousGroup": "nameless",
            }
        )
    )
    file.chmod(0o644)
    (folder / "password").write_text(PASSWORD)
    return [f"plugin {plugin}", f"plugin_opt_config_file {file}"]


def allow_everything(subscriber):
    command = {"command": "addClientRole", "username": USER, "rolename": EVERYTHING}
    subscriber.publish(
        "$CONTROL/dynamic-security/v1",
        json.dumps({"commands": [command]}).encode(),
        properties=None,
    )


def test_a_refused_subscription_is_the_brokers_state_until_it_is_granted(
    broker_directory, start, subscribe, monkeypatch, caplog
):
    monkeypatch.setattr(client_module, "ASK_AGAIN_S", 0.1)
    with PrivateBroker(broker_directory, settings=deaf(broker_directory)) as broker:
        requester = subscribe(broker)
        station = start(
            broker.port, username=USER, password_file=str(broker_directory / "password")
        )
        assert station.is_in(BrokerState.SUBSCRIPTION_REFUSED), caplog.text
        assert station.client.trouble == (
            f"the MQTT broker does not let this station have what comes on {REQUESTS}: "
            "Not authorized (the broker's access rules must allow this station)"
        )
        assert requester.received(MARKER) == []  # it could not come back
        allow_everything(requester)
        assert station.is_in(BrokerState.CONNECTED), caplog.text
        assert station.client.trouble == ""
        requester.wait_for(MARKER)
        requester.publish(TOPICS.request("trigger"), b"{}", properties=None)
        assert eventually(lambda: station.asked == [("trigger", False)])
    assert caplog.text.count("does not let this station have what comes on") == 1


def test_a_subscription_that_is_refused_for_weeks_takes_no_more_memory(
    broker_directory, start, monkeypatch
):
    """A timer each half minute, and each is forgotten once it is over."""
    monkeypatch.setattr(client_module, "ASK_AGAIN_S", 0.001)
    with PrivateBroker(broker_directory, settings=deaf(broker_directory)) as broker:
        station = start(
            broker.port, username=USER, password_file=str(broker_directory / "password")
        )
        refusals = []
        note = station.client._note_subscription
        monkeypatch.setattr(
            station.client,
            "_note_subscription",
            lambda topic, refusal: (refusals.append(topic), note(topic, refusal)),
        )
        assert eventually(lambda: len(refusals) >= 50)
        assert len(station.client._timers) < 5


def test_the_service_tells_of_a_refused_subscription(broker_directory, make_station, subscribe):
    with PrivateBroker(broker_directory, settings=deaf(broker_directory)) as broker:
        station = make_station(camera=SIMULATED % 30, trigger="{source: mqtt}", port=broker.port)
        (station.folder / "password").write_text(PASSWORD)
        (station.folder / "password").chmod(0o600)
        station.file.write_text(
            station.file.read_text().replace(
                f"port: {broker.port}",
                f"port: {broker.port}, username: {USER}, password_file: password",
            )
        )
        listener = subscribe(broker)
        service = station.start()

        def told():
            states = [json.loads(message.payload) for message in listener.received(TOPICS.state)]
            return states and states[-1]["broker"] == BrokerState.SUBSCRIPTION_REFUSED

        assert eventually(told), service.log
        state = json.loads(listener.received(TOPICS.state)[-1].payload)
        assert any(REQUESTS in note for note in state["notes"])
        reply = ask(config.load(station.file).control_socket, StatusRequest())
        assert reply.state.broker is BrokerState.SUBSCRIPTION_REFUSED
        assert service.stop() == 0, service.log


def test_rules_that_swallow_requests_without_a_word_are_noticed(
    broker_directory, start, subscribe, monkeypatch
):
    monkeypatch.setattr(client_module, "MARKER_WITHIN_S", 0.3)
    rules = broker_directory / "acl"
    rules.write_text(f"topic write #\ntopic read {TOPICS.availability}\n")
    with PrivateBroker(broker_directory, settings=[f"acl_file {rules}"]) as broker:
        watcher = subscribe(broker)
        station = start(broker.port)
        station.client.set_available(True)
        assert station.is_in(BrokerState.REQUESTS_LOST)
        assert MARKER in station.client.trouble
        assert "perhaps the broker lets no request through" in station.client.trouble
        # That is no reason to be offline, or to break the connection.
        assert station.stands.is_set()
        said = [message.payload for message in watcher.wait_for(TOPICS.availability)]
        assert said[-1] == b"online"
        assert said.count(b"online") == 1
        # It cannot be known from here that the rules are mended, but from the next connection on.
        rules.write_text("topic readwrite #\n")
        broker.process.send_signal(signal.SIGHUP)
        station.client._connection.close()  # on the next one it sees its marker
        assert eventually(lambda: station.client._keeps_session)
        assert station.client.state is BrokerState.REQUESTS_LOST
        station.client._connection.close()  # and for the one after that it asks for more
        assert station.is_in(BrokerState.CONNECTED)
        assert station.client.trouble == ""


def test_a_marker_that_comes_late_is_as_good(broker, start, subscribe, monkeypatch, caplog):
    requester = subscribe(broker)
    held = threading.Event()
    receive = MqttClient.received

    def received(self, topic, message):
        if topic == MARKER:
            assert held.wait(TIMEOUT_S)  # as behind many requests
        receive(self, topic, message)

    monkeypatch.setattr(MqttClient, "received", received)
    monkeypatch.setattr(client_module, "MARKER_WITHIN_S", 0.1)
    station = start(broker.port)
    assert station.is_in(BrokerState.REQUESTS_LOST)
    held.set()
    assert station.is_in(BrokerState.CONNECTED)
    assert station.client._keeps_session
    assert len(requester.wait_for(MARKER)) == 1
    assert caplog.text.count("are lost, since") == 1


def test_rules_that_forbid_the_marker_alone_keep_the_station_online(
    broker_directory, start, subscribe
):
    rules = broker_directory / "acl"
    rules.write_text(f"topic readwrite #\ntopic deny {MARKER}\n")
    with PrivateBroker(broker_directory, settings=[f"acl_file {rules}"]) as broker:
        requester = subscribe(broker)
        station = start(broker.port)
        station.client.set_available(True)
        assert station.is_in(BrokerState.REQUESTS_LOST)
        assert "the broker must let the station both publish and receive" in station.client.trouble
        requester.publish(TOPICS.request("trigger"), b"{}", properties=None)
        assert eventually(lambda: station.asked == [("trigger", False)])
        said = [message.payload for message in requester.received(TOPICS.availability)]
        assert said[-1] == b"online"
        assert said.count(b"online") == 1


def test_the_worst_of_several_states_is_told():
    worst = BrokerState.worst
    assert worst([]) is BrokerState.CONNECTED
    assert worst([BrokerState.REQUESTS_LOST, BrokerState.CONNECTED]) is BrokerState.REQUESTS_LOST
    assert (
        worst([BrokerState.SUBSCRIPTION_REFUSED, BrokerState.MESSAGES_REFUSED])
        is BrokerState.SUBSCRIPTION_REFUSED
    )
    assert worst([BrokerState.UNREACHABLE, *BrokerState]) is BrokerState.FAULT
    assert worst([BrokerState.SUBSCRIPTION_REFUSED, BrokerState.LOST]) is BrokerState.LOST
