"""A camera that cuts out and reduces: what is judged, and where in the frame it is said to lie."""

import cv2
import numpy as np
import pytest

from inspectd.camera.simulated import render
from inspectd.errors import ImageError
from inspectd.imaging import preprocess
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.records import Defect, Reason, Verdict, View
from inspectd.settings import LimitSettings, Program, RegionOfInterest, SimulatedCamera

CAMERA = SimulatedCamera(width=728, height=544, jitter=0.3, light_drift=0.0, seed=2)
ROI = RegionOfInterest(x=40, y=60, width=640, height=440)
CUT = View(40, 60, 640, 440)
WHOLE_HALF = View(0, 0, 728, 544)


def shown(frame, view, reduction):
    """What a camera gives that cuts out ``view`` and reduces it."""
    x, y, width, height = (round(v) for v in (view.x, view.y, view.width, view.height))
    size = (width // reduction, height // reduction)
    return cv2.resize(frame[y : y + height, x : x + width], size, interpolation=cv2.INTER_AREA)


def taught(view, reduction):
    program = Program(roi=ROI, limit=LimitSettings(threshold=1.3))
    crops = [
        preprocess.crop(shown(render(CAMERA, number)[0], view, reduction), ROI, view)
        for number in range(12)
    ]
    return Inspector(program, [ReducedCrop.of(crop, program.resolution) for crop in crops])


@pytest.mark.parametrize(
    ("view", "reduction"), [(CUT, 1), (CUT, 2), (WHOLE_HALF, 2)], ids=["cut", "cut half", "half"]
)
def test_a_defect_lies_where_it_lies_in_the_whole_frame(view, reduction):
    inspector = taught(view, reduction)
    good, _ = render(CAMERA, 50)
    assert inspector.inspect(shown(good, view, reduction), view).verdict is Verdict.PASS
    bad, truth = render(CAMERA, 51, Defect.MISSING_PIN)
    inspection = inspector.inspect(shown(bad, view, reduction), view)
    assert inspection.verdict is Verdict.FAIL
    x0, y0, x1, y1 = truth.box
    assert x0 - 15 < inspection.peak.x < x1 + 15
    assert y0 - 15 < inspection.peak.y < y1 + 15
    worst = inspection.blobs[0]
    assert worst.x0 < (x0 + x1) / 2 < worst.x1
    assert worst.y0 < (y0 + y1) / 2 < worst.y1


def test_an_offset_is_in_frame_pixels_however_much_the_camera_reduces():
    moved = np.roll(render(CAMERA, 50)[0], (8, -12), axis=(0, 1))
    still = render(CAMERA, 50)[0]
    for view, reduction in [(CUT, 1), (CUT, 2)]:
        inspector = taught(view, reduction)
        there, here = (
            inspector.inspect(shown(frame, view, reduction), view).alignment.pose
            for frame in (moved, still)
        )
        assert there.dx - here.dx == pytest.approx(-12, abs=1.5)
        assert there.dy - here.dy == pytest.approx(8, abs=1.5)


def test_references_of_another_reduction_are_not_compared_with():
    frame = render(CAMERA, 50)[0]
    inspection = taught(CUT, 1).inspect(shown(frame, CUT, 2), CUT)
    assert (inspection.verdict, inspection.reason) == (Verdict.NOT_JUDGED, Reason.WRONG_SIZE)


def test_a_region_that_the_camera_does_not_show_is_told_with_what_it_shows():
    inspector = taught(CUT, 2)
    view = View(60, 60, 600, 440)
    inspection = inspector.inspect(np.zeros((220, 300), np.uint8), view)
    assert inspection.reason is Reason.WRONG_SIZE
    assert "600 x 440 pixels from 60, 60 on" in inspection.detail


def test_a_crop_takes_the_nearest_pixels():
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 12).repeat(4, axis=0)
    view = View(100, 0, 24, 8)
    roi = RegionOfInterest(x=105, y=0, width=10, height=8)
    assert preprocess.crop(pixels, roi, view)[0].tolist() == [2, 3, 4, 5, 6, 7]
    with pytest.raises(ImageError, match="reaches to 126, 8"):
        preprocess.crop(pixels, RegionOfInterest(x=116, y=0, width=10, height=8), view)
