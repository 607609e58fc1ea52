"""``inspectd bench``: what an inspection costs, as ratios measured side by side in one run.

Three ways of computing the same two stages: the package's kernels; numpy and OpenCV as one would
write them for speed without a compiler; and Python as the method was published, a loop over the
patches. Milliseconds depend on the machine, the ratios hardly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from inspectd.commands import bench_inspection
from inspectd.commands.teach import progress_bar
from inspectd.records import FloatMap
from inspectd.soartc import part_bank, soart3
from inspectd.soartc.compare import WEIGHTS, Comparison
from inspectd.soartc.features import PatchDescriber, PatchLayout

Metrics = NDArray[np.float32]

STRIDE = 2
P = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One size of picture and step of patches; n = 5, stride 2."""

    side: int
    step: int

    @property
    def patches(self) -> int:
        return (self.side - STRIDE - 5) // self.step + 1


CASES = (Case(100, 4), Case(100, 2), Case(640, 4), Case(640, 2))
PUBLISHED_WAY_UP_TO = 100
"""Side of the largest picture that the published way is timed on: it needs seconds beyond."""


class Way:
    """One way of computing both stages for one case."""

    name = ""

    def stage1(self, image: FloatMap) -> Metrics:
        raise NotImplementedError

    def stage2(self, metrics: Metrics) -> FloatMap:
        raise NotImplementedError


class Kernels(Way):
    """The package's own, as the service calls it: work arrays made once, one thread."""

    name = "inspectd"

    def __init__(self, case: Case, image: FloatMap, reference: FloatMap) -> None:
        height, width = image.shape
        layout = PatchLayout(height, width, 5, (STRIDE, STRIDE), (case.step, case.step))
        self._describer = PatchDescriber(layout, part_bank())
        self._planes = self._describer.new_planes()
        self._comparison = Comparison(self._describer.described(reference), P)

    def stage1(self, image: FloatMap) -> Metrics:
        self._describer.describe(image, self._planes)
        return self._planes

    def stage2(self, metrics: Metrics) -> FloatMap:
        return self._comparison.smoothed_map(metrics)


class NumpyOpenCv(Way):
    """cv2.filter2D per part, 2 x 2 gathers by slicing, a loop over the six parts, float32."""

    name = "numpy + OpenCV"

    def __init__(self, case: Case, image: FloatMap, reference: FloatMap) -> None:
        del image
        self._case = case
        self._bank = part_bank()
        self._reference = self.stage1(reference)

    def _gathered(self, image: FloatMap, part: FloatMap) -> NDArray[np.float32]:
        """float32 (4, rows, cols): the responses of the four windows of each patch."""
        step, count = self._case.step, self._case.patches
        full = cv2.filter2D(image, cv2.CV_32F, part, anchor=(0, 0))
        span = (count - 1) * step + 1
        return np.stack(
            [
                full[row : row + span : step, column : column + span : step]
                for row in (0, STRIDE)
                for column in (0, STRIDE)
            ]
        )

    def stage1(self, image: FloatMap) -> Metrics:
        datum = self._gathered(image, self._bank[6])
        epsilon = np.float32(1e-4)
        metrics = np.empty((6, 3, self._case.patches, self._case.patches), np.float32)
        for part in range(6):
            x = self._gathered(image, self._bank[part])
            beta = ((x * datum).sum(0) + epsilon) / ((x * x).sum(0) + epsilon)
            distance = np.abs(datum - beta * x)
            metrics[part, 0] = np.log(beta)
            metrics[part, 1] = np.log1p(distance.sum(0))
            metrics[part, 2] = np.log1p(distance.max(0)) - metrics[part, 1]
        return metrics

    def stage2(self, metrics: Metrics) -> FloatMap:
        square = (metrics - self._reference) ** 2
        distances = np.sqrt(np.sqrt((square * square).sum(0)))
        scalar = np.einsum("m,mrc->rc", np.asarray(WEIGHTS, np.float32), distances)
        return np.asarray(cv2.blur(scalar, (3, 3), borderType=cv2.BORDER_REFLECT_101), np.float32)


