"""Whatever a broker delivers of a station fits the schema that is shipped; so do the documents."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from broker import Subscriber
from jsonschema import Draft202012Validator
from station import PROGRAM, SIMULATED, TOPICS, Station, request, wait_until, wait_until_available

from inspectd.commands.private_broker import PrivateBroker
from inspectd.payload import REQUESTS, json_schemas

DOCUMENT = (Path(__file__).parent.parent / "docs" / "mqtt.md").read_text()
NOT_JSON = {"availability", "result", "heatmap", "heatmap/id", "snapshot"}
ASKED = {
    "trigger": {"part_id": "A1", "transaction": "1"},
    "lot": {"name": "4711", "transaction": "2"},
    "program": {"program": PROGRAM, "transaction": "3"},
    "limits": {"program": PROGRAM, "threshold": 0.01, "transaction": "4"},
    "reload": {"transaction": "5"},
    "teach": {"frames": 1, "transaction": "6"},
    "snapshot": {},
    "resend": {"first": 1, "last": 1},
}
"""A good request of each."""
NONSENSE = b'{"nonsense": 1}'


def faults(topic: str, message: object) -> list[str]:
    """How a message differs from its schema; where that is silent about a field, so is it."""
    schema = json_schemas()[topic]
    for kind in schema["$defs"].values():
        kind.setdefault("additionalProperties", False)  # or a forgotten field would pass
    return [error.message for error in Draft202012Validator(schema).iter_errors(message)]


def test_all_that_a_broker_delivers_fits_its_schema(
    make_station: Callable[..., Station],
    broker: PrivateBroker,
    subscribe: Callable[[PrivateBroker], Subscriber],
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 100, trigger="{source: mqtt}", port=broker.port)
    file = station.file.read_text()
    more = f"port: {broker.port}, statistics_s: 1, requests: [{', '.join(REQUESTS)}]"
    station.file.write_text(file.replace(f"port: {broker.port}", more))
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    for count, (name, asked) in enumerate(ASKED.items(), 1):
        request(subscriber, json.dumps(asked).encode(), name)
        answer = json.loads(subscriber.wait_for(TOPICS.response(name))[-1].payload)
        assert answer["ok"], answer
        request(subscriber, NONSENSE, name)
        assert not json.loads(subscriber.wait_for(TOPICS.response(name), 2)[-1].payload)["ok"]
        request(subscriber, {"part_id": f"B{count}"})  # a verdict between any two
    wait_until(subscriber, TOPICS.verdict, lambda raw: json.loads(raw)["historical"])
    for topic in (TOPICS.map, TOPICS.heatmap_id, TOPICS.snapshot, TOPICS.heartbeat):
        subscriber.wait_for(topic)
    assert service.stop() == 0, service.log
    subscriber.catch_up()
    came = {
        message.topic.removeprefix(f"{TOPICS.base}/"): message.payload
        for message in subscriber.everything()
    }
    wanted = {topic for topic in json_schemas() if not topic.startswith("request/")} | NOT_JSON
    assert {topic for topic in came if not topic.startswith("request/")} == wanted
    for message in subscriber.everything():
        topic = message.topic.removeprefix(f"{TOPICS.base}/")
        if topic not in NOT_JSON and not topic.startswith("request/"):
            assert faults(topic, json.loads(message.payload)) == [], (topic, message.payload)
    assert {json.loads(m.payload)["verdict"] for m in subscriber.received(TOPICS.verdict)} >= {
        "PASS",
        "FAIL",
    }


def shown() -> list[tuple[str, str]]:
    """The JSON in the document, each with its topic: of the heading above, or the answer's own."""
    found = []
    for section in re.split(r"^##+ ", DOCUMENT, flags=re.MULTILINE)[1:]:
        (topic,) = re.findall(r"^`([a-z]+)`", section) or [""]
        found += [
            (topic or f"response/{json.loads(text)['request']}", text)
            for text in re.findall(r"```json\n(.*?)```", section, re.DOTALL)
        ]
    return found


def test_there_is_an_example_of_each_payload():
    topics = {topic for topic, _ in shown()}
    assert topics >= {"verdict", "state", "statistics", "health", "map", "response/lot"}


@pytest.mark.parametrize(("topic", "text"), shown(), ids=[topic for topic, _ in shown()])
def test_an_example_in_the_document_fits_its_schema(topic: str, text: str):
    assert faults(topic, json.loads(text)) == []


def test_every_topic_is_in_the_document():
    table = DOCUMENT.partition("## Topics")[2].partition("## ")[0]
    told = set(re.findall(r"`([a-z/]+)`", table.replace("/NAME", "/trigger")))
    assert told >= {topic for topic in json_schemas() if topic.count("/") == 0} | NOT_JSON
    assert {f"| `{name}` |" for name in REQUESTS if f"| `{name}` |" not in DOCUMENT} == set()
