"""What goes out over MQTT and into the journal, as types; their JSON Schemas are made from them.

Instants are UTC in RFC 3339, durations milliseconds, places frame pixels, scores in units of the
limit. ``schema`` is raised when a field changes its meaning or goes away, not when one is added.
"""

from __future__ import annotations

from datetime import datetime
from math import degrees
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inspectd.records import Inspection

SCHEMA_VERSION = 1

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


class HealthPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of the picture itself."""

    brightness: Annotated[float, Meta(description="mean grey value, 0 to 1")]
    contrast: Annotated[float, Meta(description="standard deviation of the grey values, 0 to 0.5")]
    focus: Annotated[float, Meta(description="sharpness before the reduction, no unit")]
    focus_ratio: Annotated[
        float | None, Meta(description="sharpness over the references' median")
    ] = None
    light_ratio: Annotated[
        float | None, Meta(description="brightness over the references' mean")
    ] = None


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
    trigger: Annotated[str, Meta(description="interval, continuous or mqtt")]
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
        Meta(description="by stage; `total` is from the trigger to the committed verdict"),
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
    versions: dict[str, str]
    journal_id: str
    boot_id: str
    last_error: str | None = None
    clock_synchronised: bool
    since: datetime


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


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `response/NAME`, or the response topic that the request named."""

    schema: int = SCHEMA_VERSION
    request: str
    transaction: str | None = None
    ok: bool
    error: Annotated[str | None, Meta(description="what was wrong with the request")] = None
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
        "health": HealthPayload(
            brightness=round(health.brightness, 4),
            contrast=round(health.contrast, 4),
            focus=round(health.focus, 4),
            focus_ratio=_rounded(health.focus_ratio),
            light_ratio=_rounded(health.light_ratio),
        )
        if health
        else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def encode(payload: msgspec.Struct) -> bytes:
    """JSON in UTF-8."""
    return msgspec.json.encode(payload)


def decode_verdict(raw: bytes) -> VerdictPayload:
    """Raises msgspec.ValidationError on what is no verdict."""
    return msgspec.json.decode(raw, type=VerdictPayload)


def as_historical(raw: bytes) -> bytes:
    """A journalled verdict as it is sent from the backlog: alike but for ``historical``."""
    return encode(msgspec.structs.replace(decode_verdict(raw), historical=True))


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of every payload, by topic."""
    types = {
        "verdict": VerdictPayload,
        "state": StatePayload,
        "map": MapPayload,
        "request/trigger": TriggerRequest,
        "response/trigger": Response,
    }
    return {topic: msgspec.json.schema(kind) for topic, kind in types.items()}
