"""Alignment: its kernels against the plain-loop oracle, and parts moved by known amounts."""

import math

import cv2
import naive_align as naive
import numpy as np
import pytest
from interpreted import INTERPRETED, check_without_the_compiler, once

from inspectd.errors import ImageError
from inspectd.imaging import kernels
from inspectd.imaging.align import FOUND, Aligner, to_picture
from inspectd.imaging.light import local_contrast
from inspectd.imaging.pyramid import middle, template_planes
from inspectd.records import Pose
from inspectd.settings import AlignmentSettings

compiled_only = pytest.mark.skipif(INTERPRETED, reason="whole alignments take minutes interpreted")

# ---- kernels -----------------------------------------------------------------------------------

POSES = [
    (0.0, 0.0, 0.0),
    (1.3, -0.7, 0.0),
    (-2.4, 3.1, 0.2),
    (0.5, 0.5, math.pi / 2),
    (40.0, 0.0, 0.1),
    (4.0, -6.0, 3.0),
]
SHAPES = [(18, 23), (16, 16)]


def smooth_noise(shape, seed, sigma=1.5):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), sigma)
    return (noise / noise.std()).astype(np.float32)


def pair(shape):
    return smooth_noise(shape, 1), smooth_noise(shape, 2), middle(shape, 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pose", POSES)
def test_warp_equals_the_oracle(shape, pose):
    _, picture, centre = pair(shape)
    out, seen = np.empty(shape, np.float32), np.empty(shape, np.bool_)
    kernels.warp(picture, np.array(pose), centre, out, seen)
    expected, expected_seen = naive.warp(picture, pose, centre, shape)
    np.testing.assert_array_equal(seen, expected_seen)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("pose", POSES)
def test_normal_equations_equal_the_oracle(pose):
    template, picture, centre = pair((18, 23))
    planes = template_planes(template, centre)
    sums, work = np.empty((5, 6)), np.empty(23, np.float32)
    light = (1.2, -0.1)
    seen = kernels.normal_equations(planes, picture, centre, np.array(pose), light, work, sums)
    count, matrix, side = naive.normal_equations(template, picture, centre, pose, light)
    assert seen == count
    lower = np.tril_indices(5)
    np.testing.assert_allclose(sums[:, :5][lower], matrix[lower], rtol=1e-4, atol=2e-2)
    np.testing.assert_allclose(sums[:, 5], side, rtol=1e-4, atol=2e-2)


def test_solve_equals_numpy():
    rng = np.random.default_rng(3)
    root = rng.standard_normal((5, 8))
    matrix, side = root @ root.T, rng.standard_normal(5)
    sums = np.column_stack([matrix, side])
    assert kernels.solve(sums)
    damped = matrix + np.diag(np.diag(matrix)) * 1e-3
    np.testing.assert_allclose(sums[:, 5], np.linalg.solve(damped, side), rtol=1e-6)


def test_solve_refuses_what_is_no_sum_of_squares():
    assert not kernels.solve(np.column_stack([-np.eye(5), np.ones(5)]))
    assert not kernels.solve(np.full((5, 6), np.nan))


@pytest.mark.parametrize("pose", [pose for pose in POSES if pose[0] < 40])
def test_match_equals_the_oracle(pose):
    template, picture, centre = pair((18, 23))
    cover, after, before = kernels.match(
        template,
        picture,
        centre,
        np.array(pose),
        np.empty(23, np.float32),
        np.empty(5),
        np.empty(5),
    )
    shown, seen = naive.warp(picture, pose, centre, template.shape)
    assert cover == pytest.approx(seen.mean())
    assert after == pytest.approx(naive.correlation(template[seen], shown[seen]), abs=1e-4)
    assert before == pytest.approx(naive.correlation(template[seen], picture[seen]), abs=1e-4)


def test_match_of_what_is_not_seen_is_nothing():
    template, picture, centre = pair((18, 23))
    work = np.empty(23, np.float32), np.empty(5), np.empty(5)
    result = kernels.match(template, picture, centre, np.array([90.0, 0.0, 0.0]), *work)
    assert tuple(result) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(18, 23), (16, 16), (17, 20)])
