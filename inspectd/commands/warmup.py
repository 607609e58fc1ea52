"""``inspectd warmup``: compile every kernel into the cache, so that no start has to wait for it."""

from __future__ import annotations

from itertools import product
from time import perf_counter
from typing import get_args, get_type_hints

import numpy as np
import typer

from inspectd.commands.teach import progress_bar
from inspectd.eye import Eye
from inspectd.inspector import ReducedCrop
from inspectd.settings import AlignmentSettings, Program

PICTURES = 3
SIDES = 96, 128
"""Of the made-up frames: more than the resolution, or they would not be reduced."""


def warmup() -> int:
    """Learn from and judge a few made-up pictures by every mode and method.

    Numba keeps the compiled kernels beside the package, or in the folder that NUMBA_CACHE_DIR
    names, or in that of an installed station; a kernel that is there already is only loaded.
    """
    start = perf_counter()
    with progress_bar() as progress:
        for program in progress.track(list(programs()), description="compiling"):
            rehearse(program)
    typer.echo(f"kernels ready after {perf_counter() - start:.1f} s")
    return 0


def rehearse(program: Program) -> None:
    """Learn from and judge made-up frames: every kernel that the program needs is called."""
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, SIDES, np.uint8)
    frames = [
        np.clip(part + rng.normal(0, 4, SIDES), 0, 255).astype(np.uint8) for _ in range(PICTURES)
    ]
    pictures = [ReducedCrop.of(frame, program.resolution).picture for frame in frames]
    for count in (1, PICTURES):
        Eye(program, pictures[:count]).look(pictures[-1])


def programs() -> list[Program]:
    """One program for each alignment mode and method."""
    modes = get_args(get_type_hints(AlignmentSettings)["mode"])
    methods = get_args(get_type_hints(Program)["method"])
    return [
        Program(alignment=AlignmentSettings(mode=mode), method=method)
        for mode, method in product(modes, methods)
    ]
