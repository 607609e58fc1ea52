"""One program's judgement: what earns a PASS, what is a FAIL and where, what is not judged."""

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import naive
import numpy as np
import pytest
from small_parts import HEIGHT, PADS, WIDTH, blurred, darkened, pad, part, parts, program

from inspectd.camera.simulated import render
from inspectd.errors import ImageError, ReferencesError
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.records import Defect, Image, Inspection, Reason, Verdict
from inspectd.settings import (
    AlignmentSettings,
    Box,
    LimitSettings,
    Program,
    ReferenceSettings,
    Region,
    RegionOfInterest,
    SimulatedCamera,
)
from inspectd.soartc.compare import Comparison

METHODS = ["published", "auto"]


def taught(
    settings: Program,
    crops: Sequence[Image],
    hindrance: str = "",
    empties: Sequence[Image] = (),
) -> Inspector:
    """An inspector that has learned from crops at full resolution."""
    reduced, empty = (
        [ReducedCrop.of(crop, settings.resolution) for crop in some] for some in (crops, empties)
    )
    return Inspector(settings, reduced, hindrance, empties=empty)


def around(index: int, name: str = "pad", **changes) -> Region:
    """A region over one pad and every patch that sees some of it, by itself or by the smoothing."""
    left, top, right, bottom = pad(index)
    left, top, right, bottom = left - 12, top - 12, right + 12, bottom + 12
    box = Box(
        max(left / WIDTH, 0), max(top / HEIGHT, 0), min(right / WIDTH, 1), min(bottom / HEIGHT, 1)
    )
    return Region(name=name, box=box, **changes)


def assert_not_judged(inspection: Inspection, reason: Reason, *figures: str) -> None:
    assert inspection.verdict is Verdict.NOT_JUDGED
    assert inspection.reason is reason
    for figure in figures:
        assert figure in inspection.detail
    assert inspection.score is None
    assert inspection.margin is None
    assert inspection.map is None
    assert inspection.peak is None
    assert inspection.regions == ()


# ---- PASS and FAIL -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_good_parts_pass(method):
    inspector = taught(program(method=method), parts(8))
    for seed in range(100, 106):
        inspection = inspector.inspect(part(seed))
        assert inspection.verdict is Verdict.PASS, inspection.detail
        assert inspection.reason is None
        assert inspection.detail == ""
        assert 0 < inspection.score <= 1
        assert inspection.margin == pytest.approx(1 - inspection.score)
        assert inspection.map.max() == pytest.approx(inspection.score)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("missing", [0, 3, 6, 11])
def test_a_missing_pad_fails_with_the_peak_on_it(method, missing):
    inspector = taught(program(method=method), parts(8))
    inspection = inspector.inspect(part(200, missing=missing))
    assert inspection.verdict is Verdict.FAIL
    assert inspection.reason is Reason.ABOVE_LIMIT
    assert inspection.score > 2
    left, top, right, bottom = pad(missing)
    assert left - 6 <= inspection.peak.x <= right + 6
    assert top - 6 <= inspection.peak.y <= bottom + 6
    assert inspection.peak.score == inspection.score
    assert f"score {inspection.score:.2f}" in inspection.detail
    assert f"x {inspection.peak.x:.0f}, y {inspection.peak.y:.0f}" in inspection.detail


def test_the_peak_is_in_frame_pixels_whatever_the_region_of_interest():
    roi = RegionOfInterest(x=211, y=57, width=WIDTH, height=HEIGHT)
    inspector = taught(program(roi=roi), parts(8))

    def frame(picture: Image) -> Image:
        whole = np.full((300, 400), 230, np.uint8)
        whole[roi.y : roi.y + roi.height, roi.x : roi.x + roi.width] = picture
        return whole

    assert inspector.inspect(frame(part(100))).verdict is Verdict.PASS
    bad = part(200, missing=6)
    peak = inspector.inspect(frame(bad)).peak
    alone = taught(program(), parts(8)).inspect(bad).peak
    assert (peak.x, peak.y) == pytest.approx((alone.x + roi.x, alone.y + roi.y))


