"""The settings reference for people, docs/settings.md, made from the types.

What a key is called, allows, has as default and does stands in `inspectd.settings` alone. Here are
only the introduction and an example of each group, which a test reads as the service would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import msgspec.inspect as mi

from inspectd.config import words
from inspectd.settings import NAME_PATTERN, NAME_RULE, Program, Station

INTRODUCTION = """\
# Settings
A station has one station file (`/etc/inspectd/default.yaml` as installed) and, in the folder
`programs` beside it, one file a product. Both are YAML: two spaces a level, decimal numbers with a
point, text in quotes where it could be taken for a number or for yes and no. What a file leaves out
has its default. [config/](../config/) has both kinds with comments, to begin with.

After a change:

    inspectd check

names every mistake with file, line and key, and what to write in its place. A running service takes
a saved file over by itself between two parts, but for `station`, `storage.directory` and
`storage.sync`, which take effect at its next start. A file with a mistake changes nothing, and the
log and topic `state` say so. For an editor that checks while you type, `inspectd schema station`
and `inspectd schema program` print the JSON Schemas.

In the tables, *required* means that there is no default; *absent* that leaving the key out is a
choice of its own, told in the last column. A *share* is a number where 1 is the whole of what it is
a share of; *limits* is in units of the limit that was learned from the references. `regions[]` is
each item of the list `regions`.

This page is made from the types of the program, by `inspectd schema --markdown`.
"""

EXAMPLES = {
    "station": """\
station: line1-cell3
program: terminal-block
camera:
  driver: picamera2
trigger:
  source: mqtt
alarm_after: 5
shifts: ["06:00", "14:00", "22:00"]
""",
    "camera picamera2": """\
camera:
  driver: picamera2
  rate: 60.0
  exposure_us: 3000
  gain: 2.0
  white_balance: [1.9, 1.5]
""",
    "camera opencv": """\
camera:
  driver: opencv
  device: /dev/v4l/by-id/usb-Cam-video-index0
  width: 1280
  height: 720
  exposure_us: 5000
  gain: 10
  focus: 30
  white_balance_k: 4600
""",
    "camera replay": """\
camera:
  driver: replay
  path: pictures
  rate: 20
""",
    "camera simulated": """\
camera:
  driver: simulated
  defect_rate: 0.1
""",
    "trigger interval": """\
trigger:
  source: interval
  interval_s: 0.5
""",
    "trigger continuous": """\
trigger:
  source: continuous
""",
    "trigger mqtt": """\
trigger:
  source: mqtt
""",
    "trigger gpio": """\
trigger:
  source: gpio
  pin: 17
  edge: rising
  debounce_ms: 2
  delay_ms: 40
""",
    "outputs": """\
outputs:
  ok: {pin: 22}
  ng: {pin: 23, pulse_ms: 200}
  busy: {pin: 24}
  ready: {pin: 25, active: low}
""",
    "mqtt": """\
mqtt:
  host: broker.plant
  port: 8883
  username: line1-cell3
  password_file: secrets/mqtt-password
  tls:
    ca: secrets/plant-ca.pem
  requests: [trigger, program, lot, resend]
""",
    "mqtt.homeassistant": """\
mqtt:
  homeassistant: {}
""",
    "mqtt.sparkplug": """\
mqtt:
  sparkplug:
    group: plant1
    primary_host: scada
""",
    "storage": """\
storage:
  directory: /var/lib/inspectd
  sync: normal
  keep_days: 90
""",
    "archive": """\
archive:
  keep: [FAIL]
  margin: 0.2
  max_mb: 4000
  format: jpeg
""",
    "program": """\
description: connector on a printed circuit board
roi: [120, 80, 480, 360]
resolution: 128
light: local
""",
    "alignment": """\
alignment:
  mode: shift
  max_shift: 0.05
  beyond: fail
""",
    "soartc": """\
soartc:
  blur: 1.5
  pedestal: 0.03
""",
    "references": """\
references:
  minimum: 10
""",
    "limit": """\
limit:
  threshold: 1.2
""",
    "regions[]": """\
