"""The simulated camera: the same number is the same picture, and its truth is true."""

from __future__ import annotations

import cv2
import msgspec
import numpy as np
import pytest

from inspectd.camera.simulated import SimulatedCamera, render, truth_of
from inspectd.records import Defect, Truth
from inspectd.settings import SimulatedCamera as SimulatedSettings

GOOD = SimulatedSettings(rate=1000.0)
SMALL = SimulatedSettings(width=182, height=136, rate=1000.0)


def changed(settings: SimulatedSettings, **values: object) -> SimulatedSettings:
    return msgspec.structs.replace(settings, **values)


def test_a_frame_is_the_same_whatever_was_drawn_before():
    settings = changed(SMALL, defect_rate=0.5, seed=3)
    forwards = [render(settings, number) for number in range(12)]
    for number in reversed(range(12)):
        pixels, truth = render(settings, number)
        assert np.array_equal(pixels, forwards[number][0])
        assert truth == forwards[number][1]


def test_numbers_and_seeds_differ():
    pictures = [render(changed(SMALL, seed=seed), n)[0] for seed in (0, 1) for n in (0, 1)]
    assert len({picture.tobytes() for picture in pictures}) == 4


@pytest.mark.parametrize("size", [(160, 120), (728, 544), (640, 160), (200, 600), (1700, 1280)])
def test_frames_have_the_size_asked_for(size):
    width, height = size
    pixels, truth = render(changed(GOOD, width=width, height=height), 0, Defect.MISSING_PIN)
    assert pixels.shape == (height, width)
    assert pixels.dtype == np.uint8
    x0, y0, x1, y1 = truth.box
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height


def test_it_looks_like_a_lit_part_in_a_dark_nest():
    pixels, truth = render(GOOD, 0)
    assert truth == Truth()
    assert pixels[:10].mean() < 25
    assert 40 < pixels.mean() < 120
    bright = (pixels > 110).astype(np.uint8)[:420]  # the label is below
    areas = cv2.connectedComponentsWithStats(cv2.erode(bright, np.ones((9, 9))))[2][1:, 4]
    assert np.count_nonzero(areas > 500) == 27


@pytest.mark.parametrize("defect", Defect)
@pytest.mark.parametrize("number", range(8))
def test_a_defect_is_visible_in_its_box_and_nothing_else_changes(defect, number):
    good, _ = render(GOOD, number)
    bad, truth = render(GOOD, number, defect)
    assert truth.defect is defect
    x0, y0, x1, y1 = truth.box
    difference = cv2.absdiff(good, bad)
    inside = (slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1))))
    assert np.count_nonzero(difference[inside] > 25) > 150  # of 396,000 pixels; a pin has 3,000
    assert (x1 - x0) * (y1 - y0) < 0.06 * good.size
    difference[inside] = 0
    assert difference.max() <= 14  # the feet of its shadow


@pytest.mark.parametrize("defect", Defect)
def test_a_defect_survives_the_reduction_for_the_inspection(defect):
    for number in range(8):
        good, bad = (
            cv2.resize(render(GOOD, number, kind)[0], (100, 75), interpolation=cv2.INTER_AREA)
            for kind in (None, defect)
        )
        assert np.count_nonzero(cv2.absdiff(good, bad) > 15) >= 6


def test_the_truth_is_known_without_rendering():
    settings = changed(SMALL, defect_rate=0.4, seed=11)
    truths = [truth_of(settings, number) for number in range(60)]
    assert truths == [render(settings, number)[1] for number in range(60)]
    with SimulatedCamera(settings) as camera:
        assert [camera.capture(0, 10.0).truth for _ in range(10)] == truths[:10]


def test_defects_come_at_the_rate_and_of_the_kinds_asked_for():
    settings = changed(SMALL, defect_rate=0.2, defects=("missing_pin", "bent_pin"))
    kinds = [truth_of(settings, number).defect for number in range(500)]
    counts = {kind: kinds.count(kind) for kind in (None, *Defect)}
    assert 365 <= counts[None] <= 435  # 400 expected, 4 standard deviations
    assert min(counts[Defect.MISSING_PIN], counts[Defect.BENT_PIN]) > 25
    assert counts[Defect.FOREIGN_OBJECT] == 0
    assert all(truth_of(SMALL, number).good for number in range(100))
    assert not any(truth_of(changed(SMALL, defect_rate=1.0), number).good for number in range(100))


def test_requested_defects_take_the_next_frames():
    with SimulatedCamera(SMALL) as camera:
        assert camera.capture(0, 10.0).truth == Truth()
        camera.request_defect(Defect.BENT_PIN)
        camera.request_defect(Defect.MISSING_PIN)
        shown = [camera.capture(0, 10.0) for _ in range(3)]
    assert [frame.truth.defect for frame in shown] == [Defect.BENT_PIN, Defect.MISSING_PIN, None]
    assert np.array_equal(shown[0].pixels, render(SMALL, 1, Defect.BENT_PIN)[0])
    assert np.array_equal(shown[2].pixels, render(SMALL, 3)[0])


