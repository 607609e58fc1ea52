"""Is the picture fit to be judged?"""

import math
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from photographs import photographs

from inspectd.imaging import gate, preprocess
from inspectd.records import Alignment, Measure, PictureHealth, Pose, Reason
from inspectd.settings import AlignmentSettings, HealthSettings

BOUNDS = HealthSettings()
FIT = PictureHealth(brightness=0.4, contrast=0.2, black=0.0, white=0.0, focus=5.0)


def shapes(seed=1, height=544, width=728, count=30):
    """Bright rectangles and discs on dark, with the slight blur of a lens."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width), 40, np.uint8)
    for _ in range(count):
        x, y, size = (int(rng.integers(0, limit)) for limit in (width, height, 60))
        grey = int(rng.integers(80, 220))
        if rng.random() < 0.5:
            cv2.rectangle(picture, (x, y), (x + size, y + size // 2), grey, -1)
        else:
            cv2.circle(picture, (x, y), size // 2, grey, -1)
    return cv2.GaussianBlur(picture, (0, 0), 0.8)


def blurred(picture, sigma):
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def with_noise(picture, sigma, seed=2):
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def test_focus_falls_with_every_step_of_blur():
    picture = shapes()
    measures = [gate.focus_measure(picture)]
    measures += [gate.focus_measure(blurred(picture, sigma)) for sigma in (1, 2, 4, 8)]
    assert measures == sorted(measures, reverse=True)
    assert measures[3] < 0.4 * measures[0]


def test_focus_does_not_depend_on_contrast_and_brightness():
    picture = shapes()
    dull = np.rint(picture * 0.4 + 90).astype(np.uint8)
    assert gate.focus_measure(dull) == pytest.approx(gate.focus_measure(picture), rel=0.03)


def test_focus_does_not_depend_on_the_number_of_edges():
    few, many = (gate.focus_measure(shapes(count=count)) for count in (8, 60))
    assert few == pytest.approx(many, rel=0.25)


@pytest.mark.parametrize("sigma", [0.5, 3])
def test_noise_is_not_taken_for_sharpness(sigma):
    picture = blurred(shapes(), sigma)
    noisy = with_noise(picture, 10)
    assert gate.focus_measure(noisy) == pytest.approx(gate.focus_measure(picture), rel=0.05)


def usual(*pictures):
    reduced = [preprocess.reduce(picture, 100) for picture in pictures]
    return gate.usual([*map(gate.measure, pictures, reduced)], reduced)


def compared(picture, references, bounds=BOUNDS):
    """A picture's health, with its measures against the references."""
    reduced = preprocess.reduce(picture, 100)
    health = gate.measure(picture, reduced)
    return replace(health, measures=gate.compare(health, reduced, references, bounds))


def reason(picture, references, bounds=BOUNDS):
    doubt = gate.judge(compared(picture, references, bounds), bounds)
    return doubt and doubt[0]


def test_a_blurred_noisy_picture_is_out_of_focus():
    """What the energy of the Laplacian, for one, would let through."""
    picture = shapes()
    reference = usual(with_noise(picture, 6, seed=3))
    assert reason(with_noise(blurred(picture, 6), 6, seed=4), reference) is Reason.OUT_OF_FOCUS


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 200), (16, 16), (10, 1000), (1088, 1456)])
@pytest.mark.parametrize("content", ["flat", "noise"])
def test_focus_is_a_finite_number_for_any_picture(shape, content):
    if content == "flat":
        picture = np.full(shape, 90, np.uint8)
    else:
        picture = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    focus = gate.focus_measure(picture)
    assert np.isfinite(focus)
    assert focus >= 0.0
    assert content == "noise" or focus == 0.0


def test_focus_sees_a_part_in_a_small_picture():
    small = cv2.resize(shapes(), (20, 16), interpolation=cv2.INTER_AREA)
    assert gate.focus_measure(small) > gate.focus_measure(blurred(small, 1.5)) > 0.0


# ---- figures by themselves -----------------------------------------------------------------------


def test_measure_gives_brightness_and_contrast_of_the_reduced_picture():
    reduced = np.full((10, 10), 51, np.uint8)
    reduced[:, 5:] = 153
    health = gate.measure(shapes(), reduced)
    assert health.brightness == pytest.approx(0.4)
    assert health.contrast == pytest.approx(0.2)
    assert health.focus == gate.focus_measure(shapes())
    assert health.measures == ()


