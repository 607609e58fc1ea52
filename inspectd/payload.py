"""What goes out over MQTT and into the journal, as types; their JSON Schemas are made from them.

Instants are UTC in RFC 3339, durations milliseconds, places frame pixels, scores in units of the
limit. ``schema`` is raised when a field changes its meaning or goes away, not when one is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import degrees
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inspectd.errors import BrokerState
from inspectd.records import Inspection, PictureHealth
from inspectd.typed_json import JsonReader

SCHEMA_VERSION = 1

Threshold = Annotated[float, Meta(gt=0.0, le=100.0)]
Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
VerdictName = Literal["PASS", "FAIL", "NOT_JUDGED"]


class RegionPayload(msgspec.Struct, frozen=True, kw_only=True):
    """One named region of the program."""

    name: str
    score: Annotated[float, Meta(description="in units of the region's own limit")]
    failed: bool


class PeakPayload(msgspec.Struct, frozen=True, kw_only=True):
    """The most abnormal place of the picture."""

    x: Annotated[float, Meta(description="frame pixels")]
    y: Annotated[float, Meta(description="frame pixels")]
    score: float


class BlobPayload(msgspec.Struct, frozen=True, kw_only=True):
    """A connected place above the limit, its box in frame pixels."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float


class AlignmentPayload(msgspec.Struct, frozen=True, kw_only=True):
    """How the part lay, against the references."""

    dx: Annotated[float, Meta(description="shift to the right, frame pixels")]
    dy: Annotated[float, Meta(description="shift down, frame pixels")]
    rotation_deg: Annotated[float, Meta(description="clockwise, degrees")]
    match: Annotated[float, Meta(description="correlation with the references, -1 to 1")]
    within: Annotated[bool, Meta(description="found within the allowed shift and rotation")]


