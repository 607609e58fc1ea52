"""What goes out as JSON, and its JSON Schemas: checked with a validator that is not ours."""

import json
import re
import typing
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec.structs import replace
from verdicts import a_verdict

from inspectd import payload
from inspectd.payload import (
    REQUESTS,
    CameraHealth,
    CountStatistics,
    DurationStatistics,
    ExposureHealth,
    HealthPayload,
    HeartbeatPayload,
    LatencyHealth,
    LimitsRequest,
    LotRequest,
    MachineHealth,
    MapPayload,
    MeasureHealth,
    MeasurePayload,
    PeakPayload,
    ProgramRequest,
    RegionPayload,
    ReloadRequest,
    ResendRequest,
    Response,
    SnapshotRequest,
    StatePayload,
    StationHealth,
    StatisticsPayload,
    TeachingRequest,
    TriggerRequest,
    TriggersHealth,
    VerdictPayload,
    as_historical,
    decode_verdict,
    encode,
    json_schemas,
    judgement,
)
from inspectd.records import (
    Inspection,
    Measure,
    PictureHealth,
    Reason,
    TriggerSource,
    Verdict,
)
from inspectd.state import State
from inspectd.typed_json import JsonError

NOW = datetime(2026, 7, 29, 6, 30, 1, 250000, tzinfo=UTC)


def full_verdict() -> VerdictPayload:
    """With every field set."""
    return a_verdict(
        journal_id="journal",
        seq=1234,
        part_id="größe 7/ß",
        transaction="t-1",
        captured_at=NOW,
        frame="0001.png",
        verdict="FAIL",
        reason="above limit",
        detail="score 2.50 in pin_1",
        score=2.5,
        margin=-1.5,
        regions=(RegionPayload(name="pin_1", score=2.5, failed=True),),
        peak=PeakPayload(x=101.5, y=7.0, score=2.5),
        health=HealthPayload(
            brightness=0.3,
            contrast=0.2,
            black=0.1,
            white=0.01,
            focus=11.0,
            focus_ratio=0.97,
            light_ratio=1.02,
            measures={"light": MeasurePayload(value=1.02, usual=1.0, low=0.7, high=1.4)},
        ),
        timings_ms={"stage1": 0.4, "total": 31.0},
        references_hash="ba9876543210",
        historical=True,
    )


def state() -> StatePayload:
    return StatePayload(
        state="not_ready",
        detail="3 references of the 5 needed",
        station="line1",
        program="connector",
        settings_hash="0123456789ab",
        references_hash="ba9876543210",
        references=3,
        versions={"inspectd": "1", "numpy": "2"},
        journal_id="journal",
        boot_id="boot",
        last_error="unplugged",
        alarm="5 FAILs in a row",
        clock_synchronised=False,
        since=NOW,
    )


def station_health() -> StationHealth:
    """With every field set."""
    latency = LatencyHealth(p50_ms=31.25, p99_ms=48.5, count=1000)
    return StationHealth(
        station="line1",
        program="connector",
        at=NOW,
        uptime_s=86400.5,
        warnings=("focus has fallen", "the disk is nearly full"),
        picture={
            "focus": MeasureHealth(
                value=0.58, usual=1.0, low=0.4, high=9.0, drift_per_hour=-0.06, warning="fallen"
            ),
            "light": MeasureHealth(value=1.01, usual=1.0),
        },
        camera=CameraHealth(
            reopened=2,
            exposure=ExposureHealth(
                exposure_us=4998.0,
                gain=2.0,
                digital_gain=1.0,
                white_balance=(1.9, 1.5),
                temperature_c=41.0,
            ),
            capture=latency,
        ),
        triggers=TriggersHealth(
            answered=3,
            by_verdict={"PASS": 1, "FAIL": 1, "NOT_JUDGED": 1},
            by_reason={"above limit": 1, "camera timeout": 1},
            latency=latency,
        ),
        machine=MachineHealth(
            model="Raspberry Pi 4 Model B Rev 1.5",
            cpu_temperature_c=51.1,
            throttling_now=(),
            throttling_since_boot=("under voltage",),
            disk_free_bytes=10**9,
            disk_total_bytes=10**10,
            rss_bytes=10**8,
            memory_available_bytes=10**9,
            load_1min=0.7,
            clock_synchronised=True,
        ),
    )


