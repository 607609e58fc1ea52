"""Eye and inspector together: parts out of their place, and where defects are in the frame."""

import math

import cv2
import numpy as np
import pytest

from inspectd.camera.simulated import render
from inspectd.eye import RELEARN_UP_TO, Eye
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.records import GreyImage, Inspection, Reason, Verdict
from inspectd.settings import (
    AlignmentSettings,
    Box,
    HealthSettings,
    LimitSettings,
    Program,
    ReferenceSettings,
    Region,
    RegionOfInterest,
    SimulatedCamera,
)

CAMERA = SimulatedCamera(width=364, height=272)
REFERENCES = 6
DEFECTS = [(100, 75), (180, 150), (260, 200)]
ROOM_X, ROOM_Y = 45, 20


def moved(
    picture: GreyImage, right: float = 0.0, down: float = 0.0, degrees: float = 0.0
) -> tuple[GreyImage, np.ndarray]:
    """The picture turned clockwise about its middle and shifted, and the 2 x 3 matrix of it."""
    height, width = picture.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    matrix[:, 2] += right, down
    ground = int(np.median(picture[:8]))
    return cv2.warpAffine(picture, matrix, (width, height), borderValue=ground), matrix


def in_a_larger_frame(picture: GreyImage) -> GreyImage:
    """With the picture at x 45, y 20."""
    ground = int(np.median(picture[:8]))
    return cv2.copyMakeBorder(picture, ROOM_Y, 30, ROOM_X, 35, cv2.BORDER_CONSTANT, value=ground)


def taught(crops: list[GreyImage] | None = None, **changes) -> Inspector:
    """An inspector that has learned from frames of the simulated camera."""
    if crops is None:
        crops = [render(CAMERA, number)[0] for number in range(REFERENCES)]
    alignment = AlignmentSettings(**changes.pop("alignment", {}))
    program = Program(alignment=alignment, references=ReferenceSettings(minimum=1), **changes)
    return Inspector(program, [ReducedCrop.of(crop, program.resolution) for crop in crops])


def with_defect(number: int, x: int, y: int) -> GreyImage:
    picture = render(CAMERA, number)[0].copy()
    colour = 255 if picture[y, x] < 128 else 0
    cv2.rectangle(picture, (x - 7, y - 5), (x + 7, y + 5), colour, -1)
    return picture


# ---- a defect's place in the frame --------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "right", "down", "degrees"),
    [
        ("none", 0, 0, 0),
        ("shift", 10, -8, 0),
        ("rigid", -10, 6, 6),
        ("rigid", 12, 10, -8),
        ("search", 0, 5, -25),
        ("search", 15, -10, 170),
    ],
)
def test_peak_and_box_lie_on_the_defect_in_frame_pixels(mode, right, down, degrees):
    roi = RegionOfInterest(ROOM_X, ROOM_Y, CAMERA.width, CAMERA.height)
    inspector = taught(roi=roi, alignment={"mode": mode})
    for number, (x, y) in enumerate(DEFECTS, start=40):
        picture, matrix = moved(with_defect(number, x, y), right, down, degrees)
        there_x, there_y = matrix @ (x, y, 1) + (ROOM_X, ROOM_Y)
        inspection = inspector.inspect(in_a_larger_frame(picture))
        assert inspection.verdict is Verdict.FAIL
        # A patch sees 36 pixels of the frame, and the map is averaged over three.
        assert math.hypot(inspection.peak.x - there_x, inspection.peak.y - there_y) < 20
        worst = inspection.blobs[0]
        assert worst.x0 < there_x < worst.x1
        assert worst.y0 < there_y < worst.y1


# ---- a part out of its place ---------------------------------------------------------------------


def assert_not_passed(inspection: Inspection, verdict: Verdict, reason: Reason) -> None:
    assert (inspection.verdict, inspection.reason) == (verdict, reason)
    assert inspection.score is None


