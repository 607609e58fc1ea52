"""The kernels that read a whole frame against plain loops, compiled and interpreted."""

import naive_frame as naive
import numpy as np
import pytest
from interpreted import check_without_the_compiler, once

from inspectd.imaging import preprocess
from inspectd.imaging.frame_kernels import count_clipped, mean_common_slopes


def picture(shape, seed=8):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "longest"),
    [((37, 50), 30), ((41, 64), 16), ((3, 60), 20), ((60, 7), 59), ((1, 9), 2)],
)
def test_the_reduced_picture_has_the_mean_of_each_area(shape, longest):
    full = picture(shape)
    reduced = preprocess.reduce(full, longest)
    expected = naive.mean_areas(full, *reduced.shape)
    off = np.abs(reduced - expected)
    assert off.max() <= 0.5 + 1e-9
    clear = np.abs(expected % 1.0 - 0.5) > 1e-9  # of a half, either neighbour is as near
    assert (reduced == np.rint(expected))[clear].all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (31, 47)])
def test_clipped_pixels_are_counted(shape):
    full = picture(shape)
    full[0, 0] = 2
    for black, white in ((2, 253), (0, 255), (100, 101)):
        assert count_clipped(full, black, white) == naive.clipped(full, black, white)


@pytest.mark.parametrize("shape", [(3, 3), (4, 9), (33, 21)])
def test_slopes_side_by_side_are_multiplied(shape):
    full = picture(shape)
    assert mean_common_slopes(full) == pytest.approx(naive.mean_common_slopes(full), rel=1e-12)


def test_nothing_overflows_on_the_hardest_edges():
    stripes = np.zeros((16, 4000), np.uint8)
    stripes[:, 2::4] = stripes[:, 3::4] = 255
    assert mean_common_slopes(stripes) == 255.0**2
    assert preprocess.reduce(np.full((4000, 16), 255, np.uint8), 100).min() == 255


@pytest.mark.parametrize("kind", ["view", "read-only"])
def test_a_frame_of_another_kind_is_read_the_same_by_the_same_kernel(kind):
    full = picture((40, 60))
    other = np.repeat(full, 2, axis=1)[:, ::2] if kind == "view" else full.copy()
    other.flags.writeable = kind == "view"
    given = preprocess.for_kernels(other)
    assert given.flags.c_contiguous
    assert given.flags.writeable
    assert (given == full).all()
    assert preprocess.for_kernels(full) is full


@once
def test_the_same_without_the_compiler():
    check_without_the_compiler(__file__)
