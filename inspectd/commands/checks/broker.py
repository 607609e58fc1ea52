"""The MQTT broker: reachable, willing, and quick."""

from __future__ import annotations

from collections.abc import Iterator

from inspectd.commands.checks import Examination, Finding, error, ok, warning
from inspectd.mqtt.probe import IN_A_ROW, BrokerReport, probe
from inspectd.mqtt.topics import Topics
from inspectd.settings import MqttSettings, Station

SLOW_MS = 20.0
SOON_DAYS = 30.0


def check_broker(known: Examination) -> Iterator[Finding]:
    """One connection beside the service's: let in, certificates, rights, answer time."""
    settings = known.settings
    station = settings.station
    yield from describe(probe(station.mqtt, station.station, settings.resolve), station)


def describe(report: BrokerReport, station: Station) -> Iterator[Finding]:
    """What the connection has shown, in words."""
    yield _connection(report, station.mqtt)
    yield from _certificate(
        "the broker's",
        report.broker_certificate_days,
        "ask whoever runs the broker to put a new one in place",
    )
    yield from _certificate(
        "the station's own",
        report.own_certificate_days,
        "put a new one in place of mqtt.tls.certificate and mqtt.tls.key",
    )
    if report.connected:
        yield from _rights(report, Topics(station.station))
        yield from _pace(report)


def _connection(report: BrokerReport, mqtt: MqttSettings) -> Finding:
    where = f"{mqtt.host}:{mqtt.port}"
    if not report.connected:
        return error("broker", f"no connection to {where}: {report.trouble}")
    user = f", as {mqtt.username}" if mqtt.username is not None else ", without a user name"
    kind = f", {report.tls_version}" if report.tls_version else ", not encrypted"
    if report.trouble:
        return error("broker", f"{where} lets the station in{user}{kind}, but: {report.trouble}")
    return ok("broker", f"{where} lets the station in{user}{kind}")


def _certificate(whose: str, days: float | None, fix: str) -> Iterator[Finding]:
    if days is None:
        return
    if days < 0:
        yield error("certificate", f"{whose} has expired {-days:.0f} days ago", fix)
    elif days < SOON_DAYS:
        yield warning("certificate", f"{whose} expires in {days:.0f} days", fix)
    else:
        yield ok("certificate", f"{whose} is valid for {days:.0f} days more")


def _rights(report: BrokerReport, topics: Topics) -> Iterator[Finding]:
    if report.publish_refusal:
        told = f"the broker does not take messages below {topics.base}: {report.publish_refusal}"
        yield error("rights", told)
    if report.subscribe_refusal:
        told = f"the broker refuses {topics.request('+')}: {report.subscribe_refusal}"
        yield error("rights", told)
    if report.publish_refusal == "" and report.subscribe_refusal == "":
        yield ok("rights", "the broker takes the station's messages and grants its subscription")


def _pace(report: BrokerReport) -> Iterator[Finding]:
    if report.answer_ms is None:
        return
    told = f"{report.answer_ms:.1f} ms for {IN_A_ROW} messages in a row (median)"
    if report.answer_ms < SLOW_MS:
        yield ok("answer time", told)
    else:
        yield warning(
            "answer time",
            f"{told}: each verdict comes that much later",
            "write `set_tcp_nodelay true` into mosquitto's configuration and restart it; over a "
            "long or wireless network the way itself may be as slow",
        )
