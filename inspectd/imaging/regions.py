"""A program's regions as patches of the map."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.records import PatchGrid
from inspectd.settings import Region


def region_patches(region: Region, grid: PatchGrid, height: int, width: int) -> NDArray[np.bool_]:
    """The patches whose centre lies in a region.

    Args:
        region: its outline is in shares of the inspected picture.
        grid: of the map.
        height: of the inspected picture, in pixels.
        width: likewise.

    Returns:
        bool (rows, cols). A judged region between the patches gets the one nearest to its middle.
    """
    corners = np.array(region.outline, np.float32) * np.array([width, height], np.float32)
    inside = np.zeros((grid.rows, grid.cols), np.bool_)
    for row, column in np.ndindex(inside.shape):
        centre = grid.centre(row, column)
        inside[row, column] = cv2.pointPolygonTest(corners, centre, measureDist=False) >= 0
    if not inside.any() and not region.ignore:
        x, y = corners.mean(axis=0)
        row = round((y - grid.extent[0] / 2) / grid.step[0])
        column = round((x - grid.extent[1] / 2) / grid.step[1])
        inside[min(max(row, 0), grid.rows - 1), min(max(column, 0), grid.cols - 1)] = True
    return inside
