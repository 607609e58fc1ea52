"""docs/settings.md: as the types are now, complete, and with examples that a station takes."""

import re
from pathlib import Path

import msgspec.inspect as mi
import pytest

from inspectd import config
from inspectd.commands.schema import reference
from inspectd.config.reference import EXAMPLES
from inspectd.config.words import known_places
from inspectd.settings import Program, Station

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
NEEDED = "station: s\nprogram: p\ncamera: {driver: simulated}\n"
RENEWED = "inspectd schema --markdown > docs/settings.md"


def keys_of(kind, path=""):
    """The path of every key within a type, as an error names it."""
    match kind:
        case mi.Metadata():
            yield from keys_of(kind.type, path)
        case mi.UnionType():
            for variant in kind.types:
                yield from keys_of(variant, path)
        case mi.VarTupleType():
            yield from keys_of(kind.item_type, f"{path}[]")
        case mi.StructType(array_like=False):
            before = f"{path}." if path else ""
            if kind.tag_field:
                yield f"{before}{kind.tag_field}"
            for field in kind.fields:
                yield f"{before}{field.encode_name}"
                yield from keys_of(field.type, f"{before}{field.encode_name}")


def rows():
    """The cells of each row that tells of a key."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_page_is_what_the_types_say_now(capsys: pytest.CaptureFixture[str]):
    reference()
    said = capsys.readouterr().out
    assert said == PAGE.read_text(), f"docs/settings.md is out of date; renew it with: {RENEWED}"


def test_every_key_has_a_row():
    told = [row[0].strip("`") for row in rows()]
    known = [*keys_of(mi.type_info(Station)), *keys_of(mi.type_info(Program))]
    assert sorted(told) == sorted(known)
    assert {key.rpartition(".")[2] for key in told} >= known_places().keys()


def test_every_row_says_what_its_key_does():
    for key, kind, default, _allowed, _unit, about in rows():
        assert kind, key
        assert default, key
        assert len(about) > 10, f"{key}: {about!r}"


@pytest.mark.parametrize("ending", ["_s", "_ms", "_us", "_deg", "_mb", "_days", "_k"])
def test_a_key_that_ends_in_a_unit_has_it(ending: str):
    units = {"_us": "µs", "_deg": "°", "_mb": "MB", "_k": "K"}
    found = {row[4] for row in rows() if row[0].strip("`").endswith(ending)}
    assert found == {units.get(ending, ending.removeprefix("_"))}


def test_links_lead_to_sections():
    text = PAGE.read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert links
    assert links <= anchors


@pytest.mark.parametrize("section", EXAMPLES)
def test_example_is_accepted(section: str):
    text = EXAMPLES[section]
    assert f"    {text.splitlines()[0]}\n" in PAGE.read_text()
    group = re.split(r"[ .\[]", section)[0]
    if group == "station" or (group != "program" and group in Station.__struct_fields__):
        given = {line.partition(":")[0] for line in text.splitlines()}
        missing = [line for line in NEEDED.splitlines() if line.partition(":")[0] not in given]
        config.parse("\n".join([*missing, text]), Station)
    else:
        config.parse(text, Program)
