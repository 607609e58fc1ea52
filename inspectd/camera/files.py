"""Image files: found in the order a person expects, and read whole or not at all.

A decoder may return half a picture filled up with grey for a file that was cut short, with a mere
warning on stderr. Half a picture must never be judged, so the containers that carry an end mark or
checksums (JPEG, PNG) are checked here before OpenCV sees them; the other kinds OpenCV refuses
itself. What no check can find is damage inside pixel data that keeps the file's structure, such as
a flipped bit in a JPEG or an uncompressed TIFF.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import CameraUnusable, PictureUnreadable
from inspectd.records import Image

EXTENSIONS = ("png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp", "pgm", "ppm")
"""The image files that are looked for, in any case of letters."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_END = 0xD9
# Inside compressed data FF stands only before 00 (a stuffed byte) and D0 to D7 (restarts).
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_DIGITS = re.compile(r"([0-9]+)")


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file, by its extension."""
    return path.suffix.lower().removeprefix(".") in EXTENSIONS


def find_images(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, relative to it, in natural order.

    Natural order sorts ``2.png`` before ``10.png``. Hidden files and folders are left out, and
    linked folders are not entered.

    Raises:
        CameraUnusable: a folder cannot be listed.
    """
    found = []
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(root).relative_to(folder)
        found += [here / name for name in files if not name.startswith(".")]
    return sorted(filter(is_image, found), key=_natural)


def picture_name(path: Path) -> str:
    """A path as it stands in a verdict: POSIX, and printable even where its bytes are no UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def read_image(path: Path) -> Image:
    """`decode_image` of a file.

    Raises:
        PictureUnreadable: as there, or the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PictureUnreadable(f"cannot be read: {error.strerror}") from error
    return decode_image(data)


def decode_image(data: bytes) -> Image:
    """The content of an image file as 8-bit pixels.

    Grey stays grey, everything else becomes blue, green, red; alpha is dropped. 16-bit pixels are
    scaled by their full range (65535 becomes 255), never by what the picture holds, or a change
    of light would vanish: 12-bit pictures must be stored shifted to the top. A rotation in the
    EXIF data is applied, and of a file with several pages the first one is read.

    Returns:
        uint8 (height, width) or (height, width, 3).

    Raises:
        PictureUnreadable: it is empty, cut short or damaged, or its pixels are neither 8 nor 16
            bits wide.
    """
    fault = _fault(data)
    if fault:
        raise PictureUnreadable(fault)
    try:
        pixels = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        )
    except cv2.error as error:
        raise PictureUnreadable(f"cannot be decoded: {error.err}") from error
    if pixels is None:
        raise PictureUnreadable("is cut short, damaged or no image at all")
    return _eight_bit(pixels)


def _refuse(error: OSError) -> NoReturn:
    raise CameraUnusable(f"cannot list {error.filename}: {error.strerror}") from error


def _natural(path: Path) -> tuple[list[list[str | int]], str]:
    """Sorts the numbers in names by value; the plain name settles a tie."""
    parts: list[list[str | int]] = []
    for part in path.parts:
        pieces = _DIGITS.split(part.casefold())  # text and digits in turn
        parts.append([int(piece) if i % 2 else piece for i, piece in enumerate(pieces)])
    return parts, path.as_posix()


def _fault(data: bytes) -> str:
    """What is wrong with the file as a container; empty when nothing is seen."""
    if not data:
        return "is empty"
    if data.startswith(_PNG_SIGNATURE):
        return _png_fault(memoryview(data))
    if data.startswith(_JPEG_SIGNATURE):
        return _jpeg_fault(data)
    return ""


def _png_fault(data: memoryview) -> str:
    """Walks the chunks (PNG specification, 5.3): length, type, data, CRC of type and data."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return f"is damaged: wrong checksum in the PNG chunk at byte {position}"
        if bytes(data[position + 4 : position + 8]) == b"IEND":
            return ""
        position = end
    return "is cut short: the PNG ends without its last chunk"


def _jpeg_fault(data: bytes) -> str:
    """Walks the segments (ITU-T T.81, B.1.1) to the end of the image.

    Searching for the end marker alone would find the one of a thumbnail in the EXIF data.
    """
    position = len(_JPEG_SIGNATURE)
    while marker := _JPEG_MARKER.search(data, position):
        if marker[1][0] == _JPEG_END:
            return ""
        length = int.from_bytes(data[marker.end() : marker.end() + 2])
        position = marker.end() + length
    return "is cut short: the JPEG ends without its end marker"


def _eight_bit(pixels: NDArray[Any]) -> Image:
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)
    if pixels.dtype != np.uint8:
        raise PictureUnreadable(f"has {pixels.dtype} pixels; store it with 8 or 16 bits")
    return np.asarray(pixels, np.uint8)


# What is wrong with a file is reported by whoever asked for it: OpenCV need not write it to stderr
# as well. The function moved in OpenCV 5; level 0 is silent in both.
getattr(cv2.utils, "logging", cv2).setLogLevel(0)
