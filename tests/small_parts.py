"""Small pictures of a part with twelve pads, quick to judge: what the tests of judging look at."""

import cv2
import numpy as np

from inspectd.records import GreyImage
from inspectd.settings import AlignmentSettings, Program, SoartcSettings

WIDTH, HEIGHT = 128, 96
PADS = 12


def program(*, soartc: dict | None = None, **changes) -> Program:
    """The published method on patches that see 7 pixels of 64 x 48, and nothing adjusted: what a
    test says of regions, limits and references does not hang on the defaults.
    """
    settings = {
        "resolution": 64,
        "method": "published",
        "light": "none",
        "alignment": AlignmentSettings(mode="none"),
        "soartc": SoartcSettings(**{"part": 5, "stride": 2, "step": 2, **(soartc or {})}),
    }
    return Program(**{**settings, **changes})


def pad(index: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of one of the 4 x 3 pads, in pixels."""
    left, top = 10 + 29 * (index % 4), 10 + 28 * (index // 4)
    return left, top, left + 18, top + 18


def part(seed: int, *, missing: int | None = None) -> GreyImage:
    """uint8 (96, 128): bright pads on a dark ground, each picture with its own noise and shine."""
    rng = np.random.default_rng(seed)
    picture = np.full((HEIGHT, WIDTH), 40.0)
    for index in range(PADS):
        shine = rng.normal(180, 6)
        if index != missing:
            left, top, right, bottom = pad(index)
            picture[top:bottom, left:right] = shine
    picture += rng.normal(0, 2, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def parts(count: int, first: int = 0) -> list[GreyImage]:
    return [part(first + seed) for seed in range(count)]


def blurred(picture: GreyImage) -> GreyImage:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 4), np.uint8)


def darkened(picture: GreyImage) -> GreyImage:
    return picture // 64


def png(picture: GreyImage) -> bytes:
    written, data = cv2.imencode(".png", picture)
    assert written
    return data.tobytes()
