"""The station's side of MQTT against a real Mosquitto."""

import logging
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from broker import TIMEOUT_S, eventually, has_said_goodbye, payloads
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from station import hanging
from verdicts import a_verdict

from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.errors import BrokerUnavailable, JournalError
from inspectd.journal import Journal
from inspectd.mqtt import outbox as outbox_module
from inspectd.mqtt import standing as standing_module
from inspectd.mqtt.client import MqttClient
from inspectd.mqtt.outbox import Outbox, ReplyTo
from inspectd.mqtt.topics import Topics
from inspectd.payload import MapPayload, Response, decode_verdict, encode
from inspectd.settings import MqttSettings

TOPICS = Topics("line1-cell3")
MOSQUITTO_LOOKS_EVERY_S = 5  # for who is silent; measured with 2.0.11
PATIENT_S = 60  # a keep-alive that no stopped broker outlasts within a test


class Station:
    """Journal, client and outbox as the service wires them."""

    def __init__(self, folder, port, *, keepalive_s=5, journal=None, backlog_rate=1000.0):
        self.requests = []
        self.request_came = threading.Event()
        self.journal = journal or Journal.open(folder / "journal.db")
        self.client = MqttClient(
            MqttSettings(host=HOST, port=port, keepalive_s=keepalive_s),
            TOPICS,
            "inspectd-line1-cell3",
            self.on_request,
            folder.joinpath,
        )
        self.outbox = Outbox(self.journal, self.client, TOPICS, backlog_rate)
        self.stopped = False

    def on_request(self, name, message):
        self.requests.append((name, message))
        self.request_came.set()

    def start(self):
        self.outbox.start()
        self.client.start(self.outbox)

    def commit(self, *, offer=True, reply_to=None, **changes):
        verdict = self.journal.commit(a_verdict(**changes))
        if offer:
            self.outbox.offer(verdict, reply_to)
        return verdict

    def is_live(self):
        """Whether the outbox has learnt of the connection, so that what is offered goes live."""
        return eventually(lambda: self.outbox._connected)

    def all_sent(self):
        return eventually(lambda: self.journal.unsent_count() == 0)

    def stop(self):
        if self.stopped:
            return
        self.stopped = True
        self.outbox.drain(0.5)
        self.client.stop()
        self.outbox.close()
        self.journal.close()


@pytest.fixture
def build(tmp_path):
    """Makes stations, and stops them at the end."""
    stations = []

    def make(port, **arguments):
        stations.append(Station(tmp_path, port, **arguments))
        return stations[-1]

    yield make
    for station in stations:
        station.stop()


@pytest.fixture
def running(broker, build):
    """A station that is connected, and has its subscription."""
    station = build(broker.port, keepalive_s=PATIENT_S)
    station.start()
    assert station.is_live()
    # It sends a marker, and sets a timer for it, once the broker has granted the subscription.
    assert eventually(lambda: station.client._timers)
    return station


class Gate(threading.Event):
    """Open while it is set."""

    def __init__(self):
        super().__init__()
        self.reached = threading.Event()

    def close_before(self, station):
        """Also an attempt that is under way is over then, and the next one stands at the gate."""
        self.reached.clear()
        self.clear()
        assert self.reached.wait(TIMEOUT_S), station.client.trouble


@pytest.fixture
def gate(monkeypatch):
    """While closed, a station does not try to connect: a subscriber can be there first."""
    gate = Gate()
    gate.set()
    connect_once = MqttClient._connect_once

    def wait_first(self):
        if not gate.is_set():
            gate.reached.set()
            gate.wait(TIMEOUT_S)
        return connect_once(self)

    monkeypatch.setattr(MqttClient, "_connect_once", wait_first)
    monkeypatch.setattr(standing_module, "FIRST_RETRY_S", 0.05)
    yield gate
    gate.set()


@contextmanager
def frozen(broker):
    """The broker's machine hangs: its connections stay, and nothing is answered."""
    process = broker.process
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def live_and_late(messages):
    return [
        (verdict.seq, "late" if verdict.historical else "live")
        for verdict in map(decode_verdict, payloads(messages))
    ]


# ---- the live lane -----------------------------------------------------------------------------


