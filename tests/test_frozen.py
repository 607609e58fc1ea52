"""Two pictures of a live camera that are alike to the last pixel."""

import numpy as np
import pytest

from inspectd.imaging.frozen import same_picture


@pytest.fixture(params=[(40, 60), (40, 60, 3)], ids=["grey", "colour"])
def picture(request):
    return np.random.default_rng(1).integers(0, 256, request.param, np.uint8)


def test_a_picture_is_the_same_as_its_copy(picture):
    assert same_picture(picture, picture.copy())


@pytest.mark.parametrize("row", [0, 3, 39])
def test_one_pixel_is_enough_to_differ(picture, row):
    other = picture.copy()
    other[row, 5] ^= 1
    assert not same_picture(picture, other)


def test_pictures_of_different_sizes_differ(picture):
    assert not same_picture(picture, picture[:-1])


@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_of_nothing_says_nothing_of_its_age(value):
    flat = np.full((40, 60), value, np.uint8)
    assert not same_picture(flat, flat.copy())