def test_a_defect_outside_the_region_of_interest_is_not_looked_at():
    roi = RegionOfInterest(x=64, y=0, width=64, height=HEIGHT)
    inspector = taught(program(roi=roi), [picture[:, 64:] for picture in parts(8)])
    assert inspector.inspect(part(200, missing=0)).verdict is Verdict.PASS
    assert inspector.inspect(part(200, missing=3)).verdict is Verdict.FAIL


@pytest.mark.parametrize("number", [200, 201, 202])
def test_a_missing_pin_of_the_simulated_part_is_found(number):
    camera = SimulatedCamera(width=364, height=272, jitter=0.2, light_drift=0.0)
    inspector = taught(Program(), [render(camera, good)[0] for good in range(12)])
    assert inspector.inspect(render(camera, number)[0]).verdict is Verdict.PASS
    frame, truth = render(camera, number, Defect.MISSING_PIN)
    inspection = inspector.inspect(frame)
    assert inspection.verdict is Verdict.FAIL
    left, top, right, bottom = truth.box
    assert left - 12 <= inspection.peak.x <= right + 12
    assert top - 12 <= inspection.peak.y <= bottom + 12


def test_a_score_of_exactly_the_limit_passes_and_a_hair_more_fails(monkeypatch):
    inspector = taught(program(), parts(8))
    limit = np.float32(inspector.learned.zones[0].limit)

    def judged_at(raw: np.float32) -> Inspection:
        monkeypatch.setattr(Comparison, "distances", lambda *arguments: arguments[-1].fill(raw))
        return inspector.inspect(part(100))

    assert judged_at(limit).verdict is Verdict.PASS
    assert judged_at(np.nextafter(limit, np.float32(np.inf))).verdict is Verdict.FAIL


def test_the_program_threshold_scales_score_and_limit():
    usual, tolerant = (
        taught(program(limit=LimitSettings(threshold=threshold)), parts(8))
        for threshold in (1.0, 20.0)
    )
    bad = part(200, missing=6)
    strict_one, lax_one = usual.inspect(bad), tolerant.inspect(bad)
    assert lax_one.limit == pytest.approx(20 * strict_one.limit)
    assert lax_one.score == pytest.approx(strict_one.score / 20)
    assert (strict_one.verdict, lax_one.verdict) == (Verdict.FAIL, Verdict.PASS)


def test_colour_and_grey_are_judged_alike():
    grey = part(100)
    colour = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    of_grey = taught(program(), parts(8))
    of_colour = taught(program(), [cv2.cvtColor(one, cv2.COLOR_GRAY2BGR) for one in parts(8)])
    scores = [
        inspector.inspect(one).score for inspector in (of_grey, of_colour) for one in (grey, colour)
    ]
    assert scores == [scores[0]] * 4


def test_judging_leaves_nothing_behind_for_the_next_part():
    inspector = taught(program(), parts(8))
    before = inspector.inspect(part(100))
    kept = before.map.copy()
    inspector.inspect(part(200, missing=2))
    inspector.inspect(darkened(part(3)))
    after = inspector.inspect(part(100))
    assert after.score == before.score
    assert np.array_equal(before.map, kept)


def test_each_stage_is_timed():
    inspection = taught(program(), parts(8)).inspect(part(100))
    assert set(inspection.timings_ms) == {
        "prepare",
        "gate",
        "align",
        "stage1",
        "stage2",
        "score",
    }
    assert all(ms >= 0 for ms in inspection.timings_ms.values())


# ---- not judged --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minimum", "count", "needed"), [(5, 0, 5), (5, 4, 5), (2, 1, 2), (1, 0, 1)]
)
def test_nothing_passes_with_too_few_references(minimum, count, needed):
    inspector = taught(program(references=ReferenceSettings(minimum=minimum)), parts(count))
    assert inspector.learned is None
    for picture in (part(0), part(200, missing=1)):
        assert_not_judged(
            inspector.inspect(picture), Reason.TOO_FEW_REFERENCES, f"{count} usable", f"{needed} "
        )


