"""Whether a picture shows the empty station and nothing else, in whatever light and place."""

import cv2
import numpy as np
import pytest
from photographs import photographs

from inspectd.camera.files import find_images, read_image
from inspectd.camera.simulated import render
from inspectd.imaging.empty import BARE_SHARE, LEAST_PRESENCE, PARTS_SHARE, EmptyStation
from inspectd.imaging.preprocess import grey, reduce
from inspectd.records import Defect, GreyImage, Measure
from inspectd.settings import AlignmentSettings, Program, SimulatedCamera

HEIGHT, WIDTH = 60, 80
MODES = ["none", "shift", "rigid", "search"]


def ground(*, right: float = 0.0, down: float = 0.0, turn_deg: float = 0.0) -> GreyImage:
    """A board with tracks and a few marks, so much elsewhere; it goes on beyond the picture."""
    rng = np.random.default_rng(4)
    large = np.full((2 * HEIGHT, 2 * WIDTH), 70, np.float32)
    large[:, ::9] = large[:, 1::9] = 110
    for _ in range(40):
        x, y = (int(rng.integers(side)) for side in (2 * WIDTH, 2 * HEIGHT))
        cv2.circle(large, (x, y), 3, float(rng.integers(20, 200)), -1)
    large = cv2.GaussianBlur(large, (0, 0), 0.8)
    place = cv2.getRotationMatrix2D((WIDTH, HEIGHT), -turn_deg, 1.0)
    place[:, 2] += right - WIDTH / 2, down - HEIGHT / 2
    return cv2.warpAffine(large, place, (WIDTH, HEIGHT)).round().astype(np.uint8)


def with_part(seed: int, picture: GreyImage | None = None) -> GreyImage:
    """The same with a dark part on it, its place and grey a little different each time."""
    rng = np.random.default_rng(seed)
    shown = (ground() if picture is None else picture).copy()
    left, top = 24 + rng.integers(2), 18 + rng.integers(2)
    cv2.rectangle(shown, (left, top), (left + 30, top + 22), int(rng.integers(22, 28)), -1)
    return shown


def lit(picture: GreyImage, gain: float, slope: float = 0.0, noise: float = 0.0) -> GreyImage:
    """In another light: brighter as a whole, and more so to the right."""
    across = np.linspace(-1, 1, picture.shape[1])
    sensor = np.random.default_rng(2).normal(0, noise, picture.shape)
    return np.clip(picture * (gain + slope * across) + sensor, 0, 255).round().astype(np.uint8)


def station(
    *pictures: GreyImage, mode: str = "none", light: str = "gain", **changes
) -> EmptyStation:
    program = Program(light=light, alignment=AlignmentSettings(mode=mode, **changes))
    references = [with_part(seed) for seed in range(6)]
    return EmptyStation(pictures or (ground(),), references, program, light_spread=1.0)


def presence(station: EmptyStation, picture: GreyImage) -> Measure:
    return station.compare(picture, recognised=False)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "picture",
    [
        ground(),
        lit(ground(), 0.85),
        lit(ground(), 1.15, slope=0.08),
        lit(ground(), 1.0, noise=3.0),
        ground(right=0.4, down=-0.3),
    ],
    ids=["as taught", "darker", "brighter to the right", "noisy", "shaken"],
)
def test_the_empty_station_is_empty(mode, picture):
    found = presence(station(mode=mode), picture)
    assert found.low == LEAST_PRESENCE
    assert not found.within
    assert station(mode=mode).compare(picture, recognised=True)[1].value == 1.0


