"""YAML text to a tree of nodes that know their lines; the only importer of PyYAML.

Stricter than YAML on purpose: anchors, aliases, tags, deep nesting and further documents are
refused. Aliases would let a small file unfold into a huge one, and what type a value has, only the
settings decide. What is refused becomes a `Refused` node, so that the rest of the text is still
looked at; a mistake of syntax ends the reading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import yaml

MAX_DEPTH = 32
"""Levels of nesting; settings need four, and whoever walks the tree recurses."""

Reading: TypeAlias = Literal["text", "nothing", "bool", "int", "float", "date", "merge"]
"""What YAML 1.1 takes a scalar for."""

_READINGS: Final[dict[str, Reading]] = {
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:bool": "bool",
    "tag:yaml.org,2002:int": "int",
    "tag:yaml.org,2002:float": "float",
    "tag:yaml.org,2002:timestamp": "date",
    "tag:yaml.org,2002:merge": "merge",
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value; ``quoted`` holds for block texts (``|``, ``>``), too."""

    line: int
    text: str
    quoted: bool
    reading: Reading


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A mapping: keys and values as they stand, repeated keys included."""

    line: int
    entries: tuple[tuple[Node, Node], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands where something was refused, which has been reported."""

    line: int


Node: TypeAlias = Scalar | Items | Group | Refused


class Mistake(NamedTuple):
    """A mistake in the text itself, whatever it is meant to say."""

    line: int
    message: str
    hint: str = ""


def compose(text: str) -> tuple[Node | None, list[Mistake]]:
    """The tree of a text's one document, and the mistakes found.

    The tree is None where the text is empty or ends in a mistake of syntax.
    """
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        return None, [Mistake(line, f"the character {character} cannot stand in YAML")]
    composer = _Composer(loader)
    root = None
    try:
        root = composer.document()
    except yaml.MarkedYAMLError as error:
        composer.mistakes.append(_explain(error))
    except (ValueError, OverflowError):
        # PyYAML does not guard its conversions, such as chr() for "\U00110000".
        message = "a number or an escape that YAML cannot read"
        composer.mistakes.append(Mistake(loader.line + 1, message))
    return root, composer.mistakes


class _Composer:
    """Builds the tree from PyYAML's events."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._events: Any = loader  # PyYAML's methods for events carry no types
        self.mistakes: list[Mistake] = []

    def document(self) -> Node | None:
        """The first document; None where there is none."""
        self._events.get_event()  # the stream begins
        if self._events.check_event(yaml.StreamEndEvent):
            return None
        self._events.get_event()  # the document begins
        root = self._node(depth=0)
        self._events.get_event()  # the document ends
        if not self._events.check_event(yaml.StreamEndEvent):
            line = self._events.peek_event().start_mark.line + 1
            message = "a second document begins here; a settings file has one"
            self.mistakes.append(Mistake(line, message, "take away the line ---"))
        return root

    def _node(self, depth: int) -> Node:
        event = self._events.get_event()
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_DEPTH} levels of nesting", problem_mark=event.start_mark
            )
        refused = self._refuse(event, line)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not self._events.check_event(yaml.SequenceEndEvent):
                items.append(self._node(depth + 1))
            self._events.get_event()
            return Items(line, tuple(items))
        if isinstance(event, yaml.MappingStartEvent):
            entries = []
            while not self._events.check_event(yaml.MappingEndEvent):
                entries.append((self._node(depth + 1), self._node(depth + 1)))
            self._events.get_event()
            return Group(line, tuple(entries))
        if refused:
            return Refused(line)
        quoted = bool(event.style)
        tag = self._events.resolve(yaml.ScalarNode, event.value, (not quoted, quoted))
        return Scalar(line, event.value, quoted, _READINGS.get(tag, "text"))

    def _refuse(self, event: Any, line: int) -> bool:
        """Reports an anchor, an alias and a tag."""
        alias = isinstance(event, yaml.AliasEvent)
        if event.anchor is not None:
            sign, what = ("*", "alias") if alias else ("&", "anchor")
            message = f"{sign}{event.anchor} is what YAML calls an {what}; settings know none"
            hint = f"write the value out, or put a text that begins with {sign} in quotes"
            self.mistakes.append(Mistake(line, message, hint))
        tag = None if alias else event.tag
        if tag is not None:
            message = f"{tag!r} is what YAML calls a tag; settings know none"
            hint = "leave it out, or put a text that begins with ! in quotes"
            self.mistakes.append(Mistake(line, message, hint))
        return event.anchor is not None or tag is not None


# ---- mistakes of syntax in plain words ---------------------------------------------------------


class _Explanation(NamedTuple):
    """How PyYAML words a mistake of syntax (a pattern), and how we do."""

    pattern: str
    message: str
    hint: str
    at_opening: bool = False  # PyYAML names the end of the text, a person looks for the beginning


_EXPLANATIONS: Final = (
    _Explanation(
        r"quoted scalar.*(end of stream|document separator)",
        "the quotes opened here are not closed",
        "end the text with the same quote",
        at_opening=True,
    ),
    _Explanation(
        r"flow sequence.*expected ',' or '\]'",
        "the bracket [ opened here is not closed, or a comma is missing",
        "write [1, 2, 3]",
        at_opening=True,
    ),
    _Explanation(
        r"flow mapping.*expected ',' or '\}'",
        "the brace { opened here is not closed, or a comma is missing",
        "write {key: value, key: value}",
        at_opening=True,
    ),
    _Explanation(
        r"mapping values are not allowed",
        "a ':' where there can be none",
        "either this line is indented further than the one above, or the line above lacks the "
        "space after its ':', or a text with ': ' in it needs quotes",
    ),
    _Explanation(r"'\\t'", "a tab where there can be none", "indent with spaces"),
    _Explanation(
        r"cannot start any token|block scalar|an alias|an anchor|a directive|a tag|mapping keys",
        "a text that begins with one of the characters @ ` % | > * & ! ? must be in quotes",
        'write "..."',
    ),
    _Explanation(
        r"could not find expected ':'",
        "this line, or the one above it, has no ':' after its key",
        "write key: value, with a space after the ':'",
    ),
    _Explanation(
        r"expected <block end>|expected '<document start>'",
        "this line does not line up with those above it",
        "the keys of one group begin in the same column, the items of a list each with '- '",
    ),
    _Explanation(
        r"sequence entries are not allowed",
        "a '- ' where no item of a list can begin",
        "an item begins a line of its own, or put a text that begins with '- ' in quotes",
    ),
    _Explanation(
        r"expected the node content",
        "a value or key is missing, or stands in the wrong place",
        "within [] and {} there is a value before each ',' and ':'",
    ),
    _Explanation(
        r"unknown escape character|expected escape sequence",
        "a backslash within double quotes begins an escape",
        "use single quotes around a text with backslashes",
    ),
)


def _explain(error: yaml.MarkedYAMLError) -> Mistake:
    words = " ".join(part for part in (error.context, error.problem) if part)
    known = next((each for each in _EXPLANATIONS if re.search(each.pattern, words)), None)
    opening = known is not None and known.at_opening
    mark = error.context_mark if opening else error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    if known is None:
        return Mistake(line, f"not valid YAML: {words}")
    return Mistake(line, known.message, known.hint)