def test_a_verdict_arrives_once_as_it_stands_in_the_journal(running, broker, subscribe):
    subscriber = subscribe(broker)
    verdict = running.commit(part_id="A 17")
    running.commit(verdict="FAIL", reason="above limit", score=1.7)
    first, second = subscriber.wait_for(TOPICS.verdict, 2)
    assert first.payload == running.journal.read(1, 1)[0].payload == encode(verdict)
    assert first.qos == 1
    assert first.properties.ContentType == "application/json"
    assert first.properties.UserProperty == [("id", verdict.id), ("seq", "1")]
    assert not first.retain
    assert decode_verdict(second.payload).seq == 2
    results = subscriber.wait_for(TOPICS.result, 2)
    assert payloads(results) == [b"PASS 1", b"FAIL 2"]
    assert all(result.retain for result in results)
    assert running.all_sent()
    assert len(subscriber.received(TOPICS.verdict)) == 2


def test_a_burst_keeps_its_order(running, broker, subscribe):
    subscriber = subscribe(broker)
    for _ in range(60):
        running.commit()
    messages = subscriber.wait_for(TOPICS.verdict, 60)
    assert live_and_late(messages) == [(seq, "live") for seq in range(1, 61)]
    assert running.all_sent()


def test_a_row_is_marked_sent_when_the_broker_acknowledges_and_not_before(
    running, broker, subscribe
):
    subscriber = subscribe(broker)
    with frozen(broker):
        running.commit()
        # Given up in time, with the message on its way but not acknowledged.
        assert not running.outbox.drain(1.0)
        assert running.journal.unsent_count() == 1
    assert running.outbox.drain(TIMEOUT_S)
    assert running.journal.unsent_count() == 0
    assert live_and_late(subscriber.wait_for(TOPICS.verdict)) == [(1, "live")]


def test_an_mqtt_trigger_is_answered_where_it_asked(running, broker, subscribe):
    subscriber = subscribe(broker)
    verdict = running.commit(
        transaction="T-1",
        trigger="mqtt",
        reply_to=ReplyTo("trigger", topic="plc/answers", correlation_data=b"\x00\x01"),
    )
    running.commit(reply_to=ReplyTo("trigger"))
    (answer,) = subscriber.wait_for("plc/answers")
    assert answer.properties.CorrelationData == b"\x00\x01"
    assert answer.payload == encode(
        Response(request="trigger", transaction="T-1", ok=True, verdict=verdict)
    )
    (answer,) = subscriber.wait_for(TOPICS.response("trigger"))
    assert not hasattr(answer.properties, "CorrelationData")
    refusal = Response(request="trigger", ok=False, error="retained")
    running.outbox.respond(ReplyTo("trigger"), refusal)
    assert subscriber.wait_for(TOPICS.response("trigger"), 2)[1].payload == encode(refusal)


def test_pictures_carry_the_id_of_their_verdict(running, broker, subscribe):
    subscriber = subscribe(broker)
    verdict = running.commit()
    values = MapPayload(id=verdict.id, seq=1, rows=1, cols=2, values=(0.25, 1.5))
    running.outbox.offer_pictures(verdict, b"\x89PNG", values)
    (heatmap,) = subscriber.wait_for(TOPICS.heatmap)
    assert heatmap.payload == b"\x89PNG"
    assert heatmap.properties.ContentType == "image/png"
    assert heatmap.properties.UserProperty == [("id", verdict.id), ("seq", "1")]
    assert heatmap.properties.MessageExpiryInterval == outbox_module.PICTURES_EXPIRY_S
    assert not heatmap.retain
    assert payloads(subscriber.wait_for(TOPICS.heatmap_id)) == [verdict.id.encode()]
    assert payloads(subscriber.wait_for(TOPICS.map)) == [encode(values)]
    running.outbox.offer_pictures(running.commit(), b"not judged", None)
    running.outbox.offer_pictures(running.commit(), b"judged", values)
    subscriber.wait_for(TOPICS.map, 2)
    assert len(subscriber.received(TOPICS.heatmap)) == 3


def test_pictures_wait_while_the_broker_is_slow_and_only_the_newest_are_kept(
    running, broker, subscribe
):
    subscriber = subscribe(broker)
    with frozen(broker):
        for seq in range(1, 11):
            verdict = running.commit()
            values = MapPayload(id=verdict.id, seq=seq, rows=1, cols=1, values=(0.0,))
            running.outbox.offer_pictures(verdict, b"%d" % seq, values)
        assert not running.outbox.drain(0.2)
    assert running.outbox.drain(TIMEOUT_S)
    assert len(subscriber.wait_for(TOPICS.verdict, 10)) == 10
    # The first ones found room before the broker was seen to be slow.
    assert eventually(lambda: payloads(subscriber.received(TOPICS.heatmap))[-1:] == [b"10"])
    sent = payloads(subscriber.received(TOPICS.heatmap))
    assert sent[-outbox_module.PICTURES_KEPT :] == [b"7", b"8", b"9", b"10"]
    assert len(sent) < 10


