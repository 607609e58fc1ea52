"""Full-size frames as fast as they are promised: none dropped, quick answers, flat memory."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import cv2
from broker import eventually
from station import NAME, PROGRAM, Service, Station

from inspectd.camera.simulated import render
from inspectd.commands.private_broker import PrivateBroker
from inspectd.mqtt.topics import Topics
from inspectd.references import ReferenceStore
from inspectd.settings import Program, SimulatedCamera
from inspectd.teaching import Candidate, teach
from soak import accounts
from soak.consumer import Consumer
from soak.report import Report, percentile
from soak.rig import MEBIBYTE, Sampler, crashes, kept, resident_bytes, start, workplace

FRAMES = SimulatedCamera(width=1456, height=1088, seed=3)
REFERENCES = range(10)
REPLAYED = range(20, 40)
REPLAY = "{driver: replay, path: frames, rate: 1000, loop: true}"
P50_MS, P99_MS = 10.0, 30.0
MEMORY_MIB, FLAT_MIB = 200.0, 5.0
LAST_S = 10.0
SKIPPED = "the interval trigger was held up"
SHOWN = 5


def load(
    *,
    rate: float = 50.0,
    seconds: float = 600.0,
    warm_up_s: float = 60.0,
    ask_rate: float = 10.0,
    requests: int = 600,
) -> Report:
    """RATE inspections a second of 1456x1088 frames; then REQUESTS at ASK_RATE a second, timed."""
    report = Report("Load")
    _fill_the_kernel_cache()
    with workplace() as folder, PrivateBroker(folder) as broker:
        interval = f"{{source: interval, interval_s: {1 / rate}}}"
        with kept(_station(folder, broker.port, interval)) as station:
            _write_frames(station)
            _inspect(report, station, broker, rate, seconds, warm_up_s)
        station.file.write_text(station.file.read_text().replace(interval, "{source: mqtt}"))
        with kept(station):
            _ask(report, station, broker, ask_rate, requests)
        report.violations += [f"in the log: {line}" for line in crashes(station)]
    return report


def _fill_the_kernel_cache() -> None:
    """As an installed station does before its first start: who compiles keeps the compiler."""
    subprocess.run(
        [sys.executable, "-m", "inspectd", "warmup"], stdout=subprocess.DEVNULL, check=True
    )


def _station(folder: Path, port: int, trigger: str) -> Station:
    return Station(folder / "station", camera=REPLAY, trigger=trigger, port=port)


def _write_frames(station: Station) -> None:
    """As JPEG, which takes a replay less than half the time of PNG to decode."""
    frames = station.folder / "frames"
    frames.mkdir()
    for number in REPLAYED:
        assert cv2.imwrite(str(frames / f"{number}.jpg"), render(FRAMES, number)[0])
    parts = [
        Candidate(f"{number}.png", render(FRAMES, number)[0], datetime.now(UTC))
        for number in REFERENCES
    ]
    taught = teach(Program(), ReferenceStore(station.references), parts, "0" * 12)
    assert len(taught.added) == len(REFERENCES), taught
    assert station.references.name == PROGRAM


def _consumer(broker: PrivateBroker) -> Consumer:
    """Only what is measured: pictures would cost this process more than the station."""
    topics = Topics(NAME)
    return Consumer(broker.port, topics, [topics.availability, topics.verdict])


def _inspect(
    report: Report,
    station: Station,
    broker: PrivateBroker,
    rate: float,
    seconds: float,
    warm_up_s: float,
) -> None:
    with _consumer(broker) as consumer:
        service = start(station, consumer)
        with Sampler(lambda: resident_bytes(service.process.pid) / MEBIBYTE) as memory:
            time.sleep(warm_up_s)
            warm = len(memory.values)
            begun, seen = time.monotonic(), len(consumer.received(consumer.topics.verdict))
            earlier = _skips(service)
            time.sleep(seconds)
            took = time.monotonic() - begun
            judged = len(consumer.received(consumer.topics.verdict)) - seen
            used = memory.values[warm:]
        service.stop()
        rows = len(station.rows())
        eventually(lambda: len(consumer.received(consumer.topics.verdict)) >= rows, LAST_S)
        verdicts = [arrival.json for arrival in consumer.received(consumer.topics.verdict)]
    report.violations += accounts.gaps(verdicts)
    report.demand(rows == len(verdicts), f"{rows} rows in the journal, {len(verdicts)} verdicts")
    # The service stops while triggers may wait: these hear so.
    dropped = [v for v in verdicts if v["verdict"] == "NOT_JUDGED" and v["reason"] != "stopping"]
    skips = _skips(service)[len(earlier) :]
    report.figure("inspections", len(verdicts))
    report.figure("inspections a second", judged / took, "/s")
    report.figure("short of the demanded rate", max(0.0, rate * took - judged), "", at_most=rate)
    report.figure("not judged", len(dropped), at_most=0)
    for verdict in dropped[:SHOWN]:
        words = f"{verdict['reason']}: {verdict['detail']}"
        report.note(f"not judged: {verdict['triggered_at']} {words}")
    report.figure("log lines on instants that the timer skipped", len(skips), at_most=0)
    for line in skips[:SHOWN]:
        report.note(line)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        totals = [verdict["timings_ms"]["total"] for verdict in verdicts[seen:]]
        report.figure(f"trigger to commit at that rate, {name}", percentile(totals, share), "ms")
    report.figure("memory, largest", max(used), "MiB", at_most=MEMORY_MIB)
    report.figure("its growth after warm-up", max(used) - used[0], "MiB", at_most=FLAT_MIB)


def _skips(service: Service) -> list[str]:
    return [line for line in service.log.splitlines() if SKIPPED in line]


def _ask(
    report: Report, station: Station, broker: PrivateBroker, rate: float, requests: int
) -> None:
    with _consumer(broker) as consumer:
        start(station, consumer)
        topics = consumer.topics
        sent_at: dict[str, datetime] = {}
        begun = time.monotonic()
        for number in range(requests):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            part = f"part-{number}"
            sent_at[part] = datetime.now(UTC)
            consumer.publish(topics.request("trigger"), json.dumps({"part_id": part}).encode())
        eventually(lambda: len(consumer.received(topics.verdict)) >= requests, LAST_S)
        took, within = {}, []
        for arrival in consumer.received(topics.verdict):
            part_id = arrival.json["part_id"]
            within.append(arrival.json["timings_ms"]["total"])
            took[part_id] = (arrival.at - sent_at[part_id]).total_seconds() * 1000
    report.demand(len(took) == requests, f"{requests - len(took)} of {requests} requests unheard")
    values = list(took.values())
    report.figure("requests", requests)
    report.figure("request to received verdict, p50", percentile(values, 0.5), "ms", at_most=P50_MS)
    report.figure("the same, p99", percentile(values, 0.99), "ms", at_most=P99_MS)
    report.figure("of it from trigger to commit, p50", percentile(within, 0.5), "ms")
    report.figure("request to received verdict, longest", max(values, default=float("nan")), "ms")