@pytest.mark.parametrize(("minimum", "count"), [(5, 5), (2, 2), (1, 1)])
def test_as_many_references_as_needed_are_enough(minimum, count):
    inspector = taught(program(references=ReferenceSettings(minimum=minimum)), parts(count))
    assert inspector.inspect(part(0)).verdict is not Verdict.NOT_JUDGED


def test_a_known_reason_for_the_lack_of_references_is_told():
    inspector = taught(program(), (), "the references' disk is on fire")
    assert_not_judged(
        inspector.inspect(part(0)), Reason.TOO_FEW_REFERENCES, "the references' disk is on fire"
    )


@pytest.mark.parametrize("count", [0, 8])
@pytest.mark.parametrize(
    ("spoil", "reason", "figures"),
    [
        (darkened, Reason.TOO_DARK, ("mean grey 0.00", "0.03 needed")),
        (lambda one: 255 - one // 64, Reason.TOO_BRIGHT, ("mean grey 0.99", "0.97 allowed")),
        (lambda one: 128 + one // 64, Reason.NO_CONTRAST, ("deviation", "0.02 needed")),
    ],
    ids=["dark", "bright", "flat"],
)
def test_a_picture_that_cannot_be_trusted_is_not_judged(count, spoil, reason, figures):
    inspection = taught(program(), parts(count)).inspect(spoil(part(100)))
    assert_not_judged(inspection, reason, *figures)
    assert inspection.health is not None
    assert inspection.picture.shape == (48, 64)


def test_an_empty_station_is_no_part_only_by_references_to_know_it_by():
    ground = np.full((HEIGHT, WIDTH), 40, np.uint8) + np.eye(HEIGHT, WIDTH, dtype=np.uint8)
    inspection = taught(program(), parts(8)).inspect(ground)
    assert_not_judged(inspection, Reason.NO_PART, "pattern (match", "contrast (0.00")
    assert [measure.name for measure in inspection.health.measures if not measure.within]
    assert_not_judged(taught(program(), ()).inspect(ground), Reason.NO_CONTRAST)


# ---- the empty station as it was taught --------------------------------------------------------


def grooved(picture: Image, depth: int = 60) -> Image:
    """The same where the ground has grooves of its own; the pads hide them."""
    grooves = picture.astype(np.int16)
    grooves[:, ::8] += np.where(picture[:, ::8] < 120, depth, 0)
    grooves[:, 1::8] += np.where(picture[:, 1::8] < 120, depth, 0)
    return np.clip(grooves, 0, 255).astype(np.uint8)


def bare(seed: int) -> Image:
    """The station of `part` without one."""
    noise = np.random.default_rng(seed).normal(0, 2, (HEIGHT, WIDTH))
    return np.clip(40 + noise, 0, 255).astype(np.uint8)


def lit(picture: Image, gain: float) -> Image:
    return np.clip(picture * gain, 0, 255).astype(np.uint8)


def with_pad(picture: Image, grey: int = 190, side: int = 18) -> Image:
    """A thing of a pad's place, in an empty station."""
    left, top, _, _ = pad(5)
    found = picture.copy()
    found[top : top + side, left : left + side] = grey
    return found


MODES = ["none", "shift", "rigid", "search"]


def ordinary(mode: str = "none") -> Program:
    """What most programs are."""
    return Program(resolution=64, alignment=AlignmentSettings(mode=mode))


@pytest.fixture(scope="module", params=MODES)
def knowing(request) -> Inspector:
    """One that knows its grooved station."""
    return taught(
        ordinary(request.param),
        [grooved(one) for one in parts(8)],
        empties=[grooved(bare(1)), grooved(bare(2))],
    )


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_station_with_a_structure_must_be_taught(mode):
    unknowing = taught(ordinary(mode), [grooved(one) for one in parts(8)])
    assert unknowing.inspect(grooved(bare(9))).reason is not Reason.NO_PART


def test_the_empty_station_is_no_part_in_any_light_allowed(knowing):
    for gain in (0.85, 1.0, 1.2):
        inspection = knowing.inspect(lit(grooved(bare(9)), gain))
        assert_not_judged(inspection, Reason.NO_PART, "at least 0.050", "from the empty station")


@pytest.mark.parametrize(
    "frame",
    [
        with_pad(grooved(bare(9))),
        with_pad(grooved(bare(9)), side=5),
        with_pad(grooved(bare(9)), grey=0),
        grooved(bare(9)) // 2 + 90,
        np.where(np.arange(WIDTH) < 64, grooved(part(200)), grooved(bare(9))),
    ],
    ids=["a pad", "a crumb", "a hole", "fog", "half a part"],
)
def test_what_lies_in_the_empty_station_is_never_no_part_nor_good(knowing, frame):
    inspection = knowing.inspect(frame)
    assert inspection.reason is not Reason.NO_PART
    assert inspection.verdict is not Verdict.PASS


@pytest.mark.parametrize("mode", ["none", "shift", "rigid"])
@pytest.mark.parametrize("grey", [0, 100, 160])
def test_a_foreign_object_in_a_dull_nest_fails_though_the_contrast_is_low(mode, grey):
    """Without knowing the nest, that is "no part": neither pattern nor contrast."""
    frame = with_pad(bare(9), grey, side=10)
    blind = taught(ordinary(mode), parts(8)).inspect(frame)
    seeing = taught(ordinary(mode), parts(8), empties=[bare(1)]).inspect(frame)
    assert blind.reason is Reason.NO_PART
    assert (seeing.verdict, seeing.reason) == (Verdict.FAIL, Reason.ABOVE_LIMIT)


def test_parts_are_judged_as_without_knowing_the_empty_station(knowing):
    without = taught(knowing.program, [grooved(one) for one in parts(8)])
    for frame in (part(100), part(200, missing=3), blurred(part(100)), lit(part(100), 0.6)):
        ours, theirs = knowing.inspect(grooved(frame)), without.inspect(grooved(frame))
        assert (ours.verdict, ours.reason, ours.score) == (
            theirs.verdict,
            theirs.reason,
            theirs.score,
        )


def test_an_empty_station_that_is_all_white_is_not_too_bright():
    white = np.full((HEIGHT, WIDTH), 252, np.uint8)
    references = [255 - one for one in parts(8)]
    assert taught(ordinary(), references).inspect(white).reason is Reason.TOO_BRIGHT
    inspector = taught(ordinary(), references, empties=[white])
    assert_not_judged(inspector.inspect(white - 1), Reason.NO_PART)


def test_without_light_even_the_empty_station_is_too_dark(knowing):
    assert_not_judged(knowing.inspect(darkened(grooved(bare(9)))), Reason.TOO_DARK)


def test_a_dull_picture_is_no_contrast_where_it_is_not_the_station_taught():
    inspector = taught(ordinary(), parts(8), empties=[bare(1)])
    assert_not_judged(inspector.inspect(bare(9) // 4 + 80), Reason.NO_CONTRAST)


def test_a_picture_of_bare_ground_never_passes_whatever_its_score():
    tolerant = program(limit=LimitSettings(threshold=100.0), light="gain")
    references, frame = [grooved(one, 200) for one in parts(8)], grooved(bare(9), 200)
    frame = with_pad(frame, side=6)
    inspector = taught(tolerant, references, empties=[grooved(bare(1), 200)])
    inspection = inspector.inspect(frame)
    assert_not_judged(inspection, Reason.MISPLACED, "nothing is abnormal")
    assert inspector.inspect(references[0]).verdict is Verdict.PASS


def test_a_picture_of_the_empty_station_of_another_size_is_refused():
    with pytest.raises(ReferencesError, match=r"127 x 96, 128 x 96 pixels"):
        taught(ordinary(), parts(8), empties=[bare(1)[:, 1:]])


@pytest.mark.parametrize(
    ("references", "empties"),
    [(parts(8), [bare(1), part(30)]), ([*parts(7), bare(3)], [bare(1)])],
    ids=["a part among the empties", "an empty station among the references"],
)
def test_a_mistake_in_teaching_the_empty_station_is_told_and_hides_no_part(references, empties):
    inspector = taught(ordinary(), references, empties=empties)
    assert any("hardly differs from a reference" in one for one in inspector.learned.warnings)
    assert inspector.inspect(part(200, missing=3)).reason is not Reason.NO_PART
    assert inspector.inspect(part(100)).reason is not Reason.NO_PART


def test_a_part_that_lacks_half_its_pads_fails():
    inspector = taught(program(), parts(8))
    frame = part(200)
    for index in range(0, PADS, 2):
        left, top, right, bottom = pad(index)
        frame[top:bottom, left:right] = 40
    assert inspector.inspect(frame).verdict is Verdict.FAIL


def test_a_blurred_picture_is_not_judged():
    inspection = taught(program(), parts(8)).inspect(blurred(part(100)))
    focus = inspection.health.measure("focus")
    assert focus.low == pytest.approx(0.4 * focus.usual)
    assert_not_judged(inspection, Reason.OUT_OF_FOCUS, f"sharpness {focus.value:.3g}")


@pytest.mark.parametrize(
    "frame",
    [
        part(100)[:-1],
        part(100)[:, :-1],
        cv2.resize(part(100), (2 * WIDTH, 2 * HEIGHT)),
        part(100)[:1, :1],
    ],
    ids=["a row less", "a column less", "twice", "one pixel"],
)
def test_a_frame_of_another_size_is_not_judged(frame):
    inspection = taught(program(), parts(8)).inspect(frame)
    height, width = frame.shape
    assert_not_judged(inspection, Reason.WRONG_SIZE, f"{width} x {height}", f"{WIDTH} x {HEIGHT}")


def test_a_frame_that_the_region_of_interest_leaves_is_not_judged():
    roi = RegionOfInterest(x=100, y=0, width=64, height=64)
    inspection = taught(program(roi=roi), ()).inspect(part(100))
    assert_not_judged(inspection, Reason.WRONG_SIZE, "[100, 0, 64, 64]", f"{WIDTH} x {HEIGHT}")
    assert inspection.picture is None


@pytest.mark.parametrize(
    "frame",
    [np.zeros((96, 128, 4), np.uint8), np.zeros((96, 128), np.uint16), np.zeros((0, 9), np.uint8)],
    ids=["four channels", "16 bits", "empty"],
)
def test_what_is_no_picture_is_not_judged(frame):
    inspection = taught(program(), parts(8)).inspect(frame)
    assert inspection.verdict is Verdict.NOT_JUDGED
    assert inspection.reason is Reason.WRONG_SIZE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_comparison_that_gives_no_number_is_not_judged(monkeypatch, value):
    inspector = taught(program(), parts(8))
    size = inspector.learned.limits.size

    def spoilt(_self, _planes, _seen, out):
        out.fill(0)
        out[3, 4] = value

    monkeypatch.setattr(Comparison, "distances", spoilt)
    assert_not_judged(inspector.inspect(part(100)), Reason.NOT_FINITE, f" of {size} patches")


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": LimitSettings(threshold=1e-300)},
        {"regions": (around(5, threshold=1e-300),)},
    ],
    ids=["of the program", "of a region"],
)
def test_a_threshold_too_small_to_divide_by_is_not_judged(changes):
    inspector = taught(program(**changes), parts(8))
    assert_not_judged(inspector.inspect(part(100)), Reason.NOT_FINITE, "too small")


def test_a_pass_is_always_earned():
    """Whatever the camera delivers: a PASS has a finite score within the limit and no reason."""
    rng = np.random.default_rng(7)
    inspector = taught(program(limit=LimitSettings(threshold=4.0)), parts(8))
    seen = set()
    for _ in range(60):
        mixed = part(int(rng.integers(1000)), missing=int(rng.integers(PADS + 3)))
        noise = rng.normal(0, rng.choice([0, 5, 60]), mixed.shape)
        frame = mixed * rng.choice([0.02, 0.7, 1, 1.2, 40]) + noise
        inspection = inspector.inspect(np.clip(frame, 0, 255).astype(np.uint8))
        seen.add(inspection.verdict)
        earned = inspection.score is not None and 0 <= inspection.score <= 1
        assert (inspection.verdict is Verdict.PASS) is earned
        assert (inspection.reason is None) is earned
    assert seen == set(Verdict)


# ---- regions -----------------------------------------------------------------------------------


def test_a_region_has_a_threshold_of_its_own():
    bad = part(200, missing=5)
    scores = {}
    for threshold in (1.0, 50.0):
        inspector = taught(program(regions=(around(5, threshold=threshold),)), parts(8))
        inspection = inspector.inspect(bad)
        (region,) = inspection.regions
        assert region.name == "pad"
        assert region.failed is (inspection.verdict is Verdict.FAIL)
        scores[threshold] = region.score, inspection.verdict
    assert scores[1.0][1] is Verdict.FAIL
    assert scores[50.0][1] is Verdict.PASS
    assert scores[50.0][0] == pytest.approx(scores[1.0][0] / 50)


def test_a_stricter_region_fails_a_part_that_would_pass():
    good = part(100)
    assert taught(program(), parts(8)).inspect(good).verdict is Verdict.PASS
    regions = (around(5, "strict", threshold=0.05), around(0, "usual"))
    inspection = taught(program(regions=regions), parts(8)).inspect(good)
    assert inspection.verdict is Verdict.FAIL
    assert {region.name: region.failed for region in inspection.regions} == {
        "strict": True,
        "usual": False,
    }
    assert "in strict," in inspection.detail
    left, top, right, bottom = pad(5)
    assert left - 12 <= inspection.peak.x <= right + 12
    assert top - 12 <= inspection.peak.y <= bottom + 12


def test_the_rest_of_the_picture_is_judged_as_without_regions():
    inspector = taught(program(regions=(around(5, threshold=50.0),)), parts(8))
    inspection = inspector.inspect(part(200, missing=0))
    assert inspection.verdict is Verdict.FAIL
    assert not inspection.regions[0].failed


def test_an_ignored_region_is_never_judged():
    inspector = taught(program(regions=(around(5, ignore=True),)), parts(8))
    inspection = inspector.inspect(part(200, missing=5))
    assert inspection.verdict is Verdict.PASS
    assert inspection.regions == ()
    assert inspector.inspect(part(200, missing=6)).verdict is Verdict.FAIL


def test_an_ignored_region_of_the_references_does_not_raise_the_limit():
    references = [part(seed, missing=5 if seed % 2 else None) for seed in range(8)]
    ignoring = taught(program(regions=(around(5, ignore=True),)), references)
    looking = taught(program(), references)
    assert ignoring.learned.zones[0].limit < looking.learned.zones[0].limit / 2


def test_ignored_patches_are_nought_in_the_map():
    inspector = taught(program(regions=(around(5, ignore=True),)), parts(8))
    inspection = inspector.inspect(part(200, missing=5))
    left, top, right, bottom = pad(5)
    on_it = 0
    for row, column in np.ndindex(inspection.map.shape):
        x, y = (2 * place for place in inspector.learned.grid.centre(row, column))
        if left <= x <= right and top <= y <= bottom:
            assert inspection.map[row, column] == 0
            on_it += 1
    assert on_it > 10


@pytest.mark.parametrize("order", [1, -1])
def test_where_regions_overlap_the_stricter_counts(order):
    regions = (around(5, "lax", threshold=50.0), around(5, "strict", threshold=1.0))[::order]
    inspection = taught(program(regions=regions), parts(8)).inspect(part(200, missing=5))
    assert inspection.verdict is Verdict.FAIL
    assert {region.name: region.failed for region in inspection.regions} == {
        "lax": False,
        "strict": True,
    }


@pytest.mark.parametrize("order", [1, -1])
def test_what_one_region_ignores_is_ignored_for_all(order):
    whole = Region(name="whole", box=Box(0, 0, 1, 1))
    regions = (whole, around(5, "label", ignore=True))[::order]
    inspector = taught(program(regions=regions), parts(8))
    inspection = inspector.inspect(part(200, missing=5))
    assert inspection.verdict is Verdict.PASS
    assert [region.name for region in inspection.regions] == ["whole"]
    assert inspector.inspect(part(200, missing=6)).regions[0].failed


def test_a_polygon_holds_what_lies_in_it_and_no_more():
    # Over the upper left of the picture, which leaves out pad 6.
    triangle = Region(name="corner", polygon=((0.0, 0.0), (0.6, 0.0), (0.0, 0.6)))
    inspector = taught(program(regions=(triangle,)), parts(8))
    assert inspector.inspect(part(200, missing=0)).regions[0].failed
    inspection = inspector.inspect(part(200, missing=6))
    assert inspection.verdict is Verdict.FAIL
    assert not inspection.regions[0].failed


@pytest.mark.parametrize(
    ("box", "place"),
    [
        (Box(0.5, 0.5, 0.501, 0.501), (0.5, 0.5)),
        (Box(0.0, 0.0, 0.01, 0.01), (0.0, 0.0)),
        (Box(0.99, 0.99, 1.0, 1.0), (1.0, 1.0)),
    ],
    ids=["between patches", "upper left edge", "lower right edge"],
)
def test_a_region_without_a_patch_of_its_own_gets_the_nearest(box, place):
    inspector = taught(program(regions=(Region(name="tiny", box=box),)), parts(8))
    inspection = inspector.inspect(part(100))
    grid = inspector.learned.grid
    nearest = min(
        np.ndindex(inspection.map.shape),
        key=lambda patch: math.dist(grid.centre(*patch), (place[0] * 64, place[1] * 48)),
    )
    assert inspection.regions[0].score == pytest.approx(float(inspection.map[nearest]))


def test_a_program_that_ignores_everything_is_refused():
    everything = Region(name="all", box=Box(0, 0, 1, 1), ignore=True)
    with pytest.raises(ReferencesError, match="nothing is left to judge"):
        taught(program(regions=(everything,)), parts(8))


def test_a_region_that_is_wholly_ignored_by_others_is_refused():
    regions = (around(5, "pin"), Region(name="left", box=Box(0, 0, 0.6, 1), ignore=True))
    with pytest.raises(ReferencesError, match="region pin is to be judged"):
        taught(program(regions=regions), parts(8))


# ---- learning ----------------------------------------------------------------------------------


def smoothed(scalar):
    """Means over 3 x 3, mirrored at the border without repeating it."""
    rows, cols = scalar.shape
    result = np.zeros((rows, cols))
    for i in range(rows):
        for j in range(cols):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    row, column = abs(i + di), abs(j + dj)
                    row = row if row < rows else 2 * (rows - 1) - row
                    column = column if column < cols else 2 * (cols - 1) - column
                    result[i, j] += scalar[row, column] / 9
    return result


def naive_leave_one_out(pictures):
    bank = naive.part_bank()

    def described(unit):
        return naive.stage1(unit, bank, (2, 2), (2, 2))

    units = [picture / 255 for picture in pictures]
    scores = []
    for left_out in range(len(units)):
        others = [unit for index, unit in enumerate(units) if index != left_out]
        reference = described(sum(others) / len(others))
        distances = naive.stage2(described(units[left_out]), reference)
        scores.append(smoothed(naive.scalar_map(distances)).max())
    return scores


@pytest.mark.parametrize("count", [2, 4])
def test_leave_one_out_equals_the_specification_in_plain_loops(count):
    pictures = list(np.random.default_rng(count).integers(0, 256, (count, 18, 24), np.uint8))
    settings = program(resolution=24, references=ReferenceSettings(minimum=2))
    learned = taught(settings, pictures).learned
    raw = np.array(learned.leave_one_out) * learned.zones[0].limit
    assert raw == pytest.approx(naive_leave_one_out(pictures), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_leave_one_out_equals_judging_each_by_the_others(method):
    settings = program(method=method, references=ReferenceSettings(minimum=2))
    pictures = parts(5)
    judged = []
    for left_out, picture in enumerate(pictures):
        others = [one for index, one in enumerate(pictures) if index != left_out]
        inspection = taught(settings, others).inspect(picture)
        judged.append(inspection.score * inspection.limit)
    learned = taught(settings, pictures).learned
    raw = np.array(learned.leave_one_out) * learned.zones[0].limit
    assert raw == pytest.approx(judged, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_black_pixels_in_the_references_are_no_harm(method):
    """The average without one of them must not fall below black."""
    rng = np.random.default_rng(3)
    pictures = [
        np.where(rng.random((HEIGHT, WIDTH)) < 0.4, 0, one).astype(np.uint8) for one in parts(7)
    ]
    learned = taught(program(method=method), pictures).learned
    assert np.isfinite(learned.leave_one_out).all()


def test_references_of_different_sizes_are_refused():
    with pytest.raises(ReferencesError, match=r"127 x 96, 128 x 96 pixels"):
        taught(program(), [*parts(6), part(7)[:, 1:]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [2, 5, 7])
def test_references_that_are_all_the_same_picture_are_refused(method, count):
    settings = program(method=method, references=ReferenceSettings(minimum=2))
    with pytest.raises(ReferencesError, match="the same picture"):
        taught(settings, [part(1)] * count)


def test_a_picture_smaller_than_one_patch_is_refused():
    with pytest.raises(ImageError, match="smaller than one patch"):
        taught(program(), [one[:12] for one in parts(8)])


def test_the_parameters_of_the_program_are_used():
    usual = taught(program(), parts(8)).learned
    usual_limit = usual.zones[0].limit
    for changed in (
        {"p": 2.0},
        {"weights": (1.0, 0.0, 0.0)},
        {"centre_weight": 1.0},
        {"part": 7},
        {"stride": 3},
    ):
        changed_limit = taught(program(soartc=changed), parts(8)).learned.zones[0].limit
        assert changed_limit != usual_limit
    coarse = taught(program(soartc={"step": 4}), parts(8)).learned
    assert (coarse.grid.rows, coarse.grid.cols) == (11, 15)
    assert (usual.grid.rows, usual.grid.cols) == (21, 29)


def test_no_region_fails_in_a_part_that_passes_by_a_hair():
    regions = (Region(name="all", box=Box(0, 0, 1, 1)),)
    inspector = taught(program(regions=regions), parts(8))
    learned = inspector.learned
    reduced = ReducedCrop.of(part(100), inspector.program.resolution).picture
    highest = float(learned.eye.look(reduced).map.max())
    just_below = float(np.nextafter(highest, 0))
    (zone,) = learned.zones
    inspector.learned = replace(
        learned,
        zones=(replace(zone, limit=just_below),),
        limits=np.full_like(learned.limits, just_below),
    )
    inspection = inspector.inspect(part(100))
    assert inspection.score == pytest.approx(1.0, abs=1e-6)
    assert inspection.regions[0].failed == (inspection.verdict is Verdict.FAIL)


@pytest.mark.parametrize("longest", [40, 2000])
def test_a_reduced_crop_does_not_keep_the_frame(longest):
    frame = np.zeros((200, 300), np.uint8)
    reduced = ReducedCrop.of(frame[50:150, 100:220], longest)
    assert reduced.size == (100, 120)
    assert not np.may_share_memory(reduced.picture, frame)
