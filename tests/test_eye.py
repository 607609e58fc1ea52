"""The eye: learning from few and many references, light, what is not in view, leave-one-out."""

import cv2
import numpy as np
import pytest

from inspectd.eye import RELEARN_UP_TO, STATED_LIMITS, Eye, filled, normalised, seen_patches
from inspectd.records import PatchGrid
from inspectd.settings import AlignmentSettings, Box, Program, Region, SoartcSettings

HEIGHT, WIDTH = 60, 80
METHODS = ["auto", "statistics", "nearest", "published"]
LIGHTS = ["none", "gain", "local"]
MODES = ["none", "shift", "rigid", "search"]


def part(seed, *, missing=None, light=1.0, shift=(0.0, 0.0)):
    """uint8 (60, 80): twelve plates of different sizes, so that no turn looks like another."""
    rng = np.random.default_rng(seed)
    picture = np.full((HEIGHT, WIDTH), 50.0, np.float32)
    for index in range(12):
        left, top = 6 + 18 * (index % 4), 5 + 18 * (index // 4)
        grey = rng.normal(160, 4)
        if index != missing:
            picture[top : top + 8 + index // 4, left : left + 6 + index % 4 * 2] = grey
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    picture = cv2.warpAffine(picture, move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
    picture = cv2.GaussianBlur(picture, (0, 0), 0.8) * light + rng.normal(0, 1, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def parts(count, **changes):
    return [part(seed, **changes) for seed in range(count)]


def jittered(count):
    """Parts that lie a little differently, as they do on a line."""
    rng = np.random.default_rng(0)
    return [part(seed, shift=tuple(rng.uniform(-1.5, 1.5, 2))) for seed in range(count)]


def program(mode="none", **changes):
    return Program(alignment=AlignmentSettings(mode=mode), **changes)


@pytest.mark.parametrize("count", [1, 2, 3, 5, RELEARN_UP_TO + 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("light", LIGHTS)
def test_any_number_of_references_tells_a_missing_plate(count, method, light):
    eye = Eye(program(method=method, light=light), parts(count))
    good = [eye.look(part(seed)).map for seed in range(100, 104)]
    bad = [eye.look(part(seed, missing=seed % 12)).map for seed in range(100, 104)]
    assert all(np.isfinite(values).all() for values in good + bad)
    assert min(values.max() for values in bad) > max(values.max() for values in good)
    maps = eye.leave_one_out()
    assert maps.shape == (count if count > 1 else 0, eye.grid.rows, eye.grid.cols)
    assert np.isfinite(maps).all()
    assert eye.stated_limit == STATED_LIMITS[method][min(count, 2) - 1]


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_is_judged_in_every_mode(mode):
    eye = Eye(program(mode), parts(6))
    sight = eye.look(part(50))
    assert sight.alignment.within
    assert sight.picture.shape == (HEIGHT, WIDTH)
    assert sight.picture.dtype == np.uint8
    assert set(sight.timings_ms) == {"align", "stage1", "stage2"}


@pytest.mark.parametrize("mode", ["shift", "rigid", "search"])
def test_alignment_takes_out_a_shift_that_none_stumbles_over(mode):
    moved = part(77, shift=(3.0, -2.5))
    unaligned, aligned = (Eye(program(one), jittered(10)) for one in ("none", mode))
    usual = aligned.look(part(77, shift=(0.3, 0.4))).map.max()
    assert aligned.look(moved).map.max() < 2.5 * usual
    assert unaligned.look(moved).map.max() > 2 * unaligned.look(part(77)).map.max()


@pytest.mark.parametrize("mode", ["shift", "rigid", "search"])
def test_a_defect_is_told_though_the_references_lie_differently(mode):
    eye = Eye(program(mode), jittered(10))
    good = eye.look(part(90, shift=(1.5, 1.0))).map.max()
    bad = eye.look(part(90, shift=(1.5, 1.0), missing=5)).map.max()
    assert bad > 3 * good


@pytest.mark.parametrize("light", ["gain", "local"])
def test_brighter_and_darker_pictures_score_alike(light):
    eye = Eye(program(light=light), [part(seed, light=1 + 0.02 * (seed % 5)) for seed in range(10)])
    limit = 2 * eye.leave_one_out().max()
    for change in (0.85, 1.2):
        assert eye.look(part(60, light=change)).map.max() < limit
        assert eye.look(part(60, light=change, missing=3)).map.max() > limit


def test_without_normalisation_a_change_of_light_counts():
    eyes = {light: Eye(program(light=light), parts(8)) for light in ("none", "gain")}
    dimmed = part(60, light=0.75)
    assert eyes["none"].look(dimmed).map.max() > 1.5 * eyes["gain"].look(dimmed).map.max()


def test_what_lies_beyond_the_picture_is_not_seen():
    eye = Eye(program("rigid"), parts(8))
    sight = eye.look(part(61, shift=(6.0, 0.0)))
    assert sight.alignment.pose.dx == pytest.approx(6.0, abs=0.3)
    assert not sight.seen[:, -1].any()
    assert sight.seen[3:-3, 3:-6].all()


def test_an_ignored_region_does_not_reach_the_map():
    box = Region(name="plate", box=Box(0.2, 0.2, 0.55, 0.6), ignore=True)
    eye = Eye(program(regions=(box,)), parts(8))
    assert not eye.judged.all()
    good = eye.look(part(62)).map
    bad = eye.look(part(62, missing=5)).map
    assert bad.max() < 1.5 * good.max()
    assert not eye.leave_one_out()[:, ~eye.judged].max() > eye.leave_one_out().max()


def test_closed_form_and_learning_anew_agree():
    references = parts(RELEARN_UP_TO + 8)
    eye = Eye(program(), references)
    closed = eye.leave_one_out().max(axis=(1, 2))
    anew = [
        Eye(program(), references[:index] + references[index + 1 :]).look(one).map.max()
        for index, one in enumerate(references)
    ]
    assert np.abs(np.log(closed / anew)).mean() < 0.05


def test_the_frame_need_not_be_one_of_the_references():
    frame = part(7, shift=(2.0, 1.0))
    eye = Eye(program("rigid"), parts(6), frame)
    pose = eye.look(part(80)).alignment.pose
    assert (pose.dx, pose.dy) == pytest.approx((-2.0, -1.0), abs=0.2)


def test_learning_twice_gives_the_same():
    one, other = (Eye(program("rigid"), parts(6)).look(part(70)).map for _ in range(2))
    assert np.array_equal(one, other)


# ---- the parts of it ---------------------------------------------------------------------------


def test_seen_patches_equal_a_plain_loop():
    rng = np.random.default_rng(1)
    seen = np.ones((40, 50), np.bool_)
    seen[rng.integers(0, 40, 12), rng.integers(0, 50, 12)] = False
    grid = PatchGrid(rows=16, cols=21, step=(2, 2), extent=(10, 10))
    for blur, reach in ((0.0, 0), (1.5, 2)):
        ours = seen_patches(seen, grid, blur)
        for row in range(grid.rows):
            for column in range(grid.cols):
                top, left = max(2 * row - reach, 0), max(2 * column - reach, 0)
                below, after = 2 * row + 10 + reach, 2 * column + 10 + reach
                assert ours[row, column] == seen[top:below, left:after].all()


def test_what_is_not_shown_is_filled_in_the_pictures_own_light():
    mean = np.linspace(0.2, 0.8, 200, dtype=np.float32).reshape(10, 20)
    seen = np.ones((10, 20), np.bool_)
    seen[:, :5] = False
    whole = filled(np.where(seen, mean * 0.5, 0).astype(np.float32), seen, mean)
    np.testing.assert_allclose(whole, mean * 0.5, rtol=1e-5)


@pytest.mark.parametrize("light", LIGHTS)
def test_normalised_pictures_can_be_described(light):
    settings = Program(light=light, soartc=SoartcSettings(blur=1.0, pedestal=0.1))
    for picture in (np.zeros((20, 30)), np.ones((20, 30)), np.eye(30)[:20]):
        lit = normalised(settings, picture.astype(np.float32))
        assert lit.dtype == np.float32
        assert np.isfinite(lit).all()
        assert (lit >= 0).all()


def test_the_published_method_sees_the_picture_as_it_is():
    picture = np.random.default_rng(0).random((20, 30), np.float32)
    plain = Program(method="published", light="none")
    assert np.array_equal(normalised(plain, picture), picture)
