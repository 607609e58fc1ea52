"""Passwords and certificates: what is wrong with the files, and with the real Mosquitto."""

import gc
import logging
import re
import ssl
import threading
import warnings
from pathlib import Path

import pytest
from broker import TIMEOUT_S, eventually
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from impostor import Impostor
from tls import Authority, password_lines, tls_lines

from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.errors import BrokerState, PermanentError
from inspectd.mqtt import connection as connection_module
from inspectd.mqtt import pace as pace_module
from inspectd.mqtt import standing as standing_module
from inspectd.mqtt.access import read_access
from inspectd.mqtt.client import MqttClient
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings, TlsSettings

SECRET = "Tr0ub4dor&3"


@pytest.fixture
def plant(broker_directory):
    """The authority that the broker and its stations trust."""
    return Authority(broker_directory, "plant")


@pytest.fixture
def stranger(broker_directory):
    return Authority(broker_directory, "stranger")


# ---- the files ---------------------------------------------------------------------------------


def with_password(path):
    return MqttSettings(username="cell3", password_file=path.name)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_password_is_the_file_without_its_newline(tmp_path, mark, ending):
    path = tmp_path / "password"
    path.write_bytes(mark + b" " + SECRET.encode() + ending)
    access = read_access(with_password(path), tmp_path.joinpath)
    assert (access.username, access.password, access.tls) == ("cell3", f" {SECRET}", None)
    assert SECRET not in repr(access)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory; the file must be there"),
        (b"", "is empty; write the password into it"),
        (b"\n", "is empty; write the password into it"),
        (SECRET.encode() + b"\n\n", "holds more than a password"),
        (b"user: cell3\npassword: " + SECRET.encode(), "holds more than a password"),
        (SECRET.encode() * 10000, "holds more than a password"),
        (SECRET.encode() + b"\xff", "is no UTF-8 text"),
    ],
    ids=["missing", "empty", "newline", "two newlines", "two lines", "huge", "latin"],
)
def test_a_password_file_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PermanentError, match=words) as raised:
        read_access(with_password(path), tmp_path.joinpath)
    assert f"mqtt.password_file: {path} " in str(raised.value)
    # Nor in what a traceback would show.
    assert SECRET not in repr((raised.value, raised.value.__cause__))


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(PermanentError, match=r"mqtt\.tls\.ca: .* cannot be read: Is a directory"):
        read_access(MqttSettings(tls=TlsSettings(ca=".")), tmp_path.joinpath)


def test_tls_demands_a_certificate_the_right_name_and_a_version(tmp_path):
    plant = Authority(tmp_path, "plant")
    settings = MqttSettings(tls=TlsSettings(ca=plant.file.name))
    context = read_access(settings, tmp_path.joinpath).tls
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.cert_store_stats()["x509_ca"] == 1  # and not the system's
    everyones = read_access(MqttSettings(tls=TlsSettings()), tmp_path.joinpath).tls
    assert everyones.verify_mode == ssl.CERT_REQUIRED


def encrypt(pair):
    key = load_pem_private_key(pair.key.read_bytes(), None)
    form = (Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase"))
    pair.key.write_bytes(key.private_bytes(*form))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda own, ca: ca.unlink(), r"mqtt\.tls\.ca: \S*plant\.pem cannot be read: No such"),
        (lambda own, ca: ca.write_text("me"), r"mqtt\.tls\.ca: \S* holds no certificate that can"),
        (lambda own, ca: own.certificate.unlink(), r"mqtt\.tls\.certificate: \S* cannot be read"),
        (
            lambda own, ca: own.certificate.write_text("me"),
            r"mqtt\.tls\.certificate: \S*\.crt holds no certificate that can be used",
        ),
        (lambda own, ca: own.key.unlink(), r"mqtt\.tls\.key: \S* cannot be read: No such"),
        (
            lambda own, ca: own.key.write_text("me"),
            r"mqtt\.tls\.key: \S*\.key holds no private key that can be used",
        ),
        (
            lambda own, ca: own.key.write_bytes(own.certificate.with_suffix(".other").read_bytes()),
            r"mqtt\.tls\.key: \S*\.key is not the key of the certificate \S*\.crt",
        ),
        (lambda own, ca: encrypt(own), r"mqtt\.tls\.key: \S*\.key is encrypted with a passphrase"),
    ],
    ids=["no ca", "ca", "no certificate", "certificate", "no key", "key", "mismatch", "encrypted"],
)
def test_certificates_that_cannot_be_used(tmp_path, spoil, words):
    plant = Authority(tmp_path, "plant")
    own = plant.issue("cell3")
    own.certificate.with_suffix(".other").write_bytes(plant.issue("cell4").key.read_bytes())
    tls = TlsSettings(ca=plant.file.name, certificate=own.certificate.name, key=own.key.name)
    read_access(MqttSettings(tls=tls), tmp_path.joinpath)
    spoil(own, plant.file)
    with pytest.raises(PermanentError, match=words):
        read_access(MqttSettings(tls=tls), tmp_path.joinpath)