@pytest.mark.parametrize("pose", [(0.0, 0.0, 0.0), (-2.4, 3.1, 0.2)])
def test_elastic_sums_equal_the_oracle(shape, pose):
    template, picture, centre = pair(shape)
    rows, cols = -(-shape[0] // 4), -(-shape[1] // 4)
    flow = np.random.default_rng(5).uniform(-2, 2, (2, rows, cols)).astype(np.float32)
    pulls = np.empty((2, rows, cols), np.float32)
    kernels.elastic_sums(
        template_planes(template, centre),
        picture,
        centre,
        np.array(pose),
        flow,
        np.empty((4, cols * 4), np.float32),
        np.empty(shape[1], np.bool_),
        pulls,
    )
    expected = naive.elastic_sums(template, picture, centre, pose, flow)
    np.testing.assert_allclose(pulls, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(5, 6), (9, 9), (2, 7)])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_smooth_equals_the_oracle(shape, sigma):
    field = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    taps = cv2.getGaussianKernel(2 * round(4 * sigma) + 1, sigma, cv2.CV_32F).ravel()
    expected = naive.smooth(field, taps)
    kernels.smooth(field, taps, np.empty_like(field))
    np.testing.assert_allclose(field, expected, atol=1e-5)


# ---- light -------------------------------------------------------------------------------------


def test_local_contrast_is_the_deviation_in_units_of_the_neighbourhood():
    picture = part()
    mean = cv2.GaussianBlur(picture, (0, 0), 8.0, borderType=cv2.BORDER_REFLECT_101)
    squares = cv2.GaussianBlur(
        (picture - mean) ** 2, (0, 0), 8.0, borderType=cv2.BORDER_REFLECT_101
    )
    expected = (picture - mean) / (np.sqrt(squares) + 0.05)
    difference = np.abs(local_contrast(picture) - expected)
    assert difference.mean() < 0.02
    assert difference.max() < 0.2


def test_local_contrast_takes_out_smooth_changes_of_the_light():
    picture = part()
    ramp = np.linspace(0.7, 1.3, picture.shape[1], dtype=np.float32)
    change = np.abs(local_contrast(picture * ramp) - local_contrast(picture))
    assert change.mean() < 0.1 * np.abs(local_contrast(picture)).mean()


def test_local_contrast_writes_where_it_is_told():
    picture, out = part(), np.empty((90, 100), np.float32)
    assert local_contrast(picture, out) is out
    np.testing.assert_array_equal(out, local_contrast(picture))


# ---- whole alignments --------------------------------------------------------------------------


def part(*, shape=(90, 100), seed=0, noise=0.01, gain=1.0, missing=False, pose=(0, 0, 0)):
    """An asymmetrical part on a ground without structure, drawn where the pose puts it."""
    height, width = shape
    scale, drawn = 8, 8 * min(shape) // 90
    canvas = np.full((height * scale, width * scale), 60, np.uint8)
    if not missing:
        for corner, size, grey in [
            ((24, 20), (52, 50), 150),
            ((30, 26), (12, 9), 230),
            ((30, 52), (38, 7), 90),
            ((58, 28), (10, 16), 200),
            ((44, 40), (6, 6), 20),
        ]:
            x, y = corner[0] * drawn, corner[1] * drawn
            cv2.rectangle(canvas, (x, y), (x + size[0] * drawn, y + size[1] * drawn), grey, -1)
    cosine, sine = math.cos(pose[2]), math.sin(pose[2])
    x, y = width * scale / 2 - 0.5, height * scale / 2 - 0.5
    turn = np.array([[cosine, -sine], [sine, cosine]])
    shift = np.array([x, y]) + np.array(pose[:2]) * scale - turn @ [x, y]
    moved = cv2.warpAffine(
        canvas, np.column_stack([turn, shift]), canvas.shape[::-1], borderValue=60
    )
    small = cv2.resize(moved, (width, height), interpolation=cv2.INTER_AREA) / 255 * gain
    small += noise * np.random.default_rng(seed).standard_normal(shape)
    return np.clip(small, 0, 1).astype(np.float32)


def learned(mode, count=4, **settings):
    pictures = [part(seed=100 + index) for index in range(count)]
    return Aligner.learn(pictures, pictures[0], AlignmentSettings(mode=mode, **settings))[0]


def assert_pose(found, expected, pixels=0.1, degrees=0.1):
    assert found.dx == pytest.approx(expected[0], abs=pixels)
    assert found.dy == pytest.approx(expected[1], abs=pixels)
    turn = math.remainder(found.rotation - expected[2], math.tau)
    assert math.degrees(turn) == pytest.approx(0, abs=degrees)


@compiled_only
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "pose",
    [(0.4, -0.3, 0.01), (3.2, 2.1, math.radians(4)), (-6.5, 5.0, math.radians(-7)), (9, 0, 0)],
)
def test_small_shifts_and_rotations_are_recovered(count, pose):
    placement = learned("rigid", count).place(part(seed=1, pose=pose, gain=0.8))
    assert placement.alignment.within
    assert_pose(placement.alignment.pose, pose)
    assert placement.alignment.match > placement.alignment.match_before
    off = np.abs(placement.picture - part(noise=0, gain=0.8))[placement.seen]
    assert off.mean() < 0.02