# ---- the backlog lane --------------------------------------------------------------------------


def test_verdicts_of_an_outage_follow_late_in_order_and_leave_the_result_alone(
    broker, build, subscribe, gate
):
    station = build(broker.port)
    station.start()
    assert station.is_live()
    station.commit()
    assert station.all_sent()
    gate.clear()
    broker.stop()
    assert eventually(lambda: not station.client.is_connected)
    missed = [station.commit(verdict="FAIL", reason="above limit") for _ in range(40)]
    assert station.journal.unsent_count() == 40
    broker.start()
    subscriber = subscribe(broker)
    gate.set()
    late = subscriber.wait_for(TOPICS.verdict, 40)
    assert live_and_late(late) == [(seq, "late") for seq in range(2, 42)]
    assert late[0].properties.UserProperty == [("id", missed[0].id), ("seq", "2")]
    assert station.all_sent()
    # The broker kept the result over its restart; nothing has touched it.
    assert payloads(subscriber.wait_for(TOPICS.result)) == [b"PASS 1"]
    station.commit()
    assert live_and_late(subscriber.wait_for(TOPICS.verdict, 41)[40:]) == [(42, "live")]
    assert payloads(subscriber.wait_for(TOPICS.result, 2)) == [b"PASS 1", b"PASS 42"]


def test_what_one_run_could_not_send_the_next_one_sends_late(broker_directory, build, subscribe):
    broker = PrivateBroker(broker_directory)
    first_run = build(broker.port)
    first_run.start()
    first_run.commit()
    first_run.commit()
    first_run.stop()
    with broker:
        subscriber = subscribe(broker)
        second_run = build(broker.port)
        second_run.start()
        assert live_and_late(subscriber.wait_for(TOPICS.verdict, 2)) == [(1, "late"), (2, "late")]
        assert second_run.all_sent()


def test_nothing_is_repeated_as_live_after_the_connection_broke(broker, build, subscribe, gate):
    station = build(broker.port, keepalive_s=PATIENT_S)
    station.start()
    assert station.is_live()
    gate.clear()
    broker.process.send_signal(signal.SIGSTOP)
    for _ in range(3):
        station.commit()
    assert eventually(lambda: len(station.outbox._in_flight) == 6)
    broker.process.kill()
    broker.restart()
    subscriber = subscribe(broker)
    gate.set()
    messages = subscriber.wait_for(TOPICS.verdict, 3)
    assert live_and_late(messages) == [(1, "late"), (2, "late"), (3, "late")]
    assert station.all_sent()
    station.commit()
    messages = subscriber.wait_for(TOPICS.verdict, 4)
    assert live_and_late(messages)[3:] == [(4, "live")]
    assert payloads(subscriber.wait_for(TOPICS.result)) == [b"PASS 4"]


def test_live_verdicts_overtake_a_long_backlog(broker, build, subscribe, monkeypatch):
    # Rows that are acknowledged but not marked yet are not to go again either.
    monkeypatch.setattr(outbox_module, "MARK_DELAY_S", 60.0)
    monkeypatch.setattr(outbox_module, "MARK_BATCH", 1000)
    station = build(broker.port, backlog_rate=10.0)  # half a minute for all of it
    for _ in range(300):
        station.commit(offer=False)
    subscriber = subscribe(broker)
    station.start()
    subscriber.wait_for(TOPICS.verdict, 1)
    station.commit()
    assert eventually(lambda: (301, "live") in live_and_late(subscriber.received(TOPICS.verdict)))
    station.outbox.set_backlog_rate(1000.0)
    order = live_and_late(subscriber.wait_for(TOPICS.verdict, 301))
    assert (301, "live") in order[:-1]
    station.commit()
    order = live_and_late(subscriber.wait_for(TOPICS.verdict, 302))
    assert [seq for seq, how in order if how == "late"] == list(range(1, 301))
    assert [seq for seq, how in order if how == "live"] == [301, 302]
    assert station.outbox.drain(TIMEOUT_S)
    assert station.journal.unsent_count() == 0


