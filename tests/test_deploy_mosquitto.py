"""The locked-down broker of deploy/mosquitto: its scripts, and a Mosquitto run by what they make.

What the broker forbids is told by two things here: its answer to the publisher (MQTT 5), and what
a subscriber receives up to a message that was sent later and is allowed.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from broker import TIMEOUT_S, Subscriber, eventually, payloads
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from station import (
    NAME,
    SIMULATED,
    TOPICS,
    Station,
    decoded,
    request,
    wait_for_verdicts,
    wait_until_available,
)
from tls import Authority

from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.mqtt.retained import read_retained
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings, TlsSettings

DEPLOY = Path(__file__).parent.parent / "deploy" / "mosquitto"
SETUP = DEPLOY / "setup.sh"
CERTIFICATES = DEPLOY / "make-certificates.sh"
OTHER = Topics("cell2")
SCRIPT_S = 60.0
REFUSED = "Not authorized"
GRANTED = "Success"
NOBODY_LISTENS = "No matching subscribers"
CONNECT = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x05\x00\x01a"
"""Of MQTT 3.1.1, without a user."""
CONNACK = b"\x20"

if shutil.which("mosquitto_passwd") is None or shutil.which("mosquitto_pub") is None:
    pytest.skip(
        "there is no mosquitto on this machine, or only a part (Debian: apt install mosquitto "
        "mosquitto-clients)",
        allow_module_level=True,
    )


def run(*command: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=SCRIPT_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def succeed(*command: str | Path) -> str:
    """What it said, on both streams."""
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


class LockedBroker(PrivateBroker):
    """A Mosquitto run from what setup.sh has made, below a file of settings such as Debian's."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        super().__init__(directory)
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        self.said = self.set_up("--port", str(self.port), "--bind", HOST, *arguments)
        self.etc = directory / "etc" / "mosquitto" / "inspectd"

    def set_up(self, *arguments: str) -> str:
        return succeed("sh", SETUP, "--root", self.directory, *arguments)

    def refuse(self, *arguments: str) -> str:
        done = run("sh", SETUP, "--root", self.directory, *arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    def _write_settings(self) -> Path:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(data, "mosquitto")
        path = self.directory / "etc" / "mosquitto" / "mosquitto.conf"
        path.write_text(
            f"persistence true\npersistence_location {data}/\nlog_dest stderr\n"
            f"include_dir {path.parent / 'conf.d'}\n"
        )
        return path

    @property
    def ca(self) -> Path:
        return self.etc / "ca.pem"

    @property
    def inspectd(self) -> Path:
        """The folder of the settings on the same machine."""
        return self.directory / "etc" / "inspectd"

    @property
    def station_password(self) -> Path:
        return self.inspectd / "credentials" / "default.mqtt-password"

    def password(self, user: str) -> str:
        path = self.station_password if user == NAME else self.etc / "credentials" / user
        return path.read_text().strip()

    def reload(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)


class User(Subscriber):
    """Someone with a password, over TLS, who subscribes to what he is told to."""

    def __init__(
        self, broker: LockedBroker, name: str, *topics: str, client_id: str = "", keep: bool = False
    ) -> None:
        self._messages = []
        self._arrival = threading.Condition(threading.RLock())
        self._answers: dict[int, str] = {}
        self.announced: Properties | None = None
        connected, subscribed = threading.Event(), threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        client.tls_set_context(ssl.create_default_context(cafile=str(broker.ca)))
        client.username_pw_set(name, broker.password(name))

        def on_connect(_client, _data, _flags, reason, properties):
            assert not reason.is_failure, reason
            self.announced = properties
            connected.set()
            if topics:  # after the broker was away, too
                options = SubscribeOptions(qos=1, retainAsPublished=True)
                client.subscribe([(topic, options) for topic in topics])

        def on_publish(_client, _data, mid, reason, _properties):
            with self._arrival:
                self._answers[mid] = reason.getName()
                self._arrival.notify_all()

        client.on_connect = on_connect
        client.on_publish = on_publish
        client.on_message = self._on_message
        client.on_subscribe = lambda *_: subscribed.set()
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600 if keep else 0
        client.connect(HOST, broker.port, clean_start=not keep, properties=properties)
        client.loop_start()
        self._client = client
        assert connected.wait(TIMEOUT_S), "the broker does not let the user in"
        assert not topics or subscribed.wait(TIMEOUT_S)

    def send(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> str:
        """The broker's answer."""
        mid = self._client.publish(topic, payload, 1, retain).mid
        with self._arrival:
            assert self._arrival.wait_for(lambda: mid in self._answers, TIMEOUT_S)
            return self._answers[mid]

    def topics(self) -> list[str]:
        with self._arrival:
            return [message.topic for message in self._messages]


@pytest.fixture
def locked(broker_directory) -> Iterator[LockedBroker]:
    arguments = ["--station", NAME, "--add-station", OTHER.station, "--home-assistant"]
    with LockedBroker(broker_directory / "line", *arguments) as broker:
        yield broker


@pytest.fixture
def enter() -> Iterator:
    """Makes users, and closes them at the end."""
    users: list[User] = []

    def make(*arguments, **options) -> User:
        users.append(User(*arguments, **options))
        return users[-1]

    yield make
    for user in users:
        user.close()


# ---- who may do what -----------------------------------------------------------------------------

OWN = [
    *(
        getattr(TOPICS, name)
        for name, value in vars(Topics).items()
        if isinstance(value, property) and name != "base"
    ),
    TOPICS.response("trigger"),
    TOPICS.response("trigger/scada-7"),
    TOPICS.request("marker"),
    f"homeassistant/device/inspectd_{NAME}/config",
    *(f"spBv1.0/plant/{kind}/{NAME}" for kind in ("NBIRTH", "NDATA", "NDEATH")),
    *(f"spBv1.0/plant/{kind}/{NAME}/block" for kind in ("DBIRTH", "DDATA", "DDEATH")),
]
NOT_ITS_OWN = [
    TOPICS.base,
    TOPICS.request("trigger"),
    TOPICS.request("reload"),
    OTHER.verdict,
    OTHER.availability,
    OTHER.response("trigger"),
    OTHER.request("trigger"),
    OTHER.request("marker"),
    f"homeassistant/device/inspectd_{OTHER.station}/config",
    "homeassistant/status",
    f"spBv1.0/plant/DDATA/{OTHER.station}/block",
    f"spBv1.0/plant/NCMD/{NAME}",
    "spBv1.0/STATE/scada",
    "anything",
]


def test_a_station_writes_its_own_topics_and_only_those(locked, enter):
    scada = enter(locked, "scada", "inspectd/#", "spBv1.0/#")
    home = enter(locked, "homeassistant", "homeassistant/#")
    station = enter(locked, NAME)
    answers = {topic: station.send(topic) for topic in [*NOT_ITS_OWN, *OWN]}
    assert {topic for topic in NOT_ITS_OWN if answers[topic] != REFUSED} == set()
    taken = {GRANTED, NOBODY_LISTENS}  # nobody may read the marker but the station
    assert {topic: answers[topic] for topic in OWN if answers[topic] not in taken} == {}
    home.wait_for(f"homeassistant/device/inspectd_{NAME}/config")
    scada.wait_for(OWN[-1])
    assert home.topics() == [f"homeassistant/device/inspectd_{NAME}/config"]
    unread = {TOPICS.request("marker"), *home.topics()}
    assert sorted(scada.topics()) == sorted(topic for topic in OWN if topic not in unread)


def test_a_station_receives_its_own_requests_and_only_those(locked, enter):
    scada = enter(locked, "scada")
    home = enter(locked, "homeassistant")
    station = enter(locked, NAME, "#")
    other = enter(locked, OTHER.station)
    assert scada.send(OTHER.request("trigger")) == GRANTED
    other.send(OTHER.verdict)
    other.send(OTHER.request("marker"))
    assert scada.send("spBv1.0/STATE/scada") == GRANTED
    assert scada.send(f"spBv1.0/plant/NCMD/{NAME}") == GRANTED
    assert home.send("homeassistant/status") == GRANTED
    assert home.send(TOPICS.request("reload")) == GRANTED
    assert station.send(TOPICS.request("marker")) == GRANTED
    assert scada.send(TOPICS.request("trigger")) == GRANTED
    station.wait_for(TOPICS.request("trigger"))
    assert station.topics() == [
        "spBv1.0/STATE/scada",
        f"spBv1.0/plant/NCMD/{NAME}",
        "homeassistant/status",
        TOPICS.request("reload"),
        TOPICS.request("marker"),
        TOPICS.request("trigger"),
    ]


def test_a_station_reads_its_own_last_words_for_a_bundle_and_no_other_station_does(locked, enter):
    words = [TOPICS.availability, TOPICS.state, TOPICS.health, TOPICS.statistics]
    station, other = enter(locked, NAME), enter(locked, OTHER.station, *words, OTHER.state)
    for topic in words:
        station.send(topic, b"mine", retain=True)
    other.send(OTHER.state)
    other.wait_for(OTHER.state)
    assert other.topics() == [OTHER.state]
    settings = MqttSettings(
        host=HOST,
        port=locked.port,
        username=NAME,
        password_file=str(locked.station_password),
        tls=TlsSettings(ca=str(locked.ca)),
    )
    assert read_retained(settings, NAME, words, Path, TIMEOUT_S) == dict.fromkeys(words, b"mine")


@pytest.mark.parametrize("user", ["scada", "homeassistant"])
def test_who_asks_may_speak_for_no_station(locked, enter, user):
    station = enter(locked, NAME, TOPICS.request("+"))
    asking = enter(locked, user)
    forbidden = [
        TOPICS.verdict,
        TOPICS.result,
        TOPICS.availability,
        TOPICS.heartbeat,
        TOPICS.response("trigger"),
        TOPICS.request("marker"),
        f"homeassistant/device/inspectd_{NAME}/config",
        f"spBv1.0/plant/DDATA/{NAME}/block",
    ]
    assert {asking.send(topic) for topic in forbidden} == {REFUSED}
    asking.send(TOPICS.request("trigger"))
    station.wait_for(TOPICS.request("trigger"))
    assert station.topics() == [TOPICS.request("trigger")]


def refusal(broker: LockedBroker, *, name=None, password=None) -> str:
    """What the broker answers to a connection."""
    answers: list[str] = []
    client = paho.Client(
        CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False
    )
    client.tls_set_context(ssl.create_default_context(cafile=str(broker.ca)))
    client.username_pw_set(name, password)
    client.on_connect = lambda _c, _d, _f, reason, _p: answers.append(reason.getName())
    client.connect(HOST, broker.port)
    try:
        while not answers and client.loop(TIMEOUT_S) == paho.MQTT_ERR_SUCCESS:
            pass
    finally:
        client.reinitialise()
    return answers[0]


def test_nobody_comes_in_without_password_or_encryption(locked, broker_directory):
    assert refusal(locked, name=NAME, password=locked.password(NAME)) == GRANTED
    assert refusal(locked) == REFUSED
    assert refusal(locked, name=NAME, password=locked.password("scada")) == REFUSED
    assert refusal(locked, name="cell9", password=locked.password(NAME)) == REFUSED
    stranger = ssl.create_default_context(cafile=str(Authority(broker_directory, "stranger").file))
    with (
        socket.create_connection((HOST, locked.port), TIMEOUT_S) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        stranger.wrap_socket(plain, server_hostname=HOST)
    answer = b""
    with socket.create_connection((HOST, locked.port), TIMEOUT_S) as plain:
        plain.sendall(CONNECT)
        with contextlib.suppress(ConnectionResetError):
            answer = plain.recv(64)
    assert answer[:1] != CONNACK  # an alert of TLS, or nothing


# ---- a station at work ---------------------------------------------------------------------------


@pytest.fixture
def judging(locked, tmp_path) -> Station:
    station = Station(tmp_path, camera=SIMULATED % 30, trigger="{source: mqtt}", port=locked.port)
    plain = f"mqtt: {{host: {HOST}, port: {locked.port}}}"
    inspectd = locked.directory / "etc" / "inspectd"
    encrypted = (
        f"mqtt:\n  host: {HOST}\n  port: {locked.port}\n  username: {NAME}\n"
        f"  password_file: {inspectd / 'credentials' / 'default.mqtt-password'}\n"
        f"  tls: {{ca: {inspectd / 'ca.pem'}}}\n  homeassistant: {{}}\n"
    )
    text = station.file.read_text()
    assert plain in text
    station.file.write_text(text.replace(plain, encrypted))
    station.teach()
    return station


def test_a_station_judges_through_it_and_answers_where_it_may(locked, judging, enter):
    scada = enter(locked, "scada", "inspectd/#")
    home = enter(locked, "homeassistant", "homeassistant/#")
    service = judging.start()
    wait_until_available(scada)
    home.wait_for(f"homeassistant/device/inspectd_{NAME}/config")

    request(scada, {"transaction": "1"})
    scada.wait_for(TOPICS.response("trigger"))
    mine = TOPICS.response("trigger/scada-7")
    request(scada, {"transaction": "2"}, response_topic=mine, correlation_data=b"7")
    answer = scada.wait_for(mine)[0]
    assert answer.properties.CorrelationData == b"7"
    # Where the station may not write nobody is answered; the verdict itself comes all the same.
    request(scada, {"transaction": "3"}, response_topic=f"{OTHER.base}/verdict")
    request(scada, {"transaction": "4"})
    scada.wait_for(TOPICS.response("trigger"), 2)
    verdicts = wait_for_verdicts(scada, 4)
    assert [(v["seq"], v["transaction"]) for v in verdicts] == [
        (1, "1"),
        (2, "2"),
        (3, "3"),
        (4, "4"),
    ]
    assert {v["verdict"] for v in verdicts} <= {"PASS", "FAIL"}
    assert [a["transaction"] for a in decoded(scada, TOPICS.response("trigger"))] == ["1", "4"]
    assert scada.received(OTHER.verdict) == []
    scada.wait_for(TOPICS.heatmap)

    # It has a session, and tells requests that waited by its marker.
    locked.restart()
    before = len(scada.received(TOPICS.heartbeat))
    scada.wait_for(TOPICS.heartbeat, before + 1)
    request(scada, {"transaction": "5"})
    assert wait_for_verdicts(scada, 5)[-1]["verdict"] in {"PASS", "FAIL"}
    assert service.stop() == 0
    assert "are lost from now on" not in service.log
    assert locked.password(NAME) not in service.log
    assert f"inspectd/{OTHER.station}" in service.log  # the refused answer is named


def test_what_waits_for_scada_is_more_than_mosquittos_own_thousand(locked, enter):
    count = 2500
    away = User(locked, "scada", TOPICS.verdict, client_id="historian", keep=True)
    away.close()
    station = enter(locked, NAME)
    for number in range(count):
        station._client.publish(TOPICS.verdict, b"%d" % number, 1)
    assert station.send(TOPICS.state) == NOBODY_LISTENS
    locked.restart()
    back = enter(locked, "scada", client_id="historian", keep=True)
    back.wait_for(TOPICS.verdict, count)
    assert payloads(back.received(TOPICS.verdict)) == [b"%d" % number for number in range(count)]


def test_a_client_is_told_the_largest_message(locked, enter):
    assert enter(locked, NAME).announced.MaximumPacketSize == 16 * 2**20


# ---- setup.sh ------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes(), path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_run_changes_nothing(broker_directory):
    broker = LockedBroker(broker_directory / "line", "--station", NAME, "--host", "broker.plant")
    before = contents(broker.directory)
    broker.set_up("--station", NAME, "--host", "broker.plant")
    assert contents(broker.directory) == before


def test_passwords_are_random_hidden_and_readable_by_their_owner_alone(broker_directory):
    broker = LockedBroker(broker_directory / "line", "--station", NAME, "--add-station", "cell2")
    users = (NAME, "scada", "cell2")
    assert len({broker.password(user) for user in users}) == 3
    for user in users:
        assert len(broker.password(user)) >= 32
        assert broker.password(user) not in broker.said
        assert broker.password(user) not in (broker.etc / "passwords").read_text()
    assert str(broker.etc / "credentials" / "scada") in broker.said
    inspectd = broker.directory / "etc" / "inspectd"
    for secret in (
        *(broker.etc / "credentials").iterdir(),
        *(inspectd / "credentials").iterdir(),
        broker.etc / "passwords",
        broker.etc / "broker.key",
        broker.etc / "authority" / "ca.key",
    ):
        assert secret.stat().st_mode & 0o777 == 0o600, secret
    for folder in (inspectd / "credentials", broker.etc / "credentials", broker.etc / "authority"):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
    assert (inspectd / "ca.pem").read_bytes() == broker.ca.read_bytes()
    assert (inspectd / "ca.pem").stat().st_mode & 0o777 == 0o644


def test_a_station_is_added_while_the_others_stay_connected(locked, enter):
    scada = enter(locked, "scada", "inspectd/#")
    before = locked.password("scada")
    said = locked.set_up("--add-station", "cell3", "--host", "broker.plant")
    assert str(locked.etc / "credentials" / "cell3") in said
    assert locked.password("scada") == before
    locked.reload()
    assert eventually(
        lambda: refusal(locked, name="cell3", password=locked.password("cell3")) == GRANTED
    )
    assert enter(locked, "cell3").send(Topics("cell3").verdict) == GRANTED
    scada.wait_for(Topics("cell3").verdict)
    # The certificate has the new name beside the old ones, and the broker uses it.
    context = ssl.create_default_context(cafile=str(locked.ca))
    for name in (HOST, "localhost", "broker.plant"):
        with socket.create_connection((HOST, locked.port), TIMEOUT_S) as plain:
            context.wrap_socket(plain, server_hostname=name).close()


def test_a_new_password_takes_the_old_ones_place(locked):
    old = {user: locked.password(user) for user in (NAME, "scada")}
    (locked.etc / "credentials" / "scada").unlink()  # carried away: it is not made anew by itself
    locked.set_up("--station", NAME)
    assert not (locked.etc / "credentials" / "scada").exists()
    locked.set_up("--new-password", "scada")
    assert locked.password("scada") != old["scada"]
    assert locked.password(NAME) == old[NAME]
    locked.reload()
    assert eventually(lambda: refusal(locked, name="scada", password=old["scada"]) == REFUSED)
    assert refusal(locked, name="scada", password=locked.password("scada")) == GRANTED
    if "homeassistant:" not in (locked.etc / "passwords").read_text():
        locked.set_up("--home-assistant")
    stolen = locked.password("homeassistant")
    locked.set_up("--new-password", "homeassistant")
    assert locked.password("homeassistant") != stolen


RENEW = f"setup.sh --station {NAME} --instance default --new-password {NAME}"


def test_a_station_of_this_machine_is_not_locked_out_by_a_new_password(locked):
    """The service goes on with the file that it knows: nothing may be written past it."""
    before = contents(locked.directory / "etc")
    for arguments in (
        ["--new-password", NAME],
        ["--add-station", NAME, "--new-password", NAME],
        ["--station", NAME, "--instance", "second", "--new-password", NAME],
        ["--station", "cell3", "--new-password", NAME],
    ):
        said = locked.refuse(*arguments)
        assert f"{RENEW}, then systemctl restart inspectd@default" in said
        assert str(locked.station_password) in said
    said = locked.refuse("--station", NAME, "--instance", "second")
    assert "write --instance default" in said
    assert contents(locked.directory / "etc") == before
    old = locked.password(NAME)
    locked.set_up(*RENEW.split()[1:])
    assert locked.password(NAME) != old
    locked.reload()
    assert eventually(lambda: refusal(locked, name=NAME, password=old) == REFUSED)
    assert refusal(locked, name=NAME, password=locked.password(NAME)) == GRANTED


def test_the_broker_follows_the_password_of_the_station_on_its_machine(locked):
    old = locked.password(NAME)
    locked.station_password.write_text("correct horse\n")
    locked.set_up("--station", NAME)
    assert locked.password(NAME) == "correct horse"
    before = contents(locked.directory / "etc")
    locked.set_up("--station", NAME)
    assert contents(locked.directory / "etc") == before
    locked.reload()
    assert eventually(lambda: refusal(locked, name=NAME, password=old) == REFUSED)
    assert refusal(locked, name=NAME, password="correct horse") == GRANTED


def test_a_spare_takes_over_the_station_of_a_dead_machine_with_its_broker(locked, broker_directory):
    """What a restore has put there is of the dead one: its authority, and with --secrets its
    password.
    """
    dead = LockedBroker(broker_directory / "dead", "--station", NAME)
    for name in ("ca.pem", "credentials/default.mqtt-password"):
        shutil.copy(dead.inspectd / name, locked.inspectd / name)
    assert refusal(locked, name=NAME, password=dead.password(NAME)) == REFUSED
    locked.set_up("--station", NAME)
    assert (locked.inspectd / "ca.pem").read_bytes() == locked.ca.read_bytes()
    assert (locked.inspectd / "ca.pem.old").read_bytes() == dead.ca.read_bytes()
    assert locked.password(NAME) == dead.password(NAME)
    locked.reload()
    assert eventually(lambda: refusal(locked, name=NAME, password=dead.password(NAME)) == GRANTED)
    assert check(locked).returncode == 0


def test_the_station_of_this_machine_is_tried_though_it_is_not_named(locked):
    assert run("sh", SETUP, "--root", locked.directory, "--check").returncode == 0
    locked.station_password.write_text("wrong\n")
    said = locked.refuse("--check")
    assert f"does not let in user {NAME}" in said
    assert RENEW in said


@pytest.mark.parametrize(("state", "told"), [("active", True), ("inactive", False)])
def test_a_service_that_runs_is_to_be_restarted(broker_directory, monkeypatch, state, told):
    """systemd gives it the password at the start only."""
    stand_in(broker_directory / "bin", monkeypatch, systemctl=f"echo {state}")
    broker = LockedBroker(broker_directory / "line", "--station", NAME, "--instance", "cam2")
    assert ("then systemctl restart inspectd@cam2" in broker.said) == told


def stand_in(folder: Path, monkeypatch, **scripts: str) -> None:
    """Commands that stand before the system's own."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("before", "starts_with", "left", "words"),
    [
        ("", "nothing", "new", "Mosquitto does not start with "),
        ("new", "nothing", "new", "Mosquitto does not start with "),
        ("old", "nothing", "new", "Mosquitto does not start with "),
        ("old", "old", "old", "the old one is in force again"),
    ],
)
def test_settings_that_mosquitto_does_not_start_with_give_way_to_those_that_it_does(
    tmp_path, monkeypatch, before, starts_with, left, words
):
    """There is no systemd to ask: take_back alone, with one that starts by certain settings."""
    settings, scratch = tmp_path / "inspectd.conf", tmp_path / "scratch"
    (tmp_path / "made").mkdir()
    scratch.mkdir()
    settings.write_text("new")
    if before:
        (scratch / "before").write_text(before)
    stand_in(
        tmp_path / "bin",
        monkeypatch,
        systemctl=f'[ "$(cat {settings})" = "{starts_with}" ]',
        journalctl="echo its words >&2",
    )
    functions = [
        re.search(rf"^{name}\(\) \{{.*?\}}$", SETUP.read_text(), re.DOTALL | re.MULTILINE)[0]
        for name in ("say", "fail", "replace_settings", "take_back")
    ]
    places = f"settings={settings} scratch={scratch} broker={tmp_path}"
    done = run("sh", "-euc", "\n".join([*functions, places, "take_back"]))
    assert done.returncode == 1
    assert "its words" in done.stderr
    assert words in done.stderr
    assert ("in force again" in done.stderr) == (left == "old")
    assert settings.read_text() == left


def test_what_was_edited_is_kept_and_own_rules_stay(broker_directory):
    broker = LockedBroker(broker_directory / "line", "--station", NAME)
    settings = broker.directory / "etc" / "mosquitto" / "conf.d" / "inspectd.conf"
    made = settings.read_text()
    settings.write_text(made + "max_connections 5\n")
    (broker.etc / "access-list.local").write_text("user historian\ntopic read inspectd/#\n")
    said = broker.set_up()
    assert settings.read_text() == made
    assert "had been edited" in said
    assert (broker.etc / "inspectd.conf.edited").read_text() == made + "max_connections 5\n"
    assert (
        (broker.etc / "access-list").read_text().endswith("user historian\ntopic read inspectd/#\n")
    )


def check(broker: LockedBroker) -> subprocess.CompletedProcess:
    return run("sh", SETUP, "--root", broker.directory, "--check", "--station", NAME)


def test_the_check_finds_a_broker_that_works_and_one_that_does_not(locked, broker_directory):
    assert "nobody without a password" in check(locked).stderr
    password = locked.station_password
    right = password.read_text()
    password.write_text("wrong\n")
    refused = check(locked)
    assert refused.returncode == 1
    assert f"does not let in user {NAME}" in refused.stderr
    assert RENEW in refused.stderr
    password.write_text(right)
    locked.stop()
    (locked.directory / "etc" / "mosquitto" / "conf.d" / "local.conf").write_text(
        "allow_anonymous true\n"
    )
    locked.start()
    opened = check(locked)
    assert opened.returncode == 1
    assert "lets in anyone without a password" in opened.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--station", "scada"], "'scada' is a user of its own"),
        (["--station", "line 1"], "only letters, digits, '-' and '_'"),
        (["--add-station", "+"], "only letters, digits, '-' and '_'"),
        (["--station", "a", "--port", "mqtt"], "--port mqtt: a number from 1 to 65535"),
        (["--station", "a", "--host", "$(id)"], "'$(id)' is neither a host name nor an address"),
        (["--add-station", "a", "--new-password", "b"], "--new-password b: there is no such user"),
        (
            ["--station", "a", "--new-password", "homeassistant"],
            "--new-password homeassistant: there is no such user",
        ),
        (["--station"], "--station needs a value"),
        (["--stations", "a"], "there is no option --stations"),
        ([], "usage:"),
        (["--check"], "there is no broker set up here yet"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(tmp_path, arguments, words):
    done = run("sh", SETUP, "--root", tmp_path, *arguments)
    assert done.returncode != 0
    assert words in done.stderr


# ---- certificates --------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path):
    """Runs make-certificates.sh in a folder of its own."""

    def make(*arguments: str) -> subprocess.CompletedProcess:
        return run("sh", CERTIFICATES, "--directory", tmp_path, *arguments)

    assert make("authority").returncode == 0
    return make


def openssl(*arguments: str | Path) -> str:
    return succeed("openssl", *arguments)


def verify(folder: Path, certificate: str, purpose: str, *more: str) -> bool:
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
    return run(*command, "-CAfile", folder / "ca.pem", *more, folder / certificate).returncode == 0


@pytest.mark.parametrize(("kind", "words"), [("ec", "prime256v1"), ("rsa", "(3072 bit)")])
def test_the_broker_has_a_certificate_for_its_names(certificates, tmp_path, kind, words):
    hosts = ["broker.plant", "10.0.0.5", "::1", "broker.plant"]
    assert certificates("--key", kind, "broker", *hosts).returncode == 0
    shown = openssl("x509", "-in", tmp_path / "broker.crt", "-noout", "-text")
    assert words in shown
    assert "DNS:broker.plant, IP Address:10.0.0.5, IP Address:0:0:0:0:0:0:0:1\n" in shown
    assert verify(tmp_path, "broker.crt", "sslserver", "-verify_hostname", "broker.plant")
    assert verify(tmp_path, "broker.crt", "sslserver", "-verify_ip", "::1")
    assert not verify(tmp_path, "broker.crt", "sslserver", "-verify_hostname", "other.plant")
    assert not verify(tmp_path, "broker.crt", "sslclient")
    assert (tmp_path / "broker.key").stat().st_mode & 0o777 == 0o600
    assert certificates("names").stdout.split() == ["broker.plant", "10.0.0.5", "0:0:0:0:0:0:0:1"]


def test_nothing_is_overwritten(certificates, tmp_path):
    assert certificates("broker", "a.plant").returncode == 0
    assert certificates("client", "cell").returncode == 0
    before = contents(tmp_path)
    for again in (["authority"], ["broker", "b.plant"], ["client", "cell"]):
        done = certificates(*again)
        assert done.returncode == 1
        assert "is there already" in done.stderr
    assert contents(tmp_path) == before


def test_an_expired_certificate_is_renewed_for_the_same_key_and_names(certificates, tmp_path):
    assert certificates("broker", "broker.plant", "10.0.0.5").returncode == 0
    certificate, key = tmp_path / "broker.crt", tmp_path / "broker.key"
    expired = tmp_path / "expired"
    extensions = tmp_path / "extensions"
    extensions.write_text("subjectAltName = DNS:broker.plant, IP:10.0.0.5\n")
    openssl("req", "-new", "-key", key, "-subj", "/CN=broker.plant", "-out", expired)
    authority = ["-CA", tmp_path / "ca.pem", "-CAkey", tmp_path / "authority" / "ca.key"]
    signing = ["-days", "-1", "-extfile", extensions, "-out", certificate]
    openssl("x509", "-req", "-in", expired, *authority, *signing)
    assert not verify(tmp_path, "broker.crt", "sslserver")
    before, old = key.read_bytes(), certificate.read_bytes()
    assert certificates("renew").returncode == 0
    assert verify(tmp_path, "broker.crt", "sslserver", "-verify_hostname", "broker.plant")
    assert verify(tmp_path, "broker.crt", "sslserver", "-verify_ip", "10.0.0.5")
    assert key.read_bytes() == before
    assert (tmp_path / "broker.crt.old").read_bytes() == old


def test_setup_renews_what_ends_within_a_month(broker_directory):
    broker = LockedBroker(broker_directory / "line", "--station", NAME)
    succeed("sh", CERTIFICATES, "--directory", broker.etc, "--days", "20", "renew")
    lasting = ["openssl", "x509", "-in", broker.etc / "broker.crt", "-noout", "-checkend"]
    month = str(30 * 86400)
    assert run(*lasting, month).returncode == 1
    broker.set_up("--station", NAME)
    assert run(*lasting, month).returncode == 0


def test_no_certificate_outlives_its_authority(tmp_path):
    command = ["sh", CERTIFICATES, "--directory", tmp_path]
    succeed(*command, "--days", "5", "authority")
    assert "no longer than the authority" in succeed(*command, "broker", "broker.plant")
    ends = {
        openssl("x509", "-in", tmp_path / name, "-noout", "-enddate")
        for name in ("ca.pem", "broker.crt")
    }
    assert len(ends) == 1


def test_a_clock_that_lags_by_years_finds_the_certificates_valid(certificates, tmp_path):
    assert certificates("broker", "broker.plant").returncode == 0
    image_of_2021 = "1609459200"
    assert verify(tmp_path, "broker.crt", "sslserver", "-attime", image_of_2021)


def test_clients_with_a_certificate_of_their_own(locked):
    certificates = ["sh", CERTIFICATES, "--directory", locked.etc]
    succeed(*certificates, "client", NAME)
    succeed(*certificates, "renew-client", NAME)
    assert verify(locked.etc, f"clients/{NAME}.crt", "sslclient")
    settings = locked.directory / "etc" / "mosquitto" / "conf.d" / "inspectd.conf"
    uncommented = settings.read_text().replace("\n#cafile", "\ncafile")
    uncommented = uncommented.replace("\n#require_certificate", "\nrequire_certificate")
    settings.write_text(uncommented)
    locked.set_up("--station", NAME)
    assert settings.read_text() == uncommented
    locked.restart()
    assert check(locked).returncode == 0

    def connect(*own: Path) -> bytes:
        context = ssl.create_default_context(cafile=str(locked.ca))
        if own:
            context.load_cert_chain(*own)
        with (
            socket.create_connection((HOST, locked.port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as encrypted,
        ):
            encrypted.sendall(CONNECT)
            return encrypted.recv(64)

    clients = locked.etc / "clients"
    not_authorised = b"\x20\x02\x00\x05"  # no password, but it came so far
    assert connect(clients / f"{NAME}.crt", clients / f"{NAME}.key") == not_authorised
    without = b""
    with contextlib.suppress(OSError):  # by an alert of TLS, or just closed
        without = connect()
    assert without[:1] != CONNACK


# ---- the bridge ----------------------------------------------------------------------------------

BRIDGE = "inspectd-line1"


@pytest.fixture
def plant(broker_directory) -> Iterator[LockedBroker]:
    """The plant's broker, which knows the bridge as a user with rules of its own."""
    with LockedBroker(broker_directory / "plant", "--add-station", BRIDGE) as broker:
        (broker.etc / "access-list.local").write_text(
            f"user {BRIDGE}\ntopic write inspectd/#\ntopic write inspectd-bridge/line1\n"
            "topic read inspectd/+/request/+\n"
            "user scada\ntopic read inspectd-bridge/#\n"
        )
        broker.set_up("--add-station", BRIDGE)
        broker.restart()
        yield broker


def build_bridge(line: LockedBroker, plant: LockedBroker, *, requests: bool = False) -> None:
    """Fill in the example as its user would, and start anew."""
    text = (DEPLOY / "bridge.conf.example").read_text()
    changes = {
        "address broker.plant:8883": f"address {HOST}:{plant.port}",
        "remote_password EDIT": f"remote_password {plant.password(BRIDGE)}",
        "/etc/mosquitto/inspectd/plant-ca.pem": str(plant.ca),
        "restart_timeout 2 30": "restart_timeout 1",
    }
    if requests:
        changes["#topic +/request/trigger"] = "topic +/request/trigger"
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (line.directory / "etc" / "mosquitto" / "conf.d" / "inspectd-bridge.conf").write_text(text)
    line.restart()


def test_the_bridge_loses_no_verdict_while_the_plants_broker_is_away(locked, plant, enter):
    topics = ["inspectd/#", "inspectd-bridge/#"]
    above = User(plant, "scada", *topics, client_id="historian", keep=True)
    build_bridge(locked, plant)
    assert above.wait_for("inspectd-bridge/line1")[-1].payload == b"1"
    station = enter(locked, NAME)
    station.send(TOPICS.availability, b"online", retain=True)
    station.send(TOPICS.verdict, b"0")
    assert above.wait_for(TOPICS.availability)[0].retain
    above.wait_for(TOPICS.verdict)
    above.close()

    plant.stop()
    waiting = [b"%d" % number for number in range(1, 1501)]
    for number in waiting:
        station._client.publish(TOPICS.verdict, number, 1)
    for result in (b"PASS 1", b"PASS 2"):
        station.send(TOPICS.result, result, retain=True)
    locked.restart()  # what waits outlives it
    plant.start()
    above = enter(plant, "scada", client_id="historian", keep=True)
    # In order; the last ones before the outage may come again, so that no number tells the end.
    assert eventually(lambda: payloads(above.received(TOPICS.verdict))[-1:] == waiting[-1:])
    assert payloads(above.received(TOPICS.verdict))[-len(waiting) :] == waiting
    above.wait_for(TOPICS.result)
    assert payloads(above.received(TOPICS.result)) == [b"PASS 2"]  # not what is past


def test_a_dead_bridge_is_told_at_the_plant(locked, plant, enter):
    above = enter(plant, "scada", "inspectd-bridge/#")
    build_bridge(locked, plant)
    assert above.wait_for("inspectd-bridge/line1")[-1].payload == b"1"
    assert locked.process is not None
    locked.process.kill()
    locked.process.wait()
    assert eventually(lambda: payloads(above.received("inspectd-bridge/line1"))[-1] == b"0")


@pytest.mark.parametrize("allowed", [False, True])
def test_requests_of_the_plant_come_down_only_where_they_are_let(locked, plant, enter, allowed):
    above = enter(plant, "scada", "inspectd/#", "inspectd-bridge/#")
    build_bridge(locked, plant, requests=allowed)
    above.wait_for("inspectd-bridge/line1")
    station = enter(locked, NAME, TOPICS.request("+"))
    answer = above.send(TOPICS.request("trigger"))
    station.send(TOPICS.request("marker"))
    station.wait_for(TOPICS.request("marker"))
    if allowed:
        received = station.wait_for(TOPICS.request("trigger"))[0]
        assert received.qos == 0
    else:
        assert answer == GRANTED  # the subscriber above reads it as well
        assert station.topics() == [TOPICS.request("marker")]
    # Nor do the station's own markers go up.
    station.send(TOPICS.verdict)
    above.wait_for(TOPICS.verdict)
    assert TOPICS.request("marker") not in above.topics()


# ---- the scripts themselves ----------------------------------------------------------------------


@pytest.mark.parametrize("script", [SETUP, CERTIFICATES], ids=lambda path: path.name)
def test_the_scripts_are_plain_shell(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck on this machine (Debian: apt install shellcheck)")
    done = run("shellcheck", "--shell=dash", script)
    assert done.stdout == ""
