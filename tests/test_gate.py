"""Is the picture fit to be judged?"""

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from inspectd.imaging import gate, preprocess
from inspectd.records import PictureHealth, Reason
from inspectd.settings import HealthSettings

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data"
BOUNDS = HealthSettings()
FIT = PictureHealth(brightness=0.4, contrast=0.2, focus=5.0, focus_ratio=1.0)


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
    focuses = [gate.focus_measure(picture) for picture in pictures]
    return gate.usual(focuses, [preprocess.reduce(picture, 100) for picture in pictures])


def measure(picture, reference):
    return gate.measure(gate.focus_measure(picture), preprocess.reduce(picture, 100), reference)


def test_a_blurred_noisy_picture_is_out_of_focus():
    """What the energy of the Laplacian, for one, would let through."""
    picture = shapes()
    reference = usual(with_noise(picture, 6, seed=3))
    noisy = with_noise(blurred(picture, 6), 6, seed=4)
    health = measure(noisy, reference)
    verdict = gate.judge(health, BOUNDS)
    assert verdict is not None
    assert verdict[0] is Reason.OUT_OF_FOCUS


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


def test_measure_gives_brightness_and_contrast_of_the_reduced_picture():
    reduced = np.full((10, 10), 51, np.uint8)
    reduced[:, 5:] = 153
    health = gate.measure(0.5, reduced, None)
    assert health.brightness == pytest.approx(0.4)
    assert health.contrast == pytest.approx(0.2)
    assert health.focus == 0.5
    assert health.focus_ratio is None


def test_measure_compares_the_focus_with_the_references():
    picture = shapes()
    references = usual(picture)
    sharper = replace(references, focus=2 * references.focus)
    assert measure(picture, sharper).focus_ratio == pytest.approx(0.5)
    flat = replace(references, focus=0.0)
    assert measure(picture, flat).focus_ratio is None


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.0, 1.1, 1.5])
def test_measure_compares_the_light_with_the_references(gain):
    references = usual(*(np.rint(shapes() * (light / 2)).astype(np.uint8) for light in (0.9, 1.1)))
    picture = np.rint(shapes() * (gain / 2)).astype(np.uint8)
    health = measure(picture, references)
    assert health.light_ratio == pytest.approx(gain, rel=0.03)
    assert health.usual_light == pytest.approx((0.9, 1.1), rel=0.03)


def test_a_missing_part_is_no_change_of_light():
    references = usual(shapes())
    without = shapes().copy()
    without[:, : without.shape[1] // 4] = 40
    assert measure(without, references).light_ratio == pytest.approx(1.0, abs=0.05)


def test_clipped_references_say_nothing_of_the_light():
    white = np.full((60, 80), 255, np.uint8)
    assert measure(white, usual(white)).light_ratio == 1.0


@pytest.mark.parametrize(
    ("health", "reason", "figure"),
    [
        (replace(FIT, brightness=0.01), Reason.TOO_DARK, "mean grey 0.010, at least 0.03"),
        (replace(FIT, brightness=0.99), Reason.TOO_BRIGHT, "mean grey 0.990, at most 0.97"),
        (replace(FIT, contrast=0.004), Reason.NO_CONTRAST, "0.004, at least 0.02"),
        (replace(FIT, focus_ratio=0.2), Reason.OUT_OF_FOCUS, "0.20 of .* at least 0.4"),
        (replace(FIT, brightness=float("nan")), Reason.TOO_DARK, "nan"),
        (replace(FIT, contrast=float("nan")), Reason.NO_CONTRAST, "nan"),
        (replace(FIT, focus_ratio=float("nan")), Reason.OUT_OF_FOCUS, "nan"),
        (
            replace(FIT, light_ratio=1.5, usual_light=(0.9, 1.1)),
            Reason.LIGHT_CHANGED,
            r"1\.50 times as bright .*0\.90 to 1\.10 .*0\.69 to 1\.43 allowed",
        ),
        (
            replace(FIT, light_ratio=0.68, usual_light=(0.9, 1.1)),
            Reason.LIGHT_CHANGED,
            r"0\.68 times as bright",
        ),
        (
            replace(FIT, light_ratio=float("nan"), usual_light=(0.9, 1.1)),
            Reason.LIGHT_CHANGED,
            "nan",
        ),
    ],
)
def test_judge_gives_reason_and_figures(health, reason, figure):
    verdict = gate.judge(health, BOUNDS)
    assert verdict is not None
    assert verdict[0] is reason
    assert re.search(figure, verdict[1])


def test_judge_names_the_first_thing_that_is_wrong():
    all_wrong = PictureHealth(brightness=0.0, contrast=0.0, focus=0.0, focus_ratio=0.0)
    order = []
    for fixed in ({}, {"brightness": 0.4}, {"contrast": 0.2}):
        all_wrong = replace(all_wrong, **fixed)
        verdict = gate.judge(all_wrong, BOUNDS)
        assert verdict is not None
        order.append(verdict[0])
    assert order == [Reason.TOO_DARK, Reason.NO_CONTRAST, Reason.OUT_OF_FOCUS]


def test_judge_lets_the_bounds_themselves_pass():
    at_bounds = PictureHealth(
        brightness=BOUNDS.min_brightness,
        contrast=BOUNDS.min_contrast,
        focus=1.0,
        focus_ratio=BOUNDS.min_focus,
    )
    assert gate.judge(at_bounds, BOUNDS) is None
    assert gate.judge(replace(at_bounds, brightness=BOUNDS.max_brightness), BOUNDS) is None
    assert gate.judge(replace(FIT, focus_ratio=None), BOUNDS) is None


@pytest.mark.parametrize("part", ["transistor", "bottle", "aliens", "screws"])
def test_photographs_pass_and_their_blurred_copies_do_not(part):
    folder = PHOTOGRAPHS / part
    if not folder.is_dir():
        pytest.skip(f"the photographs are not there: {folder}")
    good = [cv2.imread(str(path), 0) for path in sorted((folder / "good").glob("*"))[:10]]
    tested = [cv2.imread(str(path), 0) for path in sorted((folder / "test").glob("*/*"))]
    reference = usual(*good)
    # The light of the hand-held pictures changes by half.
    bounds = HealthSettings(max_light_change=0.6)

    def judged(picture):
        return gate.judge(measure(picture, reference), bounds)

    assert tested
    assert [judged(picture) for picture in tested] == [None] * len(tested)
    for picture in good:
        verdict = judged(with_noise(blurred(picture, 5), 4))
        assert verdict is not None
        assert verdict[0] is Reason.OUT_OF_FOCUS