def test_what_a_slow_broker_cannot_take_live_follows_late(running, broker, subscribe, monkeypatch):
    monkeypatch.setattr(outbox_module, "LIVE_WINDOW", 4)  # two verdicts, each with its result
    subscriber = subscribe(broker)
    with frozen(broker):
        for _ in range(10):
            running.commit()
        assert eventually(running.outbox._events.empty)
    order = live_and_late(subscriber.wait_for(TOPICS.verdict, 10))
    assert order == [(1, "live"), (2, "live"), *((seq, "late") for seq in range(3, 11))]
    assert running.all_sent()


def test_a_verdict_committed_but_not_yet_offered_is_not_taken_for_backlog(broker, build, subscribe):
    station = build(broker.port)
    station.commit(offer=False)
    station.outbox.start()
    pending = station.commit(offer=False)
    subscriber = subscribe(broker)
    station.client.start(station.outbox)
    subscriber.wait_for(TOPICS.verdict, 1)
    station.outbox.offer(pending)
    order = live_and_late(subscriber.wait_for(TOPICS.verdict, 2))
    assert order == [(1, "late"), (2, "live")]


@pytest.mark.parametrize("damage", ["'{}'", "5", "x'7b22d0223a317d'"], ids=["{}", "5", "no text"])
def test_a_row_that_cannot_be_read_does_not_hold_up_the_others(
    broker, build, subscribe, caplog, damage
):
    station = build(broker.port)
    for _ in range(3):
        station.commit(offer=False)
    station.journal._connection.execute(
        f"UPDATE inspection SET id = CAST(x'd0' AS TEXT), payload = {damage} WHERE seq = 2"
    )
    subscriber = subscribe(broker)
    station.start()
    late = subscriber.wait_for(TOPICS.verdict, 2)
    assert live_and_late(late) == [(1, "late"), (3, "late")]
    assert eventually(lambda: [row.seq for row in station.journal.unsent(0, 9)] == [2])
    assert "verdict 2 stays in the journal" in caplog.text


def test_what_is_to_be_sent_again_is_not_marked_by_an_acknowledgement_of_before(
    broker, build, subscribe, monkeypatch
):
    monkeypatch.setattr(outbox_module, "MARK_DELAY_S", 60.0)
    station = build(broker.port)
    subscriber = subscribe(broker)
    station.start()
    assert station.is_live()
    station.commit()
    station.commit()
    assert eventually(lambda: station.outbox._to_mark == [1, 2])
    assert station.outbox.forget_sent(1, 1, TIMEOUT_S)
    assert station.journal.mark_unsent(1, 1) == 1
    station.outbox.look_back()
    messages = subscriber.wait_for(TOPICS.verdict, 3)
    assert live_and_late(messages) == [(1, "live"), (2, "live"), (1, "late")]


def test_what_is_to_be_sent_again_while_it_is_on_its_way_goes_twice(
    broker, build, subscribe, monkeypatch
):
    monkeypatch.setattr(outbox_module, "MARK_DELAY_S", 60.0)
    station = build(broker.port)
    subscriber = subscribe(broker)
    station.start()
    assert station.is_live()
    with hanging(broker):
        station.commit()
        assert eventually(lambda: any(s.seq == 1 for s in station.outbox._in_flight.values()))
        assert station.outbox.forget_sent(1, 2**62, TIMEOUT_S)
        assert station.journal.mark_unsent(1, 1) == 1
        station.outbox.look_back()
    messages = subscriber.wait_for(TOPICS.verdict, 2)
    assert live_and_late(messages) == [(1, "live"), (1, "late")]


class FaultyJournal:
    """The real one, but some of its calls fail once."""

    def __init__(self, journal, faults):
        self._journal = journal
        self._faults = faults

    def __getattr__(self, name):
        if self._faults.get(name):
            raise self._faults.pop(name)
        return getattr(self._journal, name)


@pytest.mark.parametrize("call", ["unsent_count", "unsent", "mark_sent"])
@pytest.mark.parametrize("error", [JournalError, RuntimeError])
def test_the_outbox_survives_an_error_and_goes_on(
    broker, build, subscribe, tmp_path, monkeypatch, caplog, call, error
):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0.05)
    journal = FaultyJournal(Journal.open(tmp_path / "journal.db"), {call: error("the fault")})
    station = build(broker.port, journal=journal)
    subscriber = subscribe(broker)
    station.commit(offer=False)
    station.start()
    assert live_and_late(subscriber.wait_for(TOPICS.verdict)) == [(1, "late")]
    assert station.all_sent()
    assert not journal._faults
    assert caplog.text.count("the fault") == 1


