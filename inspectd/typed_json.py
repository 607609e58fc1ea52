"""JSON of a known type, read from what others wrote: a request, a file, a row of the journal.

The only place with a decoder. msgspec lets three kinds of errors through, and which of them and in
which words depends on its version; here they become one.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")


class JsonError(ValueError):
    """It is not JSON of the type. The message continues a sentence that begins with its name."""


class JsonReader(Generic[T]):
    """Reads one type.

    Made while modules are loaded, by one thread: msgspec 0.22 looks at a type when it first decodes
    one, and where two threads do so at once, the process ends by a segmentation fault.
    """

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)

    def read(self, raw: bytes) -> T:
        """Raises JsonError."""
        try:
            return self._decoder.decode(raw)
        except RecursionError as error:
            raise JsonError("it is nested too deeply") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise JsonError(_reason(raw, error)) from error


def _reason(raw: bytes, error: Exception) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as not_text:
        return f"it is not UTF-8 text: byte {not_text.start} is {raw[not_text.start]:#04x}"
    return str(error)
