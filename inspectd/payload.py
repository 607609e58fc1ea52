"""What goes out over MQTT and into the journal, as types; their JSON Schemas are made from them.

Instants are UTC in RFC 3339, durations milliseconds, places frame pixels, scores in units of the
limit. ``schema`` is raised when a field changes its meaning or goes away, not when one is added.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

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


class HealthPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of the picture itself."""

    brightness: Annotated[float, Meta(description="mean grey value, 0 to 1")]
    contrast: Annotated[float, Meta(description="standard deviation of the grey values, 0 to 0.5")]
    focus: Annotated[float, Meta(description="sharpness before the reduction, no unit")]
    focus_ratio: Annotated[
        float | None, Meta(description="sharpness over the references' median")
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
