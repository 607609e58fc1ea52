"""What Sparkplug B messages carry: metrics in protobuf, as the specification's chapter 6 has it.

Nothing here knows of topics or connections. The schema is the specification's own,
`sparkplug_b.proto`; `sparkplug_b_pb2` is generated from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from google.protobuf.message import DecodeError

from inspectd.mqtt.sparkplug_b_pb2 import (
    Boolean,
    DataType,
    DateTime,
    Double,
    Int64,
    Payload,
    String,
    UInt64,
)
from inspectd.payload import VerdictPayload
from inspectd.typed_json import JsonReader

Value = str | int | float | bool | datetime | None

BD_SEQ = "bdSeq"
REBIRTH = "Node Control/Rebirth"
AVAILABLE = "Available"
ALIASES_PER_DEVICE = 100
"""More than a device has metrics."""
_AVAILABLE_ALIAS = 0
_PROPERTIES_ALIAS = 1


@dataclass(frozen=True, slots=True)
class _Metric:
    """One metric of a verdict."""

    name: str
    datatype: DataType
    of: Callable[[VerdictPayload], Value]


# New ones at the end: a position is an alias, which hosts may keep over a restart.
_VERDICT: tuple[_Metric, ...] = (
    _Metric("Verdict", String, lambda v: v.verdict),
    _Metric("Reason", String, lambda v: v.reason),
    _Metric("Detail", String, lambda v: v.detail),
    _Metric("Score", Double, lambda v: v.score),
    _Metric("Limit", Double, lambda v: v.limit),
    _Metric("Margin", Double, lambda v: v.margin),
    _Metric("Part Id", String, lambda v: v.part_id),
    _Metric("Lot", String, lambda v: v.lot),
    _Metric("Inspection/Id", String, lambda v: v.id),
    _Metric("Inspection/Journal Id", String, lambda v: v.journal_id),
    _Metric("Inspection/Sequence", UInt64, lambda v: v.seq),
    _Metric("Inspection/Transaction", String, lambda v: v.transaction),
    _Metric("Inspection/Trigger", String, lambda v: v.trigger),
    _Metric("Inspection/Triggered At", DateTime, lambda v: v.triggered_at),
    _Metric("Inspection/Captured At", DateTime, lambda v: v.captured_at),
    _Metric("Inspection/Clock Synchronised", Boolean, lambda v: v.clock_synchronised),
    _Metric("Inspection/Capture ms", Double, lambda v: v.timings_ms.get("capture")),
    _Metric("Inspection/Total ms", Double, lambda v: v.timings_ms.get("total")),
    _Metric("Inspection/Settings Hash", String, lambda v: v.settings_hash),
    _Metric("Inspection/References Hash", String, lambda v: v.references_hash),
)


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def node_death(bd_seq: int) -> bytes:
    """An NDEATH: nothing but the number of the session that ends."""
    payload = Payload(timestamp=now_ms())
    _add(payload, BD_SEQ, None, Int64, bd_seq, now_ms())
    return payload.SerializeToString()


def node_birth(
    seq: int, bd_seq: int, available: bool, properties: Sequence[tuple[str, str]]
) -> bytes:
    """An NBIRTH. The two metrics that hosts know by name have no alias."""
    now = now_ms()
    payload = Payload(timestamp=now, seq=seq)
    _add(payload, BD_SEQ, None, Int64, bd_seq, now)
    _add(payload, REBIRTH, None, Boolean, False, now)
    _add(payload, AVAILABLE, _AVAILABLE_ALIAS, Boolean, available, now)
    for alias, (name, value) in enumerate(properties, _PROPERTIES_ALIAS):
        _add(payload, f"Properties/{name}", alias, String, value, now)
    return payload.SerializeToString()


def node_data(seq: int, available: bool) -> bytes:
    """An NDATA: the one metric of the node that changes."""
    now = now_ms()
    payload = Payload(timestamp=now, seq=seq)
    _add(payload, AVAILABLE, _AVAILABLE_ALIAS, Boolean, available, now, birth=False)
    return payload.SerializeToString()


def device_birth(seq: int, first_alias: int, last: VerdictPayload | None) -> bytes:
    """A DBIRTH: every metric with its alias and its value in the last verdict, null without one."""
    now = now_ms()
    payload = Payload(timestamp=now, seq=seq)
    at = now if last is None else _captured(last)
    for alias, metric in enumerate(_VERDICT, first_alias):
        value = None if last is None else metric.of(last)
        _add(payload, metric.name, alias, metric.datatype, value, at)
    return payload.SerializeToString()


def device_data(seq: int, first_alias: int, verdict: VerdictPayload, *, historical: bool) -> bytes:
    """A DDATA: one verdict, by aliases, every metric with the time of its picture."""
    payload = Payload(timestamp=now_ms(), seq=seq)
    at = _captured(verdict)
    for alias, metric in enumerate(_VERDICT, first_alias):
        value = metric.of(verdict)
        added = _add(payload, metric.name, alias, metric.datatype, value, at, birth=False)
        if historical:
            added.is_historical = True
    return payload.SerializeToString()


def device_death(seq: int) -> bytes:
    """A DDEATH."""
    return Payload(timestamp=now_ms(), seq=seq).SerializeToString()


def asks_for_rebirth(raw: bytes) -> bool:
    """Whether an NCMD asks the node to introduce itself anew.

    Raises:
        ValueError: it is no Sparkplug B payload, or it writes to something else.
    """
    try:
        payload = Payload.FromString(raw)
    except DecodeError as error:
        raise ValueError(f"it is no Sparkplug B payload: {error}") from error
    unknown = [metric.name or f"alias {metric.alias}" for metric in payload.metrics]
    unknown = [name for name in unknown if name != REBIRTH]
    if unknown:
        raise ValueError(f"only {REBIRTH} can be written to, not {', '.join(unknown)}")
    return any(metric.boolean_value for metric in payload.metrics)


class HostState(msgspec.Struct, frozen=True):
    """A STATE message of a host application."""

    online: bool
    timestamp: int
    """Milliseconds since 1970, by the host's clock."""


_HOST_STATE: JsonReader[HostState] = JsonReader(HostState)


def decode_host_state(raw: bytes) -> HostState:
    """Raises JsonError on what is no STATE of Sparkplug 3.0."""
    return _HOST_STATE.read(raw)


def _captured(verdict: VerdictPayload) -> int:
    return _milliseconds(verdict.captured_at or verdict.triggered_at)


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _add(
    payload: Payload,
    name: str,
    alias: int | None,
    datatype: DataType,
    value: Value,
    at: int,
    *,
    birth: bool = True,
) -> Payload.Metric:
    """Add a metric, with its name and datatype in a birth, and by its alias alone otherwise."""
    metric = payload.metrics.add(timestamp=at)
    if alias is not None:
        metric.alias = alias
    if birth:
        metric.name = name
        metric.datatype = datatype
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        metric.is_null = True
    elif isinstance(value, datetime):
        metric.long_value = _milliseconds(value)
    elif datatype == Boolean:
        metric.boolean_value = bool(value)
    elif datatype == Double:
        metric.double_value = float(value)
    elif datatype == String:
        metric.string_value = str(value)
    else:
        metric.long_value = int(value)
    return metric
