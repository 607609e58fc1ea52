"""Which part of the frame is cut, and where it lies on the sensor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspectd.camera.crop import SensorField, part_to_cut, reduced
from inspectd.records import View
from inspectd.settings import RegionOfInterest

FRAME = (1456, 1088)
FULL = SensorField(FRAME, (0, 0, 1456, 1088))
BINNED = SensorField((2028, 1520), (0, 0, 4056, 3040))
INNER = SensorField((1332, 990), (696, 528, 2664, 1980))
"""The fast mode of the IMX477: the middle of the pixel array, two by two pixels to one."""


def test_without_a_region_the_whole_frame_is_cut():
    assert part_to_cut(None, FRAME) == (0, 0, 1456, 1088)


@pytest.mark.parametrize("region", [(1400, 0, 57, 100), (0, 1000, 100, 89), (2000, 2000, 10, 10)])
def test_a_region_that_leaves_the_frame_cuts_nothing(region):
    assert part_to_cut(RegionOfInterest(*region), FRAME) == (0, 0, 1456, 1088)


@pytest.mark.parametrize(
    ("region", "part"),
    [
        ((100, 50, 300, 200), (100, 50, 300, 200)),
        ((101, 51, 300, 200), (100, 50, 302, 202)),
        ((101, 51, 299, 199), (100, 50, 300, 200)),
        ((700, 500, 10, 10), (672, 472, 64, 64)),
        ((0, 0, 1, 1), (0, 0, 64, 64)),
        ((1455, 1087, 1, 1), (1392, 1024, 64, 64)),
    ],
)
def test_the_part_holds_the_region_and_is_even(region, part):
    assert part_to_cut(RegionOfInterest(*region), FRAME) == part


@given(
    x=st.integers(0, 1455),
    y=st.integers(0, 1087),
    width=st.integers(1, 1456),
    height=st.integers(1, 1088),
)
def test_every_region_of_the_frame_is_held_within_it(x, y, width, height):
    region = RegionOfInterest(x, y, min(width, 1456 - x), min(height, 1088 - y))
    left, top, across, down = part_to_cut(region, FRAME)
    assert 0 <= left <= region.x
    assert 0 <= top <= region.y
    assert region.x + region.width <= left + across <= 1456
    assert region.y + region.height <= top + down <= 1088
    assert min(across, down) >= 64
    assert not any(value % 2 for value in (left, top, across, down))


@pytest.mark.parametrize(
    ("size", "times", "expected"),
    [((1456, 1088), 2, (728, 544)), ((302, 202), 3, (100, 68)), ((64, 64), 8, (8, 8)),
     ((300, 200), 1, (300, 200))],
)  # fmt: skip
def test_a_reduced_size_is_even(size, times, expected):
    assert reduced(size, times) == expected


def test_a_mode_that_reads_every_pixel_has_its_own_coordinates():
    assert FULL.to_sensor((100, 50, 302, 202)) == (100, 50, 302, 202)
    assert FULL.to_frame((100, 50, 302, 202)) == View(100, 50, 302, 202)


def test_a_binned_mode_counts_half_the_pixels():
    assert BINNED.to_sensor((100, 50, 302, 202)) == (200, 100, 604, 404)
    assert BINNED.to_frame((200, 100, 604, 404)) == View(100, 50, 302, 202)


def test_a_mode_that_reads_the_middle_begins_there():
    assert INNER.to_sensor((0, 0, 1332, 990)) == INNER.area
    assert INNER.to_sensor((100, 50, 302, 202)) == (896, 628, 604, 404)
    assert INNER.to_frame((896, 628, 604, 404)) == View(100, 50, 302, 202)


def test_rounding_is_forgiven_and_another_place_is_not():
    asked = INNER.to_sensor((100, 50, 302, 202))
    assert INNER.alike((894, 630, 600, 408), asked)
    assert not INNER.alike(INNER.to_sensor((105, 50, 302, 202)), asked)
    assert not INNER.alike(INNER.area, asked)