def test_measure_counts_clipped_pixels_before_the_reduction():
    picture = np.full((200, 200), 128, np.uint8)
    picture[::4, ::4] = 255  # which the reduction would hide
    picture[2::4, ::2] = 0
    health = gate.measure(picture, preprocess.reduce(picture, 50))
    assert health.white == pytest.approx(1 / 16)
    assert health.black == pytest.approx(1 / 8)
    frame = np.zeros((300, 300), np.uint8)
    frame[50:250, 50:250] = picture
    cut = gate.measure(frame[50:250, 50:250], preprocess.reduce(picture, 50))
    assert cut == health


# ---- against the references ----------------------------------------------------------------------


def test_every_figure_is_compared_with_the_references_median_and_bounds():
    pictures = [np.rint(shapes() * light).astype(np.uint8) for light in (0.9, 1.0, 1.1)]
    references = usual(*pictures)
    bounds = HealthSettings(
        min_focus=0.3, min_relative_contrast=0.6, max_light_change=0.5, max_clipped=0.07
    )
    health = compared(pictures[1], references, bounds)
    measures = {measure.name: measure for measure in health.measures}
    assert list(measures) == ["light", "contrast", "black", "white", "focus"]
    light, contrast, focus = (measures[name] for name in ("light", "contrast", "focus"))
    assert (light.value, light.usual) == pytest.approx((1.0, 1.0), rel=0.02)
    assert (light.low, light.high) == pytest.approx((0.9 / 1.5, 1.1 * 1.5), rel=0.03)
    assert contrast.value == contrast.usual == health.contrast
    assert (contrast.low, contrast.high) == (0.6 * contrast.usual, None)
    assert focus.value == health.focus
    assert focus.usual == sorted(map(gate.focus_measure, pictures))[1]
    assert (focus.low, focus.high) == (0.3 * focus.usual, None)
    assert measures["white"] == Measure("white", health.white, 0.0, high=0.07)
    assert all(measure.within for measure in measures.values())


def test_references_without_slopes_leave_focus_alone():
    flat = np.full((544, 728), 90, np.uint8)
    assert compared(shapes(), usual(flat)).measure("focus") is None


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.0, 1.1, 1.5])
def test_the_light_is_compared_with_the_references(gain):
    references = usual(*(np.rint(shapes() * (light / 2)).astype(np.uint8) for light in (0.9, 1.1)))
    picture = np.rint(shapes() * (gain / 2)).astype(np.uint8)
    assert compared(picture, references).measure("light").value == pytest.approx(gain, rel=0.03)
    changed = gain in {0.5, 1.5}
    assert reason(picture, references) is (Reason.LIGHT_CHANGED if changed else None)


def test_a_missing_part_is_no_change_of_light():
    references = usual(shapes())
    without = shapes().copy()
    without[:, : without.shape[1] // 4] = 40
    light = compared(without, references).measure("light")
    assert light.value == pytest.approx(1.0, abs=0.05)


def test_clipped_references_say_nothing_of_the_light():
    white = np.full((60, 80), 255, np.uint8)
    assert compared(white, usual(white)).measure("light").value == 1.0


def with_glare(picture, share):
    """White over a share of the picture, its reduced version hardly brighter."""
    spoilt = picture.copy()
    spoilt[: round(share * picture.shape[0])] = 255
    return spoilt


def test_more_clipped_pixels_than_the_references_have_are_noticed():
    references = usual(with_glare(shapes(), 0.05), shapes())
    assert compared(shapes(), references).measure("white").high == pytest.approx(0.15, abs=0.01)
    assert reason(with_glare(shapes(), 0.12), references) is None
    assert reason(with_glare(shapes(), 0.2), references) is Reason.CLIPPED
    lost = shapes()
    lost[:, :150] = 0
    assert reason(lost, references) is Reason.CLIPPED


def test_a_white_ground_that_a_missing_part_bares_is_not_clipped():
    ground = np.full((200, 300), 255, np.uint8)
    part = ground.copy()
    part[20:180, 40:260] = shapes()[:160, :220]
    lacking = part.copy()
    lacking[:, 200:] = 255
    references = usual(part)
    assert compared(lacking, references).measure("white").high is None
    assert reason(lacking, references) is not Reason.CLIPPED
    assert reason(lacking, references, HealthSettings(max_clipped=0.6)) is None
    assert reason(lacking, references, HealthSettings(max_clipped=0.3)) is Reason.CLIPPED


# ---- how the part lies ---------------------------------------------------------------------------

TURNED = Alignment(Pose(6.0, -8.0, math.radians(4.0)), match=0.9, match_before=0.5, within=True)
PLACE = gate.usual_place(
    [
        Alignment(Pose(dx, 0.0, math.radians(turn)), match, match, within=True)
        for dx, turn, match in ((0.0, 0.0, 0.99), (2.0, 1.0, 0.95), (3.0, -1.0, 0.8))
    ],
    100,
)


def placed(alignment=TURNED, **settings):
    return gate.compare_place(alignment, 100, PLACE, 0.4, AlignmentSettings(**settings))


def test_the_place_is_compared_with_the_references_and_the_programs_bounds():
    match, shift, rotation = placed(max_shift=0.2, max_rotation_deg=5.0)
    assert match == Measure("match", 0.9, 0.95, low=0.4)
    assert shift == Measure("shift", pytest.approx(0.1), 0.02, high=0.2)
    assert rotation == Measure("rotation", pytest.approx(4.0), 0.0, low=-5.0, high=5.0)


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("none", ["match"]),
        ("shift", ["match", "shift"]),
        ("rigid", ["match", "shift", "rotation"]),
        ("search", ["match", "shift", "rotation"]),
    ],
)
def test_only_what_is_looked_for_is_compared(mode, names):
    assert [measure.name for measure in placed(mode=mode)] == names
    elsewhere = replace(TURNED, match=0.39)  # where nothing was found it lies nowhere
    assert [measure.name for measure in placed(elsewhere, mode=mode)] == ["match"]


