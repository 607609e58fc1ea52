"""The second half of ``inspectd bench``: whole inspections, from frame to score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter

import cv2
import numpy as np
from rich import box
from rich.table import Table

from inspectd.camera.simulated import render
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.records import GreyImage, Verdict
from inspectd.settings import AlignmentSettings, Program, SimulatedCamera

CAMERA = SimulatedCamera(width=1456, height=1088, defect_rate=0.1)
"""Frames as the Raspberry Pi's global shutter camera gives them."""
REFERENCES = 100
FRAMES = 40
STAGES = {
    "prepare": "reduce",
    "gate": "gate",
    "align": "align",
    "stage1": "st. 1",
    "stage2": "st. 2",
    "score": "score",
}
"""Stages of an inspection, and what heads their columns."""


WAYS = (
    Program(alignment=AlignmentSettings(mode="none"), method="statistics"),
    Program(alignment=AlignmentSettings(mode="rigid"), method="statistics"),
    Program(alignment=AlignmentSettings(mode="search"), method="statistics"),
    Program(alignment=AlignmentSettings(mode="rigid"), method="nearest"),
)


def frames(first: int, count: int, advance: Callable[[], None]) -> list[GreyImage]:
    """Simulated frames, uint8 (1088, 1456)."""
    pictures = []
    for number in range(first, first + count):
        pictures.append(render(CAMERA, number)[0])
        advance()
    return pictures


def steps(rounds: int) -> int:
    """How often `inspection_table` calls ``advance``."""
    return REFERENCES + FRAMES + len(WAYS) * (rounds + 1)


def inspection_table(rounds: int, advance: Callable[[], None]) -> Table:
    """Time whole inspections, the ways in turn.

    Args:
        rounds: how often each frame is judged each way.
        advance: called at each step.

    Returns:
        The medians by stage, and median and 99th percentile of the whole, in milliseconds.
    """
    cv2.setNumThreads(1)
    references = frames(0, REFERENCES, advance)
    judged = frames(REFERENCES, FRAMES, advance)
    inspectors = []
    for way in WAYS:
        reduced = [ReducedCrop.of(frame, way.resolution) for frame in references]
        inspectors.append(Inspector(way, reduced))
        advance()
    stages: list[dict[str, list[float]]] = [{stage: [] for stage in STAGES} for _ in WAYS]
    totals: list[list[float]] = [[] for _ in WAYS]
    for _ in range(rounds):
        for inspector, by_stage, total in zip(inspectors, stages, totals, strict=True):
            time_frames(inspector, judged, by_stage, total)
            advance()
    table = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"Whole inspections, 1456x1088 to 100x75, {REFERENCES} references, in ms",
    )
    table.add_column("alignment, method", no_wrap=True)
    for column in (*STAGES.values(), "median", "99 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for way, by_stage, total in zip(WAYS, stages, totals, strict=True):
        table.add_row(
            f"{way.alignment.mode}, {way.method}",
            *(f"{median(by_stage[stage]):.2f}" for stage in STAGES),
            f"{median(total):.2f}",
            f"{np.percentile(total, 99):.2f}",
        )
    return table


def time_frames(
    inspector: Inspector,
    judged: Sequence[GreyImage],
    by_stage: dict[str, list[float]],
    total: list[float],
) -> None:
    """Judge every frame once and note what it took; a frame that is not judged is left out."""
    for frame in judged:
        start = perf_counter()
        inspection = inspector.inspect(frame)
        elapsed = (perf_counter() - start) * 1e3
        if inspection.verdict is not Verdict.NOT_JUDGED:
            total.append(elapsed)
            for stage, ms in inspection.timings_ms.items():
                by_stage[stage].append(ms)
