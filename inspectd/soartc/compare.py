"""Stage 2: the descriptions of two pictures compared, patch by patch."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ImageError
from inspectd.records import FloatMap
from inspectd.soartc import kernels

Described = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""A described picture: planes float32 (6, 3, rows, cols), and the patches that lie wholly in the
picture, bool (rows, cols)."""

WEIGHTS = (1.0, 5.0, 10.0)
"""Production's weights of the distances by ln beta, eta and gamma (SPEC.md, "Stage 2")."""


def stage2(
    metrics: NDArray[np.float32], reference: NDArray[np.float32], p: float = 4
) -> NDArray[np.float32]:
    """How far every patch is from the reference's, by each of the three metrics.

    Args:
        metrics: float32 (rows, cols, 6, 3) of the inspected picture, from `stage1`.
        reference: the same of the reference.
        p: exponent of the Minkowski distance over the six parts, at least 1.

    Returns:
        float32 (rows, cols, 3): D_beta, D_eta, D_gamma (SPEC.md, "Stage 2").

    Raises:
        ImageError: shapes that differ or are no metrics, values that are not finite, or a bad p.
    """
    if metrics.shape != reference.shape:
        raise ImageError(
            f"the metrics of picture and reference differ in shape: {metrics.shape} and "
            f"{reference.shape}"
        )
    if metrics.ndim != 4 or metrics.shape[2:] != (6, 3):
        raise ImageError(f"metrics have the shape (rows, cols, 6, 3), not {metrics.shape}")
    if not (np.isfinite(p) and p >= 1):
        raise ImageError(f"p must be finite and at least 1, not {p}")
    for name, values in (("picture", metrics), ("reference", reference)):
        if not np.isfinite(values).all():
            raise ImageError(f"the metrics of the {name} hold values that are not finite")
    here, there = as_planes(metrics), as_planes(reference)
    distances = np.empty((3, *metrics.shape[:2]), np.float32)
    kernels.minkowski(here, there, float(p), distances)
    return distances.transpose(1, 2, 0)


def as_planes(metrics: NDArray[np.float32]) -> NDArray[np.float32]:
    """Metrics (rows, cols, 6, 3) as the kernels' planes (6, 3, rows, cols).

    No copy is made of what `stage1` returned.
    """
    return np.ascontiguousarray(metrics.transpose(2, 3, 0, 1), dtype=np.float32)


def scalar_map(distances: NDArray[np.float32], weights: Sequence[float] = WEIGHTS) -> FloatMap:
    """The weighted sum of the three distances of each patch.

    Args:
        distances: float32 (rows, cols, 3) from `stage2`.
        weights: of D_beta, D_eta and D_gamma.

    Returns:
        float32 (rows, cols).

    Raises:
        ImageError: another shape than (rows, cols, 3), or other than three weights.
    """
    if distances.ndim != 3 or distances.shape[2] != 3:
        raise ImageError(f"distances have the shape (rows, cols, 3), not {distances.shape}")
    if len(weights) != 3:
        raise ImageError(f"the three distances need three weights, not {len(weights)}")
    result: FloatMap = distances.astype(np.float32) @ np.asarray(weights, np.float32)
    return result


class Comparison:
    """Stage 2 against one reference, without allocating per picture.

    Holds the work arrays, so one comparison serves one thread.
    """

    def __init__(
        self, reference: NDArray[np.float32], p: float = 4, weights: Sequence[float] = WEIGHTS
    ) -> None:
        """Prepare to compare with a reference.

        Args:
            reference: float32 planes (6, 3, rows, cols).
            p: exponent of the distance over the parts.
            weights: of the three distances.
        """
        self._reference = reference
        self._p = float(p)
        self._weights = np.asarray(weights, np.float32)
        shape = reference.shape[2:]
        self._distances = np.empty((3, *shape), np.float32)
        self._scalar = np.empty(shape, np.float32)

    def distances(
        self, planes: NDArray[np.float32], seen: NDArray[np.bool_], out: FloatMap
    ) -> None:
        """The scalar map; 0 where nothing was seen.

        Args:
            planes: float32 (6, 3, rows, cols) of the inspected picture, contiguous.
            seen: bool (rows, cols), the patches that lie wholly in the picture.
            out: float32 (rows, cols); written.
        """
        kernels.minkowski(planes, self._reference, self._p, self._distances)
        np.einsum("m,mrc->rc", self._weights, self._distances, out=out)
        np.multiply(out, seen, out=out)

    def smoothed_map(self, planes: NDArray[np.float32]) -> FloatMap:
        """The scalar map averaged over 3 x 3 patches, so that one patch's noise is no defect.

        At the border the map is continued by its mirror image.

        Args:
            planes: float32 (6, 3, rows, cols) of the inspected picture.

        Returns:
            float32 (rows, cols), a new array, in raw units.
        """
        kernels.minkowski(planes, self._reference, self._p, self._distances)
        np.einsum("m,mrc->rc", self._weights, self._distances, out=self._scalar)
        smoothed = np.empty_like(self._scalar)
        cv2.blur(self._scalar, (3, 3), dst=smoothed, borderType=cv2.BORDER_REFLECT_101)
        return smoothed


def attention(scalar: FloatMap) -> FloatMap:
    """Softmax of the scalar map times the square root of the number of patches.

    It sharpens contrast for the eye. Its values sum to 1, so it cannot carry a fixed limit
    (SPEC.md, "Stage 2").

    Args:
        scalar: float32 (rows, cols), finite.

    Returns:
        float32 (rows, cols).

    Raises:
        ImageError: an empty map, or values that are not finite.
    """
    if scalar.ndim != 2 or scalar.size == 0:
        raise ImageError(f"a scalar map has the shape (rows, cols), not {scalar.shape}")
    if not np.isfinite(scalar).all():
        raise ImageError("the scalar map holds values that are not finite")
    logits = scalar.astype(np.float64) * np.sqrt(scalar.size)
    weights = np.exp(logits - logits.max())
    shares: FloatMap = (weights / weights.sum()).astype(np.float32)
    return shares
