"""The SOARTC kernels against the plain-loop oracle and against the published tables."""

import json
from pathlib import Path

import cv2
import naive
import numpy as np
import pytest
from interpreted import check_without_the_compiler, once

from inspectd.errors import ImageError
from inspectd.soartc import attention, part_bank, scalar_map, soart3, stage1, stage2
from inspectd.soartc.compare import Comparison, as_planes
from inspectd.soartc.kernels import natural_log

DATA = Path(__file__).parent / "data"
PUBLISHED = json.loads((DATA / "published.json").read_text())
TOLERANCE = 1e-4


def picture(kind, height=21, width=26):
    rng = np.random.default_rng(7)
    image = np.zeros((height, width), np.float32)
    match kind:
        case "random":
            image = rng.random((height, width), np.float32)
        case "constant":
            image += np.float32(0.37)
        case "white":
            image += 1
        case "single pixel":
            image[9, 11] = 1
        case "gradient":
            image += np.linspace(0, 1, width, dtype=np.float32)
    return image


KINDS = ["random", "constant", "black", "white", "single pixel", "gradient"]
STEPPINGS = [
    ((2, 2), None),
    ((2, 2), (2, 2)),
    ((1, 1), (1, 1)),
    ((2, 4), (4, 8)),
    ((4, 4), (6, 3)),
    ((3, 2), (5, 4)),
]


@pytest.mark.parametrize(
    ("size", "band"), [(3, 1), (5, 1), (5, 3), (7, 3), (9, 1), (11, 3), (13, 5)]
)
@pytest.mark.parametrize("weight", [1, 2, 2.5])
def test_part_bank_equals_the_oracle(size, band, weight):
    bank = part_bank(size, band, weight)
    assert bank.dtype == np.float32
    np.testing.assert_array_equal(bank, naive.part_bank(size, band, weight).astype(np.float32))