def half_a_part() -> GreyImage:
    shown = with_part(3)
    shown[:, : WIDTH // 2] = ground()[:, : WIDTH // 2]
    return shown


def with_object(contrast: int, side: int, left: int = 8, top: int = 40) -> GreyImage:
    shown = ground().astype(np.int16)
    shown[top : top + side, left : left + side] += contrast
    return np.clip(shown, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "picture",
    [
        with_part(9),
        lit(with_part(9), 0.8),
        half_a_part(),
        255 - with_part(9),
        with_object(60, 3),
        with_object(-45, 4),
        with_object(60, 4, left=0, top=0),
        with_object(60, 4, left=WIDTH - 4, top=HEIGHT - 4),
        lit(with_object(40, 4), 1.2, slope=-0.05, noise=3.0),
        np.full((HEIGHT, WIDTH), 76, np.uint8),
        lit(ground(), 2.0),
        lit(ground(), 0.5),
    ],
    ids=[
        "a part",
        "a part in less light",
        "half a part",
        "something else",
        "a small bright object",
        "a small dark object",
        "in the first corner",
        "in the last corner",
        "in other light and noise",
        "a sheet over the station",
        "twice the light",
        "half the light",
    ],
)
def test_whatever_else_is_there_is_seen(mode, picture):
    assert presence(station(mode=mode), picture).within


def test_light_that_never_changes_explains_nothing():
    assert not presence(station(light="none"), ground()).within
    assert presence(station(light="none"), lit(ground(), 1.15)).within


def test_the_nearest_of_several_pictures_counts():
    open_lid, closed_lid = ground(), with_object(90, 12)
    for taught in ((open_lid, closed_lid), (closed_lid, open_lid)):
        assert not presence(station(*taught), lit(open_lid, 1.1)).within
        assert not presence(station(*taught), lit(closed_lid, 0.9)).within
    assert presence(station(open_lid), closed_lid).within


@pytest.mark.parametrize(
    ("mode", "follows"), [("none", ""), ("shift", "s"), ("rigid", "sr"), ("search", "")]
)
def test_a_station_that_moved_is_empty_as_far_as_a_part_may_move(mode, follows):
    shifted, turned = ground(right=3.4, down=-2.2), ground(right=1.0, turn_deg=3.0)
    assert presence(station(mode=mode), shifted).within is ("s" not in follows)
    assert presence(station(mode=mode), turned).within is ("r" not in follows)
    if follows:
        assert presence(station(mode=mode, max_shift=0.03), shifted).within


@pytest.mark.parametrize("left", [0, 1, 30, WIDTH - 4])
def test_an_object_in_a_station_that_moved_is_seen_at_its_very_border(left):
    shifted = ground(right=4.0)
    assert not presence(station(mode="rigid"), shifted).within
    shifted[30:34, left : left + 4] = 255
    assert presence(station(mode="rigid"), shifted).within


def test_a_recognised_part_on_little_ground_is_not_looked_for_elsewhere():
    """What costs time is done only where a station that has moved can be the explanation."""
    moved = ground(right=4.0)
    compared = station(mode="rigid").compare(with_part(8, moved), recognised=True)
    assert compared == station(mode="none").compare(with_part(8, moved), recognised=True)


def test_the_bounds_come_from_the_references():
    found, bare = station().compare(with_part(9), recognised=True)
    assert found.value > 2 * LEAST_PRESENCE
    assert found.usual == pytest.approx(found.value, rel=0.3)
    assert bare.high == pytest.approx(bare.usual + BARE_SHARE * (1 - bare.usual), abs=0.02)
    assert bare.within
    assert not station().compare(with_object(60, 4), recognised=True)[1].within


def test_a_faint_part_is_a_part():
    faint = ground()
    faint[20:40, 30:50] += 9
    references = [faint, lit(faint, 1.05)]
    taught = EmptyStation([ground()], references, Program(), light_spread=1.05)
    found, _ = taught.compare(faint, recognised=True)
    assert found.low == pytest.approx(PARTS_SHARE * found.value, rel=0.2)
    assert found.within
    assert not taught.tells_parts_apart
    assert station().tells_parts_apart


def test_a_reference_without_a_part_leaves_nothing_to_call_empty():
    references = [with_part(0), with_part(1), ground()]
    taught = EmptyStation([ground()], references, Program(), light_spread=1.0)
    assert not taught.tells_parts_apart
    assert presence(taught, lit(ground(), 1.05, noise=2.0)).within


def test_a_black_station_says_nothing_of_the_light():
    black = np.full((HEIGHT, WIDTH), 2, np.uint8)
    taught = station(black)
    assert not presence(taught, black + 1).within
    assert presence(taught, with_part(3, black)).within


# ---- the simulated nest and photographs ----------------------------------------------------------


@pytest.mark.parametrize("resolution", [50, 100, 200])
def test_the_simulated_nest_is_told_from_every_part(resolution):
    camera = SimulatedCamera(width=364, height=272, seed=6, noise=4.0, light_drift=0.1)

    def picture(number: int, defect: Defect | None = None, *, empty: bool = False) -> GreyImage:
        return reduce(render(camera, number, defect, empty=empty)[0], resolution)

    taught = EmptyStation(
        [picture(number, empty=True) for number in range(3)],
        [picture(number) for number in range(6)],
        Program(resolution=resolution),
        light_spread=1.2,
    )
    nests = [presence(taught, picture(number, empty=True)) for number in range(60, 100, 4)]
    parts = [presence(taught, picture(number, defect)) for number in (70, 80) for defect in Defect]
    assert max(nest.value for nest in nests) < 0.8 * LEAST_PRESENCE
    assert min(part.value for part in parts) > 2 * LEAST_PRESENCE


@pytest.mark.parametrize("mode", MODES)
def test_a_board_without_its_transistor(mode):
    folder = photographs("transistor")

    def pictures(*names: str) -> list[GreyImage]:
        places = [folder / name for name in names]
        files = [place / file for place in places for file in find_images(place)]
        return [reduce(grey(read_image(file)), 100) for file in files]

    misplaced = pictures("test/misplaced")
    empty = misplaced.pop(1)
    program = Program(alignment=AlignmentSettings(mode=mode))
    taught = EmptyStation([empty], pictures("good")[:30], program, light_spread=1.2)
    for gain in (0.85, 1.0, 1.15):
        assert not presence(taught, lit(empty, gain, slope=0.05, noise=1.0)).within
    parts = misplaced + pictures("test/good", "test/bent_lead", "test/damaged_case")
    assert all(presence(taught, part).value > 4 * LEAST_PRESENCE for part in parts)
