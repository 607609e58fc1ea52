"""What a look tells of a frame: everything that can be measured, whatever the picture is like."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from station import PROGRAM, SIMULATED, Station, good_part

from inspectd import config
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.looking import Figure, Look, Looker, look_at
from inspectd.records import Exposure, Frame, Image, Measure, View
from inspectd.settings import AlignmentSettings, Program, RegionOfInterest

PICTURE = {"brightness", "contrast", "black", "white", "focus"}
PLACE = {"shift", "dx", "dy", "rotation"}


def frame(pixels: Image, **changes) -> Frame:
    known = {"name": "7", "captured_at": datetime(2026, 1, 1, tzinfo=UTC)}
    return Frame(pixels, **{**known, "captured_ns": 0, "copied_ns": 0, **changes})


def inspector_of(program: Program, count: int = 6, kind: type[Inspector] = Inspector) -> Inspector:
    crops = [good_part(number) for number in range(count)]
    return kind(program, [ReducedCrop.of(crop, program.resolution) for crop in crops])


@pytest.fixture(scope="module")
def taught() -> Inspector:
    return inspector_of(Program())


def blurred(picture: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 4), np.uint8)


# ---- the words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "word"),
    [
        (Figure(0.5), ""),
        (Figure(0.5, usual=0.4), ""),
        (Figure(0.5, low=0.5, high=0.5), "ok"),
        (Figure(0.4, low=0.5), "low"),
        (Figure(0.6, low=0.5), "ok"),
        (Figure(0.6, high=0.5), "high"),
        (Figure(-3.0, low=-2.0, high=2.0), "low"),
    ],
)
def test_the_word_for_a_figure(figure: Figure, word: str):
    assert figure.word == word


# ---- a picture that is fit -----------------------------------------------------------------------


def test_a_good_part_against_its_references(taught: Inspector):
    pixels = good_part(20)
    look = look_at(frame(pixels), taught)
    assert (look.verdict, look.reason, look.detail) == ("PASS", "", "")
    assert (look.frame, look.width, look.height, look.view) == ("7", 320, 240, None)
    assert look.figures.keys() >= PICTURE | PLACE | {"light", "match", "score"}
    assert {figure.word for figure in look.figures.values()} == {"ok"}
    assert look.figures["brightness"].value == pytest.approx(pixels.mean() / 255, abs=1e-3)
    focus = look.figures["focus"]
    assert focus.usual is not None
    assert look.focus_ratio == pytest.approx(focus.value / focus.usual, abs=1e-3)


def test_without_references_what_the_picture_itself_tells():
    look = look_at(frame(good_part(20)), Inspector(Program(), ()))
    assert look.reason == "too few references"
    assert look.figures.keys() == PICTURE
    assert look.figures["brightness"].word == look.figures["contrast"].word == "ok"
    assert look.figures["focus"].word == ""  # nothing says what is sharp here
    assert look.focus_ratio is None


def test_what_the_camera_tells_goes_along(taught: Inspector):
    exposure = Exposure(exposure_us=5000.0, gain=1.5, white_balance=(1.9, 1.5))
    view = View(100, 50, 640, 480)
    look = look_at(frame(good_part(20), view=view, exposure=exposure), taught)
    assert (look.view, look.exposure) == (view, exposure)
    assert msgspec.json.decode(msgspec.json.encode(look), type=Look) == look


def test_the_place_is_told_in_frame_pixels(taught: Inspector):
    moved = np.roll(good_part(20), (6, -9), axis=(0, 1))
    own = look_at(frame(moved), taught).figures
    doubled = look_at(frame(moved, view=View(0, 0, 640, 480)), taught).figures
    settled = look_at(frame(good_part(20)), taught).figures
    assert own["dx"].value - settled["dx"].value == pytest.approx(-9, abs=1)
    assert own["dy"].value - settled["dy"].value == pytest.approx(6, abs=1)
    for name in ("dx", "dy"):
        for value in ("value", "low", "high"):
            once = getattr(own[name], value)
            assert getattr(doubled[name], value) == pytest.approx(2 * once, abs=1e-3)
    assert doubled["rotation"] == own["rotation"]


def test_a_part_out_of_place_is_told_which_way(taught: Inspector):
    turn = cv2.getRotationMatrix2D((160, 120), -14.0, 1.0)  # OpenCV counts the other way round
    turned = cv2.warpAffine(good_part(20), turn, (320, 240), borderMode=cv2.BORDER_REPLICATE)
    look = look_at(frame(np.asarray(turned, np.uint8)), taught)
    assert look.reason == "part not in place"
    assert look.figures["rotation"].value == pytest.approx(14.0, abs=1.0)
    assert look.figures["rotation"].word == "high"
    assert look.figures["dx"].word == look.figures["match"].word == "ok"


def test_what_is_not_adjusted_is_not_told():
    def names(mode: str) -> set[str]:
        program = Program(alignment=AlignmentSettings(mode=mode))
        figures = look_at(frame(good_part(20)), inspector_of(program)).figures
        return figures.keys() & {"match", *PLACE}

    assert names("none") == set()
    assert names("shift") == {"match", "shift", "dx", "dy"}


# ---- a picture that is not -----------------------------------------------------------------------


def test_a_blurred_picture_still_tells_where_the_part_lies(taught: Inspector):
    look = look_at(frame(blurred(good_part(20))), taught)
    assert look.reason == "out of focus"
    assert look.figures["focus"].word == "low"
    assert "score" not in look.figures
    sharp = look_at(frame(good_part(20)), taught)
    for name in ("dx", "dy"):
        assert look.figures[name].value == pytest.approx(sharp.figures[name].value, abs=1)


@pytest.mark.parametrize(
    ("pixels", "reasons", "figure", "word"),
    [
        (np.zeros((240, 320), np.uint8), {"too dark"}, "brightness", "low"),
        (good_part(20) // 64, {"too dark"}, "brightness", "low"),
        (np.full((240, 320), 255, np.uint8), {"too bright"}, "brightness", "high"),
        (np.full((240, 320), 128, np.uint8), {"no contrast", "no part"}, "contrast", "low"),
    ],
    ids=["black", "dark", "white", "empty"],
)
def test_a_picture_with_nothing_in_it_is_not_called_sharp(
    taught: Inspector, pixels: Image, reasons: set[str], figure: str, word: str
):
    for inspector in (taught, Inspector(Program(), ())):
        look = look_at(frame(pixels), inspector)
        assert look.reason in reasons
        assert look.detail
        assert look.figures[figure].word == word
        assert "focus" not in look.figures
        assert look.focus_ratio is None


def test_something_else_than_the_part_is_nowhere(taught: Inspector):
    ramp = np.tile(np.linspace(20, 120, 320).astype(np.uint8), (240, 1))
    look = look_at(frame(ramp), taught)
    assert look.figures["match"].word == "low"
    assert not look.figures.keys() & PLACE


def test_another_size_than_the_references(taught: Inspector):
    look = look_at(frame(good_part(20)[:200]), taught)
    assert look.reason == "wrong size"
    assert look.figures.keys() == PICTURE
    dark = look_at(frame(good_part(20)[:200] // 64), taught)
    assert dark.figures["brightness"].word == "low"
    assert "focus" not in dark.figures


def test_a_region_of_interest_beyond_the_picture():
    program = Program(roi=RegionOfInterest(200, 100, 200, 100))
    look = look_at(frame(good_part(20)), Inspector(program, ()))
    assert look.reason == "wrong size"
    assert "correct roi" in look.detail
    assert look.figures == {}


# ---- what the gate measures besides --------------------------------------------------------------


class Measuring(Inspector):
    """Its gate compares three things with the references."""

    measures = (
        Measure("clipped", 0.02, usual=0.001, high=0.01),
        Measure("brightness", 0.3, usual=0.28, low=0.2, high=0.4),
        Measure("odd", float("nan"), usual=0.5, low=0.1),
    )

    def inspect(self, pixels, view=None):
        found = super().inspect(pixels, view)
        return replace(found, health=replace(found.health, measures=self.measures))


def test_whatever_the_gate_compares_is_told_as_it_compares_it():
    look = look_at(frame(good_part(20)), inspector_of(Program(), kind=Measuring))
    assert look.figures["clipped"] == Figure(0.02, usual=0.001, high=0.01)
    assert look.figures["clipped"].word == "high"
    assert look.figures["brightness"] == Figure(0.3, usual=0.28, low=0.2, high=0.4)
    assert "odd" not in look.figures


# ---- one looker for a station --------------------------------------------------------------------


def test_a_program_is_learned_once_and_anew_when_its_references_have_changed(tmp_path: Path):
    station = Station(tmp_path, camera=SIMULATED % 30, trigger="{source: mqtt}")
    looker = Looker(config.load(station.file))
    part = frame(good_part(20))
    assert looker.look(part, PROGRAM).reason == "too few references"
    station.teach()
    assert looker.look(part, PROGRAM).reason == "too few references"
    looker.forget(PROGRAM)
    assert looker.look(part, PROGRAM).verdict == "PASS"
