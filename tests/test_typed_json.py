"""What is no JSON of a type: one error, in words that no library's version changes."""

from typing import Annotated

import msgspec
import pytest

from inspectd.typed_json import JsonError, JsonReader


class Asked(msgspec.Struct, tag_field="do", tag="ask"):
    part_id: Annotated[str, msgspec.Meta(max_length=5)]


class Told(msgspec.Struct, tag_field="do", tag="tell"):
    count: int = 0


ASKED: JsonReader[Asked] = JsonReader(Asked)
EITHER: JsonReader[Asked | Told] = JsonReader(Asked | Told)


def test_what_fits_is_read():
    assert ASKED.read('{"do": "ask", "part_id": "7/ß"}'.encode()) == Asked("7/ß")
    assert EITHER.read(b'{"do": "tell", "count": 3}') == Told(3)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"do": "ask", "part_id": "\xff"}', "it is not UTF-8 text: byte 26 is 0xff"),
        (b"\xfe", "it is not UTF-8 text: byte 0 is 0xfe"),
        (b'{"do": "ask", "part_id": "1", "more": ' + b"[" * 100_000, "it is nested too deeply"),
    ],
    ids=["within a text", "alone", "nested"],
)
def test_what_no_library_says_well_is_said_in_our_words(raw, words):
    with pytest.raises(JsonError) as caught:
        ASKED.read(raw)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"do": "ask"}',
        b'{"do": "sing"}',
        b'{"do": "ask", "part_id": 5}',
        b'{"do": "ask", "part_id": "123456"}',
        b'{"do": "ask", "part_id": "\\ud800"}',
        b'{"do": "ask", "part_id": "1"} more',
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(raw):
    for reader in (ASKED, EITHER):
        with pytest.raises(JsonError, match=r"\w"):
            reader.read(raw)
