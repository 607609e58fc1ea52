"""The broker is away for long: nothing is lost, and what is new does not wait for what is old."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker import eventually
from station import NAME, SIMULATED, Station

from inspectd.commands.private_broker import PrivateBroker
from inspectd.mqtt.topics import Topics
from soak import accounts
from soak.consumer import Arrival, Consumer
from soak.report import Report, percentile
from soak.rig import MEBIBYTE, Sampler, crashes, kept, resident_bytes, start, workplace

DELAY_MS = 200.0
FLAT_MIB = 5.0
RECONNECT_S = 60.0
BACKLOG_RATE = 50.0
"""The default of `mqtt.backlog_rate`."""


def outage(*, seconds: float = 600.0, rate: float = 10.0, warm_up_s: float = 20.0) -> Report:
    """The broker is away for SECONDS while the station judges RATE parts a second."""
    report = Report("Outage")
    with (
        workplace() as folder,
        PrivateBroker(folder, persistent=True) as broker,
        kept(_station(folder, broker.port, rate)) as station,
        Consumer(broker.port, Topics(NAME), [f"{Topics(NAME).base}/#"]) as consumer,
    ):
        service = start(station, consumer)
        with Sampler(lambda: resident_bytes(service.process.pid) / MEBIBYTE) as memory:
            time.sleep(warm_up_s)
            begun = len(memory.values)
            away_at = datetime.now(UTC)
            broker.stop()
            time.sleep(seconds)
            broker.start()
            waited = _wait_for_backlog(station, report, seconds * rate)
            used = memory.values[begun:]
        service.stop()
        goodbye = eventually(lambda: consumer.says(consumer.topics.availability, b"offline"))
        report.demand(goodbye, "the station does not say that it goes")
        _check(report, consumer, station, away_at)
    report.figure("from the broker's return to the last late verdict", waited, "s")
    report.figure("memory before", used[0], "MiB")
    report.figure("its growth during and after", max(used) - used[0], "MiB", at_most=FLAT_MIB)
    return report


def _station(folder: Path, port: int, rate: float) -> Station:
    station = Station(
        folder / "station",
        camera=SIMULATED % 200,
        trigger=f"{{source: interval, interval_s: {1 / rate}}}",
        port=port,
    )
    station.teach()
    return station


def _wait_for_backlog(station: Station, report: Report, late: float) -> float:
    """Until no row is unsent but for the ones just judged; seconds that it took."""
    begun = time.monotonic()
    timeout_s = RECONNECT_S + 2 * late / BACKLOG_RATE

    def sent() -> bool:
        # Of the last ones some are always on their way. Not more: the last of the backlog are right
        # before the first that went live again.
        return all(sent for _, _, sent in station.rows()[:-5])

    came = eventually(sent, timeout_s)
    # It has a connection again: what came before is among these.
    behind = len(station.rows())
    came &= eventually(lambda: all(sent for _, _, sent in station.rows()[:behind]))
    report.demand(came, f"the backlog is not sent within {timeout_s:.0f} s")
    return time.monotonic() - begun


def _check(report: Report, consumer: Consumer, station: Station, away_at: datetime) -> None:
    arrivals = consumer.received(consumer.topics.verdict)
    verdicts = [arrival.json for arrival in arrivals]
    first = accounts.first_arrivals(verdicts)
    report.violations += [
        *accounts.gaps(verdicts),
        *accounts.changed(verdicts),
        *accounts.disorder(verdicts),
        *(f"in the log: {line}" for line in crashes(station)),
    ]
    rows = station.rows()
    report.demand(
        len(rows) == len(first), f"{len(rows)} rows in the journal, {len(first)} verdicts received"
    )
    late = [n for n, verdict in enumerate(verdicts) if verdict["historical"]]
    if not report.demand(bool(late), "nothing was marked historical"):
        return
    report.figure("verdicts", len(first))
    report.figure("of them received late, as historical", len(late))
    report.figure("received more than once", len(verdicts) - len(first))
    delays = [(arrival.at, _delay_ms(arrival)) for arrival in arrivals if _is_live(arrival)]
    before = [delay for at, delay in delays if at < away_at]
    # By the instant of the trigger: the broker itself may hold up what it had when it went.
    begun, ended = arrivals[late[0]].at, arrivals[late[-1]].at
    meanwhile = [ms for at, ms in delays if begun <= at - timedelta(milliseconds=ms) <= ended]
    report.figure("live verdicts while the backlog went", len(meanwhile))
    report.figure("their delay since the trigger, p50", percentile(meanwhile, 0.5), "ms")
    report.figure("their delay, longest", max(meanwhile, default=0.0), "ms", at_most=DELAY_MS)
    report.figure("the same before the outage, longest", max(before, default=0.0), "ms")


def _is_live(arrival: Arrival) -> bool:
    return not arrival.json["historical"]


def _delay_ms(arrival: Arrival) -> float:
    """From trigger to arrival."""
    since = arrival.at - datetime.fromisoformat(arrival.json["triggered_at"])
    return since.total_seconds() * 1000