def test_any_angle_has_no_bounds():
    rotation = placed(mode="search")[2]
    assert (rotation.low, rotation.high) == (None, None)


# ---- the decision --------------------------------------------------------------------------------

NAN = math.nan
LIGHT = Measure("light", 1.0, 1.0, low=0.7, high=1.4)
CONTRAST = Measure("contrast", 0.2, 0.2, low=0.1)
WHITE = Measure("white", 0.01, 0.0, high=0.1)
BLACK = Measure("black", 0.01, 0.0, high=0.1)
FOCUS = Measure("focus", 5.0, 5.0, low=2.0)
MATCH = Measure("match", 0.9, 0.95, low=0.45)


def with_measures(*measures, **changes):
    names = {measure.name for measure in measures}
    usual = [one for one in (LIGHT, CONTRAST, BLACK, WHITE, FOCUS, MATCH) if one.name not in names]
    return replace(FIT, measures=(*measures, *usual), **changes)


def valued(measure, value):
    return replace(measure, value=value)


@pytest.mark.parametrize(
    ("health", "reason", "figures"),
    [
        (replace(FIT, brightness=0.01), Reason.TOO_DARK, "mean grey 0.010, at least 0.03"),
        (replace(FIT, brightness=0.99), Reason.TOO_BRIGHT, "mean grey 0.990, at most 0.97"),
        (replace(FIT, contrast=0.004), Reason.NO_CONTRAST, "0.004, at least 0.02"),
        (replace(FIT, brightness=NAN), Reason.TOO_DARK, "nan"),
        (replace(FIT, contrast=NAN), Reason.NO_CONTRAST, "nan"),
        (with_measures(valued(FOCUS, 1.0)), Reason.OUT_OF_FOCUS, "1, at least 2 .* references' 5"),
        (with_measures(valued(FOCUS, NAN)), Reason.OUT_OF_FOCUS, "nan"),
        (with_measures(valued(LIGHT, 1.5)), Reason.LIGHT_CHANGED, r"1\.50 .* 0\.70 to 1\.40 all"),
        (with_measures(valued(LIGHT, 0.6)), Reason.LIGHT_CHANGED, r"0\.60 times as bright"),
        (with_measures(valued(LIGHT, NAN)), Reason.LIGHT_CHANGED, "nan"),
        (with_measures(valued(WHITE, 0.2)), Reason.CLIPPED, r"20\.0% .* white, at most 10\.0%"),
        (with_measures(valued(BLACK, 0.2)), Reason.CLIPPED, r"20\.0% .* black, at most 10\.0%"),
        (with_measures(valued(CONTRAST, 0.04)), Reason.NO_CONTRAST, "0.040, at least 0.100"),
        (
            with_measures(valued(CONTRAST, 0.04), valued(MATCH, 0.1)),
            Reason.NO_PART,
            r"match 0\.10, at least 0\.45 .*0\.040, usually 0\.200",
        ),
    ],
)
def test_judge_gives_reason_and_figures(health, reason, figures):
    doubt = gate.judge(health, BOUNDS)
    assert doubt is not None
    assert doubt[0] is reason
    assert re.search(figures, doubt[1])