@pytest.mark.parametrize(
    ("beyond", "verdict"), [("not_judged", Verdict.NOT_JUDGED), ("fail", Verdict.FAIL)]
)
def test_a_part_beyond_the_rotation_allowed_is_what_the_program_says(beyond, verdict):
    inspector = taught(alignment={"mode": "rigid", "beyond": beyond})
    inspection = inspector.inspect(moved(render(CAMERA, 50)[0], degrees=15)[0])
    assert_not_passed(inspection, verdict, Reason.MISPLACED)
    assert math.degrees(inspection.alignment.pose.rotation) == pytest.approx(15, abs=1)
    assert "+15." in inspection.detail or "+14." in inspection.detail


def test_the_offset_in_the_verdict_is_in_frame_pixels():
    inspector = taught(alignment={"mode": "search", "max_shift": 0.1})
    at_rest = inspector.inspect(render(CAMERA, 50)[0]).alignment.pose
    inspection = inspector.inspect(moved(render(CAMERA, 50)[0], right=-60, down=20)[0])
    assert_not_passed(inspection, Verdict.NOT_JUDGED, Reason.MISPLACED)
    assert inspection.alignment.pose.dx - at_rest.dx == pytest.approx(-60, abs=2)
    assert inspection.alignment.pose.dy - at_rest.dy == pytest.approx(20, abs=2)


@pytest.mark.parametrize("mode", ["none", "shift", "rigid", "search"])
@pytest.mark.parametrize("degrees", [45, 90])
def test_a_turned_part_never_passes_unless_it_is_searched_for(mode, degrees):
    inspection = taught(alignment={"mode": mode, "max_rotation_deg": 10}).inspect(
        moved(render(CAMERA, 50)[0], degrees=degrees)[0]
    )
    assert inspection.verdict is not Verdict.PASS