# ---- the connection ----------------------------------------------------------------------------


class Listener:
    def __init__(self):
        self.came = threading.Event()

    def connected(self):
        self.came.set()

    def lost(self):
        self.came.clear()

    def acknowledged(self, mid, refusal):
        pass


@pytest.fixture
def start(tmp_path, caplog, monkeypatch):
    """Starts stations that try again at once, and stops them at the end."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(pace_module, "APART_S", 0.0)
    monkeypatch.setattr(standing_module, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(standing_module, "LONGEST_RETRY_S", 0.05)
    monkeypatch.setattr(standing_module, "REFUSED_RETRY_S", 0.05)
    clients = []

    def make(port, *, host=HOST, **settings):
        client = MqttClient(
            MqttSettings(host=host, port=port, **settings),
            Topics("line1-cell3"),
            "inspectd-line1-cell3",
            print,
            tmp_path.joinpath,
        )
        assert client.trouble  # none has been tried yet
        client.listener = Listener()
        client.start(client.listener)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.stop()


@pytest.fixture
def attempts(monkeypatch):
    """Counts attempts to connect, by the semaphore's releases."""
    made = threading.Semaphore(0)
    connect_once = MqttClient._connect_once

    def counted(self):
        try:
            return connect_once(self)
        finally:
            made.release()

    monkeypatch.setattr(MqttClient, "_connect_once", counted)
    return made


def wait_for(attempts, count):
    for _ in range(count):
        assert attempts.acquire(timeout=TIMEOUT_S)


def tls_settings(plant, own=None):
    if own is None:
        return TlsSettings(ca=str(plant.file))
    return TlsSettings(ca=str(plant.file), certificate=str(own.certificate), key=str(own.key))


def test_a_password_over_tls_and_a_certificate(broker_directory, plant, start, tmp_path, caplog):
    (tmp_path / "password").write_text(f"{SECRET}\n")
    lines = [
        *tls_lines(plant.issue(), clients=plant),
        *password_lines(broker_directory, "cell3", SECRET),
    ]
    with PrivateBroker(broker_directory, settings=lines) as broker:
        client = start(
            broker.port,
            username="cell3",
            password_file="password",
            tls=tls_settings(plant, plant.issue("cell3")),
        )
        assert client.listener.came.wait(TIMEOUT_S)
        assert client.trouble == ""
        broker.stop()
        assert eventually(lambda: not client.is_connected)
        assert eventually(lambda: "connection refused" in client.trouble)
        broker.start()
        assert eventually(lambda: client.is_connected)
        client.stop()
    assert SECRET not in caplog.text


def put(path, content):
    """In one step: nobody reads the file while it is empty."""
    new = path.with_name("new")
    new.write_bytes(content)
    new.replace(path)


def test_changed_files_are_taken_without_a_restart(
    broker_directory, plant, stranger, start, tmp_path, attempts, caplog
):
    lines = [*tls_lines(plant.issue()), *password_lines(broker_directory, "cell3", SECRET)]
    with PrivateBroker(broker_directory, settings=lines) as broker:
        client = start(
            broker.port,
            username="cell3",
            password_file="password",
            tls=TlsSettings(ca="authority"),
        )
        assert eventually(lambda: "password cannot be read" in client.trouble)
        put(tmp_path / "password", f"{SECRET}!".encode())
        assert eventually(lambda: "authority cannot be read" in client.trouble)
        put(tmp_path / "authority", stranger.file.read_bytes())
        assert eventually(lambda: "not signed by an authority" in client.trouble)
        put(tmp_path / "authority", plant.file.read_bytes())
        assert eventually(lambda: "Not authorized (wrong password" in client.trouble)
        put(tmp_path / "password", SECRET.encode())
        assert client.listener.came.wait(TIMEOUT_S)
        # The authority that was trusted before must not be trusted any longer.
        put(tmp_path / "authority", stranger.file.read_bytes())
        broker.stop()
        # Whether an attempt falls into the broker's absence is not left to chance: it is counted.
        assert eventually(lambda: "connection refused" in client.trouble)
        broker.start()
        assert eventually(lambda: "not signed by an authority" in client.trouble)
        client.stop()
    assert caplog.text.count("no connection to the MQTT broker") == 6
    assert SECRET not in caplog.text


