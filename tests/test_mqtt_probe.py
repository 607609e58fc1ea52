"""What a look at the broker tells, on the real Mosquitto."""

import logging
import math
from contextlib import closing

import pytest
from broker import eventually, has_said_goodbye
from impostor import Impostor
from tls import Authority, password_lines, tls_lines

from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.mqtt import connection as connection_module
from inspectd.mqtt.probe import BrokerReport, probe
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings, TlsSettings

STATION = "line1-cell3"
TOPICS = Topics(STATION)
SECRET = "Tr0ub4dor&3"
"""Far from what a broker takes on loopback, and from the 40 ms of a delayed acknowledgement."""


def look(port, folder, *, host=HOST, **settings):
    return probe(MqttSettings(host=host, port=port, **settings), STATION, folder.joinpath)


def test_a_broker_that_lets_everyone_in(broker, subscribe, tmp_path):
    subscriber = subscribe(broker)
    report = look(broker.port, tmp_path)
    assert report.answer_ms > 0
    assert report == BrokerReport(
        reachable=True,
        connected=True,
        publish_refusal="",
        subscribe_refusal="",
        answer_ms=report.answer_ms,
    )
    assert subscriber.wait_for(TOPICS.doctor)
    assert f"as inspectd-{STATION}-doctor " in broker.log_path.read_text()
    assert eventually(lambda: has_said_goodbye(broker, f"inspectd-{STATION}-doctor"))
    assert not subscriber.received(TOPICS.availability)  # that is the service's


def test_tls_its_version_and_both_certificates(broker_directory):
    plant = Authority(broker_directory, "plant")
    own = plant.issue("cell3", days=3)
    lines = [
        *tls_lines(plant.issue(days=20), clients=plant),
        *password_lines(broker_directory, "cell3", SECRET),
    ]
    (broker_directory / "password").write_text(SECRET)
    with PrivateBroker(broker_directory, settings=lines) as broker:
        report = look(
            broker.port,
            broker_directory,
            username="cell3",
            password_file="password",
            tls=TlsSettings(ca=plant.file.name, certificate=own.certificate.name, key=own.key.name),
        )
    assert report.connected
    assert report.tls_version == "TLSv1.3"
    assert report.broker_certificate_days == pytest.approx(20, abs=0.1)
    assert report.own_certificate_days == pytest.approx(3, abs=0.1)
    assert (report.trouble, report.publish_refusal, report.subscribe_refusal) == ("", "", "")


def test_the_days_of_the_own_certificate_are_told_without_a_broker(tmp_path):
    own = Authority(tmp_path, "plant").issue("cell3", days=-2)
    with closing(Impostor(None)) as gone:
        port = gone.port
    tls = TlsSettings(certificate=own.certificate.name, key=own.key.name)
    report = look(port, tmp_path, tls=tls)
    assert report.own_certificate_days == pytest.approx(-2, abs=0.1)
    assert (report.reachable, report.connected) == (False, False)
    assert "connection refused" in report.trouble


def test_a_wrong_password(broker_directory, caplog):
    caplog.set_level(logging.DEBUG)
    (broker_directory / "password").write_text(f"{SECRET}!")
    lines = password_lines(broker_directory, "cell3", SECRET)
    with PrivateBroker(broker_directory, settings=lines) as broker:
        report = look(broker.port, broker_directory, username="cell3", password_file="password")
    assert (report.reachable, report.connected) == (True, False)
    assert "Not authorized (wrong password" in report.trouble
    assert SECRET not in caplog.text + repr(report)


def test_files_are_looked_at_before_the_broker(tmp_path):
    report = look(1883, tmp_path, username="cell3", password_file="password")
    assert (report.reachable, report.connected) == (None, False)
    assert f"{tmp_path / 'password'} cannot be read" in report.trouble


def test_a_name_that_nobody_knows(tmp_path):
    report = look(1883, tmp_path, host="x" * 70)
    assert (report.reachable, report.connected) == (False, False)
    assert "mqtt.host" in report.trouble


def test_access_rules_that_do_not_let_the_station_publish(broker_directory, tmp_path):
    rules = broker_directory / "acl"
    rules.write_text("topic read #\n")
    with PrivateBroker(broker_directory, settings=[f"acl_file {rules}"]) as broker:
        report = look(broker.port, tmp_path)
    assert report.connected
    assert report.publish_refusal == (
        "Not authorized (the broker's access rules must allow this station)"
    )
    assert (report.subscribe_refusal, report.trouble) == ("", "")


def test_a_subscription_that_is_refused(tmp_path):
    # CONNACK; SUBACK of message 1: not authorized; and no more.
    answers = [b"\x20\x03\x00\x00\x00", b"\x90\x04\x00\x01\x00\x87"]
    with closing(Impostor(answers, hang_up=False)) as deaf:
        settings = MqttSettings(host=HOST, port=deaf.port)
        report = probe(settings, STATION, tmp_path.joinpath, within_s=1.0)
    assert report.connected
    assert "Not authorized" in report.subscribe_refusal
    assert report.publish_refusal is None
    assert report.trouble == "no answer within 1 s"


def test_what_hangs_is_left_in_time(tmp_path):
    with closing(Impostor(None)) as hanging:
        settings = MqttSettings(host=HOST, port=hanging.port)
        report = probe(settings, STATION, tmp_path.joinpath, within_s=0.3)
    assert (report.reachable, report.connected) == (True, False)
    assert report.trouble == "no answer within 0.3 s"


def test_the_words_of_the_connection_come_before_the_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(connection_module, "ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr(connection_module, "_LOOP_S", 0.05)
    with closing(Impostor(None)) as hanging:
        report = look(hanging.port, tmp_path)
    assert "does not answer (does it hang" in report.trouble


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_answer_time_is_measured(broker_directory, encrypted):
    """Without `set_tcp_nodelay true` it is mostly 40 ms, and sometimes not: no test of it here."""
    plant = Authority(broker_directory, "plant")
    lines = tls_lines(plant.issue()) if encrypted else ()
    with PrivateBroker(broker_directory, settings=lines) as broker:
        tls = TlsSettings(ca=plant.file.name) if encrypted else None
        report = look(broker.port, broker_directory, tls=tls)
    assert 0 < report.answer_ms < math.inf
