"""Home Assistant's discovery message: by its documented keys, its templates, and a real broker."""

import contextlib
import json
import re
import threading
from datetime import UTC, datetime
from types import SimpleNamespace

import msgspec
import pytest
from broker import eventually
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from msgspec.structs import replace
from verdicts import a_verdict

from inspectd.commands.private_broker import HOST
from inspectd.health import HEALTH_PERIOD_S
from inspectd.mqtt.client import MqttClient
from inspectd.mqtt.homeassistant import Announcement, birth_topic, discovery
from inspectd.mqtt.topics import Topics
from inspectd.payload import (
    CameraHealth,
    CountStatistics,
    LatencyHealth,
    MachineHealth,
    MeasureHealth,
    StatePayload,
    StationHealth,
    StatisticsPayload,
    TriggerRequest,
    TriggersHealth,
    as_historical,
    encode,
)
from inspectd.settings import HomeAssistantSettings, MqttSettings, SimulatedCamera, Station

NAME = "line1-cell3"
USUAL = HomeAssistantSettings()
TOPICS = Topics(NAME)
CONFIG_TOPIC = "homeassistant/device/inspectd_line1-cell3/config"
NOW = datetime(2026, 7, 29, 6, 30, 1, 250000, tzinfo=UTC)
UNKNOWN = "None"
"""What Home Assistant takes as `unknown`."""

# What https://www.home-assistant.io/integrations/mqtt/ and the platforms' pages name.
COMMON = {
    "platform",
    "unique_id",
    "name",
    "icon",
    "availability",
    "entity_category",
    "enabled_by_default",
    "json_attributes_topic",
    "json_attributes_template",
    "qos",
}
REQUIRED = {
    "sensor": {"state_topic"},
    "binary_sensor": {"state_topic"},
    "event": {"state_topic", "event_types"},
    "image": {"image_topic"},
    "button": {"command_topic"},
    "select": {"command_topic", "options"},
}
OPTIONAL = {
    "sensor": {
        "value_template",
        "device_class",
        "state_class",
        "unit_of_measurement",
        "suggested_display_precision",
        "options",
        "expire_after",
        "force_update",
    },
    "binary_sensor": {
        "value_template",
        "device_class",
        "payload_on",
        "payload_off",
        "expire_after",
        "force_update",
        "off_delay",
    },
    "event": {"value_template", "device_class"},
    "image": {"content_type", "image_encoding"},
    "button": {"payload_press", "command_template", "device_class", "retain"},
    "select": {"state_topic", "value_template", "command_template", "retain"},
}
DEVICE_CLASSES = {
    "sensor": {None, "enum", "temperature", "data_size", "duration"},
    "binary_sensor": {None, "problem", "running"},
}
UNITS = {"temperature": {"°C"}, "data_size": {"GB"}, "duration": {"ms"}}

IDS = {
    "verdict",
    "not_passed",
    "score",
    "reason",
    "part_id",
    "inspection",
    "heatmap",
    "ready",
    "alarm",
    "passed",
    "failed",
    "not_judged",
    "yield",
    "fails_in_a_row",
    "unsent",
    "attention",
    "focus",
    "light",
    "temperature",
    "disk_free",
    "latency",
    "trigger",
    "program",
}
"""Pinned: an id that changes leaves a dead entity behind in every Home Assistant that knew it."""


def a_station(*, alarm_after=3, homeassistant=USUAL, **mqtt) -> Station:
    return Station(
        station=NAME,
        program="connector",
        camera=SimulatedCamera(),
        alarm_after=alarm_after,
        mqtt=MqttSettings(homeassistant=homeassistant, **mqtt),
    )


def announced(station=None, programs=("connector", "board"), version="1.2.3"):
    ((_topic, payload),) = discovery(station or a_station(), TOPICS, programs, version)
    return json.loads(payload)


def entities(**arguments):
    return announced(**arguments)["components"]


def alive(components):
    """Without those that are only there to be removed."""
    return {key: entity for key, entity in components.items() if entity.keys() != {"platform"}}


