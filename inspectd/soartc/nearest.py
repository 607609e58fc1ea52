"""Stage 2 against the nearest of the references, place by place, wherever in the neighbourhood.

A patch is as abnormal as it differs from the most similar patch that any reference shows there or
close by: a part may be like one reference here and like another there, and an edge may run a pixel
beside where it ran. With two references or more the metrics are weighed by how good parts vary, and
the distances by how far good parts lie apart round about; with one, by what is stated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ReferencesError
from inspectd.records import FloatMap
from inspectd.soartc import kernels
from inspectd.soartc.compare import Described

METRICS = 18
MOST_REFERENCES = 100
"""References that are compared with, at most."""
MOST_BYTES = 256 * 2**20
"""Memory for their metrics, at most; 100 references of 100x100 pixels at step 2 take 18 MB."""
SINGLE_WEIGHTS = (12.0, 1.0, 1.0)
"""Of ln beta, eta and gamma where there is but one reference. ln beta varies ten times less than
eta: 8 to 16 are equally good, on photographs and on binarised scans. ln beta does not depend on how
bright the picture is, and with these weights the distance hardly does."""
NEIGHBOURHOOD = 11
"""Places a side over which the local spread is averaged; 7 to 15 are equally good. The place alone,
with nothing of its neighbours, is worse than no local spread at all."""
LOCAL_SHARE = 0.5
"""Of the local spread; the rest is that of the whole picture. 0.3 to 0.7 are equally good."""
LEAST_VARIANCE = 1e-4
"""Added to each metric's. 0.000001 to 0.0003 are equally good; 0.01 drowns ln beta."""
LEAST_SPREAD = 0.1
"""Of a place, in units of the metrics' pooled deviation: copies of one picture have none."""
FAR = np.float32(1e9)
"""The metrics of patches that no patch may match."""
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class _Lattice:
    """How patches lie in memory: rows of one pitch, flat, with padding that no patch may match.

    Attributes:
        rows: of inspected patches.
        cols: likewise.
        finer: how many times as dense the references' patches lie. They are kept a phase at a time,
            each phase a lattice like that of the inspected patches.
        tolerance: how many of the references' patches away the nearest may lie.
    """

    rows: int
    cols: int
    finer: int
    tolerance: int

    @property
    def padding(self) -> int:
        """Inspected patches that the neighbourhood reaches, at most, to any side."""
        return -(-self.tolerance // self.finer)

    @property
    def pitch(self) -> int:
        return self.cols + self.padding

    @property
    def places(self) -> int:
        """Of the inspected patches and the padding between their rows."""
        return self.rows * self.pitch

    @property
    def start(self) -> int:
        """Places of padding before a reference's first patch, and after its last row."""
        return self.padding * (self.pitch + 1)

    @property
    def phases(self) -> int:
        return self.finer**2

    def lines(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """A view of places (..., places) as (..., rows, pitch)."""
        return flat.reshape(*flat.shape[:-1], self.rows, self.pitch)

    def coarse(self, values: NDArray[Any]) -> NDArray[Any]:
        """Of a reference's patches (..., rows', cols') those that lie as the inspected ones do."""
        return values[..., :: self.finer, :: self.finer]

    def neighbours(self) -> NDArray[np.int64]:
        """Where a patch's neighbours lie: int64 (k, 2), phase and how many places further on."""
        reach = range(-self.tolerance, self.tolerance + 1)
        return np.array(
            [
                (
                    down % self.finer * self.finer + right % self.finer,
                    self.start + down // self.finer * self.pitch + right // self.finer,
                )
                for down in reach
                for right in reach
            ]
        )


class NearestComparison:
    """References and the spread of their nearest neighbours at each place. Serves one thread."""

    def __init__(
        self, references: Sequence[Described], *, finer: int = 1, tolerance: int = 1
    ) -> None:
        """Learn from the references.

        They are asked for one at a time. Only `MOST_REFERENCES` of them are kept and compared with,
        and fewer where these would take more than `MOST_BYTES`; they are spread evenly over the
        sequence, so that no part of a production run is left out.

        A finer description of the references takes away the error of half a step that a coarse one
        leaves: an edge that lies a pixel beside finds its equal. It costs ``finer**2`` times the
        time and memory, and is meant for a single reference.

        Args:
            references: one or more. Their patches lie as those of the inspected pictures do or,
                where ``finer`` is above 1, so many times as dense: planes float32
                (6, 3, rows', cols'), with every ``finer``-th patch, from the first one on, in the
                place of an inspected one.
            finer: how many times as dense the references' patches lie, in each direction.
            tolerance: how many of the references' patches away the nearest one may lie, in each
                direction.

        Raises:
            ReferencesError: none.
        """
        if not references:
            raise ReferencesError("the comparison needs a reference")
        self._references = references
        _, seen = references[0]
        self._shape = rows, cols = seen[::finer, ::finer].shape
        self._lattice = lattice = _Lattice(rows, cols, finer, tolerance)
        self._metrics = np.zeros((METRICS, lattice.places), np.float32)
        self._weighed = np.empty((METRICS, rows * cols), np.float32)
        self._work = np.empty(BLOCK, np.float32)
        self._nearest = np.empty(lattice.places, np.float32)
        stored = lattice.phases, METRICS, lattice.places + 2 * lattice.start
        room = MOST_BYTES // (int(np.prod(stored)) * np.float32().itemsize)
        self._chosen = _evenly(len(references), max(1, min(MOST_REFERENCES, room)))
        self._weighing = self._learn_weighing()
        self._sightings = np.zeros(self._shape, np.int64)
        self._kept = np.full((len(self._chosen), *stored), FAR, np.float32)
        for slot, index in enumerate(self._chosen):
            self._keep(slot, *references[index])
        self._everyone = self._candidates(range(len(self._chosen)))
        self._learn_spread()

    def distances(
        self, planes: NDArray[np.float32], seen: NDArray[np.bool_], out: FloatMap
    ) -> None:
        """How far every patch is from the nearest reference's.

        Args:
            planes: float32 (6, 3, rows, cols) of the inspected picture, contiguous.
            seen: bool (rows, cols), the patches that lie wholly in the picture.
            out: float32 (rows, cols), contiguous; written. With two references or more, in units of
                what good parts show there; with one, the distance of the metrics times
                `SINGLE_WEIGHTS`. 0 where nothing was seen, in the picture or in any reference.
        """
        self._squares(planes, seen & (self._sightings > 0), self._everyone, out)
        np.multiply(out, self._precision, out=out)
        np.sqrt(out, out=out)

    def leave_one_out(self, index: int) -> FloatMap:
        """The distances of one of the references from all the others.

        Neither it nor its own share of the spread counts. The weighing is left as it is, which errs
        little from about ten references on.

        Args:
            index: of the reference; there must be two or more.

        Returns:
            float32 (rows, cols).
        """
        squares = np.empty(self._shape, np.float32)
        seen = self._squares_without(index, squares)
        own = index in self._chosen
        total = self._total - squares * own
        count = self._count - seen * own
        np.sqrt(squares * self._precisions(total, count), out=squares)
        return squares

    # ---- learning --------------------------------------------------------------------------------

    def _learn_weighing(self) -> NDArray[np.float32]:
        """The matrix that the metrics are multiplied by before they are compared.

        Returns:
            float32 (18, 18), what makes the metrics' variation among good parts at any one place
            uncorrelated: the inverse of the lower Cholesky factor of the covariance within the
            places, pooled over them. `SINGLE_WEIGHTS` for a single reference.
        """
        if len(self._references) == 1:
            return np.diag(np.tile(np.array(SINGLE_WEIGHTS, np.float32), METRICS // 3))
        places = self._references[0][1].size
        total, count = np.zeros((METRICS, places)), np.zeros(places)
        for index in self._chosen:
            planes, seen = self._references[index]
            total += planes.reshape(METRICS, places) * seen.ravel()
            count += seen.ravel()
        mean = total / np.maximum(count, 1)
        scatter = np.zeros((METRICS, METRICS))
        for index in self._chosen:
            planes, seen = self._references[index]
            deviation = (planes.reshape(METRICS, places) - mean) * seen.ravel()
            scatter += deviation @ deviation.T
        covariance = scatter / max(np.maximum(count - 1, 0).sum(), 1)
        covariance[np.diag_indices(METRICS)] += LEAST_VARIANCE
        weighing: NDArray[np.float64] = np.linalg.inv(np.linalg.cholesky(covariance))
        return weighing.astype(np.float32)

    def _keep(self, slot: int, planes: NDArray[np.float32], seen: NDArray[np.bool_]) -> None:
        """Store a reference, a phase at a time, for the kernel to read."""
        lattice, finer = self._lattice, self._lattice.finer
        self._sightings += lattice.coarse(seen)
        weighed = (self._weighing @ planes.reshape(METRICS, -1)).reshape(METRICS, *seen.shape)
        weighed[:, ~seen] = FAR
        inner = slice(lattice.start, lattice.start + lattice.places)
        for phase in range(lattice.phases):
            part = weighed[:, phase // finer :: finer, phase % finer :: finer]
            lines = lattice.lines(self._kept[slot, phase, :, inner])
            lines[:, : part.shape[1], : part.shape[2]] = part

    def _learn_spread(self) -> None:
        """The mean square, at each place, of the references' distances from one another."""
        self._total, self._count = np.zeros(self._shape), np.zeros(self._shape)
        if len(self._references) > 1:
            squares = np.empty(self._shape, np.float32)
            for index in self._chosen:
                self._count += self._squares_without(index, squares)
                self._total += squares
        self._precision = self._precisions(self._total, self._count)

    def _precisions(
        self, total: NDArray[np.float64], count: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """One over each place's squared spread: that of its neighbourhood and the whole picture's.

        Args:
            total: float64 (rows, cols), the sum of the references' squared distances.
            count: float64 (rows, cols), of how many.

        Returns:
            float32 (rows, cols); 1 for a single reference.
        """
        if len(self._references) == 1:
            return np.ones(self._shape, np.float32)
        pooled = total.sum() / max(count.sum(), 1)
        totals, counts = map(_box_sums, (total, count))
        local = np.where(counts > 0, totals / np.maximum(counts, 1), pooled)
        square = LOCAL_SHARE * local + (1 - LOCAL_SHARE) * pooled
        precisions: NDArray[np.float64] = 1 / np.maximum(square, LEAST_SPREAD**2)
        return precisions.astype(np.float32)

    # ---- comparing -------------------------------------------------------------------------------

    def _candidates(self, slots: Iterable[int]) -> NDArray[np.int64]:
        """For the kernel: every neighbour in each of the references kept."""
        first_phase = np.array([(slot * self._lattice.phases, 0) for slot in slots])
        pairs = first_phase[:, None] + self._lattice.neighbours()
        return pairs.reshape(-1, 2)

    def _squares(
        self,
        planes: NDArray[np.float32],
        judged: NDArray[np.bool_],
        candidates: NDArray[np.int64],
        out: FloatMap,
    ) -> None:
        """The squared distance from the nearest of the candidates; 0 where not judged."""
        rows, cols = self._shape
        np.matmul(self._weighing, planes.reshape(METRICS, -1), out=self._weighed)
        lines = self._lattice.lines(self._metrics)
        lines[:, :, :cols] = self._weighed.reshape(METRICS, rows, cols)
        references = self._kept.reshape(-1, *self._kept.shape[2:])
        kernels.nearest(self._metrics, references, candidates, self._work, self._nearest)
        np.multiply(self._lattice.lines(self._nearest)[:, :cols], judged, out=out)

    def _squares_without(self, index: int, out: FloatMap) -> NDArray[np.bool_]:
        """The squared distances of a reference from the others, and where there are any."""
        planes, seen = self._references[index]
        planes = np.ascontiguousarray(self._lattice.coarse(planes))
        seen = self._lattice.coarse(seen)
        others = [slot for slot, other in enumerate(self._chosen) if other != index]
        elsewhere = self._sightings - seen * (index in self._chosen)
        judged = seen & (elsewhere > 0)
        self._squares(planes, judged, self._candidates(others), out)
        return judged


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the indices below ``count``, evenly spread."""
    kept = min(count, most)
    return [index * count // kept for index in range(kept)]


def _box_sums(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums over `NEIGHBOURHOOD` places a side, mirrored at the border."""
    side = NEIGHBOURHOOD, NEIGHBOURHOOD
    sums = cv2.boxFilter(plane, -1, side, normalize=False, borderType=cv2.BORDER_REFLECT)
    return np.asarray(sums)