class MeasurePayload(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the picture, against the references."""

    value: float
    usual: Annotated[float, Meta(description="the references' median")]
    low: Annotated[float | None, Meta(description="the bound in force; null without")] = None
    high: Annotated[float | None, Meta(description="the bound in force; null without")] = None


class HealthPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of the picture itself."""

    brightness: Annotated[float, Meta(description="mean grey value, 0 to 1")]
    contrast: Annotated[float, Meta(description="standard deviation of the grey values, 0 to 0.5")]
    black: Annotated[float, Meta(description="share of the pixels, before the reduction")] = 0.0
    white: Annotated[float, Meta(description="share of the pixels, before the reduction")] = 0.0
    focus: Annotated[float, Meta(description="sharpness before the reduction, no unit")]
    focus_ratio: Annotated[
        float | None, Meta(description="sharpness over the references' median")
    ] = None
    light_ratio: Annotated[
        float | None, Meta(description="brightness over the references' mean")
    ] = None
    measures: Annotated[
        dict[str, MeasurePayload],
        Meta(
            description="what is compared with the references, by name: light, contrast, black, "
            "white, focus, match, shift (share of the longest side), rotation (degrees); where the "
            "empty station was taught, presence (grey levels of 1 by which the picture differs "
            "most from it) and ground (share of the picture that does not)"
        ),
    ] = {}


class VerdictPayload(msgspec.Struct, frozen=True, kw_only=True):
    """One inspection: topic `verdict`, and a row of the journal."""

    schema: int = SCHEMA_VERSION
    station: str
    program: str
    id: Annotated[str, Meta(description="unique to this inspection; consumers dedupe by it")]
    journal_id: Annotated[str, Meta(description="seq counts within this journal")]
    seq: Annotated[int, Meta(description="1, 2, 3 … without a gap, across restarts")]
    boot_id: Annotated[str, Meta(description="new at each start of the service")]
    part_id: Annotated[str | None, Meta(description="as the requester gave it")] = None
    transaction: Annotated[str | None, Meta(description="as the requester gave it")] = None
    lot: Annotated[str | None, Meta(description="as set by request/lot; null without")] = None
    trigger: Annotated[str, Meta(description="interval, continuous, mqtt or gpio")]
    triggered_at: datetime
    captured_at: Annotated[
        datetime | None, Meta(description="end of the exposure; null without a picture")
    ] = None
    clock_synchronised: bool
    frame: Annotated[
        str | None, Meta(description="the camera's name of the picture: a file or a number")
    ] = None
    verdict: VerdictName
    reason: Annotated[str | None, Meta(description="null exactly when the verdict is PASS")] = None
    detail: Annotated[str, Meta(description="the figures behind the reason, for a person")] = ""
    score: Annotated[float | None, Meta(description="1.0 is the limit; null when not judged")] = (
        None
    )
    limit: Annotated[float | None, Meta(description="in the method's raw units")] = None
    margin: Annotated[float | None, Meta(description="1 - score")] = None
    regions: tuple[RegionPayload, ...] = ()
    peak: PeakPayload | None = None
    blobs: tuple[BlobPayload, ...] = ()
    alignment: AlignmentPayload | None = None
    health: HealthPayload | None = None
    timings_ms: Annotated[
        dict[str, float],
        Meta(
            description="by stage; `total` is from the trigger to the verdict, just before it is "
            "committed"
        ),
    ] = {}
    settings_hash: str
    references_hash: str | None = None
    historical: Annotated[
        bool,
        Meta(
            description="sent late, from the backlog: never live; the only field in which a "
            "repeated message may differ"
        ),
    ] = False


class StatePayload(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `state`, retained."""

    schema: int = SCHEMA_VERSION
    state: Annotated[
        str, Meta(description="starting, judging, not_ready, camera_fault, journal_fault, stopping")
    ]
    detail: Annotated[str, Meta(description="what is the matter and what to do, for a person")] = ""
    station: str
    program: str
    settings_hash: str
    references_hash: str | None = None
    references: Annotated[int, Meta(description="good references in use")] = 0
    empties: Annotated[int, Meta(description="pictures of the empty station in use")] = 0
    versions: dict[str, str]
    journal_id: str
    boot_id: str
    last_error: str | None = None
    alarm: Annotated[
        str | None,
        Meta(
            description="too many FAILs in a row: the line should be seen to; null without. "
            "The station goes on judging, and the next PASS or another lot ends it"
        ),
    ] = None
    notes: Annotated[
        tuple[str, ...],
        Meta(
            description="what is amiss but keeps nothing from being judged, such as a mistake in "
            "a settings file (with file, line and key), for a person"
        ),
    ] = ()
    broker: Annotated[
        BrokerState,
        Meta(
            description="how station and MQTT broker stand to each other; `notes` tells what is "
            "the matter and what to do"
        ),
    ] = BrokerState.CONNECTING
    sparkplug: Annotated[
        BrokerState | None,
        Meta(description="the same of Sparkplug's own connection; null where it is not set up"),
    ] = None
    clock_synchronised: bool
    since: datetime


class MeasureHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of the pictures over the last hour, against the references."""

    value: Annotated[float, Meta(description="median of the last minutes")]
    usual: Annotated[float, Meta(description="the references' median")]
    low: Annotated[float | None, Meta(description="below it: NOT_JUDGED; null without")] = None
    high: Annotated[float | None, Meta(description="above it: NOT_JUDGED; null without")] = None
    drift_per_hour: Annotated[
        float | None, Meta(description="slope over the last hour; null before enough is known")
    ] = None
    warning: Annotated[
        str | None, Meta(description="what is about to go wrong and what to do, for a person")
    ] = None


class ExposureHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the last picture was exposed, as the camera measured it; null where it does not tell."""

    exposure_us: float | None = None
    gain: Annotated[float | None, Meta(description="analogue")] = None
    digital_gain: Annotated[float | None, Meta(description="after the sensor")] = None
    white_balance: Annotated[
        tuple[float, float] | None, Meta(description="gains of red and blue")
    ] = None
    temperature_c: Annotated[float | None, Meta(description="of the sensor")] = None


class LatencyHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How long the last triggers took."""

    p50_ms: Annotated[float, Meta(description="half of them took longer")]
    p99_ms: Annotated[float, Meta(description="one in a hundred took longer")]
    count: Annotated[int, Meta(description="of how many triggers, the last ones")]


class CameraHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the camera does."""

    reopened: Annotated[
        int, Meta(description="how often it was given up to be opened again, since the start")
    ]
    exposure: Annotated[
        ExposureHealth | None, Meta(description="of the last picture that tells")
    ] = None
    capture: Annotated[
        LatencyHealth | None, Meta(description="from the trigger to the copied picture")
    ] = None


class TriggersHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the triggers since the start of the service."""

    answered: int
    by_verdict: Annotated[dict[str, int], Meta(description="PASS, FAIL and NOT_JUDGED")]
    by_reason: Annotated[
        dict[str, int], Meta(description="by the verdict's `reason`; those that occurred")
    ]
    latency: Annotated[
        LatencyHealth | None,
        Meta(description="from the trigger to the verdict, just before it is committed"),
    ] = None


class MachineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The computer; each null where it cannot be had."""

    model: Annotated[str | None, Meta(description="of the board")] = None
    cpu_temperature_c: float | None = None
    throttling_now: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="Raspberry Pi only: under voltage, frequency capped, throttled, soft "
            "temperature limit; those that hold"
        ),
    ] = None
    throttling_since_boot: Annotated[
        tuple[str, ...] | None, Meta(description="the same since the machine was started")
    ] = None
    disk_free_bytes: Annotated[
        int | None, Meta(description="of the disk that holds the journal")
    ] = None
    disk_total_bytes: int | None = None
    rss_bytes: Annotated[int | None, Meta(description="memory of the service")] = None
    memory_available_bytes: Annotated[
        int | None, Meta(description="what programs may still take without paging")
    ] = None
    load_1min: Annotated[
        float | None, Meta(description="processes that run or wait to, mean over a minute")
    ] = None
    clock_synchronised: bool


class StationHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `health`, retained and sent anew every few seconds: old means that nobody is there."""

    schema: int = SCHEMA_VERSION
    station: str
    program: str
    at: datetime
    uptime_s: Annotated[float | None, Meta(description="of the service")] = None
    warnings: Annotated[
        tuple[str, ...], Meta(description="all that should be seen to, for a person")
    ] = ()
    picture: Annotated[
        dict[str, MeasureHealth],
        Meta(description="by measure; those of pictures that showed a part within the last hour"),
    ]
    camera: CameraHealth
    triggers: TriggersHealth
    machine: MachineHealth


class DurationStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took, over all that was counted."""

    p50_ms: Annotated[float, Meta(description="half took no longer; at most 5 % too high")]
    p99_ms: Annotated[float, Meta(description="99 of 100 took no longer; at most 5 % too high")]
    longest_ms: float
    count: int


class CountStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted since the start, in a lot, or in a shift."""

    name: Annotated[
        str | None,
        Meta(
            description="the lot's; of a shift, its date and beginning in local time, as "
            "2026-07-29T22:00; null since the start"
        ),
    ] = None
    started_at: datetime
    ended_at: Annotated[datetime | None, Meta(description="null while it goes on")] = None
    inspected: Annotated[int, Meta(description="triggers answered")]
    by_verdict: Annotated[dict[str, int], Meta(description="PASS, FAIL and NOT_JUDGED")]
    by_reason: Annotated[
        dict[str, int], Meta(description="by the verdict's `reason`; those that occurred")
    ]
    by_region: Annotated[
        dict[str, int], Meta(description="how often each region failed; those that did")
    ]
    yield_: Annotated[
        float | None, Meta(description="PASS / (PASS + FAIL); null before the first of either")
    ] = msgspec.field(name="yield", default=None)
    longest_fail_run: Annotated[
        int, Meta(description="most FAILs in a row; NOT_JUDGED neither counts nor ends a row")
    ]
    scores: Annotated[
        tuple[int, ...],
        Meta(
            description="how many scores lie above the `score_edges` of the same place and not "
            "above the next; the last are above the last edge, the first include 0"
        ),
    ]
    latency: Annotated[
        DurationStatistics | None, Meta(description="from the trigger to the verdict")
    ] = None
    capture: Annotated[
        DurationStatistics | None, Meta(description="from the trigger to the copied picture")
    ] = None


class StatisticsPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `statistics`, retained and sent anew every few seconds and when a lot or shift ends."""

    schema: int = SCHEMA_VERSION
    station: str
    program: Annotated[str, Meta(description="judged by now; a lot may have seen several")]
    boot_id: str
    at: datetime
    fails_in_a_row: Annotated[
        int, Meta(description="up to now; NOT_JUDGED neither counts nor ends a row")
    ]
    waiting: Annotated[int, Meta(description="triggers that wait to be answered")]
    unsent: Annotated[
        int | None,
        Meta(description="verdicts the broker has not acknowledged; null: journal unreadable"),
    ]
    heatmaps_dropped: Annotated[
        int, Meta(description="not drawn or not sent, for want of time, since the start")
    ]
    score_edges: Annotated[tuple[float, ...], Meta(description="of the `scores`; 1.0 is the limit")]
    since_start: Annotated[CountStatistics, Meta(description="of the service")]
    lot: Annotated[CountStatistics | None, Meta(description="the present one; null without")] = None
    shift: Annotated[
        CountStatistics | None, Meta(description="the present one; null without shifts")
    ] = None
    last_lot: Annotated[
        CountStatistics | None, Meta(description="the one that ended last, complete")
    ] = None
    last_shift: Annotated[
        CountStatistics | None, Meta(description="the one that ended last, complete")
    ] = None


class HeartbeatPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `heartbeat`, every second while the station can judge, not retained, QoS 0."""

    count: Annotated[int, Meta(description="1, 2, 3 … since the start of the service")]
    boot_id: str


class MapPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `map`: the numeric map behind the heatmap."""

    schema: int = SCHEMA_VERSION
    id: str
    seq: int
    rows: int
    cols: int
    values: Annotated[
        tuple[float, ...], Meta(description="row by row, in units of the limit, 1.0 is the limit")
    ]


class TriggerRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic `request/trigger`; an empty payload asks without any of these."""

    part_id: Identifier | None = None
    transaction: Identifier | None = None


class LotRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic `request/lot`: from now on parts are of this lot, which is counted anew."""

    name: Annotated[
        Identifier | None,
        Meta(description="null: of none; that of the present lot changes nothing"),
    ]
    transaction: Identifier | None = None


class ProgramRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic `request/program`: triggers that come from now on are judged by this program.

    It stands until another is asked for, or the station file names another; a restart changes
    nothing.
    """

    program: Identifier
    transaction: Identifier | None = None


class ReloadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic `request/reload`: read the settings files, as when one was saved."""

    transaction: Identifier | None = None


class TeachingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic `request/teach`: take pictures of this moment as references."""

    frames: Annotated[int, Meta(ge=1, le=1000, description="pictures to take")] = 1
    program: Annotated[Identifier | None, Meta(description="null: the one in force")] = None
    empty: Annotated[bool, Meta(description="they show the station without a part")] = False
    transaction: Identifier | None = None


class LimitsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic `request/limits`: set the threshold of a program, or of one of its regions.

    It stands until the program's file is given another threshold there; a restart changes nothing.
    """

    threshold: Annotated[
        Threshold | None,
        Meta(
            description="in units of the learned limit, larger tolerates more; null: the file's "
            "own again",
        ),
    ]
    program: Annotated[Identifier | None, Meta(description="null: the one in force")] = None
    region: Annotated[Identifier | None, Meta(description="null: the program's own")] = None
    transaction: Identifier | None = None


class SnapshotRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic `request/snapshot`: publish the present picture, as PNG, on topic `snapshot`."""

    transaction: Identifier | None = None


class ResendRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topic `request/resend`: send verdicts of the journal once more, marked historical."""

    first: Annotated[int, Meta(ge=1, description="`seq` of the first")]
    last: Annotated[int, Meta(ge=1, description="`seq` of the last")]
    transaction: Identifier | None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `response/NAME`, or the response topic that the request named."""

    schema: int = SCHEMA_VERSION
    request: str
    transaction: str | None = None
    ok: bool
    error: Annotated[str | None, Meta(description="what was wrong with the request")] = None
    detail: Annotated[str | None, Meta(description="what was done, for a person")] = None
    verdict: Annotated[
        VerdictPayload | None, Meta(description="the answer to `trigger`, as on topic `verdict`")
    ] = None


def judgement(inspection: Inspection) -> dict[str, Any]:
    """The fields of a `VerdictPayload` that tell what was found, rounded to what means anything."""
    peak, health, alignment = inspection.peak, inspection.health, inspection.alignment
    return {
        "verdict": inspection.verdict.value,
        "reason": inspection.reason.value if inspection.reason else None,
        "detail": inspection.detail,
        "score": _rounded(inspection.score),
        "limit": _rounded(inspection.limit),
        "margin": _rounded(inspection.margin),
        "regions": tuple(
            RegionPayload(name=region.name, score=round(region.score, 4), failed=region.failed)
            for region in inspection.regions
        ),
        "peak": PeakPayload(x=round(peak.x, 1), y=round(peak.y, 1), score=round(peak.score, 4))
        if peak
        else None,
        "blobs": tuple(
            BlobPayload(
                x0=round(blob.x0, 1),
                y0=round(blob.y0, 1),
                x1=round(blob.x1, 1),
                y1=round(blob.y1, 1),
                score=round(blob.score, 4),
            )
            for blob in inspection.blobs
        ),
        "alignment": AlignmentPayload(
            dx=round(alignment.pose.dx, 1),
            dy=round(alignment.pose.dy, 1),
            rotation_deg=round(degrees(alignment.pose.rotation), 2),
            match=round(alignment.match, 4),
            within=alignment.within,
        )
        if alignment
        else None,
        "health": _health(health) if health else None,
    }


def _health(health: PictureHealth) -> HealthPayload:
    light, focus = health.measure("light"), health.measure("focus")
    return HealthPayload(
        brightness=round(health.brightness, 4),
        contrast=round(health.contrast, 4),
        black=round(health.black, 4),
        white=round(health.white, 4),
        focus=round(health.focus, 4),
        focus_ratio=round(focus.value / focus.usual, 4) if focus else None,
        light_ratio=round(light.value, 4) if light else None,
        measures={
            measure.name: MeasurePayload(
                value=round(measure.value, 4),
                usual=round(measure.usual, 4),
                low=_rounded(measure.low),
                high=_rounded(measure.high),
            )
            for measure in health.measures
        },
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def encode(payload: msgspec.Struct) -> bytes:
    """JSON in UTF-8."""
    return msgspec.json.encode(payload)


_VERDICT: JsonReader[VerdictPayload] = JsonReader(VerdictPayload)


def decode_verdict(raw: bytes) -> VerdictPayload:
    """Raises JsonError on what is no verdict."""
    return _VERDICT.read(raw)


def as_historical(raw: bytes) -> bytes:
    """A journalled verdict as it is sent from the backlog: alike but for ``historical``."""
    return encode(msgspec.structs.replace(decode_verdict(raw), historical=True))


REQUESTS: Mapping[str, type[msgspec.Struct]] = {
    "trigger": TriggerRequest,
    "program": ProgramRequest,
    "reload": ReloadRequest,
    "lot": LotRequest,
    "teach": TeachingRequest,
    "limits": LimitsRequest,
    "snapshot": SnapshotRequest,
    "resend": ResendRequest,
}
"""What each request says, by its name."""


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of every payload that is JSON, by topic."""
    types: dict[str, type[msgspec.Struct]] = {
        "verdict": VerdictPayload,
        "state": StatePayload,
        "health": StationHealth,
        "statistics": StatisticsPayload,
        "heartbeat": HeartbeatPayload,
        "map": MapPayload,
        **{f"request/{name}": kind for name, kind in REQUESTS.items()},
        **{f"response/{name}": Response for name in REQUESTS},
    }
    return {topic: msgspec.json.schema(kind) for topic, kind in types.items()}
