"""Stage 2 against references that know their own spread: a Mahalanobis distance at each place.

Where good parts differ among each other a difference says little; where they are all alike it says
much. Each place's covariance over the 18 metrics is estimated from the references, and shrunk
towards what its neighbourhood and the whole picture say, so that few references suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ReferencesError
from inspectd.records import FloatMap
from inspectd.soartc import kernels
from inspectd.soartc.compare import Described

METRICS = 18
PAIRS = METRICS * (METRICS + 1) // 2
PRIOR_WEIGHT = 10.0
"""The prior counts as much as so many references; 5 to 20 are equally good."""
NEIGHBOURHOOD = 15
"""Places a side over which the local covariance is averaged; 7 to 21 are equally good."""
LOCAL_SHARE = 0.5
"""Of the prior; the rest is the covariance pooled over the whole picture. The most important figure
where references are few."""
RIDGE = 0.3
"""Of the pooled variance, added to each place's own: no difference so small is ever proof. 0.1 to
0.5 are equally good."""
NOISE_NEIGHBOURHOOD = 5
LEAST_REMAINDER = 0.05
"""Floor in the closed form of leave-one-out: a reference that explains its place all alone."""
BLOCK = 256
CHUNK = 4096
"""Places whose covariances are inverted at a time."""


class SpreadComparison:
    """The references' mean and spread at each place. Serves one thread."""

    def __init__(
        self,
        references: Sequence[Described],
        noise_variance: NDArray[np.float32],
        prior: NDArray[np.float64] | None = None,
    ) -> None:
        """Learn from the references.

        They are asked for one at a time, three times over, so that they need not all be in memory.

        Args:
            references: one or more.
            noise_variance: float32 (6, 3, rows, cols), what the sensor's noise alone does to the
                metrics.
            prior: float64 (18, 18), the covariance that stands in for the pooled one of a single
                reference.

        Raises:
            ReferencesError: none, or a single one without a prior.
        """
        if not references or (len(references) == 1 and prior is None):
            raise ReferencesError(
                "the comparison needs two references or more to know their spread"
            )
        self._references = references
        first, _ = references[0]
        self._shape = first.shape[2:]
        places = self._shape[0] * self._shape[1]
        self._count = np.zeros(places)
        total = np.zeros((METRICS, places))
        for planes, seen in references:
            self._count += seen.ravel()
            total += planes.reshape(METRICS, places) * seen.ravel()
        self._mean = (total / np.maximum(self._count, 1)).astype(np.float32)
        scatter = np.zeros((PAIRS, places))
        for planes, seen in references:
            weights = seen.ravel().astype(np.float32)
            kernels.add_scatter(planes.reshape(METRICS, places), self._mean, weights, scatter)
        self._factors = self._inverse_factors(scatter, noise_variance, prior)
        self._known = (self._count > 0).reshape(self._shape)
        self._work = np.empty((METRICS + 1, BLOCK), np.float32)

    def distances(
        self, planes: NDArray[np.float32], seen: NDArray[np.bool_], out: FloatMap
    ) -> None:
        """How far every patch is from the references, in units of their spread.

        Args:
            planes: float32 (6, 3, rows, cols) of the inspected picture, contiguous.
            seen: bool (rows, cols), the patches that lie wholly in the picture.
            out: float32 (rows, cols), contiguous; written. 0 where nothing was seen.
        """
        flat = out.reshape(-1)
        kernels.mahalanobis(
            planes.reshape(METRICS, -1), self._mean, self._factors, self._work, flat
        )
        np.multiply(out, np.float32(1 / METRICS), out=out)
        np.sqrt(out, out=out)
        np.multiply(out, seen & self._known, out=out)

    def leave_one_out(self, index: int) -> FloatMap:
        """The distances of one of the references from all the others.

        In closed form: taking one deviation out of a covariance is a change of rank one. The prior
        is left as it is, which errs little from about ten references on.

        Args:
            index: of the reference.

        Returns:
            float32 (rows, cols).
        """
        planes, seen = self._references[index]
        out = np.empty(self._shape, np.float32)
        self.distances(planes, seen, out)
        count = self._count.reshape(self._shape)
        others = np.maximum(count - 1, 1)
        own_share = 1 - PRIOR_WEIGHT / (PRIOR_WEIGHT + others)
        square = METRICS * out.astype(np.float64) ** 2
        remainder = 1 - own_share * count / others**2 * square
        left_out = (
            count / others * np.sqrt(square / np.maximum(remainder, LEAST_REMAINDER) / METRICS)
        )
        return np.where(count > 1, left_out, 0).astype(np.float32)

    def _inverse_factors(
        self,
        scatter: NDArray[np.float64],
        noise_variance: NDArray[np.float32],
        prior: NDArray[np.float64] | None,
    ) -> NDArray[np.float32]:
        """For each place the triangle L with L^T L the inverse of its covariance.

        Args:
            scatter: float64 (171, places), the sums of the references' products of deviations;
                overwritten.
            noise_variance: float32 (6, 3, rows, cols).
            prior: float64 (18, 18), what stands in for the pooled covariance, or None.

        Returns:
            float32 (171, places), the triangles row by row.
        """
        rows, cols = np.tril_indices(METRICS)
        freedom = np.maximum(self._count - 1, 0)
        noise = _box_means(noise_variance.reshape(METRICS, *self._shape), NOISE_NEIGHBOURHOOD)
        pooled = scatter.sum(axis=1) / max(freedom.sum(), 1) if prior is None else prior[rows, cols]
        near = np.maximum(_box_mean(freedom.reshape(self._shape), NEIGHBOURHOOD), 0.5)
        prior_share = PRIOR_WEIGHT / (PRIOR_WEIGHT + freedom)
        own_share = (1 - prior_share) / np.maximum(freedom, 1)
        # In place and pair by pair: a large picture's covariances take gigabytes.
        for pair, (row, col) in enumerate(zip(rows, cols, strict=True)):
            expected = np.full(self._shape, pooled[pair])
            if prior is None:
                local = _box_mean(scatter[pair].reshape(self._shape), NEIGHBOURHOOD) / near
                expected += LOCAL_SHARE * (local - pooled[pair])
            scatter[pair] *= own_share
            scatter[pair] += prior_share * expected.ravel()
            if row == col:
                scatter[pair] += RIDGE * pooled[pair] + noise[row].ravel()
        factors = np.empty(scatter.shape, np.float32)
        for start in range(0, scatter.shape[1], CHUNK):
            chunk = scatter[:, start : start + CHUNK]
            full = np.empty((chunk.shape[1], METRICS, METRICS))
            full[:, rows, cols] = chunk.T
            full[:, cols, rows] = chunk.T
            inverse = np.linalg.inv(np.linalg.cholesky(full))
            factors[:, start : start + CHUNK] = inverse[:, rows, cols].T
        return factors


def _box_means(planes: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Each plane averaged over ``side`` x ``side`` places, mirrored at the border."""
    return np.stack([_box_mean(plane, side) for plane in planes])


def _box_mean(plane: NDArray[np.floating[Any]], side: int) -> NDArray[np.float64]:
    """The same of one plane."""
    mean = cv2.blur(plane.astype(np.float64), (side, side), borderType=cv2.BORDER_REFLECT)
    return np.asarray(mean)
