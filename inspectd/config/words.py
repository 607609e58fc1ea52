"""Words for people: what stands in a file, what was expected, and what to do about it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from msgspec import inspect as mi

from inspectd.config.nodes import Items, Node, Scalar
from inspectd.settings import NAME_PATTERN, NAME_RULE, Program, Station

WHOLE: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
"""A whole number as settings write it: plain and decimal."""
NUMBER: Final = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
"""Any number; ``1e-3`` is one, although YAML 1.1 takes it for text."""
TRUTHS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_LONGEST = 40


def shown(text: str) -> str:
    """A text within quotes, unprintable characters escaped, shortened where it is long."""
    return repr(shortened(text))


def shortened(text: str) -> str:
    """A text as it is, or its beginning."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def label(name: str) -> str:
    """A key as it stands in a key path."""
    return name if re.fullmatch(r"[\w-]{1,40}", name) else shown(name)


def either(words: Sequence[str]) -> str:
    """Words joined by commas and an 'or'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    by_fold = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint; empty where no known word is near."""
    near = nearest(word, known)
    return f"did you mean {near}?" if near else ""


# ---- what stands in the file -------------------------------------------------------------------


def found(node: Node) -> str:
    """What stands there, and what YAML makes of it where that may surprise."""
    if isinstance(node, Scalar):
        return _found_scalar(node)
    return "a list" if isinstance(node, Items) else "a group of keys"


def _found_scalar(node: Scalar) -> str:
    text = shortened(node.text)
    if not node.quoted and NUMBER.fullmatch(node.text):
        return f"the number {text}"
    if node.reading == "text":
        return shown(text) if text else "an empty text"
    truth = str(TRUTHS.get(text.lower())).lower()
    if not text or text.lower() == truth:
        return text or "nothing"
    readings = {"nothing": "nothing", "bool": truth, "date": "a date", "merge": "a merge key"}
    return f"{text}, which YAML reads as {readings.get(node.reading, 'a number')}"


def number_hint(node: Node) -> str:
    """What to do about a scalar that is nearly a number."""
    if not isinstance(node, Scalar):
        return ""
    text, hint = node.text, ""
    with_unit = re.fullmatch(r"([-+]?[0-9]*\.?[0-9]+)\s*[A-Za-z%°µ/]+", text)
    if node.quoted:
        hint = "take away the quotes" if NUMBER.fullmatch(text) else ""
    elif re.fullmatch(r"[-+]?[0-9]+,[0-9]+", text):
        hint = f"write {text.replace(',', '.')}, with a point"
    elif re.fullmatch(r"[-+]?\.(inf|nan)", text.lower()):
        hint = "it must be an ordinary, finite number"
    elif node.reading in {"int", "float"} and not NUMBER.fullmatch(text):
        hint = "write it as a plain decimal number"
    elif with_unit and NUMBER.fullmatch(with_unit[1]):
        hint = f"write {with_unit[1]} alone, without a unit"
    return hint


# ---- what was expected -------------------------------------------------------------------------


def variants(kind: mi.UnionType) -> list[mi.Type]:
    """A union's types without None."""
    return [variant for variant in kind.types if not isinstance(variant, mi.NoneType)]


def choices(kind: mi.LiteralType | mi.EnumType) -> list[str]:
    """The words of a literal or of an enumeration."""
    values = kind.values if isinstance(kind, mi.LiteralType) else [each.value for each in kind.cls]
    return [str(value) for value in values]


def keys(kind: Any) -> str:
    """A record's keys in a row."""
    return ", ".join(field.encode_name for field in kind.fields)


def described(kind: mi.Type, about: str = "") -> str:
    """What a type asks for, with its description from the settings."""
    while isinstance(kind, mi.Metadata):
        about = about or (kind.extra_json_schema or {}).get("description", "")
        kind = kind.type
    words = expected(kind)
    return words if about in words else f"{words} ({about})"


def expected(kind: mi.Type) -> str:
    """What a type asks for."""
    match kind:
        case mi.TupleType(item_types=items):
            return f"a list of {len(items)} values"
        case mi.StructType(array_like=True):
            return f"a list [{keys(kind)}]"
        case mi.StructType():
            return f"a group of keys: {keys(kind)}"
        case mi.UnionType():
            return _expected_union(kind)
        case _:
            return _expected_simple(kind)


def _expected_simple(kind: mi.Type) -> str:
    match kind:
        case mi.IntType():
            return f"a whole number{_range(kind)}"
        case mi.FloatType():
            return f"a number{_range(kind)}"
        case mi.LiteralType() | mi.EnumType():
            return either(choices(kind))
        case mi.StrType(pattern=pattern) if pattern == NAME_PATTERN:
            return f"a name of {NAME_RULE}"
        case mi.StrType(pattern=pattern):
            return f"a text that matches {pattern}" if pattern else "a text"
        case _:
            return "true or false" if isinstance(kind, mi.BoolType) else "a list"


def _range(kind: mi.IntType | mi.FloatType) -> str:
    """The bounds of a number, with a space before them."""
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge:.12g} to {kind.le:.12g}"
    bounds = (
        ("above", kind.gt),
        ("of at least", kind.ge),
        ("below", kind.lt),
        ("at most", kind.le),
    )
    words = ", ".join(f"{word} {bound:.12g}" for word, bound in bounds if bound is not None)
    return f" {words}" if words else ""


def _expected_union(kind: mi.UnionType) -> str:
    structs = [variant for variant in variants(kind) if isinstance(variant, mi.StructType)]
    if len(structs) < 2:
        return expected(variants(kind)[0])
    tags = either([str(struct.tag) for struct in structs])
    return f"a group of keys with {structs[0].tag_field}: {tags}"


# ---- where keys belong -------------------------------------------------------------------------


@cache
def known_places() -> Mapping[str, str]:
    """Every key of the settings files, with the words that say where it belongs."""
    places: dict[str, list[str]] = {}
    for file, record in (("the station file", Station), ("a program file", Program)):
        paths: dict[str, list[str]] = {}
        for name, path in _paths(mi.type_info(record)):
            paths.setdefault(name, []).append(path)
        for name, known in paths.items():
            places.setdefault(name, []).append(f"{either(known)} in {file}")
    return {name: either(words) for name, words in places.items()}


def _paths(kind: mi.Type, key: str = "") -> Iterator[tuple[str, str]]:
    """Every key within a type, with its path."""
    match kind:
        case mi.Metadata():
            yield from _paths(kind.type, key)
        case mi.UnionType():
            for variant in variants(kind):
                yield from _paths(variant, key)
        case mi.VarTupleType():
            yield from _paths(kind.item_type, f"{key}[]")
        case mi.StructType(array_like=False):
            note = f" (with {kind.tag_field}: {kind.tag})" if kind.tag_field else ""
            for field in kind.fields:
                path = f"{key}.{field.encode_name}" if key else field.encode_name
                yield field.encode_name, path + note
                yield from _paths(field.type, path)
        case _:
            pass