class PublishedWay(Way):
    """Python with numpy, window by window and patch by patch, as the method was published."""

    name = "published way"

    def __init__(self, case: Case, image: FloatMap, reference: FloatMap) -> None:
        del image
        self._case = case
        self._bank = part_bank()
        self._reference = self.stage1(reference)

    def stage1(self, image: FloatMap) -> Metrics:
        case = self._case
        size = self._bank.shape[1]
        count = (image.shape[0] - size) // STRIDE + 1
        windows = np.empty((7, count, count), np.float32)
        for index, part in enumerate(self._bank):
            for row in range(count):
                for column in range(count):
                    top, left = row * STRIDE, column * STRIDE
                    window = image[top : top + size, left : left + size]
                    windows[index, row, column] = np.sum(part * window)
        apart = case.step // STRIDE
        metrics = np.empty((6, 3, case.patches, case.patches), np.float32)
        for row in range(case.patches):
            for column in range(case.patches):
                top, left = row * apart, column * apart
                similarity = windows[:, top : top + 2, left : left + 2]
                for part in range(6):
                    metrics[part, :, row, column] = soart3(similarity[part], similarity[6])
        return metrics

    def stage2(self, metrics: Metrics) -> FloatMap:
        rows, cols = metrics.shape[2:]
        scalar = np.empty((rows, cols), np.float32)
        for row in range(rows):
            for column in range(cols):
                difference = np.abs(metrics[:, :, row, column] - self._reference[:, :, row, column])
                distances = (difference**P).sum(axis=0) ** (1 / P)
                scalar[row, column] = distances @ WEIGHTS
        smoothed = np.empty_like(scalar)
        padded = np.pad(scalar, 1, mode="reflect")
        for row in range(rows):
            for column in range(cols):
                smoothed[row, column] = padded[row : row + 3, column : column + 3].mean()
        return smoothed


def timed(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds, the least of ``repeats`` runs: what the code costs when nothing interrupts."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times) * 1e3


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one way, the medians over the rounds."""

    way: str
    stage1: float
    stage2: float

    @property
    def total(self) -> float:
        return self.stage1 + self.stage2


def time_case(case: Case, rounds: int, advance: Callable[[], None]) -> list[Timing]:
    """Time every way on one case, in turn, so that a change of the machine's speed hits all."""
    rng = np.random.default_rng(0)
    image, reference = rng.random((2, case.side, case.side), np.float32)
    ways: list[Way] = [Kernels(case, image, reference), NumpyOpenCv(case, image, reference)]
    if case.side <= PUBLISHED_WAY_UP_TO:
        ways.append(PublishedWay(case, image, reference))
    maps = [way.stage2(way.stage1(image)) for way in ways]
    for way, other in zip(ways[1:], maps[1:], strict=True):
        np.testing.assert_allclose(
            other, maps[0], rtol=1e-3, atol=1e-3, err_msg=f"{way.name} computes something else"
        )
    times: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            repeats = 1 if isinstance(way, PublishedWay) else 10
            metrics = way.stage1(image)
            times[way.name].append(
                (
                    timed(partial(way.stage1, image), repeats),
                    timed(partial(way.stage2, metrics), repeats),
                )
            )
            advance()
    return [
        Timing(name, median(first for first, _ in pairs), median(second for _, second in pairs))
        for name, pairs in times.items()
    ]


def bench(rounds: int = 5) -> int:
    """Time all cases and print one table.

    Args:
        rounds: how often each way is timed; the medians are printed.
    """
    cv2.setNumThreads(1)
    table = Table(title="Stage 1 and 2, n = 5, stride 2, one thread, in milliseconds")
    for column in ("picture", "step", "way"):
        table.add_column(column, no_wrap=True)
    for column in ("stage 1", "stage 2", "both", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    steps = sum(rounds * (3 if case.side <= PUBLISHED_WAY_UP_TO else 2) for case in CASES)
    with progress_bar() as progress:
        bar = progress.add_task("measuring", total=steps + bench_inspection.steps(rounds))
        for case in CASES:
            timings = time_case(case, rounds, lambda: progress.advance(bar))
            for timing in timings:
                ratio = timing.total / timings[0].total
                table.add_row(
                    f"{case.side}x{case.side}",
                    str(case.step),
                    timing.way,
                    f"{timing.stage1:.3f}",
                    f"{timing.stage2:.3f}",
                    f"{timing.total:.3f}",
                    f"{ratio:,.1f}",
                )
            table.add_section()
        inspections = bench_inspection.inspection_table(rounds, lambda: progress.advance(bar))
    Console().print(table)
    typer.echo(
        f"Medians of {rounds} rounds, the ways in turn; each way's map was first seen to be the "
        "same.\nratio: how many times as long as inspectd's kernels.\n"
    )
    Console().print(inspections)
    typer.echo(
        f"Medians over {bench_inspection.FRAMES} frames and {rounds} rounds, the ways in turn; one "
        "thread."
    )
    return 0
