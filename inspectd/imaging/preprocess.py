"""From a camera's frame to the small grey picture that is judged."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ImageError
from inspectd.imaging.frame_kernels import mean_areas
from inspectd.records import FloatMap, GreyImage, Image, View
from inspectd.settings import RegionOfInterest


def crop(pixels: Image, roi: RegionOfInterest | None, view: View | None = None) -> Image:
    """The region of interest of a frame, as a view on it.

    Args:
        pixels: uint8 (height, width) or (height, width, 3).
        roi: in frame pixels; None for all that there is.
        view: what part of the frame the pixels show; None for the whole, pixel by pixel. Where the
            camera has reduced the picture, the borders of the region are those of the nearest
            pixels.

    Raises:
        ImageError: the region leaves the picture.
    """
    if roi is None:
        return pixels
    height, width = pixels.shape[:2]
    view = view or whole(pixels)
    left, right = (round((x - view.x) * width / view.width) for x in (roi.x, roi.x + roi.width))
    top, bottom = (round((y - view.y) * height / view.height) for y in (roi.y, roi.y + roi.height))
    if left < 0 or top < 0 or right > width or bottom > height:
        raise ImageError(
            f"the region of interest [{roi.x}, {roi.y}, {roi.width}, {roi.height}] reaches to "
            f"{roi.x + roi.width}, {roi.y + roi.height}, but {_in_words(view)}; correct roi in the "
            "program file, or the camera's frame size"
        )
    return pixels[top:bottom, left:right]


def shown(pixels: Image, roi: RegionOfInterest | None, view: View | None = None) -> View:
    """What part of the frame a `crop` shows, in frame pixels; arguments as there."""
    if roi is None:
        return view or whole(pixels)
    return View(roi.x, roi.y, roi.width, roi.height)


def whole(pixels: Image) -> View:
    """The view of a picture that is a whole frame, pixel by pixel."""
    return View(0, 0, pixels.shape[1], pixels.shape[0])


def _in_words(view: View) -> str:
    size = f"{view.width:g} x {view.height:g} pixels"
    if view.x or view.y:
        return f"the camera shows {size} from {view.x:g}, {view.y:g} on"
    return f"the frame has {size}"


def grey(pixels: Image) -> GreyImage:
    """The grey picture of a frame (ITU-R BT.601 weights); a grey frame comes back as it is.

    Args:
        pixels: uint8 (height, width), or (height, width, 3) in the order blue, green, red.

    Raises:
        ImageError: another shape or type.
    """
    if pixels.dtype != np.uint8:
        raise ImageError(f"a picture has uint8 pixels, not {pixels.dtype}")
    if pixels.size and pixels.ndim == 2:
        return pixels
    if pixels.size and pixels.ndim == 3 and pixels.shape[2] == 3:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
    raise ImageError(
        f"a picture has the shape (height, width) or (height, width, 3), not {pixels.shape}"
    )


def reduced_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height of the reduced picture.

    The longest side becomes ``longest``; the other keeps the aspect, rounded to the nearest pixel
    (a half upwards) and at least 1. A picture that is small enough keeps its size: nothing is
    ever enlarged.
    """
    side = max(width, height)
    if side <= longest:
        return width, height
    columns, rows = ((2 * length * longest + side) // (2 * side) for length in (width, height))
    return max(1, columns), max(1, rows)


def reduce(picture: GreyImage, longest: int) -> GreyImage:
    """The picture reduced by area averaging until its longest side is ``longest`` (see
    `reduced_size`); the picture itself where it is small enough.

    Every result is the mean over exactly the area that it covers, shares of pixels included, to
    half a grey level: what OpenCV's INTER_AREA computes, in a fraction of its time wherever the
    ratio is not whole (0.3 against 3.8 ms from 1456 x 1088 to 100 x 75 on one x86 core). Halving
    first would be up to 13 grey levels off beside a hard edge, where a block of pixels lies across
    the border of two results.

    Args:
        picture: uint8 (height, width).
        longest: pixels.

    Returns:
        uint8, the size of `reduced_size`.
    """
    height, width = picture.shape
    columns, rows = reduced_size(width, height, longest)
    if (columns, rows) == (width, height):
        return picture
    out: GreyImage = np.empty((rows, columns), np.uint8)
    work = np.empty(width, np.int32), np.empty(width, np.float64)
    mean_areas(for_kernels(picture), *_borders(height, rows), *_borders(width, columns), work, out)
    return out


def for_kernels(picture: GreyImage) -> GreyImage:
    """The picture contiguous and writeable, itself if it is."""
    return np.require(picture, requirements=("C", "W"))


def _borders(length: int, parts: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The borders between equal parts of a length: the whole number before each, and the rest."""
    position: NDArray[np.float64] = np.arange(parts + 1, dtype=np.float64) * (length / parts)
    before: NDArray[np.intp] = np.minimum(position.astype(np.intp), length - 1)
    return before, position - before


def to_unit(picture: GreyImage) -> FloatMap:
    """The picture as float32 (height, width), contiguous, 0 for black and 1 for white."""
    return np.divide(picture, np.float32(255), dtype=np.float32, order="C")