def statistics() -> StatisticsPayload:
    """With every field set."""
    durations = DurationStatistics(p50_ms=31.25, p99_ms=48.5, longest_ms=99.0, count=1000)
    counts = CountStatistics(
        name="A",
        started_at=NOW,
        ended_at=NOW,
        inspected=3,
        by_verdict={"PASS": 1, "FAIL": 1, "NOT_JUDGED": 1},
        by_reason={"above limit": 1, "too dark": 1},
        by_region={"pin_1": 1},
        yield_=0.5,
        longest_fail_run=1,
        scores=(0, 1, 1),
        latency=durations,
        capture=durations,
    )
    return StatisticsPayload(
        station="line1",
        program="connector",
        boot_id="boot",
        at=NOW,
        fails_in_a_row=1,
        waiting=2,
        unsent=3,
        heatmaps_dropped=4,
        score_edges=(0.0, 1.0, 2.0),
        since_start=counts,
        lot=counts,
        shift=counts,
        last_lot=counts,
        last_shift=counts,
    )


EXAMPLES = {
    "a verdict with everything": ("verdict", full_verdict()),
    "a verdict with the least": ("verdict", a_verdict()),
    "a state": ("state", state()),
    "a station's health": ("health", station_health()),
    "a station's statistics": ("statistics", statistics()),
    "a heartbeat": ("heartbeat", HeartbeatPayload(count=1, boot_id="boot")),
    "a map": ("map", MapPayload(id="i", seq=1, rows=2, cols=2, values=(0.0, 1.0, 0.25, 1e-3))),
    "an empty request": ("request/trigger", TriggerRequest()),
    "a request": ("request/trigger", TriggerRequest(part_id="A", transaction="t")),
    "a request for a lot": ("request/lot", LotRequest(name="A", transaction="t")),
    "a request for no lot": ("request/lot", LotRequest(name=None)),
    "a request for a program": ("request/program", ProgramRequest(program="block")),
    "a request to reload": ("request/reload", ReloadRequest(transaction="t")),
    "a request to teach": ("request/teach", TeachingRequest(frames=5, empty=True)),
    "a request for a limit": ("request/limits", LimitsRequest(threshold=1.2, region="pin_1")),
    "a request for the file's limit": ("request/limits", LimitsRequest(threshold=None)),
    "a request for a picture": ("request/snapshot", SnapshotRequest()),
    "a request to send again": ("request/resend", ResendRequest(first=5, last=9)),
    "an answer": (
        "response/trigger",
        Response(request="trigger", transaction="t", ok=True, verdict=full_verdict()),
    ),
    **{
        f"a refusal of {name}": (
            f"response/{name}",
            Response(request=name, ok=False, error="the service is stopping"),
        )
        for name in REQUESTS
    },
    "what was done": (
        "response/lot",
        Response(request="lot", transaction="t", ok=True, detail="lot 4711"),
    ),
}


def validator(topic: str) -> Draft202012Validator:
    """By the schema as a consumer gets it, written down."""
    return Draft202012Validator(json.loads(json.dumps(json_schemas()[topic])))


# ---- schemas -----------------------------------------------------------------------------------


def test_every_schema_is_one():
    rules = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    faults = {topic: list(rules.iter_errors(schema)) for topic, schema in json_schemas().items()}
    assert faults
    assert not any(faults.values()), faults


@pytest.mark.parametrize(("topic", "example"), EXAMPLES.values(), ids=EXAMPLES)
def test_what_is_sent_fits_its_schema(topic, example):
    assert list(validator(topic).iter_errors(json.loads(encode(example)))) == []


def test_every_payload_that_goes_out_by_itself_has_a_schema():
    parts_of_others = {
        payload.RegionPayload,
        payload.PeakPayload,
        payload.BlobPayload,
        payload.AlignmentPayload,
        payload.HealthPayload,
        payload.MeasurePayload,
        payload.MeasureHealth,
        payload.ExposureHealth,
        payload.LatencyHealth,
        payload.CountStatistics,
        payload.DurationStatistics,
        payload.CameraHealth,
        payload.TriggersHealth,
        payload.MachineHealth,
    }
    payloads = {
        kind
        for kind in vars(payload).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    }
    titles = {schema["$ref"].rpartition("/")[2] for schema in json_schemas().values()}
    assert titles == {kind.__name__ for kind in payloads - parts_of_others}
    assert {topic for topic, _ in EXAMPLES.values()} == set(json_schemas())


def required(topic: str) -> set[str]:
    schema = json_schemas()[topic]
    return set(schema["$defs"][schema["$ref"].rpartition("/")[2]]["required"])


