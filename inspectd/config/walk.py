"""A tree of nodes compared with the types that msgspec knows: a record, or every problem at once.

Nothing here repeats a key, a type or a bound of the settings: a new key needs no change here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, NamedTuple, cast

import msgspec
from msgspec import inspect as mi

from inspectd.config import words
from inspectd.config.nodes import Group, Items, Mistake, Node, Refused, Scalar, compose
from inspectd.errors import Problem
from inspectd.settings import Checked

_MAX_DIGITS = 18  # beyond 64 bits neither JSON nor msgspec follows
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands, and what the settings say about it."""

    key: str
    line: int
    about: str = ""

    def child(self, name: str, line: int) -> Place:
        return Place(f"{self.key}.{words.label(name)}" if self.key else words.label(name), line)

    def item(self, index: int, node: Node) -> Place:
        return Place(f"{self.key}[{index}]", node.line)


class _Entry(NamedTuple):
    """One key of a group with its value."""

    name: str
    line: int
    node: Node


class _Wrong:
    """Stands for a value that has been reported."""


WRONG: Final = _Wrong()


class _Unreadable(AttributeError):
    """A check between values asked for one that is itself wrong."""


class _Partial:
    """Stands for a record once anything is wrong: right values can be read, wrong ones raise."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.__dict__.update({k: v for k, v in values.items() if v is not WRONG})

    def __getattr__(self, name: str) -> Any:
        raise _Unreadable(name)


class Walk:
    """One text compared with its type.

    Every method that reads a node returns its value, or a `_Partial` record, or ``WRONG``; in the
    latter two cases it has reported why.

    Attributes:
        name: the file's, for the problems.
        problems: in the order found.
        lines: key path to line.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}

    def report(self, place: Place, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.name, place.line, place.key, message, hint))

    def mistake(self, mistake: Mistake) -> None:
        self.report(Place("", mistake.line), mistake.message, mistake.hint)

    def read(self, text: str, kind: type[msgspec.Struct]) -> object:
        """The record that a text describes; where ``problems`` is empty, a ``kind``."""
        root, mistakes = compose(text)
        for mistake in mistakes:
            self.mistake(mistake)
        if root is None:
            if not mistakes:
                keys = words.keys(mi.type_info(kind))
                self.mistake(Mistake(1, f"the file is empty: expected the keys {keys}"))
            return WRONG
        record = self.value(root, mi.type_info(kind), Place("", root.line))
        return record if self.problems else self._confirmed(record, kind)

    def _confirmed(self, record: object, kind: type[msgspec.Struct]) -> object:
        """The same record by msgspec's own reading, which has the last word."""
        try:
            return msgspec.convert(msgspec.to_builtins(record), kind)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            key = path.rstrip("`").removeprefix(".")
            self.report(Place(key, self.lines.get(key, 1)), message)
            return WRONG

    def value(self, node: Node, kind: mi.Type, place: Place) -> object:
        """Any node by its type."""
        while isinstance(kind, mi.Metadata):
            about = (kind.extra_json_schema or {}).get("description", "")
            place = replace(place, about=place.about or about)
            kind = kind.type
        self.lines.setdefault(place.key, place.line)
        if isinstance(node, Refused):
            return WRONG
        return self._READERS[type(kind)](self, node, kind, place)

    def _mismatch(self, node: Node, kind: mi.Type, place: Place, hint: str = "") -> _Wrong:
        expectation = words.described(kind, place.about)
        self.report(place, f"expected {expectation}, found {words.found(node)}", hint)
        return WRONG

    # ---- single values

    def _number(self, node: Node, kind: mi.IntType | mi.FloatType, place: Place) -> float | _Wrong:
        whole = isinstance(kind, mi.IntType)
        grammar = words.WHOLE if whole else words.NUMBER
        if not isinstance(node, Scalar) or node.quoted or not grammar.fullmatch(node.text):
            return self._mismatch(node, kind, place, words.number_hint(node))
        if whole and len(node.text) > _MAX_DIGITS:
            return self._mismatch(node, kind, place, "it has too many digits")
        number: int | float = int(node.text) if whole else float(node.text)
        if not math.isfinite(number):
            return self._mismatch(node, kind, place, "it is too large")
        return number if _within(number, kind) else self._mismatch(node, kind, place)

    def _truth(self, node: Node, kind: mi.BoolType, place: Place) -> bool | _Wrong:
        if not isinstance(node, Scalar):
            return self._mismatch(node, kind, place)
        truth = words.TRUTHS.get(node.text.lower())
        if node.reading == "bool" and truth is not None:
            return truth
        hint = "" if truth is None else "take away the quotes"
        return self._mismatch(node, kind, place, hint)

    def _text(self, node: Node, kind: mi.StrType, place: Place) -> str | _Wrong:
        if not isinstance(node, Scalar):
            return self._mismatch(node, kind, place)
        if node.reading not in {"text", "merge"}:
            hint = f'put it in quotes: "{words.shortened(node.text)}"' if node.text else ""
            return self._mismatch(node, kind, place, hint)
        unusable = _CONTROL.search(node.text)
        if unusable:
            hint = f"the character U+{ord(unusable[0]):04X} is not allowed"
            return self._mismatch(node, kind, place, hint)
        return node.text if _fits(node.text, kind) else self._mismatch(node, kind, place)

    def _choice(self, node: Node, kind: mi.LiteralType | mi.EnumType, place: Place) -> object:
        if not isinstance(node, Scalar):
            return self._mismatch(node, kind, place)
        choices = words.choices(kind)
        if node.text not in choices:
            return self._mismatch(node, kind, place, words.did_you_mean(node.text, choices))
        if node.reading != "text":
            return self._mismatch(node, kind, place, f'put it in quotes: "{node.text}"')
        return kind.cls(node.text) if isinstance(kind, mi.EnumType) else node.text

    # ---- lists

    def _list(self, node: Node, kind: mi.VarTupleType, place: Place) -> object:
        if not isinstance(node, Items):
            return self._mismatch(node, kind, place, "begin each item of the list with '- '")
        items = [
            self.value(item, kind.item_type, place.item(index, item))
            for index, item in enumerate(node.items)
        ]
        low, high = kind.min_length or 0, kind.max_length or math.inf
        if not low <= len(items) <= high:
            bound = f"at least {low}" if len(items) < low else f"at most {high}"
            about = f" ({place.about})" if place.about else ""
            self.report(place, f"expected {bound} in the list{about}, found {len(items)}")
            return WRONG
        return WRONG if WRONG in items else tuple(items)

    def _tuple(self, node: Node, kind: mi.TupleType, place: Place) -> object:
        items = self._row(node, kind, kind.item_types, len(kind.item_types), place)
        return WRONG if items is None or WRONG in items else tuple(items)

    def _row(
        self, node: Node, kind: mi.Type, types: Sequence[mi.Type], least: int, place: Place
    ) -> list[object] | None:
        """The items of a list with a type for each place; None where it is no such list."""
        if not isinstance(node, Items):
            self._mismatch(node, kind, place)
            return None
        items = [
            self.value(item, item_kind, place.item(index, item))
            for index, (item, item_kind) in enumerate(zip(node.items, types, strict=False))
        ]
        if not least <= len(node.items) <= len(types):
            expectation = words.described(kind, place.about)
            values = "1 value" if len(node.items) == 1 else f"{len(node.items)} values"
            self.report(place, f"expected {expectation}, found {values}")
            return None
        return items

    # ---- groups of keys

    def _struct(self, node: Node, kind: mi.StructType, place: Place) -> object:
        if kind.array_like:
            least = sum(field.required for field in kind.fields)
            items = self._row(node, kind, [field.type for field in kind.fields], least, place)
            if items is None:
                return WRONG
            names = [field.name for field in kind.fields]
            return self._built(kind, dict(zip(names, items, strict=False)), place)
        if not isinstance(node, Group):
            return self._mismatch(node, kind, place, _group_hint(node, kind))
        return self._record(self._entries(node, place), kind, place)

    def _union(self, node: Node, kind: mi.UnionType, place: Place) -> object:
        """None, the only type beside None, or the record that the tag key names."""
        variants = words.variants(kind)
        optional = len(variants) < len(kind.types)
        if optional and isinstance(node, Scalar) and node.reading == "nothing":
            return None
        if len(variants) == 1:
            return self.value(node, variants[0], place)
        structs = cast("list[mi.StructType]", variants)
        if not isinstance(node, Group):
            hint = ""
            if isinstance(node, Scalar) and node.text in {str(struct.tag) for struct in structs}:
                hint = f"write {{{structs[0].tag_field}: {node.text}}}"
            return self._mismatch(node, kind, place, hint)
        entries = self._entries(node, place)
        chosen = self._variant(entries, structs, place)
        if chosen is not None:
            return self._record(entries, chosen, place)
        names = [field.encode_name for struct in structs for field in struct.fields]
        self._recognised(entries, [str(structs[0].tag_field), *dict.fromkeys(names)], place)
        return WRONG

    def _variant(
        self, entries: Sequence[_Entry], structs: Sequence[mi.StructType], place: Place
    ) -> mi.StructType | None:
        """The record that the tag key names, or seems to name; None where that is unclear."""
        tag_field = str(structs[0].tag_field)
        by_tag = {str(struct.tag): struct for struct in structs}
        known = {field.encode_name for struct in structs for field in struct.fields}
        given = [entry.name for entry in entries if entry.name not in known]
        name = tag_field if tag_field in given else words.nearest(tag_field, given)
        entry = next((entry for entry in entries if entry.name == name), None)
        if entry is None:
            missing = place.child(tag_field, place.line)
            self.report(missing, f"is missing: expected {words.either([*by_tag])}")
            return None
        literal = mi.LiteralType(tuple(by_tag))
        tag = self.value(entry.node, literal, place.child(entry.name, entry.line))
        if tag is WRONG and isinstance(entry.node, Scalar):
            tag = words.nearest(entry.node.text, by_tag)
        return by_tag.get(str(tag))

    def _entries(self, node: Group, place: Place) -> list[_Entry]:
        """The keys of a group; what is no key, and what stands there twice, is reported."""
        entries: list[_Entry] = []
        first: dict[str, int] = {}
        for key, value in node.entries:
            here = Place(place.key, key.line)
            if isinstance(key, Refused):
                continue
            if not isinstance(key, Scalar) or key.text == "":
                self.report(here, "expected a key, which is a word, before the ':'")
            elif key.reading == "merge":
                message = "<< would take in the keys of another group; settings know no such thing"
                self.report(here, message, "write the keys out")
            else:
                if key.text in first:
                    message = f"stands here twice, first on line {first[key.text]}"
                    self.report(place.child(key.text, key.line), message, "take one of them out")
                first.setdefault(key.text, key.line)
                entries.append(_Entry(key.text, key.line, value))
        return entries

    def _recognised(
        self, entries: Sequence[_Entry], names: Sequence[str], place: Place
    ) -> list[tuple[str, _Entry]]:
        """The entries with the names they mean; the unknown ones are reported, with a guess."""
        given = {entry.name for entry in entries}
        recognised = []
        for entry in entries:
            if entry.name in names:
                recognised.append((entry.name, entry))
                continue
            near = words.nearest(entry.name, [name for name in names if name not in given])
            elsewhere = words.known_places().get(entry.name)
            hints = [f"did you mean {near}?"] if near else []
            if elsewhere:
                hints.append(f"{entry.name} belongs at {elsewhere}")
            if not hints:
                hints.append(f"known here: {', '.join(names)}" if names else "none is known here")
            self.report(place.child(entry.name, entry.line), "unknown key", "; ".join(hints))
            if near and not elsewhere:
                recognised.append((near, entry))
        return recognised

    def _record(self, entries: Sequence[_Entry], kind: mi.StructType, place: Place) -> object:
        """The record of a group's entries."""
        fields = {field.encode_name: field for field in kind.fields}
        tag = [kind.tag_field] if kind.tag_field else []
        values: dict[str, object] = {}
        for name, entry in self._recognised(entries, [*tag, *fields], place):
            if name not in fields:
                continue  # the tag key, which has chosen this record
            line = entry.node.line if isinstance(entry.node, Scalar) else entry.line
            value = self.value(entry.node, fields[name].type, place.child(entry.name, line))
            values.setdefault(fields[name].name, value)
        for name, field in fields.items():
            if field.required and field.name not in values:
                missing = place.child(name, place.line)
                self.report(missing, f"is missing: expected {words.described(field.type)}")
        return self._built(kind, values, place)

    def _built(self, kind: mi.StructType, values: dict[str, object], place: Place) -> object:
        """The record, once its values have been checked against each other."""
        view = _Partial({**_defaults(kind), **values})
        if issubclass(kind.cls, Checked):
            try:
                for path, message in kind.cls.faults(cast("Checked", view)):
                    key = ".".join(part for part in (place.key, path) if part)
                    self.report(Place(key, self.lines.get(key, place.line)), message)
            except _Unreadable:
                pass  # what it asked for has been reported; the check waits until that is right
        return view if self.problems else kind.cls(**values)

    _READERS: ClassVar[dict[type[mi.Type], Callable[..., object]]] = {
        mi.IntType: _number,
        mi.FloatType: _number,
        mi.BoolType: _truth,
        mi.StrType: _text,
        mi.LiteralType: _choice,
        mi.EnumType: _choice,
        mi.VarTupleType: _list,
        mi.TupleType: _tuple,
        mi.StructType: _struct,
        mi.UnionType: _union,
    }