@compiled_only
@pytest.mark.parametrize("shape", [(90, 100), (75, 100), (99, 61), (300, 420)])
def test_every_shape_is_aligned(shape):
    anchor = part(shape=shape, seed=3)
    aligner, _ = Aligner.learn([anchor], anchor, AlignmentSettings())
    pose = (2.6, -3.4, math.radians(3))
    found = aligner.place(part(shape=shape, seed=4, pose=pose)).alignment
    assert_pose(found.pose, pose, degrees=0.2)


@compiled_only
def test_mode_shift_never_turns():
    found = learned("shift").place(part(seed=1, pose=(2.5, -4.0, math.radians(2)))).alignment
    assert found.pose.rotation == 0.0
    assert_pose(found.pose, (2.5, -4.0, 0), pixels=0.5)


@compiled_only
@pytest.mark.parametrize(
    ("mode", "pose"),
    [
        ("rigid", (14, 0, 0)),
        ("rigid", (-12, 15, 0)),
        ("rigid", (0, 0, math.radians(14))),
        ("rigid", (3, -2, math.radians(-22))),
        ("shift", (0, 16, 0)),
    ],
)
def test_a_part_beyond_the_limits_is_reported_with_its_offset(mode, pose):
    picture = part(seed=1, pose=pose)
    placement = learned(mode).place(picture)
    assert not placement.alignment.within
    assert_pose(placement.alignment.pose, pose, pixels=0.2, degrees=0.2)
    np.testing.assert_array_equal(placement.picture, picture)


@compiled_only
def test_the_limits_are_those_of_the_program():
    picture = part(seed=1, pose=(4, 0, math.radians(3)))
    assert learned("rigid").place(picture).alignment.within
    assert not learned("rigid", max_shift=0.03).place(picture).alignment.within
    assert not learned("rigid", max_rotation_deg=2.0).place(picture).alignment.within


@compiled_only
def test_a_round_part_is_not_said_to_be_turned():
    def ring(seed, dx):
        canvas = np.full((800, 800), 40, np.uint8)
        cv2.circle(canvas, (400 + round(8 * dx), 400), 220, 200, 60)
        small = cv2.resize(canvas, (100, 100), interpolation=cv2.INTER_AREA) / 255
        noise = 0.02 * np.random.default_rng(seed).standard_normal((100, 100))
        return (small + noise).clip(0, 1).astype(np.float32)

    aligner, _ = Aligner.learn([ring(0, 0)], ring(0, 0), AlignmentSettings())
    for dx in (0, 5, 9):
        found = aligner.place(ring(1, dx)).alignment
        assert found.within
        assert found.pose.dx == pytest.approx(dx, abs=0.2)


WITHOUT_A_PART = {
    "noise": lambda: np.random.default_rng(9).random((90, 100), np.float32),
    "flat": lambda: np.full((90, 100), 0.3, np.float32),
    "missing": lambda: part(seed=1, missing=True),
}


@compiled_only
@pytest.mark.parametrize("mode", ["shift", "rigid"])
@pytest.mark.parametrize("kind", WITHOUT_A_PART)
def test_what_cannot_be_aligned_stays_as_it_is(mode, kind):
    placement = learned(mode).place(WITHOUT_A_PART[kind]())
    assert placement.alignment.within
    assert placement.alignment.pose == Pose()
    assert placement.alignment.match == pytest.approx(placement.alignment.match_before)


@compiled_only
@pytest.mark.parametrize(
    "pose",
    [
        (0, 0, math.radians(90)),
        (0, 0, math.radians(180)),
        (20, -15, 0),
        (-40, 0, 0),
        (8, 22, math.radians(-133)),
    ],
)
@pytest.mark.parametrize("count", [1, 4])
def test_search_finds_the_part_anywhere(pose, count):
    found = learned("search", count).place(part(seed=1, pose=pose, gain=0.9)).alignment
    assert found.within
    assert found.match > 0.8
    assert_pose(found.pose, pose, pixels=0.2, degrees=0.2)


@compiled_only
@pytest.mark.parametrize("kind", WITHOUT_A_PART)
def test_search_says_when_the_part_is_not_found(kind):
    alignment = learned("search").place(WITHOUT_A_PART[kind]()).alignment
    assert not alignment.within
    assert alignment.match < FOUND


