"""The elastic step: small smooth displacements of a part's details, fitted and taken out.

Good parts differ by a pixel here and there (a leg, a label, a perspective); an edge that is a pixel
off is no defect. What moved further, or is not there, remains.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.imaging import kernels
from inspectd.imaging.pyramid import Point, Vector
from inspectd.records import FloatMap

SIGMA = 4.0
"""Gaussian neighbourhood whose details move together, in pixels."""
LIMIT = 3.0
"""Largest displacement, in pixels."""
STEPS = 8
STIFFNESS = 0.05
"""Pull towards no displacement, as a share of the template's mean squared slope."""


class Elastic:
    """The displacement field of a picture against one template.

    Holds the field and work arrays: it serves one thread, and belongs to one picture at a time.
    """

    def __init__(self, planes: NDArray[np.float32], centre: Point) -> None:
        """Prepare for a template.

        Args:
            planes: float32 (5, height, width), see `pyramid.template_planes`.
            centre: x and y of the middle that poses turn about.
        """
        self._planes = planes
        self._centre = centre
        height, width = planes.shape[1:]
        rows, cols = (max(2, -(-side // kernels.CELL)) for side in (height, width))
        self._flow = np.zeros((2, rows, cols), np.float32)
        self._pulls = np.empty((3, rows, cols), np.float32)
        self._work = np.empty((4, cols * kernels.CELL), np.float32)
        self._seen = np.empty(width, np.bool_)
        self._wide = _gaussian_taps(SIGMA / kernels.CELL)
        self._narrow = _gaussian_taps(SIGMA / kernels.CELL / 2)
        across, along = planes[kernels.ACROSS], planes[kernels.ALONG]
        mean_square = float(np.mean(across * across + along * along)) / 2
        self._stiffness = STIFFNESS * mean_square * kernels.CELL**2 + 1e-9
        self._inverse = self._inverse_blocks()

    def fit(self, contrast: FloatMap, pose: Vector) -> None:
        """Fit the field to a picture's local contrast, float32 (height, width), at a pose."""
        kernels.displace(
            self._planes,
            contrast,
            self._centre,
            pose,
            self._inverse,
            self._stiffness,
            LIMIT,
            self._wide,
            self._narrow,
            STEPS,
            self._flow,
            self._work,
            self._seen,
            self._pulls,
        )

    def clear(self) -> None:
        """Set the field to no displacement."""
        self._flow[:] = 0.0

    def resampled(self, picture: FloatMap, pose: Vector) -> tuple[FloatMap, NDArray[np.bool_]]:
        """The picture in the template's frame, sampled once through pose and field.

        Args:
            picture: float32 (height, width).
            pose: float64 (3,).

        Returns:
            float32 and bool, both (height, width): the picture, 0 outside, and where it is seen.
        """
        out = np.empty(self._planes.shape[1:], np.float32)
        seen = np.empty(out.shape, np.bool_)
        kernels.resample(self._flow, picture, self._centre, pose, self._work, out, seen)
        return out, seen

    def _inverse_blocks(self) -> NDArray[np.float32]:
        """The inverse of each cell's blurred 2 x 2 normal matrix: xx, xy and yy."""
        across, along = self._planes[kernels.ACROSS], self._planes[kernels.ALONG]
        xx, xy, yy = (
            self._blurred(_cell_sums(product))
            for product in (across * across, across * along, along * along)
        )
        xx += np.float32(self._stiffness)
        yy += np.float32(self._stiffness)
        inverse = np.stack([yy, -xy, xx]) / (xx * yy - xy * xy)
        return inverse.astype(np.float32)

    def _blurred(self, field: FloatMap) -> FloatMap:
        kernels.smooth(field, self._wide, self._pulls[2])
        return field


def _gaussian_taps(sigma: float) -> NDArray[np.float32]:
    """Weights out to 4 sigma."""
    size = 2 * round(4 * sigma) + 1
    return np.asarray(cv2.getGaussianKernel(size, sigma, cv2.CV_32F), np.float32).ravel()


def _cell_sums(plane: FloatMap) -> FloatMap:
    """Sums over the displacement grid's cells."""
    size = kernels.CELL
    height, width = plane.shape
    rows, cols = (max(2, -(-side // size)) for side in (height, width))
    padded = np.zeros((rows * size, cols * size), np.float32)
    padded[:height, :width] = plane
    sums: FloatMap = padded.reshape(rows, size, cols, size).sum(axis=(1, 3))
    return sums
