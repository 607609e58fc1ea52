"""Another program by request, with triggers right before and behind: quick, and none is lost."""

import json
import shutil
from datetime import UTC, datetime
from itertools import count, cycle, islice
from pathlib import Path

from broker import eventually
from station import NAME, PROGRAM, SIMULATED, Station

from inspectd.commands.private_broker import PrivateBroker
from inspectd.mqtt.topics import Topics
from soak.consumer import Consumer
from soak.report import Report, percentile
from soak.rig import crashes, kept, start, workplace

OTHER = "other"
SWITCHED_MS = 50.0
ANSWER_S = 15.0


def switch(*, switches: int = 300) -> Report:
    """SWITCHES to and fro, each timed from the request to its answer as the requester has it."""
    report = Report("Switch")
    with workplace() as folder, PrivateBroker(folder) as broker:
        topics = Topics(NAME)
        wanted = [topics.availability, topics.response("program"), topics.verdict]
        with (
            kept(_station(folder, broker.port)) as station,
            Consumer(broker.port, topics, wanted) as consumer,
        ):
            start(station, consumer)
            _switch(report, consumer, switches)
            report.violations += [f"in the log: {line}" for line in crashes(station)]
    return report


def _station(folder: Path, port: int) -> Station:
    station = Station(
        folder / "station", camera=SIMULATED % 200, trigger="{source: mqtt}", port=port
    )
    station.teach()
    shutil.copytree(station.references, station.references.with_name(OTHER))
    (station.folder / "programs" / f"{OTHER}.yaml").write_text("description: too\n")
    return station


def _switch(report: Report, consumer: Consumer, switches: int) -> None:
    topics, took, expected = consumer.topics, [], {}
    _ask_until_taken(consumer, OTHER)  # it may still be being learned
    answers = len(consumer.received(topics.response("program")))
    before = OTHER
    for number, program in enumerate(islice(cycle((PROGRAM, OTHER)), switches)):
        expected |= {f"{number} before": before, f"{number} behind": program}
        _ask(consumer, "trigger", part_id=f"{number} before")
        asked_at = datetime.now(UTC)
        _ask(consumer, "program", program=program, transaction=f"s-{number}")
        _ask(consumer, "trigger", part_id=f"{number} behind")
        answers += 1
        if not _heard(consumer, topics.response("program"), answers):
            break
        answer = consumer.received(topics.response("program"))[answers - 1]
        report.demand(answer.json["ok"], f"switch {number}: {answer.json['error']}")
        took.append((answer.at - asked_at).total_seconds() * 1000)
        _heard(consumer, topics.verdict, len(expected))
        before = program
    judged_by = {
        arrival.json["part_id"]: arrival.json["program"]
        for arrival in consumer.received(topics.verdict)
    }
    wrong = {part for part, program in expected.items() if judged_by.get(part) != program}
    report.demand(not wrong, f"lost, or judged by the wrong program: {sorted(wrong)[:10]}")
    report.demand(len(took) == switches, f"only {len(took)} of {switches} switches are answered")
    report.figure("switches", len(took))
    report.figure("request to answer, p50", percentile(took, 0.5), "ms", at_most=SWITCHED_MS)
    report.figure("the same, p99", percentile(took, 0.99), "ms", at_most=SWITCHED_MS)


def _ask_until_taken(consumer: Consumer, program: str) -> None:
    topic = consumer.topics.response("program")
    for asked in count(1):
        _ask(consumer, "program", program=program)
        if not _heard(consumer, topic, asked) or consumer.received(topic)[-1].json["ok"]:
            return


def _heard(consumer: Consumer, topic: str, messages: int) -> bool:
    return eventually(lambda: len(consumer.received(topic)) >= messages, ANSWER_S)


def _ask(consumer: Consumer, request: str, **content: str) -> None:
    consumer.publish(consumer.topics.request(request), json.dumps(content).encode())