@compiled_only
def test_search_holds_to_its_limits():
    aligner = learned("search", max_rotation_deg=30.0, max_shift=0.2)
    assert aligner.place(part(seed=1, pose=(12, 0, math.radians(25)))).alignment.within
    assert not aligner.place(part(seed=1, pose=(30, 0, 0))).alignment.within
    assert not aligner.place(part(seed=1, pose=(0, 0, math.radians(33)))).alignment.within


@compiled_only
def test_the_elastic_step_takes_out_a_small_smooth_displacement():
    aligner = learned("rigid")
    clean = part(noise=0)
    y, x = np.mgrid[:90, :100].astype(np.float32)
    bump = 1.5 * np.exp(-((x - 50) ** 2 + (y - 45) ** 2) / (2 * 12**2)).astype(np.float32)
    picture = cv2.remap(clean, x + bump, y, cv2.INTER_LINEAR)
    before = np.abs(picture - clean)[30:60, 30:70].mean()
    after = np.abs(aligner.place(picture).picture - clean)[30:60, 30:70].mean()
    assert after < before / 2


@compiled_only
def test_the_elastic_step_does_not_bring_back_what_is_missing():
    aligner, complete = learned("rigid"), part(noise=0)
    picture = part(seed=1)
    picture[28:35, 30:43] = picture[45, 26]
    placed = aligner.place(picture).picture
    assert np.abs(placed - complete)[28:35, 31:42].mean() > 0.25


@compiled_only
@pytest.mark.parametrize("mode", ["rigid", "search"])
def test_the_template_keeps_the_anchors_frame(mode):
    poses = [(0, 0, 0), (5, 3, 0.05), (6, 2, 0.08), (4, 4, 0.06), (7, 3, 0.03)]
    pictures = [part(seed=20 + index, pose=pose) for index, pose in enumerate(poses)]
    settings = AlignmentSettings(mode=mode)
    _, placements = Aligner.learn(pictures, pictures[0], settings)
    for placement, pose in zip(placements, poses, strict=True):
        assert_pose(placement.alignment.pose, pose, pixels=0.15, degrees=0.2)
    _, others = Aligner.learn(pictures[2:], pictures[0], settings)
    for placement, pose in zip(others, poses[2:], strict=True):
        assert_pose(placement.alignment.pose, pose, pixels=0.15, degrees=0.2)


@compiled_only
def test_mode_none_leaves_every_picture_alone():
    pictures = [part(seed=index, pose=(index, 0, 0)) for index in range(3)]
    aligner, placements = Aligner.learn(pictures, pictures[0], AlignmentSettings(mode="none"))
    for placement, picture in zip(
        [*placements, aligner.place(pictures[2])], [*pictures, pictures[2]], strict=True
    ):
        np.testing.assert_array_equal(placement.picture, picture)
        assert placement.seen.all()
        assert placement.alignment.pose == Pose()
        assert placement.alignment.within


@compiled_only
@pytest.mark.parametrize("mode", ["shift", "rigid", "search"])
def test_nothing_is_left_from_one_picture_to_the_next(mode):
    aligner, first = learned(mode), part(seed=1, pose=(2, -3, 0.05))
    before = aligner.place(first)
    kept = before.picture.copy()
    for picture in (part(seed=2, pose=(-4, 6, -0.1)), part(missing=True), np.zeros_like(first)):
        aligner.place(picture)
    again = aligner.place(first)
    np.testing.assert_array_equal(before.picture, kept)
    np.testing.assert_array_equal(again.picture, kept)
    assert again.alignment == before.alignment


@compiled_only
def test_learning_twice_gives_the_same():
    pictures = [part(seed=index, pose=(index, 0, 0)) for index in range(4)]
    one, other = (Aligner.learn(pictures, pictures[0], AlignmentSettings()) for _ in range(2))
    for first, second in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(first.picture, second.picture)
        assert first.alignment == second.alignment


def test_pictures_too_small_to_align_are_refused():
    tiny = np.zeros((12, 40), np.float32)
    with pytest.raises(ImageError, match="40 x 12 pixels is too small"):
        Aligner.learn([tiny], tiny, AlignmentSettings())


def test_points_go_where_the_pose_puts_them():
    pose = Pose(dx=3.0, dy=-2.0, rotation=math.radians(90))
    assert to_picture(pose, 50.0, 30.0, (60, 100)) == pytest.approx((53.0, 28.0))
    assert to_picture(pose, 60.0, 30.0, (60, 100)) == pytest.approx((53.0, 38.0))


# ---- both ways of running ----------------------------------------------------------------------


@once
def test_the_kernels_hold_without_the_compiler():
    check_without_the_compiler(__file__)
