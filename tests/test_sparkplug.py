"""The edge node of Sparkplug B on a real Mosquitto, decoded by a library of another language.

docs/sparkplug.md names these tests beside the specification's requirements.
"""

import ast
import base64
import hashlib
import itertools
import json
import logging
import shutil
import socket
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest
from broker import TIMEOUT_S, eventually
from damage import damage
from hypothesis import given
from hypothesis import strategies as st
from station import SIMULATED, TOPICS, decoded, wait_until
from verdicts import a_verdict

from inspectd.archive import Archive
from inspectd.broker import Broker
from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.config import load
from inspectd.errors import BrokerState
from inspectd.journal import Journal
from inspectd.mqtt import pace as pace_module
from inspectd.mqtt import sparkplug as sparkplug_module
from inspectd.mqtt import standing as standing_module
from inspectd.mqtt.client import Listener
from inspectd.mqtt.sparkplug import SparkplugNode
from inspectd.mqtt.sparkplug_b_pb2 import Payload
from inspectd.mqtt.sparkplug_memory import Memory, Missing
from inspectd.mqtt.topics import Topics
from inspectd.recording import Recorder
from inspectd.settings import MqttSettings, SparkplugSettings, StorageSettings
from inspectd.state import StationState

ROOT = Path(__file__).parent.parent
DECODER = ROOT / ".venv" / "sparkplug-payload"
PACKAGE = "sparkplug-payload@1.0.3"
NODE = "line1-cell3"
STATE = "spBv1.0/STATE/scada"
BOOLEAN, DOUBLE, STRING, INT64, UINT64, DATETIME = 11, 10, 12, 4, 8, 13


def topic(kind, device=None):
    return f"spBv1.0/plant/{kind}/{NODE}" + (f"/{device}" if device else "")


@pytest.fixture(scope="module")
def decode():
    """Decodes payloads by the npm package sparkplug-payload, which is fetched once."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        pytest.skip("there is no Node.js on this machine, whose library decodes the messages")
    if not (DECODER / "node_modules" / "sparkplug-payload").is_dir():
        if npm is None:
            pytest.skip("there is no npm on this machine to fetch sparkplug-payload with")
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(DECODER)]
        fetched = subprocess.run(
            [npm, "install", *options, PACKAGE], capture_output=True, timeout=120, check=False
        )
        if fetched.returncode != 0:
            pytest.skip("npm cannot fetch sparkplug-payload: is there no network?")

    def decode(messages):
        lines = "\n".join(base64.b64encode(message.payload).decode() for message in messages)
        ran = subprocess.run(
            [node, ROOT / "tests" / "sparkplug_decode.cjs", DECODER],
            input=lines,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return [json.loads(line) for line in ran.stdout.splitlines()]

    return decode


@pytest.fixture
def fields(decode):
    """The fields of messages, as the other library sees them."""
    return lambda messages: [decoded["fields"] for decoded in decode(messages)]


class Edge:
    """A journal and a node, as the service wires them."""

    def __init__(self, folder, port, *, programs=("connector",), rate=10000.0, **sparkplug):
        settings = MqttSettings(
            host=HOST,
            port=port,
            backlog_rate=rate,
            sparkplug=SparkplugSettings(group="plant", **sparkplug),
        )
        self.journal = Journal.open(folder / "journal.db")
        self.node = SparkplugNode(settings, NODE, folder.joinpath, folder, self.journal)
        self.node.set_programs(programs)
        self.stopped = False

    def commit(self, **changes):
        verdict = self.journal.commit(a_verdict(**changes))
        self.node.offer(verdict)
        return verdict

    def cut(self):
        """The network breaks, without a word to the broker."""
        self.node._connection._socket.shutdown(socket.SHUT_RDWR)

    def stop(self):
        if not self.stopped:
            self.stopped = True
            self.node.stop(4.0)
            self.journal.close()
            assert not self.node._worker.is_alive()
            assert not self.node._thread.is_alive()


@pytest.fixture
def edge(tmp_path, monkeypatch):
    """Makes nodes that share a folder, and stops them at the end."""
    monkeypatch.setattr(pace_module, "APART_S", 0.0)
    monkeypatch.setattr(standing_module, "FIRST_RETRY_S", 0.05)
    edges = []

    def make(broker, **options):
        edges.append(Edge(tmp_path, broker.port, **options))
        return edges[-1]

    yield make
    for made in edges:
        made.stop()


def of_sparkplug(subscriber):
    with subscriber._arrival:
        messages = list(subscriber._messages)
    return [m for m in messages if m.topic.startswith("spBv1.0/plant/")]


def kinds(messages):
    return [message.topic.split("/")[2] for message in messages]


def value(metric):
    """By the fields alone, since only births tell the datatype."""
    names = ("stringValue", "doubleValue", "booleanValue", "longValue")
    (name,) = [name for name in names if name in metric] or [None]
    assert (name is None) == bool(metric.get("isNull"))
    return None if name is None else metric[name]


def named(payload):
    return {metric["name"]: value(metric) for metric in payload["metrics"]}


def aliases(birth):
    return {metric["alias"]: metric["name"] for metric in birth["metrics"] if "alias" in metric}


def resolve(data, birth):
    """A DATA message's values by the names that its birth gave."""
    names = aliases(birth)
    return {names[metric["alias"]]: value(metric) for metric in data["metrics"]}