def test_a_verdict_that_the_broker_refuses_stays_unsent_and_is_tried_again(
    broker_directory, build, subscribe, monkeypatch, caplog
):
    monkeypatch.setattr(outbox_module, "REFUSED_REST_S", 0.05)
    monkeypatch.setattr(outbox_module, "REFUSED_AGAIN_S", 0.05)
    rules = broker_directory / "acl"
    rules.write_text(f"topic read #\ntopic write {TOPICS.availability}\n")
    with PrivateBroker(broker_directory, settings=[f"acl_file {rules}"]) as broker:
        station = build(broker.port)
        subscriber = subscribe(broker)
        station.start()
        station.commit()
        assert eventually(lambda: f"refuses messages on {TOPICS.verdict}" in caplog.text)
        assert station.journal.unsent_count() == 1
        rules.write_text("topic readwrite #\n")
        broker.process.send_signal(signal.SIGHUP)
        assert live_and_late(subscriber.wait_for(TOPICS.verdict)) == [(1, "late")]
        assert station.all_sent()
    assert caplog.text.count(f"refuses messages on {TOPICS.verdict}") == 1
    assert "the broker's access rules must allow this station" in caplog.text


def test_the_backlog_keeps_to_its_rate(broker, build, subscribe):
    station = build(broker.port, backlog_rate=20.0)
    for _ in range(30):
        station.commit(offer=False)
    subscriber = subscribe(broker)
    began = time.monotonic()
    station.start()
    late = subscriber.wait_for(TOPICS.verdict, 30)
    # At the least: the catching up, one verdict and the rest at 20 a second.
    assert time.monotonic() - began >= (30 - 1) / 20 - outbox_module.CATCH_UP_S
    assert live_and_late(late) == [(seq, "late") for seq in range(1, 31)]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        # Mosquitto announces the one, and answers with a refusal to the other.
        ("max_packet_size 3000", "it takes at most 3000 bytes, not"),
        ("message_size_limit 3000", "Packet too large (raise its limit for messages"),
    ],
)
def test_what_is_too_large_for_the_broker_does_not_hold_up_the_rest(
    broker_directory, build, subscribe, monkeypatch, caplog, limit, words
):
    monkeypatch.setattr(outbox_module, "REFUSED_REST_S", 0.05)
    with PrivateBroker(broker_directory, settings=[limit]) as broker:
        station = build(broker.port)
        station.commit(offer=False)
        station.commit(offer=False, part_id="x" * 4000)
        station.commit(offer=False)
        subscriber = subscribe(broker)
        station.start()
        late = subscriber.wait_for(TOPICS.verdict, 2)
        assert live_and_late(late) == [(1, "late"), (3, "late")]
        station.commit(part_id="y" * 4000)
        verdict = station.commit()
        for _ in range(3):
            station.outbox.offer_pictures(verdict, b"x" * 4000, None)
        assert live_and_late(subscriber.wait_for(TOPICS.verdict, 3)[2:]) == [(5, "live")]
        subscriber.wait_for(TOPICS.heatmap_id, 3)
        assert eventually(lambda: f"refuses messages on {TOPICS.heatmap}: " in caplog.text)
        assert words in station.outbox.trouble
        assert eventually(lambda: station.journal.unsent_count() == 2)
        station.stop()
    assert subscriber.received(TOPICS.heatmap) == []
    for topic in (TOPICS.verdict, TOPICS.heatmap):
        told = [line for line in caplog.messages if f"refuses messages on {topic}: " in line]
        assert all(words in line for line in told)
        assert len(told) == len(set(told)) <= 2  # the sizes of the two verdicts differ