def render(template, payload=b"", *, this="unknown", value=None):
    """As Home Assistant does, but stricter: what is not there is an error."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    known = {"value": payload.decode() if value is None else value}
    known["this"] = SimpleNamespace(state=this)
    with contextlib.suppress(ValueError):
        known["value_json"] = json.loads(payload)
    return environment.from_string(template).render(known).strip()


def state_of(key, payload, *, this="unknown"):
    return render(entities()[key]["value_template"], payload, this=this)


def counts(**changes):
    return replace(
        CountStatistics(
            started_at=NOW,
            inspected=10,
            by_verdict={"PASS": 7, "FAIL": 2, "NOT_JUDGED": 1},
            by_reason={"above limit": 2, "too dark": 1},
            by_region={},
            yield_=0.7778,
            longest_fail_run=2,
            scores=(),
        ),
        **changes,
    )


def statistics(since_start):
    return StatisticsPayload(
        station=NAME,
        program="connector",
        boot_id="boot",
        at=NOW,
        fails_in_a_row=2,
        waiting=0,
        unsent=4,
        heatmaps_dropped=0,
        score_edges=(),
        since_start=since_start,
        lot=counts(name="lot 7"),
    )


def health(**changes):
    return replace(
        StationHealth(
            station=NAME,
            program="connector",
            at=NOW,
            warnings=("focus has fallen",),
            picture={
                "focus": MeasureHealth(value=5.8, usual=10.0),
                "light": MeasureHealth(value=1.01, usual=1.0),
            },
            camera=CameraHealth(reopened=0),
            triggers=TriggersHealth(
                answered=10,
                by_verdict={"PASS": 10},
                by_reason={},
                latency=LatencyHealth(p50_ms=31.25, p99_ms=48.5, count=1000),
            ),
            machine=MachineHealth(
                cpu_temperature_c=51.1, disk_free_bytes=12_500_000_000, clock_synchronised=True
            ),
        ),
        **changes,
    )


def empty_health():
    """Of a computer that tells nothing, before the first part."""
    return health(
        warnings=(),
        picture={},
        triggers=TriggersHealth(answered=0, by_verdict={}, by_reason={}),
        machine=MachineHealth(clock_synchronised=False),
    )


def state(**changes):
    return replace(
        StatePayload(
            state="not_ready",
            detail='3 references of the 5 needed; say "teach" & wait',
            station=NAME,
            program="connector",
            settings_hash="0123456789ab",
            versions={},
            journal_id="journal",
            boot_id="boot",
            clock_synchronised=True,
            since=NOW,
        ),
        **changes,
    )


PASSED = a_verdict(seq=11)
FAILED = a_verdict(
    seq=12, verdict="FAIL", reason="above limit", score=2.5, part_id="größe 7/ß <x>", lot="lot 7"
)
DARK = a_verdict(seq=13, verdict="NOT_JUDGED", reason="too dark", score=None, limit=None)
VERDICTS = [PASSED, FAILED, DARK]

SAMPLES = {
    TOPICS.availability: [b"online", b"offline"],
    TOPICS.result: [b"PASS 11", b"FAIL 12", b"NOT_JUDGED 13"],
    TOPICS.verdict: [*map(encode, VERDICTS), *(as_historical(encode(v)) for v in VERDICTS)],
    TOPICS.state: [encode(state()), encode(state(state="judging", alarm="3 FAILs in a row"))],
    TOPICS.health: [encode(health()), encode(empty_health())],
    TOPICS.statistics: [
        encode(statistics(counts())),
        encode(statistics(counts(by_verdict={}, yield_=None))),
    ],
}


# ---- what the documentation demands ------------------------------------------------------------


def test_the_device_is_announced_by_device_discovery():
    ((topic, payload),) = discovery(a_station(), TOPICS, ["connector"], "1.2.3")
    assert re.fullmatch(r"homeassistant/device/[A-Za-z0-9_-]+/config", topic)
    message = json.loads(payload)
    assert message.keys() == {"device", "origin", "availability", "qos", "components"}
    assert message["device"]["identifiers"] == ["inspectd_line1-cell3"]
    assert message["device"]["name"] == NAME
    assert message["origin"] == {"name": "inspectd", "sw_version": "1.2.3"}
    assert message["availability"] == [
        {
            "topic": TOPICS.availability,
            "payload_available": "online",
            "payload_not_available": "offline",
        }
    ]


@pytest.mark.parametrize("station", [a_station(), a_station(alarm_after=0, requests=())])
def test_every_entity_has_what_its_platform_demands_and_nothing_it_does_not_know(station):
    for key, entity in alive(entities(station=station)).items():
        platform = entity["platform"]
        demanded = {"unique_id", "name"} | REQUIRED[platform]
        assert demanded <= entity.keys(), key
        assert entity.keys() <= COMMON | demanded | OPTIONAL[platform], key
        assert entity.get("entity_category") in {None, "diagnostic", "config"}
        assert entity.get("device_class") in DEVICE_CLASSES.get(platform, {None}), key
        assert ("json_attributes_topic" in entity) == ("json_attributes_template" in entity)
        if "expire_after" in entity:
            assert type(entity["expire_after"]) is int
            assert entity["expire_after"] > 0


def test_numbers_are_marked_as_numbers_and_have_units_that_fit():
    for key, entity in entities().items():
        if "state_class" not in entity:
            assert "unit_of_measurement" not in entity
            continue
        assert entity["state_class"] in {"measurement", "total_increasing"}
        unit = entity.get("unit_of_measurement")
        assert unit in UNITS.get(entity.get("device_class"), {None, "%"}), key
    enum = entities()["verdict"]
    assert enum["device_class"] == "enum"
    assert "state_class" not in enum


def test_every_topic_is_one_of_the_station_s():
    known = {*SAMPLES, TOPICS.heatmap, TOPICS.request("trigger"), TOPICS.request("program")}
    for key, entity in entities().items():
        for name, topic in entity.items():
            assert not name.endswith("_topic") or topic in known, key


def test_ids_are_distinct_and_stay():
    ids = [entity["unique_id"] for entity in entities().values()]
    assert sorted(ids) == sorted(f"inspectd_line1-cell3_{key}" for key in IDS)
    elsewhere = entities(
        station=a_station(homeassistant=HomeAssistantSettings(prefix="ha/plant2")),
        programs=["other"],
        version="9",
    )
    assert [entity["unique_id"] for entity in elsewhere.values()] == ids
    assert len({entity["name"] for entity in elsewhere.values()}) == len(elsewhere)


def test_two_stations_share_no_id():
    ((topic, payload),) = discovery(a_station(), Topics("line2"), ["connector"], "1")
    assert topic != CONFIG_TOPIC
    others = {entity["unique_id"] for entity in json.loads(payload)["components"].values()}
    assert not others & {entity["unique_id"] for entity in entities().values()}


def test_without_the_setting_nothing_is_announced():
    assert discovery(a_station(homeassistant=None), TOPICS, ["connector"], "1") == []


@pytest.mark.parametrize("prefix", ["", "home/+", "#", "/home", "home/", "a//b"])
def test_a_prefix_that_is_no_topic_is_refused(prefix):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"prefix": prefix}, HomeAssistantSettings)


# ---- the templates, on real payloads -----------------------------------------------------------


def plausible(entity, text):
    if entity["platform"] == "binary_sensor":
        return text in {entity.get("payload_on", "ON"), entity.get("payload_off", "OFF")}
    if "options" in entity:
        return text in entity["options"]
    if "state_class" in entity:
        return text in {"", UNKNOWN} or float(text) >= 0
    return len(text) <= 255


def test_every_template_renders_on_every_payload_of_its_topic():
    for key, entity in entities().items():
        for topic, template in (
            (entity.get("state_topic"), entity.get("value_template")),
            (entity.get("json_attributes_topic"), entity.get("json_attributes_template")),
        ):
            if template is None:
                continue
            for payload in SAMPLES[topic]:
                text = render(template, payload)
                if template == entity.get("json_attributes_template"):
                    attributes = json.loads(text)
                    assert attributes
                    assert "state" not in attributes, "a name that Home Assistant reserves"
                else:
                    assert plausible(entity, text), (key, payload, text)


@pytest.mark.parametrize(
    ("verdict", "states"),
    [
        (PASSED, {"score": "0.4", "reason": "none", "part_id": UNKNOWN}),
        (FAILED, {"score": "2.5", "reason": "above limit", "part_id": "größe 7/ß <x>"}),
        (DARK, {"score": UNKNOWN, "reason": "too dark", "part_id": UNKNOWN}),
    ],
)
def test_a_live_verdict_is_shown(verdict, states):
    for key, expected in states.items():
        assert state_of(key, encode(verdict), this="before") == expected


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_historical_verdict_changes_nothing(verdict):
    late = as_historical(encode(verdict))
    # Home Assistant ignores the empty text for numbers and for events.
    assert state_of("score", late, this="0.7") == ""
    assert state_of("inspection", late) == ""
    assert state_of("reason", late, this="too dark") == "too dark"
    assert state_of("part_id", late, this="A 1") == "A 1"


def test_no_entity_reads_verdicts_without_looking_whether_they_are_historical():
    readers = {
        key: entity
        for key, entity in entities().items()
        if TOPICS.verdict in {entity.get("state_topic"), entity.get("json_attributes_topic")}
    }
    assert readers.keys() == {"score", "reason", "part_id", "inspection"}
    assert not any("json_attributes_topic" in entity for entity in readers.values())
    assert all("value_json.historical" in entity["value_template"] for entity in readers.values())


def test_an_event_tells_of_one_part():
    event = json.loads(state_of("inspection", encode(FAILED)))
    assert event.pop("event_type") in entities()["inspection"]["event_types"]
    assert event == {
        name: getattr(FAILED, name)
        for name in ("seq", "id", "part_id", "lot", "program", "score", "reason", "detail")
    }


def test_a_long_part_id_is_cut_to_what_a_state_may_hold():
    assert state_of("part_id", encode(a_verdict(part_id="x" * 256))) == "x" * 255


@pytest.mark.parametrize(
    ("result", "verdict", "not_passed"),
    [
        (b"PASS 11", "PASS", "OFF"),
        (b"FAIL 12", "FAIL", "ON"),
        (b"NOT_JUDGED 1", "NOT_JUDGED", "ON"),
    ],
)
def test_only_a_pass_is_no_problem(result, verdict, not_passed):
    assert state_of("verdict", result) == verdict
    assert state_of("not_passed", result) == not_passed


def test_counters_and_health_give_their_figures():
    counted = encode(statistics(counts()))
    told = encode(health())
    assert [state_of(key, counted) for key in ("passed", "failed", "not_judged")] == ["7", "2", "1"]
    assert float(state_of("yield", counted)) == pytest.approx(77.78)
    assert state_of("fails_in_a_row", counted) == "2"
    assert state_of("unsent", counted) == "4"
    assert state_of("attention", told) == "ON"
    assert float(state_of("focus", told)) == pytest.approx(58.0)
    assert float(state_of("light", told)) == pytest.approx(101.0)
    assert state_of("temperature", told) == "51.1"
    assert state_of("disk_free", told) == "12.5"
    assert state_of("latency", told) == "48.5"


def test_what_is_not_known_is_unknown():
    told = encode(empty_health())
    for key in ("focus", "light", "temperature", "disk_free", "latency"):
        assert state_of(key, told) == UNKNOWN
    assert state_of("attention", told) == "OFF"
    before_the_first = encode(statistics(counts(by_verdict={}, yield_=None)))
    assert state_of("yield", before_the_first) == UNKNOWN
    assert state_of("passed", before_the_first) == "0"


def test_readiness_says_why():
    ready = entities()["ready"]
    assert (ready["payload_on"], ready["payload_off"]) == ("online", "offline")
    why = json.loads(render(ready["json_attributes_template"], encode(state())))
    assert why["lifecycle"] == "not_ready"
    assert why["detail"] == state().detail


def test_an_alarm_is_shown_while_it_stands():
    assert state_of("alarm", encode(state(alarm="3 FAILs in a row"))) == "ON"
    assert state_of("alarm", encode(state())) == "OFF"
    assert entities(station=a_station(alarm_after=0))["alarm"] == {"platform": "binary_sensor"}


# ---- what must not look live -------------------------------------------------------------------


def test_what_explains_why_nothing_is_judged_stays_available():
    always = {key for key, entity in entities().items() if entity.get("availability") == []}
    assert {"ready", "attention", "passed", "unsent", "focus", "temperature"} <= always
    assert not {"verdict", "not_passed", "score", "inspection", "alarm", "trigger"} & always


def test_what_does_not_follow_availability_expires_or_is_availability_itself():
    for key, entity in entities().items():
        if entity.get("availability") == []:
            assert "expire_after" in entity or entity["state_topic"] == TOPICS.availability, key
        else:
            assert "availability" not in entity, key


def test_nothing_expires_before_a_late_report():
    slow = entities(station=a_station(statistics_s=3600.0))
    assert slow["passed"]["expire_after"] >= 2 * 3600
    assert slow["focus"]["expire_after"] >= 3 * HEALTH_PERIOD_S
    assert entities(station=a_station(statistics_s=1.0))["passed"]["expire_after"] >= 10


# ---- requests ----------------------------------------------------------------------------------


def test_the_button_sends_a_request_that_is_understood():
    button = entities()["trigger"]
    assert button["command_topic"] == TOPICS.request("trigger")
    assert "retain" not in button
    assert msgspec.json.decode(button["payload_press"], type=TriggerRequest) == TriggerRequest()


def test_the_program_is_chosen_among_the_sound_ones():
    program = entities(programs={"b", "a"})["program"]
    assert program["options"] == ["a", "b"]
    assert "retain" not in program
    assert render(program["value_template"], encode(state())) == "connector"
    assert json.loads(render(program["command_template"], value="a")) == {"program": "a"}


def test_what_may_not_be_asked_is_removed_not_merely_missing():
    components = entities(station=a_station(requests=("reload",)))
    assert components["trigger"] == {"platform": "button"}
    assert components["program"] == {"platform": "select"}
    assert components.keys() == entities().keys()


# ---- the announcement --------------------------------------------------------------------------


class Sent(list):
    """What was published."""

    def __init__(self):
        super().__init__()
        self.came = threading.Event()

    def __call__(self, topic, payload):
        self.append((topic, payload))
        self.came.set()


def test_what_is_announced_no_more_is_emptied():
    sent = Sent()
    announcement = Announcement(sent)
    announcement.announce([("a/config", b"1")])
    announcement.announce([("b/config", b"2")])
    announcement.announce([])
    assert sent == [("a/config", b"1"), ("a/config", b""), ("b/config", b"2"), ("b/config", b"")]


def test_a_birth_repeats_the_announcement_and_a_death_does_not():
    sent = Sent()
    announcement = Announcement(sent, longest_delay_s=0.01)
    announcement.announce([("a/config", b"1")])
    sent.came.clear()
    announcement.on_status(b"offline")
    assert announcement._repetition is None
    announcement.on_status(b"online")
    assert sent.came.wait(10)
    assert sent == [("a/config", b"1")] * 2
    announcement.stop()


def test_after_stop_a_birth_repeats_nothing():
    sent = Sent()
    announcement = Announcement(sent, longest_delay_s=3600.0)
    announcement.announce([("a/config", b"1")])
    announcement.on_status(b"online")
    waiting = announcement._repetition
    announcement.stop()
    waiting.join(10)
    assert not waiting.is_alive()
    announcement.on_status(b"online")
    assert announcement._repetition is waiting
    assert sent == [("a/config", b"1")]


class Bystander:
    """A listener that does not care."""

    def connected(self): ...

    def lost(self): ...

    def acknowledged(self, mid, refusal): ...


def test_the_broker_keeps_the_announcement_until_it_is_taken_back(broker, subscribe, tmp_path):
    station = a_station(host=HOST, port=broker.port)
    client = MqttClient(
        station.mqtt, TOPICS, "inspectd-line1-cell3", lambda *_: None, tmp_path.joinpath
    )
    announcement = Announcement(client.publish_retained, longest_delay_s=0.0)
    messages = discovery(station, TOPICS, ["connector"], "1.2.3")
    # Before there is a connection, as the service does.
    announcement.announce(messages)
    client.start(Bystander())
    try:
        assert eventually(lambda: client.is_connected)
        watcher = subscribe(broker)
        (kept,) = watcher.wait_for(CONFIG_TOPIC)
        assert kept.retain
        assert [(kept.topic, kept.payload)] == messages
        announcement.on_status(b"online")
        assert watcher.wait_for(CONFIG_TOPIC, 2)[-1].payload == kept.payload
        announcement.announce([])
        assert watcher.wait_for(CONFIG_TOPIC, 3)[-1].payload == b""
        # Whoever comes now finds the retained topics, but no announcement among them.
        newcomer = subscribe(broker)
        newcomer.wait_for(TOPICS.availability)
        assert newcomer.received(CONFIG_TOPIC) == []
    finally:
        announcement.stop()
        client.stop()


def test_the_birth_topic_lies_below_the_prefix():
    assert birth_topic(HomeAssistantSettings()) == "homeassistant/status"
