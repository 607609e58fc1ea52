"""Broker, daemon and network fail in turn while a PLC asks: every part is accounted for."""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

from broker import eventually
from station import NAME, SIMULATED, Station

from inspectd.commands.private_broker import PrivateBroker
from inspectd.mqtt.topics import OFFLINE, Topics
from soak import accounts
from soak.consumer import Consumer, Requester
from soak.proxy import Proxy
from soak.report import Report
from soak.rig import (
    START_S,
    crashes,
    kept,
    kill,
    start,
    wait_offline,
    wait_online,
    workplace,
)

TRUTHFUL_S = 10.0
REPEAT_S = 3.0
PICTURE_WITHIN = timedelta(seconds=4.0)
"""After a request: `capture_timeout_s`, and what the broker may have held it up by."""
LAST_S = 60.0
BROKER_AWAY_S = 1.0
REFUSE_S = 1.0
# Else what it acknowledged in its last half hour would die with a Mosquitto that is killed.
SAVING = ["autosave_interval 1", "max_queued_messages 0"]


def chaos(
    *,
    parts: int = 5000,
    rate: float = 20.0,
    broker_kills: int = 20,
    daemon_kills: int = 20,
    network_cuts: int = 10,
    network_stalls: int = 5,
    stall_s: float = 12.0,
    seed: int = 1,
) -> Report:
    """Requests at RATE a second while broker, daemon (SIGKILL) and network fail in turn.

    The parts are shared out evenly to the faults, which come in a shuffled order, each among the
    requests of its share, and each after all has recovered from the one before.
    """
    report = Report("Chaos")
    with (
        workplace() as folder,
        PrivateBroker(folder, persistent=True, settings=SAVING) as broker,
        Proxy(broker.port) as proxy,
        kept(_station(folder, proxy.port)) as station,
        Consumer(broker.port, Topics(NAME), [f"{Topics(NAME).base}/#"]) as consumer,
    ):
        start(station, consumer)
        line = _Line(broker, proxy, station, consumer, report, stall_s)
        faults: list[Callable[[], None]] = [
            *[line.broker_killed] * broker_kills,
            *[line.daemon_killed] * daemon_kills,
            *[line.network_cut] * network_cuts,
            *[line.network_stalled] * network_stalls,
        ]
        random.Random(seed).shuffle(faults)
        requester = Requester(consumer, REPEAT_S)
        for number, fault in enumerate(faults):
            share = range(number * parts // len(faults), (number + 1) * parts // len(faults))
            line.disturb(requester, [f"part-{part}" for part in share], rate, fault)
        _settle(station, consumer, report)
        _check(report, requester, consumer, station)
        line.show()
    return report


def _station(folder: Path, port: int) -> Station:
    station = Station(
        folder / "station", camera=SIMULATED % 200, trigger="{source: mqtt}", port=port
    )
    station.teach()
    return station


class _Line:
    """The production line and what can happen to it."""

    def __init__(
        self,
        broker: PrivateBroker,
        proxy: Proxy,
        station: Station,
        consumer: Consumer,
        report: Report,
        stall_s: float,
    ) -> None:
        self._broker, self._proxy, self._station = broker, proxy, station
        self._consumer, self._report, self._stall_s = consumer, report, stall_s
        self._took: dict[str, list[float]] = {}

    def disturb(
        self, requester: Requester, parts: list[str], rate: float, fault: Callable[[], None]
    ) -> None:
        """One share of the parts, with one fault in the middle of it."""
        with ThreadPoolExecutor(1) as executor:
            begun: list[Future[None]] = []

            def begin() -> Future[None]:
                begun.append(executor.submit(fault))
                return begun[0]

            done = requester.run(parts, rate, begin, len(parts) // 2, LAST_S)
            begun[0].result()
        self._report.demand(done, f"{fault.__name__}: parts stayed unanswered for {LAST_S:.0f} s")

    def broker_killed(self) -> None:
        kill(self._broker)
        time.sleep(BROKER_AWAY_S)
        since = self._said()
        self._broker.start()
        self._time("online after the broker's return", partial(wait_online, since=since))

    def daemon_killed(self) -> None:
        since = self._said()
        self._station.started[-1].kill()
        self._time("offline after the daemon's death", partial(wait_offline, since=since))
        since = self._said()
        self._station.start()
        self._time("online after the daemon's start", partial(wait_online, since=since))

    def network_cut(self) -> None:
        """Nothing passes, which both ends find out for themselves; then the connections break."""
        since = self._said()
        with ThreadPoolExecutor(1) as executor:
            cut = executor.submit(self._proxy.cut, self._stall_s, REFUSE_S)
            if self._stall_s >= TRUTHFUL_S:
                self._time("offline in a cut network", partial(wait_offline, since=since))
            cut.result()
        since = self._last_offline() or since
        self._time("online after the network's return", partial(wait_online, since=since))

    def network_stalled(self) -> None:
        """For less than the keep-alive, so that nobody notices: all comes late."""
        self._proxy.stall(self._stall_s / 8)
        self._time("online after a stall", wait_online)

    def show(self) -> None:
        for name, took in self._took.items():
            longest = max(took)
            self._report.figure(f"{name}, longest of {len(took)}", longest, "s", at_most=TRUTHFUL_S)

    def _said(self) -> int:
        return len(self._consumer.received(self._consumer.topics.availability))

    def _last_offline(self) -> int:
        said = self._consumer.received(self._consumer.topics.availability)
        return max((n for n, one in enumerate(said) if one.payload == OFFLINE), default=0)

    def _time(self, name: str, wait: Callable[[Consumer], bool]) -> None:
        begun = time.monotonic()
        came = wait(self._consumer)
        self._report.demand(came, f"{name}: availability did not say so in {START_S:.0f} s")
        self._took.setdefault(name, []).append(time.monotonic() - begun)


def _settle(station: Station, consumer: Consumer, report: Report) -> None:
    """All that is in the journal has been sent, and the station says goodbye."""
    sent = eventually(lambda: all(sent for _, _, sent in station.rows()), LAST_S)
    unsent = [seq for seq, _, sent in station.rows() if not sent]
    report.demand(sent, f"{len(unsent)} rows of the journal stay unsent: {unsent[:20]}")
    service = station.started[-1]
    report.demand(service.process.poll() is None, f"the service has ended:\n{service.log[-2000:]}")
    service.stop()
    report.demand(
        wait_offline(consumer, timeout_s=TRUTHFUL_S), "availability is online after the stop"
    )


def _check(report: Report, requester: Requester, consumer: Consumer, station: Station) -> None:
    requests = requester.requests
    verdicts = [arrival.json for arrival in consumer.received(consumer.topics.verdict)]
    report.violations += [
        *accounts.unanswered(requests, verdicts),
        *accounts.judged_twice(verdicts),
        *accounts.gaps(verdicts),
        *accounts.changed(verdicts),
        *accounts.disorder(verdicts),
        *accounts.old_pictures(requests, verdicts, PICTURE_WITHIN),
        *(f"in the log: {line}" for line in crashes(station)),
    ]
    first = accounts.first_arrivals(verdicts)
    journal = [id_ for _, id_, _ in station.rows()]
    report.demand(
        sorted(journal) == sorted(verdict["id"] for verdict in first),
        f"{len(journal)} rows in the journal, {len(first)} verdicts received",
    )
    sent = sum(len(request.sent_at) for request in requests.values())
    report.figure("parts asked for", len(requests))
    report.figure("requests sent, with the repetitions", sent)
    report.figure("refusals", len(requester.refusals))
    report.figure("verdicts", len(first))
    report.figure("first received from the backlog", sum(one["historical"] for one in first))
    report.figure("received more than once", len(verdicts) - len(first))
    report.figure("boots", len({verdict["boot_id"] for verdict in first}))
    named = Counter(one["reason"] or one["verdict"] for one in first)
    report.note(f"verdicts and reasons: {', '.join(f'{name} {n}' for name, n in named.items())}")
