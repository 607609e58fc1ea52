"""No broker is connected to twice within a second, whatever is wrong with it."""

import logging
import threading
import time
from contextlib import closing, contextmanager, suppress
from itertools import pairwise

import pytest
from broker import TIMEOUT_S, eventually
from impostor import Impostor
from soak.proxy import Proxy
from tls import Authority, tls_lines

from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.errors import BrokerState, BrokerUnavailable
from inspectd.mqtt import pace as pace_module
from inspectd.mqtt import standing as standing_module
from inspectd.mqtt.client import MqttClient
from inspectd.mqtt.pace import Pace
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings, TlsSettings

CLOSEST_S = 1.0
CONNECTIONS = 5


class Nobody:
    def connected(self):
        pass

    def lost(self):
        pass

    def acknowledged(self, mid, refusal):
        pass


@contextmanager
def station(port, folder, **settings):
    client = MqttClient(
        MqttSettings(host=HOST, port=port, **settings),
        Topics("line1-cell3"),
        "inspectd-line1-cell3",
        print,
        folder.joinpath,
    )
    client.start(Nobody())
    try:
        yield client
    finally:
        client.stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch, caplog):
    """Between its attempts a station waits for nothing but the pace."""
    caplog.set_level(logging.DEBUG)
    for wait in ("FIRST_RETRY_S", "LONGEST_RETRY_S", "REFUSED_RETRY_S"):
        monkeypatch.setattr(standing_module, wait, 0.05)


def apart(proxy):
    """Whether connections came, and no two of them within a second."""
    came = eventually(lambda: len(proxy.attempts) >= CONNECTIONS, 2 * TIMEOUT_S)
    waits = [later - at for at, later in pairwise(proxy.attempts)]
    return came and min(waits) >= CLOSEST_S


def test_a_port_that_closes_at_once(tmp_path):
    with (
        closing(Impostor([])) as server,
        Proxy(server.port) as proxy,
        station(proxy.port, tmp_path) as client,
    ):
        assert apart(proxy), proxy.attempts
        assert eventually(lambda: client.state is BrokerState.WRONG_PROTOCOL)


@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_a_broker_that_wants_a_certificate(broker_directory, tmp_path, version):
    plant = Authority(broker_directory, "plant")
    lines = [*tls_lines(plant.issue(), clients=plant), f"tls_version {version}"]
    with (
        PrivateBroker(broker_directory, settings=lines) as broker,
        Proxy(broker.port) as proxy,
        station(proxy.port, tmp_path, tls=TlsSettings(ca=str(plant.file))) as client,
    ):
        assert apart(proxy), proxy.attempts
        assert eventually(lambda: client.state is BrokerState.REFUSED_CERTIFICATE)


def test_a_broker_that_wants_tls(broker_directory, tmp_path):
    plant = Authority(broker_directory, "plant")
    lines = tls_lines(plant.issue())
    with (
        PrivateBroker(broker_directory, settings=lines) as broker,
        Proxy(broker.port) as proxy,
        station(proxy.port, tmp_path) as client,
    ):
        assert apart(proxy), proxy.attempts
        assert eventually(lambda: "it expects TLS on this port" in client.trouble)


def test_a_broker_whose_terms_are_learnt(broker_directory, tmp_path):
    settings = ["max_inflight_messages 3"]
    with (
        PrivateBroker(broker_directory, settings=settings) as broker,
        Proxy(broker.port) as proxy,
        station(proxy.port, tmp_path) as client,
    ):
        assert eventually(lambda: client.is_connected)
        first, second = proxy.attempts
        assert second - first >= CLOSEST_S


def test_a_stop_waits_for_no_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(pace_module, "APART_S", 3600.0)
    with closing(Impostor([])) as server, Proxy(server.port) as proxy:
        with station(proxy.port, tmp_path) as client:
            assert eventually(lambda: proxy.attempts)
        client._thread.join(TIMEOUT_S)
        assert not client._thread.is_alive()
        assert len(proxy.attempts) == 1


def test_the_pace_counts_from_the_end_of_an_opening(monkeypatch):
    monkeypatch.setattr(pace_module, "APART_S", 0.2)
    pace = Pace()
    with suppress(OSError), pace.opening():
        ended = time.monotonic()
        raise OSError("it failed, but who knows when the other side heard of it")
    with pace.opening():
        assert time.monotonic() - ended >= 0.2


def test_after_a_stop_nothing_is_opened():
    stopping = threading.Event()
    pace = Pace(stopping)
    stopping.set()
    opened = False
    with pytest.raises(BrokerUnavailable, match="no connection is to be made"), pace.opening():
        opened = True
    assert not opened