regions:
  - name: pin_1
    box: [0.02, 0.05, 0.11, 0.30]
    threshold: 0.8
  - name: latch
    polygon: [[0.40, 0.10], [0.60, 0.10], [0.55, 0.30]]
  - name: label
    box: [0.70, 0.80, 0.95, 0.98]
    ignore: true
""",
    "health": """\
health:
  max_light_change: 0.5
  min_focus: 0.6
""",
}
"""By section: the file's name, or the group's path and what it is the variant of."""

_WRAPPED = mi.Metadata | mi.UnionType | mi.VarTupleType | mi.TupleType | mi.StructType
_PLURALS = {"list of 2 numbers": "lists of 2 numbers"}
_HEAD = "| key | type | default | allowed | unit | what it does |\n|---|---|---|---|---|---|"


@dataclass(frozen=True, slots=True)
class _Section:
    """A record at its place in the file."""

    path: str
    record: mi.StructType

    @property
    def tag(self) -> str:
        return "" if self.record.tag is None else str(self.record.tag)

    @property
    def title(self) -> str:
        if not self.tag:
            return f"`{self.path}`"
        return f"`{self.path}`, with `{self.record.tag_field}: {self.tag}`"

    @property
    def anchor(self) -> str:
        """Of the title, as the viewers of Markdown make it."""
        return re.sub(r"[^a-z0-9 _-]", "", self.title.lower()).replace(" ", "-")

    @property
    def example(self) -> str:
        return EXAMPLES.get(f"{self.path} {self.tag}".strip(), "")


def markdown() -> str:
    """Every key of both files, in the order of the types, with a section a group."""
    parts = [INTRODUCTION]
    for name, heading, root in (
        ("station", "The station file", Station),
        ("program", "A program file", Program),
    ):
        record = mi.type_info(root)
        assert isinstance(record, mi.StructType)
        parts.append(f"## {heading}\n{_body(_Section('', record), EXAMPLES[name])}")
        parts += [
            f"### {section.title}\n{_body(section, section.example)}"
            for section in _sections(record, "")
        ]
    return "\n".join(parts)


def _sections(record: mi.StructType, path: str) -> Iterator[_Section]:
    """The groups within a record, each before those within it."""
    for field in record.fields:
        key = _joined(path, field.encode_name)
        for place, group in _groups(field.type, key):
            yield _Section(place, group)
            yield from _sections(group, place)


def _groups(kind: mi.Type, path: str) -> Iterator[tuple[str, mi.StructType]]:
    match kind:
        case mi.Metadata():
            yield from _groups(kind.type, path)
        case mi.UnionType():
            for variant in words.variants(kind):
                yield from _groups(variant, path)
        case mi.VarTupleType():
            yield from _groups(kind.item_type, f"{path}[]")
        case mi.StructType(array_like=False):
            yield path, kind
        case _:
            pass


def _body(section: _Section, example: str) -> str:
    record = section.record
    said = " ".join((record.cls.__doc__ or "").split())
    parts = [f"{said}\n"]
    if example:
        parts.append("".join(f"    {line}\n" for line in example.splitlines()))
    rows = [_row(field, section.path) for field in record.fields]
    if section.tag:
        key = _joined(section.path, str(record.tag_field))
        rows.insert(
            0, f"| `{key}` | word | *required* | `{section.tag}` |  | the keys are then these |"
        )
    if rows:
        parts.append("\n".join([_HEAD, *rows]) + "\n")
    return "\n".join(parts)


def _row(field: mi.Field, path: str) -> str:
    key = _joined(path, field.encode_name)
    about, unit = _notes(field.type)
    kind, allowed = _kind(field.type)
    sections = [_Section(place, group) for place, group in _groups(field.type, key)]
    if sections:
        unit = ""
        allowed = ", ".join(f"[{each.tag or 'see there'}](#{each.anchor})" for each in sections)
    cells = (
        f"`{key}`",
        kind,
        _default(field),
        allowed,
        unit,
        about,
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _notes(kind: mi.Type) -> tuple[str, str]:
    """The description and the unit of a key: the outermost that there are."""
    about = unit = ""
    while not (about and unit) and isinstance(kind, _WRAPPED):
        match kind:
            case mi.Metadata():
                about = about or (kind.extra_json_schema or {}).get("description", "")
                unit = unit or (kind.extra or {}).get("unit", "")
                kind = kind.type
            case mi.UnionType():
                kind = words.variants(kind)[0]
            case mi.VarTupleType():
                kind = kind.item_type
            case mi.TupleType():
                kind = kind.item_types[0]
            case mi.StructType():
                kind = kind.fields[0].type
    return about, unit


def _default(field: mi.Field) -> str:
    if field.required:
        return "*required*"
    value = field.default
    if value is None:
        return "*absent*"
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        return f"`{tag}`" if tag else "its defaults"
    return f"`{_yaml(value)}`"


def _yaml(value: object) -> str:
    """A default as it would stand in the file."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][A-Za-z0-9_/-]*", value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _kind(kind: mi.Type) -> tuple[str, str]:
    """What sort of value a key has, and which ones of it are allowed."""
    match kind:
        case mi.Metadata():
            return _kind(kind.type)
        case mi.UnionType():
            return _kind(words.variants(kind)[0])
        case mi.VarTupleType() | mi.TupleType():
            return _list(kind)
        case mi.StructType():
            return _record(kind)
        case _:
            return _simple(kind)