def test_an_empty_nest_shows_no_part():
    pixels, truth = render(GOOD, 5, empty=True)
    assert truth == Truth(empty=True)
    assert not truth.good
    assert np.count_nonzero(pixels > 80) < 0.01 * pixels.size  # the pins that locate the block
    good, _ = render(GOOD, 5)
    border = np.s_[:6, :]
    assert cv2.absdiff(pixels[border], good[border]).max() <= 4  # the same light and noise
    assert pixels.std() < 0.25 * good.std()


def test_empty_nests_come_at_the_rate_asked_for_and_leave_the_others_alone():
    settings = changed(SMALL, defect_rate=0.3, empty_rate=0.2, seed=4)
    with_empty = [truth_of(settings, number) for number in range(400)]
    assert 48 <= sum(truth.empty for truth in with_empty) <= 112  # 80, 4 standard deviations
    full = [truth_of(changed(settings, empty_rate=0.0), number) for number in range(400)]
    assert all(one == other or one.empty for one, other in zip(with_empty, full, strict=True))
    assert [render(settings, number)[1] for number in range(40)] == with_empty[:40]
    assert not render(settings, 0, Defect.BENT_PIN)[1].empty
    assert all(truth_of(changed(settings, empty_rate=1.0), number).empty for number in range(40))


def test_requested_empty_nests_and_defects_take_the_next_frames_in_turn():
    with SimulatedCamera(SMALL) as camera:
        camera.request_empty()
        camera.request_defect(Defect.BENT_PIN)
        camera.request_empty()
        shown = [camera.capture(0, 10.0).truth for _ in range(4)]
    assert [truth.empty for truth in shown] == [True, False, True, False]
    assert [truth.defect for truth in shown] == [None, Defect.BENT_PIN, None, None]


def shift_of(settings: SimulatedSettings, number: int) -> np.ndarray:
    """x and y in pixels against the same part at rest."""
    settings = changed(settings, noise=0.0)  # noise of its own would tie the two together
    pair = (changed(settings, jitter=0.0), settings)
    at_rest, moved = (render(each, number)[0].astype(np.float32) for each in pair)
    window = cv2.createHanningWindow(at_rest.shape[::-1], cv2.CV_32F)
    return np.array(cv2.phaseCorrelate(at_rest, moved, window)[0])


def test_the_pose_jitters_as_far_as_it_says():
    limit = 0.004 * GOOD.width
    shifts = np.array([shift_of(GOOD, number) for number in range(12)])
    assert np.abs(shifts).max() < limit + 1.0  # the rotation and the measurement add a little
    assert np.abs(shifts).max() > 0.5 * limit
    calm = np.array([shift_of(changed(GOOD, jitter=0.25), number) for number in range(12)])
    assert np.abs(calm).mean() == pytest.approx(0.25 * np.abs(shifts).mean(), rel=0.4)


def test_the_light_drifts_slowly_and_as_far_as_it_says():
    still = changed(SMALL, noise=0.0, jitter=0.0)
    drift = 0.1
    means = {
        share: np.array(
            [render(changed(still, light_drift=share), n)[0].mean() for n in range(0, 400, 5)]
        )
        for share in (0.0, drift)
    }
    ratio = means[drift] / means[0.0]
    assert 0.05 < np.ptp(ratio) / 2 < 0.15
    assert np.abs(np.diff(ratio)).max() < 0.04  # within five frames


def test_the_noise_is_as_strong_as_it_says():
    noisy = changed(GOOD, noise=4.0)
    clean, _ = render(changed(noisy, noise=0.0), 0)
    difference = render(noisy, 0)[0].astype(float) - clean
    middle = (clean > 118) & (clean < 138)
    dark = clean < 20
    assert difference[middle].std() == pytest.approx(4.0, rel=0.15)
    assert difference[dark].std() == pytest.approx(2.6, rel=0.15)
    assert abs(difference[middle].mean()) < 0.3


@pytest.mark.parametrize("size", [(1456, 1088), (728, 544), (640, 480), (1280, 720), (333, 211)])
@pytest.mark.parametrize("defect", list(Defect))
def test_every_defect_can_be_drawn_at_every_size(size, defect):
    camera = SimulatedSettings(width=size[0], height=size[1], noise=0.0)
    for number in range(0, 60, 4):
        pixels, truth = render(camera, number, defect)
        assert pixels.shape == size[::-1]
        assert truth.defect is defect