def _within(number: float, kind: mi.IntType | mi.FloatType) -> bool:
    """Whether a number keeps to its bounds."""
    return (
        (kind.ge is None or number >= kind.ge)
        and (kind.gt is None or number > kind.gt)
        and (kind.le is None or number <= kind.le)
        and (kind.lt is None or number < kind.lt)
    )


def _fits(text: str, kind: mi.StrType) -> bool:
    """Whether a text keeps to its length and pattern."""
    # A pattern's $ would let a line break at the end pass.
    matches = kind.pattern is None or ("\n" not in text and re.search(kind.pattern, text))
    return (
        bool(matches)
        and (kind.min_length is None or len(text) >= kind.min_length)
        and (kind.max_length is None or len(text) <= kind.max_length)
    )


def _group_hint(node: Node, kind: mi.StructType) -> str:
    """What to do where a group of keys should stand."""
    if isinstance(node, Items):
        return "write key: value, without the '-'"
    if not isinstance(node, Scalar):
        return ""
    if node.reading == "nothing":
        needed = any(field.required for field in kind.fields)
        return "indent its keys below it" + ("" if needed else ", or take this line out as well")
    if re.match(r"[A-Za-z_]+:\S", node.text):
        return "write a space after the ':'"
    if len(kind.fields) == 1 and re.fullmatch(r"[\w./+-]{1,40}", node.text):
        return f"write {{{kind.fields[0].encode_name}: {node.text}}}"
    return ""


def _defaults(kind: mi.StructType) -> dict[str, object]:
    """The values that a record takes where the file gives none."""
    return {
        field.name: (
            field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        )
        for field in kind.fields
        if not field.required
    }