def _list(kind: mi.VarTupleType | mi.TupleType) -> tuple[str, str]:
    if isinstance(kind, mi.TupleType):
        inner, allowed = _kind(kind.item_types[0])
        return f"list of {len(kind.item_types)} {inner}s", f"{allowed} each"
    inner, allowed = _kind(kind.item_type)
    if kind.min_length:
        allowed += f"; at least {kind.min_length}"
    return f"list of {_PLURALS.get(inner, f'{inner}s')}", allowed


def _record(kind: mi.StructType) -> tuple[str, str]:
    if not kind.array_like:
        return "group", ""
    ranges: dict[str, list[str]] = {}
    for field in kind.fields:
        ranges.setdefault(_kind(field.type)[1], []).append(field.encode_name)
    if len(ranges) == 1:
        return f"list [{words.keys(kind)}]", f"{next(iter(ranges))} each"
    allowed = "; ".join(f"{', '.join(names)}: {bounds}" for bounds, names in ranges.items())
    return f"list [{words.keys(kind)}]", allowed


def _simple(kind: mi.Type) -> tuple[str, str]:
    match kind:
        case mi.IntType():
            return "whole number", _range(kind)
        case mi.FloatType():
            return "number", _range(kind)
        case mi.BoolType():
            return "true or false", ""
        case mi.LiteralType() | mi.EnumType():
            return "word", ", ".join(f"`{choice}`" for choice in words.choices(kind))
        case mi.StrType(pattern=pattern):
            return ("name", NAME_RULE) if pattern == NAME_PATTERN else ("text", _length(kind))
        case _:
            raise TypeError(f"no words for the type {kind}")


def _length(kind: mi.StrType) -> str:
    """What is allowed of a text; a pattern is told by the description."""
    if kind.min_length is not None and kind.min_length == kind.max_length:
        return f"{kind.max_length} characters"
    parts = (
        "not empty" if kind.min_length else "",
        f"at most {kind.max_length} characters" if kind.max_length else "",
    )
    return ", ".join(part for part in parts if part)


def _range(kind: mi.IntType | mi.FloatType) -> str:
    """The bounds of a number: ``0 to 1``, ``above 0, at most 100``, ``0 or more``."""
    low = f"{kind.ge:.12g}" if kind.ge is not None else ""
    high = f"{kind.le:.12g}" if kind.le is not None else ""
    if low and high:
        return f"{low} to {high}"
    bounds = (
        f"above {kind.gt:.12g}" if kind.gt is not None else "",
        f"{low} or more" if low else "",
        f"below {kind.lt:.12g}" if kind.lt is not None else "",
        f"at most {high}" if high else "",
    )
    return ", ".join(bound for bound in bounds if bound)