def test_what_was_refused_is_tried_again_when_the_backlog_is_through(
    broker_directory, build, subscribe, monkeypatch
):
    monkeypatch.setattr(outbox_module, "REFUSED_REST_S", 0.05)
    monkeypatch.setattr(outbox_module, "REFUSED_AGAIN_S", 0.2)
    with PrivateBroker(broker_directory, settings=["message_size_limit 3000"]) as broker:
        station = build(broker.port)
        station.commit(offer=False, part_id="x" * 4000)
        station.commit(offer=False)
        subscriber = subscribe(broker)
        station.start()
        assert live_and_late(subscriber.wait_for(TOPICS.verdict)) == [(2, "late")]
        broker.directory.joinpath("mosquitto.conf").write_text(
            broker.directory.joinpath("mosquitto.conf")
            .read_text()
            .replace("message_size_limit 3000", "message_size_limit 9000")
        )
        broker.process.send_signal(signal.SIGHUP)
        late = subscriber.wait_for(TOPICS.verdict, 2)
        assert live_and_late(late) == [(2, "late"), (1, "late")]
        assert station.all_sent()
        assert eventually(lambda: station.outbox.trouble == "")


# ---- the connection ----------------------------------------------------------------------------


def test_the_broker_may_come_after_the_station(broker_directory, build, subscribe, caplog, gate):
    broker = PrivateBroker(broker_directory)
    station = build(broker.port)
    station.client.set_available(True)
    station.client.publish_retained(TOPICS.state, b"{}")
    station.start()
    station.commit()
    assert eventually(lambda: station.client._retry_delay_s > 0.3)  # several attempts later
    with pytest.raises(BrokerUnavailable, match=f"{HOST}:{broker.port}"):
        station.client.publish(TOPICS.verdict, b"{}")
    gate.close_before(station)  # or the verdict, which comes once, may come before the subscriber
    with broker:
        subscriber = subscribe(broker)
        gate.set()
        assert live_and_late(subscriber.wait_for(TOPICS.verdict)) == [(1, "late")]
        assert payloads(subscriber.wait_for(TOPICS.availability)) == [b"online"]
        assert payloads(subscriber.wait_for(TOPICS.state)) == [b"{}"]
        assert station.all_sent()
        station.stop()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "connection refused (is the broker running" in warnings[0].getMessage()


def test_availability_and_state_come_again_after_a_reconnect(broker, build, subscribe, caplog):
    station = build(broker.port)
    station.start()
    station.client.set_available(True)
    station.client.publish_retained(TOPICS.state, b"first")
    assert station.is_live()
    broker.stop()
    assert eventually(lambda: not station.client.is_connected)
    station.client.publish_retained(TOPICS.state, b"second")
    for kept in (broker.directory / "data").iterdir():
        kept.unlink()
    broker.start()
    subscriber = subscribe(broker)
    assert payloads(subscriber.wait_for(TOPICS.state)) == [b"second"]
    assert payloads(subscriber.wait_for(TOPICS.availability)) == [b"online"]
    assert all(message.retain for message in subscriber.received(TOPICS.state))
    assert caplog.text.count("is lost") == 1


def test_a_broker_that_refuses_is_reported_once_in_words(
    broker_directory, build, caplog, monkeypatch
):
    monkeypatch.setattr(standing_module, "LONGEST_RETRY_S", 0.1)
    monkeypatch.setattr(standing_module, "REFUSED_RETRY_S", 0.1)
    with PrivateBroker(broker_directory, settings=["allow_anonymous false"]) as broker:
        station = build(broker.port)
        station.start()
        assert eventually(lambda: broker.log_path.read_text().count("not authorised") >= 3)
        assert "Not authorized" in station.client.trouble
        station.stop()
    assert caplog.text.count("no connection to the MQTT broker") == 1
    assert "it refuses the connection: Not authorized (wrong password, or" in caplog.text


def test_a_killed_station_is_offline_by_its_last_will(broker, subscribe):
    subscriber = subscribe(broker)
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from inspectd.mqtt.client import MqttClient\n"
            "from inspectd.mqtt.topics import Topics; from inspectd.settings import MqttSettings\n"
            "class Nobody:\n"
            "    connected = lost = lambda self: None\n"
            "    acknowledged = lambda self, mid, refusal: None\n"
            f"settings = MqttSettings(host='{HOST}', port={broker.port})\n"
            "from pathlib import Path\n"
            f"client = MqttClient(settings, Topics('{TOPICS.station}'), 'child', print, Path)\n"
            "client.set_available(True); client.start(Nobody()); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
    )
    with child:
        assert payloads(subscriber.wait_for(TOPICS.availability)) == [b"online"]
        child.kill()
        told = subscriber.wait_for(TOPICS.availability, 2)
    assert payloads(told) == [b"online", b"offline"]
    assert payloads(subscribe(broker).wait_for(TOPICS.availability)) == [b"offline"]  # retained