def test_judge_names_the_first_thing_that_is_wrong():
    wrong = {MATCH: 0.1, WHITE: 1.0, FOCUS: 0.0, LIGHT: 9.0, CONTRAST: 0.01}
    health = with_measures(*(valued(measure, value) for measure, value in wrong.items()))
    steps = [
        (Reason.TOO_DARK, {"brightness": 0.0, "contrast": 0.0}),
        (Reason.NO_PART, {"brightness": 0.4}),
        (Reason.NO_CONTRAST, MATCH),
        (Reason.CLIPPED, {"contrast": 0.2}),
        (Reason.OUT_OF_FOCUS, WHITE),
        (Reason.LIGHT_CHANGED, FOCUS),
        (Reason.NO_CONTRAST, LIGHT),
    ]
    for reason, change in steps:
        if isinstance(change, Measure):
            others = [one for one in health.measures if one.name != change.name]
            health = replace(health, measures=(*others, change))
        else:
            health = replace(health, **change)
        doubt = gate.judge(health, BOUNDS)
        assert doubt is not None
        assert doubt[0] is reason


def test_judge_lets_the_bounds_themselves_pass():
    at_bounds = replace(FIT, brightness=BOUNDS.min_brightness, contrast=BOUNDS.min_contrast)
    measures = [
        valued(measure, bound)
        for measure in (LIGHT, CONTRAST, WHITE, BLACK, FOCUS, MATCH)
        for bound in (measure.low, measure.high)
        if bound is not None
    ]
    for measure in measures:
        health = replace(at_bounds, measures=(measure,))
        assert gate.judge(health, BOUNDS) is None
        assert gate.judge_good(health) is None
    assert gate.judge(replace(at_bounds, brightness=BOUNDS.max_brightness), BOUNDS) is None


@pytest.mark.parametrize(
    "measures",
    [
        (valued(MATCH, 0.1),),
        (valued(MATCH, 0.1), valued(CONTRAST, 0.06)),
        (valued(MATCH, -1.0), valued(CONTRAST, 0.5)),
    ],
    ids=["another pattern", "and less contrast", "and more contrast"],
)
def test_a_part_may_lack_the_pattern_or_the_contrast_and_be_defective_but_not_good(measures):
    health = with_measures(*measures)
    assert gate.judge(health, BOUNDS) is None
    doubt = gate.judge_good(health)
    assert doubt is not None
    assert doubt[0] is Reason.MISPLACED
    assert "hardly resembles" in doubt[1]


def test_a_faint_picture_is_not_good_for_a_pass():
    doubt = gate.judge_good(with_measures(valued(CONTRAST, 0.06)))
    assert doubt is not None
    assert doubt[0] is Reason.NO_CONTRAST
    assert "0.060, at least 0.100 needed" in doubt[1]


@pytest.mark.parametrize("measure", [MATCH, CONTRAST])
def test_what_is_no_number_is_neither_good_nor_an_empty_station(measure):
    other = valued(CONTRAST if measure is MATCH else MATCH, 0.0)
    health = with_measures(valued(measure, NAN), other)
    assert gate.judge_good(health) is not None
    doubt = gate.judge(health, BOUNDS)
    assert doubt is None or doubt[0] is not Reason.NO_PART


# ---- photographs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["transistor", "bottle", "aliens", "screws"])
def test_photographs_pass_and_their_blurred_copies_do_not(part):
    folder = photographs(part)
    good = [cv2.imread(str(path), 0) for path in sorted((folder / "good").glob("*"))[:10]]
    tested = [cv2.imread(str(path), 0) for path in sorted((folder / "test").glob("*/*"))]
    reference = usual(*good)
    # The light of the hand-held pictures changes by half.
    bounds = HealthSettings(max_light_change=0.6)
    assert tested
    assert {reason(picture, reference, bounds) for picture in tested} == {None}
    spoilt = (with_noise(blurred(picture, 5), 4) for picture in good)
    assert {reason(picture, reference, bounds) for picture in spoilt} == {Reason.OUT_OF_FOCUS}