def case(label, words, **arrangement):
    return pytest.param(arrangement, words, id=label)


@pytest.mark.parametrize(
    ("arrangement", "words"),
    [
        case("broker wants TLS", "it expects TLS on this port", tls=None),
        case("broker has no TLS", "it does not answer in TLS", broker=None),
        case("wrong authority", "not signed by an authority that this", broker="stranger"),
        case("expired", "its certificate, or its authority's, has expired", days=-1),
        case("too early", r"is not valid yet by this station's clock; is it 20\d\d-", begins=5),
        case("other name", f"for another name than {HOST}; mqtt.host must", name="broker.plant"),
        case("certificate wanted", "wants a certificate of the station: set mqtt.tls", mutual=True),
        case(
            "own authority",
            "does not know the authority of the station's own",
            mutual=True,
            own="stranger",
        ),
        case(
            "own expired",
            r"the station's own certificate \(mqtt.tls.certificate\) has expired",
            mutual=True,
            own="plant",
            own_days=-1,
        ),
    ],
)
@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_what_tls_does_not_accept_is_reported_once_in_words(
    broker_directory, plant, stranger, start, attempts, caplog, arrangement, words, version
):
    authorities = {"plant": plant, "stranger": stranger}
    lines = []
    if (issuer := arrangement.get("broker", "plant")) is not None:
        server = authorities[issuer].issue(
            arrangement.get("name", HOST),
            days=arrangement.get("days", 30),
            begins=arrangement.get("begins", -60),
        )
        lines = tls_lines(server, clients=plant if arrangement.get("mutual") else None)
        lines.append(f"tls_version {version}")
    own = None
    if "own" in arrangement:
        own = authorities[arrangement["own"]].issue("cell3", days=arrangement.get("own_days", 30))
    with PrivateBroker(broker_directory, settings=lines) as broker:
        client = start(broker.port, tls=arrangement.get("tls", tls_settings(plant, own)))
        wait_for(attempts, 3)
        assert not client.is_connected
        # With TLS 1.3 the broker's reason may be lost with the connection; then it is guessed.
        assert eventually(lambda: re.search(words, client.trouble))
        wait_for(attempts, 3)
        trouble = client.trouble
        client.stop()
    told = [r.getMessage() for r in caplog.records if "no connection to the" in r.getMessage()]
    facts = [line for line in told if "does the broker trust" not in line]
    assert len(facts) == 1, told
    assert len(told) <= 2
    assert re.search(words, trouble)
    assert f"MQTT broker {HOST}:{broker.port}; verdicts wait in the journal" in facts[0]
    assert facts[0].endswith(f": {trouble}")