def bd_seq(payload):
    return named(payload)["bdSeq"]


def send_state(subscriber, online, timestamp):
    raw = json.dumps({"online": online, "timestamp": timestamp}).encode()
    subscriber.publish(STATE, raw, retain=True, properties=None)


def rebirth(subscriber, name="Node Control/Rebirth", **options):
    command = Payload(timestamp=time.time_ns() // 1_000_000)
    command.metrics.add(name=name, boolean_value=True, datatype=BOOLEAN)
    subscriber.publish(topic("NCMD"), command.SerializeToString(), properties=None, **options)


# ---- births -----------------------------------------------------------------------------------


def test_a_session_begins_with_the_births_in_order(broker, subscribe, edge, decode):
    listener = subscribe(broker)
    before = time.time() * 1000
    edge(broker, programs=("connector", "terminal-block")).node.start()
    listener.wait_for(topic("DBIRTH", "terminal-block"))
    messages = of_sparkplug(listener)
    assert [message.topic for message in messages] == [
        topic("NBIRTH"),
        topic("DBIRTH", "connector"),
        topic("DBIRTH", "terminal-block"),
    ]
    assert [(m.qos, m.retain) for m in messages] == [(0, False)] * 3
    decoded = decode(messages)
    assert [d["fields"]["seq"] for d in decoded] == [0, 1, 2]
    for payload in (d["fields"] for d in decoded):
        stamps = [payload["timestamp"], *(m["timestamp"] for m in payload["metrics"])]
        assert all(before - 1 <= stamp <= time.time() * 1000 + 1 for stamp in stamps)
    # As a host reads it, by the declared types.
    for read in (d["host"]["metrics"] for d in decoded):
        assert all("name" in metric and metric["type"] != "Unknown" for metric in read)
    node = {m["name"]: (m["type"], m["value"]) for m in decoded[0]["host"]["metrics"]}
    assert node["bdSeq"] == ("Int64", 0)
    assert node["Node Control/Rebirth"] == ("Boolean", False)
    assert node["Available"] == ("Boolean", False)


def test_aliases_are_unique_over_the_node_and_not_given_to_the_commands(
    broker, subscribe, edge, fields
):
    listener = subscribe(broker)
    edge(broker, programs=("connector", "terminal-block")).node.start()
    listener.wait_for(topic("DBIRTH", "terminal-block"))
    births = fields(of_sparkplug(listener))
    given_out = [m["alias"] for birth in births for m in birth["metrics"] if "alias" in m]
    assert len(given_out) == len(set(given_out))
    without = {m["name"] for birth in births for m in birth["metrics"] if "alias" not in m}
    assert without == {"bdSeq", "Node Control/Rebirth"}
    names = [[m["name"].casefold() for m in birth["metrics"]] for birth in births]
    assert all(len(of_one) == len(set(of_one)) for of_one in names)


def test_a_rebirth_repeats_the_births_with_the_same_session_number(broker, subscribe, edge, fields):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    verdict = station.commit(part_id="P7")
    listener.wait_for(topic("DDATA", "connector"))
    rebirth(listener)
    listener.wait_for(topic("DBIRTH", "connector"), 2)
    messages = [m for m in of_sparkplug(listener) if "NCMD" not in m.topic]
    assert kinds(messages) == ["NBIRTH", "DBIRTH", "DDATA", "NBIRTH", "DBIRTH"]
    first, _, _, again, device = fields(messages)
    assert (again["seq"], device["seq"]) == (0, 1)
    assert bd_seq(again) == bd_seq(first)
    current = named(device)
    assert (current["Part Id"], current["Inspection/Id"]) == ("P7", verdict.id)


@pytest.mark.parametrize(
    ("send", "words"),
    [
        (lambda s: rebirth(s, "Node Control/Reboot"), "not Node Control/Reboot"),
        (
            lambda s: s.publish(topic("NCMD"), b"\xff\xff", properties=None),
            "no Sparkplug B payload",
        ),
    ],
    ids=["another metric", "no payload"],
)
def test_a_command_that_is_not_known_is_ignored_in_words(
    broker, subscribe, edge, caplog, send, words
):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    send(listener)
    assert eventually(lambda: words in caplog.text)
    station.commit()
    listener.wait_for(topic("DDATA", "connector"))
    assert len(listener.received(topic("NBIRTH"))) == 1


def test_a_retained_command_is_ignored(broker, subscribe, edge, caplog):
    listener = subscribe(broker)
    rebirth(listener, retain=True)
    station = edge(broker)
    station.node.start()
    assert eventually(lambda: "retained message" in caplog.text)
    station.commit()
    listener.wait_for(topic("DDATA", "connector"))
    assert len(listener.received(topic("NBIRTH"))) == 1


# ---- data -------------------------------------------------------------------------------------


def test_a_verdict_is_one_message_by_aliases_alone(broker, subscribe, edge, fields):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    at = datetime(2024, 5, 17, 6, 30, 0, 250000, tzinfo=UTC)
    verdict = station.commit(
        verdict="FAIL",
        reason="anomaly",
        score=1.25,
        margin=-0.25,
        part_id="P-4711 µ",
        captured_at=at,
        timings_ms={"capture": 21.5, "total": 33.0},
    )
    (message,) = listener.wait_for(topic("DDATA", "connector"))
    assert (message.qos, message.retain) == (0, False)
    birth, data = fields([*listener.received(topic("DBIRTH", "connector")), message])
    assert data["seq"] == birth["seq"] + 1
    assert all(m.keys().isdisjoint({"name", "datatype", "isHistorical"}) for m in data["metrics"])
    ms = round(at.timestamp() * 1000)
    assert {m["timestamp"] for m in data["metrics"]} == {ms}
    assert resolve(data, birth) == {
        "Verdict": "FAIL",
        "Reason": "anomaly",
        "Detail": "",
        "Score": 1.25,
        "Limit": 12.5,
        "Margin": -0.25,
        "Part Id": "P-4711 µ",
        "Lot": None,
        "Inspection/Id": verdict.id,
        "Inspection/Journal Id": station.journal.id,
        "Inspection/Sequence": 1,
        "Inspection/Transaction": None,
        "Inspection/Trigger": "interval",
        "Inspection/Triggered At": round(verdict.triggered_at.timestamp() * 1000),
        "Inspection/Captured At": ms,
        "Inspection/Clock Synchronised": True,
        "Inspection/Capture ms": 21.5,
        "Inspection/Total ms": 33.0,
        "Inspection/Settings Hash": "0123456789ab",
        "Inspection/References Hash": None,
    }
    types = {m["name"]: m["datatype"] for m in birth["metrics"]}
    assert types["Verdict"] == STRING
    assert types["Score"] == DOUBLE
    assert types["Inspection/Sequence"] == UINT64
    assert types["Inspection/Captured At"] == DATETIME
    assert types["Inspection/Clock Synchronised"] == BOOLEAN


def test_a_score_that_is_no_number_is_null(broker, subscribe, edge, fields):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    station.commit(verdict="NOT_JUDGED", reason="error", score=float("nan"), margin=None)
    listener.wait_for(topic("DDATA", "connector"))
    birth, data = fields(of_sparkplug(listener)[1:])
    values = resolve(data, birth)
    assert (values["Score"], values["Margin"]) == (None, None)


def test_the_sequence_counts_every_message_and_wraps_after_255(broker, subscribe, edge, fields):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    for _ in range(150):
        station.commit()
    station.node.set_available(True)
    station.node.set_programs(["connector", "other"])
    for _ in range(150):
        station.commit()
    station.node.set_programs(["connector"])
    listener.wait_for(topic("DDATA", "connector"), 300)
    listener.wait_for(topic("DDEATH", "other"))
    messages = of_sparkplug(listener)
    assert {"NDATA", "DBIRTH", "DDEATH"} <= set(kinds(messages))
    expected = itertools.islice(itertools.cycle(range(256)), len(messages))
    assert [payload["seq"] for payload in fields(messages)] == list(expected)


def test_availability_is_node_data_when_it_changes(broker, subscribe, edge, fields):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    for available in (True, True, False):
        station.node.set_available(available)
    station.commit()
    listener.wait_for(topic("DDATA", "connector"))
    birth, *data = fields([m for m in of_sparkplug(listener) if m.topic.split("/")[2][0] == "N"])
    assert [resolve(payload, birth) for payload in data] == [
        {"Available": True},
        {"Available": False},
    ]


def test_a_program_that_goes_dies_and_a_new_one_is_born(broker, subscribe, edge):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    station.node.set_programs(["terminal-block"])
    listener.wait_for(topic("DBIRTH", "terminal-block"))
    assert [m.topic for m in of_sparkplug(listener)[2:]] == [
        topic("DDEATH", "connector"),
        topic("DBIRTH", "terminal-block"),
    ]


# ---- death ------------------------------------------------------------------------------------


def test_a_broken_connection_is_told_by_the_will_and_the_next_session_counts_on(
    broker, subscribe, edge, fields
):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    station.cut()
    listener.wait_for(topic("NBIRTH"), 2)
    messages = [m for m in of_sparkplug(listener) if kinds([m])[0] in {"NBIRTH", "NDEATH"}]
    assert kinds(messages) == ["NBIRTH", "NDEATH", "NBIRTH"]
    assert (messages[1].qos, messages[1].retain) == (1, False)
    born, dead, again = fields(messages)
    assert "seq" not in dead
    assert [m["name"] for m in dead["metrics"]] == ["bdSeq"]
    assert [bd_seq(payload) for payload in (born, dead, again)] == [0, 0, 1]


def test_a_stop_is_told_before_it_and_the_next_start_counts_on(broker, subscribe, edge, fields):
    listener = subscribe(broker)
    for sessions in (1, 2):
        station = edge(broker)
        station.node.start()
        listener.wait_for(topic("NBIRTH"), sessions)
        station.stop()
        # The broker repeats the death as the will, as MQTT 5 has it.
        listener.wait_for(topic("NDEATH"), 2 * sessions)
    messages = of_sparkplug(listener)
    sessions = [
        (kind, bd_seq(p))
        for kind, p in zip(kinds(messages), fields(messages), strict=True)
        if kind[0] == "N"
    ]
    assert list(dict.fromkeys(sessions)) == [
        ("NBIRTH", 0),
        ("NDEATH", 0),
        ("NBIRTH", 1),
        ("NDEATH", 1),
    ]


# ---- what could not go out --------------------------------------------------------------------


def historical(payload):
    flags = {metric.get("isHistorical", False) for metric in payload["metrics"]}
    assert len(flags) == 1
    return flags.pop()


def verdicts_of(listener, fields, device="connector"):
    """(number, historical) of the verdicts, in the order of arrival."""
    births = fields(listener.received(topic("DBIRTH", device)))
    data = fields(listener.received(topic("DDATA", device)))
    return [
        (resolve(payload, births[0])["Inspection/Sequence"], historical(payload))
        for payload in data
    ]


def test_verdicts_of_an_outage_follow_after_the_births_marked_historical(
    broker_directory, subscribe, edge, fields
):
    broker = PrivateBroker(broker_directory)
    # Waits for its host, so that the subscriber is there before it speaks.
    station = edge(broker, primary_host="scada")
    station.node.start()
    for _ in range(120):
        station.commit()
    with broker:
        listener = subscribe(broker)
        send_state(listener, online=True, timestamp=1000)
        listener.wait_for(topic("DDATA", "connector"), 120)
        station.commit()
        listener.wait_for(topic("DDATA", "connector"), 121)
        assert kinds(of_sparkplug(listener))[:3] == ["NBIRTH", "DBIRTH", "DDATA"]
        late = [(number, True) for number in range(1, 121)]
        assert verdicts_of(listener, fields) == [*late, (121, False)]
        station.stop()


def test_what_a_broken_connection_may_have_lost_goes_again(broker, subscribe, edge, fields):
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    station.commit()
    listener.wait_for(topic("DDATA", "connector"))
    station.cut()
    listener.wait_for(topic("DDATA", "connector"), 2)
    assert verdicts_of(listener, fields) == [(1, False), (1, True)]


def test_what_is_unsent_at_a_stop_follows_after_the_next_start(
    broker_directory, subscribe, edge, fields
):
    broker = PrivateBroker(broker_directory)
    first = edge(broker)
    first.node.start()
    for _ in range(3):
        first.commit()
    first.stop()
    with broker:
        listener = subscribe(broker)
        second = edge(broker)
        second.node.start()
        listener.wait_for(topic("DDATA", "connector"), 3)
        assert verdicts_of(listener, fields) == [(1, True), (2, True), (3, True)]
        second.stop()


def test_what_the_broker_had_at_a_stop_does_not_come_again(broker, subscribe, edge):
    listener = subscribe(broker)
    first = edge(broker)
    first.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    first.commit()
    first.stop()
    assert len(listener.wait_for(topic("DDATA", "connector"))) == 1
    assert not edge(broker).node._memory.missing


def test_a_new_node_does_not_send_the_past(broker, subscribe, edge, fields, tmp_path):
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.commit(a_verdict())
    listener = subscribe(broker)
    station = edge(broker)
    station.node.start()
    station.commit()
    listener.wait_for(topic("DDATA", "connector"))
    assert [number for number, _ in verdicts_of(listener, fields)] == [2]


def test_a_late_verdict_of_a_program_that_is_gone_has_a_device_for_its_time(
    broker_directory, subscribe, edge, fields
):
    broker = PrivateBroker(broker_directory)
    station = edge(broker)
    station.commit(program="gone")
    with broker:
        listener = subscribe(broker)
        station.node.start()
        listener.wait_for(topic("DDEATH", "gone"))
        assert [m.topic for m in of_sparkplug(listener)] == [
            topic("NBIRTH"),
            topic("DBIRTH", "connector"),
            topic("DBIRTH", "gone"),
            topic("DDATA", "gone"),
            topic("DDEATH", "gone"),
        ]
        station.stop()


def test_a_backlog_that_finds_the_journal_damaged_has_it_replaced_and_goes_on_in_the_new_one(
    broker_directory, subscribe, edge, fields
):
    broker = PrivateBroker(broker_directory)
    station = edge(broker, primary_host="scada")  # late enough for the subscriber
    first = station.journal.id
    station.node._store = Recorder(
        station.journal,
        Mock(spec=Archive),
        Mock(spec=StationState),
        StorageSettings(),
        lambda: station.node.journal_replaced(station.journal.id),
    )
    for _ in range(20):
        station.commit()
    damage(station.journal)
    station.node.start()
    with broker:
        listener = subscribe(broker)
        send_state(listener, online=True, timestamp=1000)
        assert eventually(lambda: station.journal.id != first)
        station.commit()
        (birth,) = fields(listener.wait_for(topic("DBIRTH", "connector")))
        (data,) = fields(listener.wait_for(topic("DDATA", "connector")))
        told = resolve(data, birth)
        assert told["Inspection/Journal Id"] == station.journal.id
        assert verdicts_of(listener, fields) == [(1, False)]
        station.cut()
        listener.wait_for(topic("DDATA", "connector"), 2)
        assert verdicts_of(listener, fields) == [(1, False), (1, True)]  # in one journal's numbers
        station.stop()


# ---- the primary host -------------------------------------------------------------------------


def test_nothing_is_published_until_the_primary_host_is_online(
    broker, subscribe, edge, fields, caplog
):
    listener = subscribe(broker)
    send_state(listener, online=False, timestamp=1000)
    station = edge(broker, primary_host="scada")
    station.node.start()
    station.commit()
    assert eventually(lambda: station.node._host_timestamp == 1000)
    assert of_sparkplug(listener) == []
    of_sparkplug_2_2 = b"ONLINE"
    ignored = f"a message on {STATE} is ignored"
    no_states = [of_sparkplug_2_2, b'{"online": "\xff"}', b'{"x": ' + b"[" * 100_000]
    for number, raw in enumerate(no_states, 1):
        listener.publish(STATE, raw, retain=False, properties=None)
        assert eventually(lambda said=number: caplog.text.count(ignored) == said)
    assert of_sparkplug(listener) == []
    send_state(listener, online=True, timestamp=1000)
    listener.wait_for(topic("DDATA", "connector"))
    assert kinds(of_sparkplug(listener)) == ["NBIRTH", "DBIRTH", "DDATA"]
    assert verdicts_of(listener, fields) == [(1, True)]


def test_the_node_dies_with_its_primary_host_and_comes_back_with_it(
    broker, subscribe, edge, fields
):
    listener = subscribe(broker)
    send_state(listener, online=True, timestamp=1000)
    station = edge(broker, primary_host="scada")
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    send_state(listener, online=False, timestamp=2000)
    listener.wait_for(topic("NDEATH"))
    station.commit()
    # A new session stands, and waits.
    assert eventually(lambda: station.node._connection is not None)
    assert listener.received(topic("DDATA", "connector")) == []
    send_state(listener, online=True, timestamp=3000)
    listener.wait_for(topic("DDATA", "connector"))
    assert verdicts_of(listener, fields) == [(1, True)]
    births = fields(listener.received(topic("NBIRTH")))
    deaths = fields(listener.received(topic("NDEATH")))
    assert bd_seq(births[0]) == 0
    assert {bd_seq(death) for death in deaths} == {0}
    assert bd_seq(births[1]) > 0


def test_an_older_word_of_the_primary_host_is_ignored(broker, subscribe, edge, caplog):
    listener = subscribe(broker)
    send_state(listener, online=True, timestamp=2000)
    station = edge(broker, primary_host="scada")
    station.node.start()
    listener.wait_for(topic("DBIRTH", "connector"))
    with caplog.at_level(logging.WARNING):
        send_state(listener, online=False, timestamp=1999)
        assert eventually(lambda: "older than the last one" in caplog.text)
    station.commit()
    listener.wait_for(topic("DDATA", "connector"))
    assert listener.received(topic("NDEATH")) == []


# ---- what the station says of it ---------------------------------------------------------------


def refusing_sparkplug(folder):
    """Settings of a broker that lets in the station's client id alone by its user name."""
    plugin = next(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"), None)
    if plugin is None:
        pytest.skip("there is no plugin of Mosquitto that tells client ids apart")
    salt, rounds = b"0123456789ab", 101
    user = {
        "username": "cell",
        "clientid": "inspectd-cell",
        "password": base64.b64encode(
            hashlib.pbkdf2_hmac("sha512", b"secret", salt, rounds)
        ).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": rounds,
    }
    kinds = ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe")
    access = dict.fromkeys(kinds, True)
    file = folder / "users.json"
    file.write_text(json.dumps({"defaultACLAccess": access, "clients": [user]}))
    file.chmod(0o644)
    return [f"plugin {plugin}", f"plugin_opt_config_file {file}"]


def test_a_broker_that_refuses_sparkplug_alone_is_told_on_state(
    broker_directory, make_station, subscribe
):
    broker = PrivateBroker(broker_directory, settings=refusing_sparkplug(broker_directory))
    station = make_station(camera=SIMULATED % 30, trigger="{source: mqtt}")
    good = station.file.read_text()
    mqtt = f"{{host: {HOST}, port: {broker.port}, username: cell, password_file: password%s}}"
    (station.folder / "password").write_text("secret")
    (station.folder / "password").chmod(0o600)

    def write_settings(more):
        station.file.write_text(
            good.replace(f"mqtt: {{host: {HOST}, port: 1}}", f"mqtt: {mqtt % more}")
        )

    write_settings(", sparkplug: {group: plant}")
    with broker:
        listener = subscribe(broker)
        service = station.start()

        def last_state():
            return decoded(listener, TOPICS.state)[-1]

        listener.wait_for(TOPICS.state)
        refused = BrokerState.REFUSED_CREDENTIALS, BrokerState.REFUSED
        assert eventually(lambda: last_state()["sparkplug"] in refused), last_state()
        assert last_state()["broker"] == BrokerState.CONNECTED
        (note,) = last_state()["notes"]
        assert note.startswith("Sparkplug: ")
        write_settings("")
        assert eventually(lambda: last_state()["sparkplug"] is None), last_state()
        assert last_state()["notes"] == []
        assert last_state()["broker"] == BrokerState.CONNECTED
        assert service.stop() == 0, service.log


def test_a_connection_of_sparkplug_is_told_on_state(broker, make_station, subscribe):
    station = make_station(camera=SIMULATED % 30, trigger="{source: mqtt}", port=broker.port)
    station.file.write_text(
        station.file.read_text().replace(
            f"port: {broker.port}", f"port: {broker.port}, sparkplug: {{group: plant}}"
        )
    )
    listener = subscribe(broker)
    service = station.start()
    raw = wait_until(listener, TOPICS.state, lambda p: json.loads(p)["sparkplug"] == "connected")
    assert json.loads(raw)["broker"] in {"connected", "connecting"}
    assert service.stop() == 0, service.log


def test_a_journal_that_is_found_damaged_as_the_node_is_made_does_not_keep_it_off(make_station):
    station = make_station(camera=SIMULATED % 30, trigger="{source: mqtt}")
    sparkplug = station.file.read_text().replace("port: 1", "port: 1, sparkplug: {group: plant}")
    station.file.write_text(sparkplug)
    with Journal.open(station.journal) as journal:
        first = journal.id
        damage(journal)
        broker = Broker(load(station.file), Topics("cell"), lambda _name, _message: None)
        recorder = Recorder(
            journal,
            Mock(spec=Archive),
            Mock(spec=StationState),
            StorageSettings(),
            lambda: broker.journal_replaced(journal.id),
        )
        broker.start(Mock(spec=Listener), recorder)
        try:
            assert journal.id != first
            assert broker._node._memory.journal == journal.id
            assert broker.sparkplug_state is not BrokerState.FAULT
        finally:
            broker.stop(1.0)


# ---- the parts --------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12)), max_size=12), st.integers(0, 60))
def test_missing_numbers_are_a_set(ranges, done):
    missing, expected = Missing(), set()
    for first, length in ranges:
        missing.add(first, first + length - 1)
        expected |= set(range(first, first + length))
    missing.drop_up_to(done)
    expected = {number for number in expected if number > done}
    assert [n for a, b in missing.ranges for n in range(a, b + 1)] == sorted(expected)
    assert all(b + 1 < a for (_, b), (a, _) in itertools.pairwise(missing.ranges))
    assert bool(missing) == bool(expected)


def test_the_session_number_wraps_and_outlives_a_restart(tmp_path):
    path = tmp_path / "sparkplug.json"
    memory = Memory(path, "journal", 0)
    assert memory.next_bd_seq == 0
    memory.bd_seq = 255
    memory.write()
    assert Memory(path, "journal", 0).next_bd_seq == 0
    memory.bd_seq = 6
    memory.write()
    assert Memory(path, "journal", 0).next_bd_seq == 7


def test_a_new_journal_is_sent_from_its_beginning(tmp_path):
    path = tmp_path / "sparkplug.json"
    memory = Memory(path, "old", 50)
    memory.write()
    assert Memory(path, "new", 3).missing.ranges == ((1, 3),)
    assert Memory(path, "old", 52).missing.ranges == ((51, 52),)


@pytest.mark.parametrize("damaged", [b'{"bd_seq": ', b'{"bd_seq": 1, "journal": "\xd0"'])
def test_a_damaged_memory_is_reported_and_begun_anew(tmp_path, caplog, damaged):
    path = tmp_path / "sparkplug.json"
    path.write_bytes(damaged)
    memory = Memory(path, "journal", 9)
    assert (memory.next_bd_seq, bool(memory.missing)) == (0, False)
    assert str(path) in caplog.text


def test_a_memory_that_cannot_be_written_is_reported_once(tmp_path, caplog):
    memory = Memory(tmp_path / "missing" / "sparkplug.json", "journal", 9)
    memory.write()
    memory.write()
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text


def test_metrics_fit_between_the_aliases_of_two_devices():
    encoding = sparkplug_module.encoding
    assert len(encoding._VERDICT) <= encoding.ALIASES_PER_DEVICE


def schema_in(module):
    (call,) = [
        node
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "AddSerializedFile"
    ]
    return ast.literal_eval(call.args[0])


def test_the_generated_module_is_of_the_schema(tmp_path):
    protoc = shutil.which("protoc")
    if protoc is None:
        pytest.skip("there is no protoc on this machine (Debian: apt install protobuf-compiler)")
    folder = ROOT / "inspectd" / "mqtt"
    subprocess.run(
        [protoc, f"-I{folder}", f"--python_out={tmp_path}", "sparkplug_b.proto"],
        check=True,
        timeout=TIMEOUT_S,
    )
    # Whatever the compiler's version, the module holds the compiled schema as one literal.
    assert schema_in(tmp_path / "sparkplug_b_pb2.py") == schema_in(folder / "sparkplug_b_pb2.py")