def test_diagonal_weights_are_the_published_ones():
    assert np.fliplr(part_bank(5, 1)[4]).diagonal().tolist() == [1, 2, 2, 2, 1]
    assert part_bank(5, 1)[5].diagonal().tolist() == [1, 2, 2, 2, 1]
    rows, columns = np.nonzero(part_bank(11, 3)[5] == 2)
    assert {(int(row), int(column)) for row, column in zip(rows + 1, columns + 1, strict=True)} == {
        (row, column) for row in range(3, 10) for column in range(4, 9) if abs(row - column) <= 1
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stride", "step"), STEPPINGS)
def test_stage1_equals_the_oracle(kind, stride, step):
    image = picture(kind)
    metrics = stage1(image, part_bank(), stride, step)
    assert metrics.dtype == np.float32
    expected = naive.stage1(image, part_bank(), stride, step)
    np.testing.assert_allclose(metrics, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("size", "band"), [(3, 1), (7, 3), (11, 3)])
def test_stage1_equals_the_oracle_for_other_parts(size, band):
    image, bank = picture("random"), part_bank(size, band)
    expected = naive.stage1(image, bank, (2, 2), (2, 2))
    np.testing.assert_allclose(stage1(image, bank, 2, 2), expected, rtol=0, atol=TOLERANCE)


def test_patch_counts_follow_the_rule():
    image = np.zeros((1080, 1920), np.float32)
    assert stage1(image, part_bank(), (2, 4)).shape == (269, 239, 6, 3)
    assert stage1(image[:100, :100], part_bank()).shape == (24, 24, 6, 3)
    assert stage1(image[:100, :100], part_bank(), step=2).shape == (47, 47, 6, 3)
    assert stage1(image[:7, :7], part_bank()).shape == (1, 1, 6, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [4, 2, 3.5, 1])
def test_stage2_equals_the_oracle(kind, p):
    reference = stage1(picture("random"), part_bank(), 2, 2)
    metrics = stage1(picture(kind), part_bank(), 2, 2)
    distances = stage2(metrics, reference, p)
    assert distances.dtype == np.float32
    expected = naive.stage2(metrics, reference, p)
    np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("weights", [(1, 5, 10), (1, 2, 3), (0, 0, 1)])
def test_scalar_map_and_attention_equal_the_oracle(weights):
    distances = np.random.default_rng(3).random((9, 7, 3), np.float32)
    scalar = scalar_map(distances, weights)
    assert scalar.dtype == np.float32
    np.testing.assert_allclose(scalar, naive.scalar_map(distances, weights), atol=TOLERANCE)
    shares = attention(scalar)
    assert shares.dtype == np.float32
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(shares, naive.attention(scalar), atol=TOLERANCE)


def test_attention_of_a_large_map_does_not_overflow():
    shares = attention(np.full((250, 250), 1000, np.float32))
    np.testing.assert_allclose(shares, 1 / 250**2, rtol=1e-4)


def test_natural_log_is_exact_to_two_units_in_the_last_place():
    values = np.geomspace(1e-30, 1e30, 4001).astype(np.float32)
    expected = np.log(values.astype(np.float64))
    ours = np.array([natural_log(value) for value in values])
    assert np.abs(ours - expected).max() <= 2 * np.spacing(np.float32(np.abs(expected).max()))
    assert natural_log(np.float32(1)) == 0


def test_comparison_is_stage2_weighted_and_averaged_over_nine_patches():
    reference = stage1(picture("random"), part_bank(), 2, 2)
    metrics = stage1(picture("gradient"), part_bank(), 2, 2)
    scalar = scalar_map(stage2(metrics, reference))
    padded = np.pad(scalar, 1, mode="reflect")
    rows, cols = scalar.shape
    expected = sum(padded[r : r + rows, c : c + cols] for r in range(3) for c in range(3)) / 9
    ours = Comparison(as_planes(reference)).smoothed_map(as_planes(metrics))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# ---- the published tables ----------------------------------------------------------------------


def shape(name, side):
    grey = cv2.cvtColor(cv2.imread(str(DATA / "shapes" / f"{name}.png")), cv2.COLOR_BGR2GRAY)
    nearest = np.arange(side) * len(grey) // side
    return grey[np.ix_(nearest, nearest)] / 255


@pytest.mark.parametrize("name", PUBLISHED["stage1_22x22"]["rows"])
def test_published_stage1_table(name):
    metrics = stage1(shape(name, 22), part_bank(11, 3, centre_weight=1), stride=11)
    assert metrics.shape == (1, 1, 6, 3)
    np.testing.assert_allclose(
        metrics.ravel(), PUBLISHED["stage1_22x22"]["rows"][name], rtol=0, atol=0.006
    )


@pytest.mark.parametrize("name", PUBLISHED["soart3_11x11"]["rows"])
def test_published_soart3_table(name):
    table = PUBLISHED["soart3_11x11"]
    ours = soart3(shape(name, 11), shape(table["reference"], 11))
    np.testing.assert_allclose(ours, table["rows"][name], rtol=0, atol=0.006)


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_named(bad):
    image = picture("random")
    image[3, 5] = bad
    with pytest.raises(ImageError, match=r"1 of 546 pixels are not finite.*row 3, column 5"):
        stage1(image, part_bank())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((6, 20)), "height of 6 pixels is smaller than one patch, which needs 7"),
        (np.zeros((20, 6)), "width of 6 pixels is smaller than one patch, which needs 7"),
        (np.zeros((20, 20, 3)), r"two dimensions, not 3: \(20, 20, 3\)"),
        (np.zeros(20), r"two dimensions, not 1: \(20,\)"),
        (np.zeros((0, 20)), r"empty: \(0, 20\)"),
        (np.full((20, 20), -0.25), "below 0, the lowest is -0.25"),
    ],
)
def test_a_picture_that_cannot_be_described_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        stage1(image, part_bank())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: part_bank(4), "odd and at least 3, not 4"),
        (lambda: part_bank(5, 5), "smaller than their size 5, not 5"),
        (lambda: part_bank(5, 2), "odd and smaller than their size 5, not 2"),
        (lambda: part_bank(5, 1, -1), "positive and finite, not -1"),
        (lambda: stage1(picture("random"), part_bank()[:6]), r"shape \(7, 5, 5\), not \(6, 5, 5\)"),
        (lambda: stage1(picture("random"), part_bank(), stride=0), "stride must be .* not 0"),
        (lambda: stage1(picture("random"), part_bank(), step=(2, 0)), "step must be"),
        (lambda: stage1(picture("random"), part_bank() * np.nan), "not finite or below 0"),
        (
            lambda: stage2(np.zeros((2, 2, 6, 3)), np.zeros((2, 3, 6, 3))),
            r"differ in shape: \(2, 2, 6, 3\) and \(2, 3, 6, 3\)",
        ),
        (lambda: stage2(np.zeros((2, 2)), np.zeros((2, 2))), "shape .rows, cols, 6, 3."),
        (
            lambda: stage2(np.full((2, 2, 6, 3), np.nan), np.zeros((2, 2, 6, 3))),
            "of the picture hold values that are not finite",
        ),
        (lambda: stage2(np.zeros((2, 2, 6, 3)), np.zeros((2, 2, 6, 3)), 0.5), "p must be"),
        (lambda: scalar_map(np.zeros((2, 2, 3)), (1, 2)), "three weights, not 2"),
        (lambda: attention(np.full((2, 2), np.inf)), "not finite"),
        (lambda: soart3(np.zeros(4), np.zeros(5)), "differ in length: 4 and 5"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ImageError, match=message):
        call()


# ---- both ways of running ----------------------------------------------------------------------


@once
def test_all_of_this_holds_without_the_compiler():
    check_without_the_compiler(__file__)