def card(seed: int, rows: int = 27, columns: int = 36) -> GreyImage:
    """A card with marks all over, the same on each, in a noise of its own."""
    marks = np.random.default_rng(0).uniform(0, 255, (rows, columns)).astype(np.uint8)
    picture = cv2.resize(marks, (360, 270), interpolation=cv2.INTER_CUBIC).astype(float)
    picture += np.random.default_rng(seed).normal(0, 3, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("lost", [0.3, 0.45])
def test_a_part_that_is_partly_out_of_view_is_not_judged(lost):
    inspector = taught([card(seed) for seed in range(REFERENCES)], alignment={"mode": "search"})
    inspection = inspector.inspect(moved(card(50), right=lost * 360)[0])
    assert_not_passed(inspection, Verdict.NOT_JUDGED, Reason.NOT_IN_VIEW)


def small_card(seed: int, left: int = 90) -> GreyImage:
    """A card of a third of the size, with fewer marks, on plain ground."""
    picture = np.full((270, 360), 90.0)
    picture += np.random.default_rng(seed).normal(0, 1, picture.shape)
    picture[90:180, left : left + 120] = cv2.resize(card(seed, 6, 8), (120, 90))
    return np.clip(picture, 0, 255).astype(np.uint8)


def test_plain_ground_may_leave_the_picture():
    references = [small_card(seed) for seed in range(REFERENCES)]
    inspector = taught(references, alignment={"mode": "search"})
    inspection = inspector.inspect(small_card(50, left=90 + 125))
    assert inspection.alignment.pose.dx == pytest.approx(125, abs=2)
    assert inspection.verdict is not Verdict.NOT_JUDGED, inspection.detail


def test_a_region_that_is_partly_out_of_view_is_not_judged():
    right = Region(name="right_edge", box=Box(0.8, 0.1, 1.0, 0.9))
    references = [small_card(seed) for seed in range(REFERENCES)]
    inspector = taught(references, alignment={"mode": "search"}, regions=(right,))
    inspection = inspector.inspect(small_card(50, left=90 + 60))
    assert_not_passed(inspection, Verdict.NOT_JUDGED, Reason.NOT_IN_VIEW)
    assert "region right_edge" in inspection.detail


@pytest.mark.parametrize("beyond", ["not_judged", "fail"])
def test_what_does_not_resemble_the_references_does_not_pass_whatever_its_score(beyond):
    tolerant = LimitSettings(threshold=50.0)
    inspector = taught(alignment={"mode": "rigid", "beyond": beyond}, limit=tolerant)
    good = inspector.inspect(render(CAMERA, 50)[0])
    assert good.verdict is Verdict.PASS
    assert good.alignment.match > 1.5 * inspector.learned.least_match
    other = cv2.resize(card(0), (CAMERA.width, CAMERA.height))
    other = cv2.convertScaleAbs(other, alpha=render(CAMERA, 50)[0].mean() / other.mean())
    inspection = inspector.inspect(other)
    verdict = Verdict.FAIL if beyond == "fail" else Verdict.NOT_JUDGED
    assert_not_passed(inspection, verdict, Reason.MISPLACED)
    assert "hardly resembles" in inspection.detail


# ---- no part at all ------------------------------------------------------------------------------


def empty(number: int, camera: SimulatedCamera = CAMERA) -> GreyImage:
    return render(camera, number, empty=True)[0]


@pytest.mark.parametrize("mode", ["none", "shift", "rigid", "search"])
@pytest.mark.parametrize("beyond", ["not_judged", "fail"])
def test_an_empty_nest_is_no_part_and_never_a_fail(mode, beyond):
    inspector = taught(alignment={"mode": mode, "beyond": beyond})
    for number in range(60, 66):
        inspection = inspector.inspect(empty(number))
        assert_not_passed(inspection, Verdict.NOT_JUDGED, Reason.NO_PART)
        assert f"match {inspection.alignment.match:.2f}" in inspection.detail


@pytest.mark.parametrize("references", [1, 2, 12])
@pytest.mark.parametrize("resolution", [50, 100, 200])
def test_an_empty_nest_is_known_by_few_references_at_any_resolution(references, resolution):
    crops = [render(CAMERA, number)[0] for number in range(references)]
    inspection = taught(crops, resolution=resolution).inspect(empty(60))
    assert_not_passed(inspection, Verdict.NOT_JUDGED, Reason.NO_PART)


@pytest.mark.parametrize("changes", [{"light_drift": 0.5}, {"noise": 15.0}])
def test_an_empty_nest_is_known_in_changing_light_and_noise(changes):
    camera = SimulatedCamera(width=CAMERA.width, height=CAMERA.height, **changes)
    inspector = taught([render(camera, number)[0] for number in range(0, 240, 20)])
    for number in range(300, 460, 40):
        inspection = inspector.inspect(empty(number, camera))
        # Whoever needs as much light as there is will say so first.
        assert inspection.reason in {Reason.NO_PART, Reason.TOO_DARK}


@pytest.mark.parametrize("ground", [20, 90, 200])
def test_a_plain_ground_is_no_part(ground):
    noise = np.random.default_rng(1).normal(0, 2, (CAMERA.height, CAMERA.width))
    inspection = taught().inspect(np.clip(ground + noise, 0, 255).astype(np.uint8))
    assert_not_passed(inspection, Verdict.NOT_JUDGED, Reason.NO_PART)


def test_a_covered_lens_is_not_an_empty_station():
    dark = np.full((CAMERA.height, CAMERA.width), 4, np.uint8)
    assert_not_passed(taught().inspect(dark), Verdict.NOT_JUDGED, Reason.TOO_DARK)


def without_half(picture: GreyImage) -> GreyImage:
    """The right half broken off: the nest instead."""
    picture = picture.copy()
    picture[:, CAMERA.width // 2 :] = 15
    return picture


def with_foreign_object(picture: GreyImage) -> GreyImage:
    """Something grey over more than a third of the part."""
    picture = picture.copy()
    picture[40:230, 80:280] = 110
    return picture


def of_other_parts(picture: GreyImage) -> GreyImage:
    """As much contrast, and nothing where it should be."""
    return np.ascontiguousarray(cv2.resize(np.rot90(picture), picture.shape[::-1]), np.uint8)


@pytest.mark.parametrize("mode", ["none", "shift", "rigid"])
@pytest.mark.parametrize("spoil", [without_half, with_foreign_object, of_other_parts])
def test_a_part_that_is_bad_beyond_recognition_fails(mode, spoil):
    inspector = taught(alignment={"mode": mode})
    for number in range(60, 64):
        inspection = inspector.inspect(spoil(render(CAMERA, number)[0]))
        assert inspection.verdict is Verdict.FAIL, inspection.detail


def test_the_match_that_shows_a_part_can_be_set():
    low, high = (taught(health=HealthSettings(min_match=least)).inspect for least in (-1.0, 0.999))
    assert low(empty(60)).reason is not Reason.NO_PART
    assert low(empty(60)).verdict is Verdict.NOT_JUDGED
    inspection = high(render(CAMERA, 60)[0])
    assert_not_passed(inspection, Verdict.NOT_JUDGED, Reason.MISPLACED)
    assert inspection.health.measure("match").low == 0.999


def test_a_veil_that_hides_defects_passes_nothing():
    """Milk over the lens: the pattern is there, at a third of its contrast."""
    bounds = HealthSettings(max_light_change=10.0)
    inspector = taught(health=bounds, limit=LimitSettings(threshold=100.0))
    assert inspector.inspect(render(CAMERA, 60)[0]).verdict is Verdict.PASS
    for strength, told in ((0.65, "nothing is abnormal"), (0.85, "deviation")):
        veiled = cv2.convertScaleAbs(render(CAMERA, 60)[0], alpha=1 - strength, beta=90 * strength)
        inspection = inspector.inspect(np.asarray(veiled, np.uint8))
        assert_not_passed(inspection, Verdict.NOT_JUDGED, Reason.NO_CONTRAST)
        assert told in inspection.detail


# ---- what was compared with the references -------------------------------------------------------


def test_every_measure_of_a_good_part_is_told_with_its_bounds():
    inspector = taught()
    health = inspector.inspect(render(CAMERA, 60)[0]).health
    names = [measure.name for measure in health.measures]
    assert names == [
        *("light", "contrast", "black", "white", "focus"),
        *("match", "shift", "rotation"),
    ]
    assert all(measure.within for measure in health.measures)
    assert health.measure("match").low == inspector.learned.least_match
    assert health.measure("shift").high == inspector.program.alignment.shift_limit
    assert health.measure("rotation").high == inspector.program.alignment.rotation_limit_deg


def test_the_shift_is_measured_in_the_unit_of_its_bound():
    """A share of the longest side, whatever the resolution."""
    references = [card(seed) for seed in range(REFERENCES)]
    for resolution in (60, 100):
        inspector = taught(references, resolution=resolution, alignment={"max_shift": 0.08})
        measured = [
            inspector.inspect(moved(card(50), right=right)[0]).health.measure("shift")
            for right in (0, 18, 36)
        ]
        assert [shift.value for shift in measured] == pytest.approx([0, 0.05, 0.1], abs=0.003)
        assert [shift.within for shift in measured] == [True, True, False]


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "rigid", "search"])
@pytest.mark.parametrize("size", [(40, 1600), (1600, 40)])
def test_a_very_elongated_picture_is_learned_and_judged(mode, size):
    marks = np.random.default_rng(0).uniform(30, 220, (size[0] // 10, size[1] // 10))
    strip = cv2.resize(marks, size[::-1], interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(1)
    strips = [np.clip(strip + noise.normal(0, 2, size), 0, 255).astype(np.uint8) for _ in range(4)]
    inspector = taught(strips[:3], alignment={"mode": mode}, resolution=640)
    assert inspector.inspect(strips[3]).verdict is not Verdict.NOT_JUDGED


def test_the_published_methods_leave_one_out_is_that_of_the_others_averages():
    crops = [render(CAMERA, number)[0] for number in range(RELEARN_UP_TO + 1)]
    program = Program(method="published", alignment=AlignmentSettings(mode="none"))
    pictures = [ReducedCrop.of(crop, program.resolution).picture for crop in crops]
    maps = Eye(program, pictures).leave_one_out()
    for index in (0, 5, RELEARN_UP_TO):
        others = pictures[:index] + pictures[index + 1 :]
        expected = Eye(program, others).look(pictures[index]).map
        np.testing.assert_allclose(maps[index], expected, rtol=1e-3, atol=1e-4)
