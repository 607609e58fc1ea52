"""Settings files and request payloads as they should not be: the same ones in every run."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

T = TypeVar("T")
Bytes = st.SearchStrategy[bytes]

_NASTY = (
    "~ on -1 0 1e999 .nan 0x1F 010 1:30 2024-01-01 None [] {} [1, {a: *a &a !!int ' \" % | > ../.."
)
SCALARS = st.one_of(
    st.sampled_from(["", "\t", "\0", *_NASTY.split()]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just("x" * 300),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
HOSTILE = [
    b"[" * 20_000,
    b'{"part_id": "' + b"x" * 100_000 + b'"}',
    b"\xff\xfe{\0}\0",
    b"\0",
    b"null",
]


def examples(strategy: st.SearchStrategy[T], count: int) -> list[T]:
    """So many of them, the same each time."""
    found: list[T] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: T) -> None:
        found.append(example)

    collect()
    return found[:count]


@st.composite
def settings_files(draw: st.DrawFn, text: str) -> bytes:
    """A settings file with one to three slips of the hand."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        slip = draw(st.sampled_from(_SLIPS))
        at = draw(st.integers(0, max(0, len(lines) - 1)))
        if lines:
            lines[at : at + 1] = slip(draw, lines[at])
    raw = "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:  # cut short, or bytes that are no text
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=4))
    return raw


def _other_value(draw: st.DrawFn, line: str) -> list[str]:
    return [f"{line.partition(':')[0]}: {draw(SCALARS)}"]


def _typing_error(draw: st.DrawFn, line: str) -> list[str]:
    at = draw(st.integers(0, len(line)))
    return [line[:at] + draw(st.text(max_size=2)) + line[at + 1 :]]


def _other_indent(draw: st.DrawFn, line: str) -> list[str]:
    return [draw(st.sampled_from(["", " ", "    ", "\t"])) + line.strip()]


_SLIPS: list[Callable[[st.DrawFn, str], list[str]]] = [
    _other_value,
    _typing_error,
    _other_indent,
    lambda _draw, _line: [],
    lambda _draw, line: [line, line],
]


@st.composite
def payloads(draw: st.DrawFn, types: Mapping[str, type[msgspec.Struct]]) -> tuple[str, bytes]:
    """The NAME of a request, mostly a known one, and what it says."""
    name = draw(st.sampled_from([*types, "trigger", "no-such-request"]))
    kind = types.get(name)
    fields = list(kind.__struct_fields__) if kind else ["part_id"]
    known: st.SearchStrategy[Any] = st.dictionaries(
        st.sampled_from(fields), st.text(max_size=8) | JSON, max_size=len(fields)
    )
    content = draw(known | JSON)
    raw = json.dumps(content).encode()
    cut = st.integers(0, len(raw)).map(lambda at: raw[:at])
    changed = draw(st.one_of(st.just(raw), cut, st.binary(max_size=60), st.sampled_from(HOSTILE)))
    return name, changed
