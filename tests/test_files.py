"""Image files: the order of a folder, and reading a file whole or not at all."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from inspectd.camera.files import EXTENSIONS, find_images, picture_name, read_image
from inspectd.errors import CameraUnusable, PictureUnreadable

SIZE = (48, 64)


def texture(channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(1).integers(0, 256, (*SIZE, channels), np.uint8)
    return np.squeeze(cv2.GaussianBlur(noise, (0, 0), 1.5))


def encoded(extension: str, pixels: np.ndarray | None = None) -> bytes:
    pixels = texture(1 if extension == "pgm" else 3) if pixels is None else pixels
    done, data = cv2.imencode(f".{extension}", pixels)
    assert done
    return data.tobytes()


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_order_is_natural_and_hidden_files_are_left_out(tmp_path):
    expected = ["a1/2.png", "a1/10.PNG", "a2.Jpg", "a10.tiff", "B1.webp", "b2/c/1.pgm"]
    others = [".hidden.png", ".git/x.png", "notes.txt", "png", "a1/readme"]
    for name in sorted(expected) + others:
        written(tmp_path, name, b"")
    assert [path.as_posix() for path in find_images(tmp_path)] == expected


def test_digits_of_other_scripts_do_not_break_the_order(tmp_path):
    for name in ("٣.png", "a.png", "3.png", "²x1.png", "1.png"):
        written(tmp_path, name, b"")
    assert [path.name for path in find_images(tmp_path)][:2] == ["1.png", "3.png"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    with pytest.raises(CameraUnusable, match=r"cannot list .*gone: No such file"):
        find_images(tmp_path / "gone")


def test_a_name_that_is_no_utf8_becomes_printable():
    name = picture_name(Path(os.fsdecode(b"teil/gr\xfcn.png")))
    assert name == "teil/gr\\xfcn.png"
    assert picture_name(Path("teil/grün.png")) == "teil/grün.png"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_kind_is_read(tmp_path, extension):
    pixels = read_image(written(tmp_path, f"whole.{extension}", encoded(extension)))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (SIZE if extension == "pgm" else (*SIZE, 3))
    original = texture(1 if extension == "pgm" else 3)
    assert np.abs(pixels.astype(int) - original).mean() < 4  # some kinds lose a little


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, extension):
    whole = encoded(extension)
    cuts = {0, 1, 2, 9, 30, len(whole) - 2, len(whole) - 1}
    cuts |= set(np.linspace(31, len(whole) - 3, 25, dtype=int).tolist())
    for cut in sorted(cuts):
        with pytest.raises(PictureUnreadable):
            read_image(written(tmp_path, f"cut.{extension}", whole[:cut]))


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_a_file_whose_end_was_never_written_is_refused(tmp_path, extension):
    """A power cut may leave a file of the right length with zeros at its end."""
    whole = encoded(extension)
    for kept in (len(whole) // 2, len(whole) - 2):
        holed = whole[:kept] + bytes(len(whole) - kept)
        with pytest.raises(PictureUnreadable):
            read_image(written(tmp_path, f"holed.{extension}", holed))


def test_a_jpeg_cut_short_behind_its_thumbnail_is_refused(tmp_path):
    thumbnail = encoded("jpg", texture()[:8, :8])
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2) + thumbnail
    whole = encoded("jpg")
    whole = whole[:2] + segment + whole[2:]
    assert read_image(written(tmp_path, "whole.jpg", whole)).shape == (*SIZE, 3)
    with pytest.raises(PictureUnreadable, match="cut short: the JPEG ends without its end marker"):
        read_image(written(tmp_path, "cut.jpg", whole[: len(whole) * 2 // 3]))


def test_progressive_jpeg_with_restarts_and_trailing_bytes_is_read(tmp_path):
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    data = cv2.imencode(".jpg", texture(), options)[1].tobytes() + b"trailer"
    assert read_image(written(tmp_path, "odd.jpg", data)).shape == (*SIZE, 3)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_flipped_bit_in_a_png_is_refused(tmp_path, share):
    data = bytearray(encoded("png"))
    data[int(len(data) * share)] ^= 4
    with pytest.raises(PictureUnreadable, match="wrong checksum"):
        read_image(written(tmp_path, "flipped.png", bytes(data)))


def test_messages_say_what_is_wrong(tmp_path):
    with pytest.raises(PictureUnreadable, match=r"^is empty$"):
        read_image(written(tmp_path, "empty.png", b""))
    with pytest.raises(PictureUnreadable, match="no image at all"):
        read_image(written(tmp_path, "text.png", b"not a picture"))
    with pytest.raises(PictureUnreadable, match="cannot be read: No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(PictureUnreadable, match="float32 pixels; store it with 8 or 16 bits"):
        read_image(written(tmp_path, "f.tif", encoded("tif", texture().astype(np.float32))))


def test_nothing_is_printed_about_damaged_files(tmp_path, capfd):
    for extension in EXTENSIONS:
        path = written(tmp_path, f"cut.{extension}", encoded(extension)[:-7])
        with pytest.raises(PictureUnreadable):
            read_image(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path, extension, channels):
    original = texture(channels)
    path = written(
        tmp_path, f"deep.{extension}", encoded(extension, original.astype(np.uint16) * 257)
    )
    assert np.array_equal(read_image(path), original)


@pytest.mark.parametrize("alpha", [0, 255])
def test_alpha_is_dropped(tmp_path, alpha):
    original = texture()
    pixels = np.dstack([original, np.full(SIZE, alpha, np.uint8)])
    assert np.array_equal(
        read_image(written(tmp_path, "alpha.png", encoded("png", pixels))), original
    )


def test_grey_stays_grey(tmp_path):
    original = texture(1)
    path = written(tmp_path, "grey.png", encoded("png", original))
    assert np.array_equal(read_image(path), original)


def test_grey_with_alpha_is_read(tmp_path):
    """OpenCV cannot write it: two bytes a pixel, grey 10 and 20 with any alpha."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = (4).to_bytes(4) + (2).to_bytes(4) + bytes([8, 4, 0, 0, 0])
    rows = zlib.compress((b"\0" + bytes([10, 0, 20, 255] * 2)) * 2)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
    pixels = read_image(written(tmp_path, "la.png", data + chunk(b"IEND", b"")))
    assert pixels.reshape(2, 4, -1)[..., 0].tolist() == [[10, 20, 10, 20]] * 2