@pytest.mark.parametrize(
    "topic", ["verdict", "state", "health", "statistics", "map", "response/trigger", "request/lot"]
)
def test_a_message_without_a_required_field_does_not_fit(topic):
    example = next(json.loads(encode(one)) for name, one in EXAMPLES.values() if name == topic)
    assert required(topic)
    for name in required(topic):
        assert not validator(topic).is_valid({k: v for k, v in example.items() if k != name}), name


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "OK"},
        {"verdict": None},
        {"seq": "7"},
        {"seq": 7.5},
        {"score": "0.4"},
        {"triggered_at": 1700000000},
        {"regions": [{"name": "pin_1", "score": 0.4}]},
        {"timings_ms": {"stage1": "fast"}},
        {"clock_synchronised": 1},
    ],
    ids=str,
)
def test_a_wrong_verdict_does_not_fit(wrong):
    right = json.loads(encode(full_verdict()))
    assert validator("verdict").is_valid(right)
    assert not validator("verdict").is_valid({**right, **wrong})


@pytest.mark.parametrize(
    ("request_", "fits"),
    [
        ({}, True),
        ({"part_id": "A"}, True),
        ({"part_id": None}, True),
        ({"part_id": ""}, False),
        ({"part_id": "x" * 257}, False),
        ({"part_id": 7}, False),
        ({"part-id": "A"}, False),
    ],
    ids=str,
)
def test_schema_and_decoder_agree_on_requests(request_, fits):
    assert validator("request/trigger").is_valid(request_) is fits
    try:
        msgspec.json.decode(json.dumps(request_), type=TriggerRequest)
        decoded = True
    except msgspec.ValidationError:
        decoded = False
    assert decoded is fits


def described(topic: str, field: str) -> str:
    schema = json_schemas()[topic]
    kind = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return kind["properties"][field]["description"]


def test_the_words_in_the_schemas_are_those_of_the_program():
    assert set(typing.get_args(payload.VerdictName)) == set(Verdict)
    assert set(re.findall(r"\w+", described("state", "state"))) == set(State)
    assert set(re.split(r", | or ", described("verdict", "trigger"))) == set(TriggerSource)


# ---- encoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("topic", "example"), EXAMPLES.values(), ids=EXAMPLES)
def test_what_is_sent_can_be_read_again(topic, example):
    assert msgspec.json.decode(encode(example), type=type(example)) == example


def test_instants_are_utc_in_rfc_3339():
    sent = json.loads(encode(full_verdict()))
    assert sent["captured_at"] == "2026-07-29T06:30:01.250000Z"
    assert datetime.fromisoformat(sent["triggered_at"]).utcoffset() == timedelta(0)


def test_every_field_is_written_even_when_it_is_empty():
    """A consumer need not know the defaults."""
    sent = json.loads(encode(a_verdict()))
    assert list(sent) == list(VerdictPayload.__struct_fields__)
    assert sent["part_id"] is None
    assert sent["regions"] == []


def test_letters_beyond_ascii_are_utf_8():
    assert "größe 7/ß" in encode(full_verdict()).decode("utf-8")


def test_a_verdict_from_the_backlog_differs_in_one_field_only():
    live = replace(full_verdict(), historical=False)
    late = as_historical(encode(live))
    assert json.loads(late) == {**json.loads(encode(live)), "historical": True}
    assert as_historical(late) == late


@pytest.mark.parametrize("raw", [b"", b"null", b"{}", b'{"verdict":"PASS"}', b"[1]"])
def test_what_is_no_verdict_is_refused(raw):
    with pytest.raises(JsonError):
        decode_verdict(raw)


def test_each_verdict_has_times_of_its_own():
    """The one field with a changeable default is not shared."""
    first, second = a_verdict(), a_verdict()
    assert first.timings_ms == {}
    assert first.timings_ms is not second.timings_ms


def test_the_measures_of_a_picture_go_out_by_name_with_their_bounds():
    measures = (
        Measure("light", 1.234567, 1.0, low=0.7, high=1.4),
        Measure("focus", 4.0, 5.0, low=2.0),
    )
    health = PictureHealth(0.3, 0.2, black=0.123456, white=0.0, focus=4.0, measures=measures)
    sent = judgement(Inspection(Verdict.NOT_JUDGED, Reason.NO_PART, health=health))
    assert sent["reason"] == "no part"
    told = sent["health"]
    assert (told.black, told.white) == (0.1235, 0.0)
    assert (told.light_ratio, told.focus_ratio) == (1.2346, 0.8)
    assert told.measures == {
        "light": MeasurePayload(value=1.2346, usual=1.0, low=0.7, high=1.4),
        "focus": MeasurePayload(value=4.0, usual=5.0, low=2.0, high=None),
    }


def test_a_picture_that_was_not_compared_has_no_measures():
    health = PictureHealth(0.3, 0.2, black=0.0, white=0.0, focus=4.0)
    told = judgement(Inspection(Verdict.NOT_JUDGED, Reason.TOO_FEW_REFERENCES, health=health))
    assert told["health"].measures == {}
    assert told["health"].focus_ratio is told["health"].light_ratio is None
