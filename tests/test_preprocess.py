"""The way from a frame to the small grey picture."""

import cv2
import numpy as np
import pytest

from inspectd.errors import ImageError
from inspectd.imaging import preprocess
from inspectd.settings import RegionOfInterest


def exact_means(picture, width, height):
    """The mean over each result's area, pixel shares included, as two weight matrices say it."""

    def weights(length, parts):
        edges = np.arange(parts + 1) * length / parts
        begin, end = edges[:-1, None], edges[1:, None]
        pixel = np.arange(length)[None]
        return np.clip(np.minimum(end, pixel + 1) - np.maximum(begin, pixel), 0, 1) * parts / length

    rows, columns = weights(picture.shape[0], height), weights(picture.shape[1], width)
    return rows @ picture.astype(float) @ columns.T


def test_crop_is_a_view_on_the_region():
    frame = np.zeros((60, 80, 3), np.uint8)
    view = preprocess.crop(frame, RegionOfInterest(x=10, y=20, width=30, height=40))
    assert view.shape == (40, 30, 3)
    view[:] = 7
    assert (frame[20:60, 10:40] == 7).all()
    assert np.count_nonzero(frame) == view.size
    assert preprocess.crop(frame, None) is frame


@pytest.mark.parametrize("roi", [(51, 0, 30, 10), (0, 21, 10, 40), (80, 0, 1, 1)])
def test_crop_names_both_sizes_when_the_region_leaves_the_frame(roi):
    frame = np.zeros((60, 80), np.uint8)
    with pytest.raises(ImageError, match=r"80 x 60") as caught:
        preprocess.crop(frame, RegionOfInterest(*roi))
    assert str(list(roi)) in str(caught.value)


def test_grey_weighs_the_colours_in_the_order_blue_green_red():
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert preprocess.grey(pixels).tolist() == [[29, 150, 76, 255]]
    grey = np.zeros((5, 6), np.uint8)
    assert preprocess.grey(grey) is grey


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 6), np.float32),
        np.zeros((5, 6, 4), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 6), np.uint8),
    ],
    ids=["float", "four channels", "one axis", "empty"],
)
def test_grey_refuses_what_is_no_picture(pixels):
    with pytest.raises(ImageError):
        preprocess.grey(pixels)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((1456, 1088), 100, (100, 75)),
        ((1088, 1456), 100, (75, 100)),
        ((400, 400), 100, (100, 100)),
        ((200, 3), 100, (100, 2)),  # 1.5 is rounded upwards
        ((1000, 2), 100, (100, 1)),  # never below 1
        ((100, 50), 100, (100, 50)),
        ((60, 90), 100, (60, 90)),  # never enlarged
    ],
)
def test_reduced_size(size, longest, expected):
    assert preprocess.reduced_size(*size, longest) == expected


@pytest.mark.parametrize(
    ("shape", "longest"),
    [((109, 146), 100), ((1087, 1455), 100), ((401, 303), 97), ((64, 900), 30), ((200, 200), 100)],
)
def test_reduce_is_the_mean_over_each_area(shape, longest):
    picture = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    reduced = preprocess.reduce(picture, longest)
    height, width = reduced.shape
    assert (width, height) == preprocess.reduced_size(shape[1], shape[0], longest)
    assert reduced.dtype == np.uint8
    assert np.abs(reduced - exact_means(picture, width, height)).max() <= 0.5 + 1e-6


def test_reduce_is_right_beside_a_hard_edge():
    """Where halving first would be off by many grey levels."""
    for edge in range(700, 715):
        picture = np.zeros((1088, 1456), np.uint8)
        picture[:, edge:] = 255
        reduced = preprocess.reduce(picture, 100)
        assert np.abs(reduced - exact_means(picture, 100, 75)).max() <= 0.5 + 1e-6


def test_reduce_agrees_with_opencvs_area_averaging():
    picture = np.random.default_rng(6).integers(0, 256, (544, 728), dtype=np.uint8)
    opencv = cv2.resize(picture, (100, 75), interpolation=cv2.INTER_AREA)
    assert np.abs(preprocess.reduce(picture, 100).astype(int) - opencv).max() <= 1


def test_reduce_sums_a_large_white_picture_without_overflow():
    white = np.full((2900, 2905), 255, np.uint8)  # just above 2**31 / 255 pixels
    assert (preprocess.reduce(white, 50) == 255).all()


def test_reduce_takes_a_view_and_leaves_small_pictures_alone():
    frame = np.random.default_rng(7).integers(0, 256, (300, 400), dtype=np.uint8)
    view = frame[10:210, 20:320]
    assert (preprocess.reduce(view, 60) == preprocess.reduce(view.copy(), 60)).all()
    assert preprocess.reduce(view, 300) is view


def test_to_unit_spans_0_to_1_and_is_contiguous():
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    unit = preprocess.to_unit(picture[:, ::2])
    assert unit.dtype == np.float32
    assert unit.flags.c_contiguous
    assert preprocess.to_unit(picture).min() == 0.0
    assert preprocess.to_unit(picture).max() == 1.0
    assert unit[3, 4] == np.float32(picture[3, 8]) / np.float32(255)