@pytest.mark.parametrize(
    "settings",
    [{"username": "cell3", "password_file": "password"}, {"tls": TlsSettings(ca="missing")}],
    ids=["password", "file"],
)
def test_what_only_a_person_can_cure_is_not_hammered(
    broker_directory, start, tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(standing_module, "FIRST_RETRY_S", 2.0)
    monkeypatch.setattr(standing_module, "REFUSED_RETRY_S", 30.0)
    (tmp_path / "password").write_text("wrong")
    lines = password_lines(broker_directory, "cell3", SECRET)
    with PrivateBroker(broker_directory, settings=lines) as broker:
        client = start(broker.port, **settings)
        assert eventually(lambda: client._retry_delay_s > 0)
        assert client._retry_delay_s == 30.0
        client.stop()  # does not wait for it
    assert eventually(lambda: not client._thread.is_alive())


def test_a_file_that_was_corrected_is_tried_at_once(
    broker_directory, start, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(standing_module, "REFUSED_RETRY_S", 300.0)
    (tmp_path / "password").write_text("wrong")
    lines = password_lines(broker_directory, "cell3", SECRET)
    with PrivateBroker(broker_directory, settings=lines) as broker:
        client = start(broker.port, username="cell3", password_file="password")
        assert eventually(lambda: client.state is BrokerState.REFUSED_CREDENTIALS)
        (tmp_path / "password").unlink()
        assert eventually(lambda: client.state is BrokerState.UNUSABLE_FILE)
        (tmp_path / "password").write_text(SECRET)
        assert client.listener.came.wait(TIMEOUT_S)
        assert client.state is BrokerState.CONNECTED
        assert "a password or certificate file has changed" in caplog.text
        client.stop()
    # Without a change it waits.
    (tmp_path / "password").write_text("wrong")
    with PrivateBroker(broker_directory, settings=lines) as broker:
        client = start(broker.port, username="cell3", password_file="password")
        assert eventually(lambda: client._retry_delay_s > 0)
        caplog.clear()
        client._thread.join(2.5 * standing_module.LOOK_S)
        assert not caplog.text
        client.stop()


@pytest.fixture
def impostor():
    """Makes servers that are no brokers, and stops them at the end."""
    made = []

    def make(*arguments, **named):
        made.append(Impostor(*arguments, **named))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" + b" " * 99,
        b"220 mail.plant ESMTP ready, this is not what you are looking for at all\r\n" * 9,
        b"\x20\x03\x00\x77\x00",  # a CONNACK with a reason code that does not exist
        b"\x20\x02\x00\x00",  # of MQTT 3.1.1
        b"\x30\x05\x00\xffabc",
        bytes(range(256)),
        b"",
    ],
    ids=["http", "smtp", "reason", "3.1.1", "publish", "bytes", "nothing"],
)
def test_what_is_no_broker_does_not_end_the_attempts(impostor, start, attempts, caplog, answer):
    client = start(impostor(answer).port)
    wait_for(attempts, 3)
    assert "gives no proper answer (is it an MQTT broker?)" in client.trouble
    assert caplog.text.count("no connection to the MQTT broker") == 1
    assert "unexpected" not in caplog.text


def test_https_is_not_taken_for_a_broker_that_wants_a_certificate(impostor, start, attempts, plant):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = plant.issue()
    context.load_cert_chain(server.certificate, server.key)
    web = impostor(
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 99,
        lambda connection: context.wrap_socket(connection, server_side=True),
    )
    client = start(web.port, tls=tls_settings(plant))
    wait_for(attempts, 2)
    assert "gives no proper answer (is it an MQTT broker?)" in client.trouble


def test_tls_before_1_2_is_refused(impostor, start, attempts, plant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    server = plant.issue()
    context.load_cert_chain(server.certificate, server.key)
    old = impostor(None, lambda connection: context.wrap_socket(connection, server_side=True))
    client = start(old.port, tls=tls_settings(plant))
    wait_for(attempts, 2)
    assert "it speaks no TLS of version 1.2 or later" in client.trouble


@pytest.mark.parametrize("tls", [False, True])
def test_a_broker_that_hangs_is_given_up(impostor, start, attempts, plant, monkeypatch, tls):
    monkeypatch.setattr(connection_module, "ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr(connection_module, "_LOOP_S", 0.05)
    client = start(impostor(None).port, keepalive_s=3600, tls=tls_settings(plant) if tls else None)
    wait_for(attempts, 2)
    assert ("does not answer in TLS" if tls else "does not answer (does it hang") in client.trouble


@pytest.mark.parametrize("host", ["." * 70, "x" * 70, "no such name.invalid"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_host_that_is_no_name(start, attempts, plant, host, tls):
    client = start(1883, host=host, tls=tls_settings(plant) if tls else None)
    wait_for(attempts, 2)
    assert "mqtt.host" in client.trouble


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_failed_attempts_leave_nothing_open(impostor, start, attempts):
    port = impostor(b"nonsense").port
    start(port)
    wait_for(attempts, 2)
    gc.collect()
    gc.disable()
    try:
        before = open_files()
        wait_for(attempts, 20)
        # What the impostor holds closed already, and one attempt under way.
        assert open_files() <= before + 6
    finally:
        gc.enable()


def test_a_subscription_that_is_refused_is_reported(start, caplog, broker_directory, impostor):
    # CONNACK, then SUBACK 1 "not authorized".
    answer = b"\x20\x03\x00\x00\x00" + b"\x90\x04\x00\x01\x00\x87"
    client = start(impostor(answer, hang_up=False).port)
    assert eventually(lambda: "does not let this station have what comes on" in caplog.text)
    assert "Not authorized (the broker's access rules must allow this station)" in caplog.text
    client.stop()