def test_stop_says_offline_and_leaves_no_thread(running, broker, subscribe):
    subscriber = subscribe(broker)
    threads_of_others = {thread for thread in threading.enumerate() if "line1" not in thread.name}
    running.client.set_available(True)
    running.stop()
    assert payloads(subscriber.wait_for(TOPICS.availability, 3)) == [
        b"offline",
        b"online",
        b"offline",
    ]
    assert not running.client.is_connected
    left = set(threading.enumerate()) - threads_of_others
    assert not [thread.name for thread in left]
    assert eventually(lambda: has_said_goodbye(broker, "inspectd-line1-cell3"))


def test_stop_does_not_wait_for_a_broker_that_hangs(running, broker, caplog):
    with frozen(broker):
        running.commit()
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        stopping.join(TIMEOUT_S)  # of a keep-alive of a minute
        assert not stopping.is_alive()
    assert not running.client.is_connected


def test_stop_before_any_connection(broker_directory, build):
    station = build(PrivateBroker(broker_directory).port)
    station.start()
    station.stop()
    assert eventually(
        lambda: not any("line1-cell3" in thread.name for thread in threading.enumerate())
    )


def test_a_request_is_handed_over_with_all_that_an_answer_needs(running, broker, subscribe):
    subscriber = subscribe(broker)
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = "plc/answers"
    properties.CorrelationData = b"\x07"
    subscriber.publish(TOPICS.request("trigger"), b'{"part_id": "A"}', properties=properties)
    assert running.request_came.wait(TIMEOUT_S)
    name, message = running.requests[0]
    assert (name, message.payload) == ("trigger", b'{"part_id": "A"}')
    assert (message.response_topic, message.correlation_data) == ("plc/answers", b"\x07")
    assert not message.retain


@pytest.mark.parametrize("topic", [TOPICS.verdict, TOPICS.availability, TOPICS.request("reload")])
def test_an_answer_is_never_given_where_the_station_says_something_else(
    running, broker, subscribe, topic
):
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = topic
    subscribe(broker).publish(TOPICS.request("trigger"), b"{}", properties=properties)
    assert running.request_came.wait(TIMEOUT_S)
    ((_, message),) = running.requests
    assert message.response_topic is None


def test_a_retained_request_is_known_as_such(broker, build, subscribe):
    subscribe(broker).publish(TOPICS.request("trigger"), b"", retain=False, properties=None)
    subscribe(broker).publish(TOPICS.request("reload"), b"{}", retain=True, properties=None)
    station = build(broker.port)
    station.start()
    assert station.request_came.wait(TIMEOUT_S)
    ((name, message),) = station.requests
    assert (name, message.retain) == ("reload", True)
    assert (message.response_topic, message.correlation_data) == (None, None)


def test_an_error_in_the_handler_of_a_request_does_not_end_the_connection(
    running, broker, subscribe, caplog
):
    subscriber = subscribe(broker)
    handle, running.client._on_request = running.client._on_request, None
    subscriber.publish(TOPICS.request("trigger"), b"", properties=None)
    assert eventually(lambda: "unexpected error while handling" in caplog.text)
    running.client._on_request = handle
    subscriber.publish(TOPICS.request("trigger"), b"again", properties=None)
    assert running.request_came.wait(TIMEOUT_S)
    assert running.requests[0][1].payload == b"again"


def test_what_was_acknowledged_is_marked_in_the_journal_that_it_is_of(broker, build):
    """The outbox hears of another journal later than the journal is there."""
    station = build(broker.port)
    told = station.journal.id
    marked = []

    class Ahead:
        """The store when the event still waits."""

        id = told
        last_seq = station.journal.last_seq
        unsent = station.journal.unsent
        unsent_count = station.journal.unsent_count

        def mark_sent(self, seqs, journal_id=None):
            marked.append((list(seqs), journal_id))
            station.journal.mark_sent(seqs, journal_id)

    station.outbox._store = Ahead()
    station.start()
    station.commit()
    assert eventually(lambda: marked)
    station.outbox.journal_replaced("another")
    station.commit()
    assert eventually(lambda: len(marked) == 2)
    assert marked == [([1], told), ([2], "another")]


def test_a_station_that_vanished_is_said_to_be_offline_within_ten_seconds():
    """A broker waits for half as long again as the keep-alive [MQTT-3.1.2-22]."""
    silence_s = 1.5 * MqttSettings().keepalive_s
    assert silence_s + MOSQUITTO_LOOKS_EVERY_S < 8.5
