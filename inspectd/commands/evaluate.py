"""``inspectd evaluate``: how well good and bad are told apart on folders of labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from inspectd.camera.files import find_images, read_image
from inspectd.errors import PermanentError
from inspectd.imaging import preprocess
from inspectd.inspector import learn
from inspectd.records import FloatMap, Image
from inspectd.settings import Program, SoartcSettings

PUBLISHED = SoartcSettings(part=5, band=1, stride=2, step=4)
"""The published production parameters (SPEC.md, "What was measured of it")."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSet:
    """One folder with ``good/`` (references), ``test/good/`` and ``test/KIND/`` (bad)."""

    name: str
    references: list[Image]
    good: list[Image]
    bad: list[Image]


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one set."""

    set: str
    method: str
    references: int
    auroc: float
    ms: float


Judge = Callable[[Image], float]


def labelled_sets(data: Path) -> list[Path]:
    """The folders of that layout below ``data``.

    Raises:
        PermanentError: there is none.
    """
    sets = (
        sorted(
            folder
            for folder in data.iterdir()
            if (folder / "good").is_dir() and (folder / "test" / "good").is_dir()
        )
        if data.is_dir()
        else []
    )
    if not sets:
        raise PermanentError(
            f"{data}: no labelled pictures there; wanted are folders NAME/good (references), "
            "NAME/test/good and NAME/test/KIND (bad parts)"
        )
    return sets


def load_set(folder: Path) -> LabelledSet:
    """Read every picture of a labelled set; raises PermanentError on one that is unreadable."""

    def pictures(part: Path) -> list[Image]:
        return [read_image(part / file) for file in find_images(part)]

    test = folder / "test"
    kinds = sorted(kind for kind in test.iterdir() if kind.is_dir() and kind.name != "good")
    return LabelledSet(
        folder.name,
        pictures(folder / "good"),
        pictures(test / "good"),
        [picture for kind in kinds for picture in pictures(kind)],
    )


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """The chance that a bad part scores higher than a good one; ties count half."""
    difference = np.subtract.outer(np.asarray(bad), np.asarray(good))
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def soartc_judge(program: Program, references: Sequence[Image]) -> Judge:
    """The raw score of SOARTC: the maximum of the map."""
    learned = learn(program, references)
    planes = learned.describer.new_planes()

    def judge(picture: Image) -> float:
        learned.describer.describe(unit_picture(program, picture), planes)
        return float(learned.comparison.smoothed_map(planes).max())

    return judge


def difference_judge(program: Program, references: Sequence[Image]) -> Judge:
    """The plain absolute difference from the average picture, averaged over 3 x 3 pixels."""
    average = np.mean([unit_picture(program, picture) for picture in references], axis=0)

    def judge(picture: Image) -> float:
        difference = np.abs(unit_picture(program, picture) - average)
        return float(averaged(difference).max())

    return judge


def averaged(values: NDArray[np.float32]) -> FloatMap:
    """Means over 3 x 3 places, the border mirrored."""
    rows, cols = values.shape
    padded = np.pad(values, 1, mode="reflect")
    total = np.zeros_like(values)
    for row in range(3):
        for column in range(3):
            total += padded[row : row + rows, column : column + cols]
    return total / np.float32(9)


def unit_picture(program: Program, picture: Image) -> FloatMap:
    """The picture as stage 1 wants it."""
    grey = preprocess.grey(picture)
    return preprocess.to_unit(preprocess.reduce(grey, program.resolution))


METHODS: dict[str, tuple[Program, Callable[[Program, Sequence[Image]], Judge]]] = {
    "published": (Program(soartc=PUBLISHED, method="published"), soartc_judge),
    "mean": (Program(soartc=PUBLISHED, method="mean"), soartc_judge),
    "difference": (Program(), difference_judge),
}


def evaluate_set(labelled: LabelledSet) -> list[Row]:
    """Every method on one set."""
    rows = []
    for name, (program, make_judge) in METHODS.items():
        judge = make_judge(program, labelled.references)
        judge(labelled.references[0])
        start = perf_counter()
        good = [judge(picture) for picture in labelled.good]
        bad = [judge(picture) for picture in labelled.bad]
        ms = (perf_counter() - start) * 1e3 / (len(good) + len(bad))
        rows.append(Row(labelled.name, name, len(labelled.references), auroc(good, bad), ms))
    return rows


def evaluate(data: Path) -> int:
    """Print one table over all labelled sets of a folder.

    Raises:
        PermanentError: no such sets, or a picture that cannot be read.
    """
    folders = labelled_sets(data)
    console = Console(stderr=True)
    rows = [
        row
        for folder in track(folders, "evaluating", console=console, transient=True)
        for row in evaluate_set(load_set(folder))
    ]
    table = Table("set", "method", title="Image AUROC: good against bad parts")
    for column in ("references", "AUROC", "ms a picture"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.set, row.method, str(row.references), f"{row.auroc:.2f}", f"{row.ms:.2f}")
    Console().print(table)
    typer.echo(
        "published: against the average picture; mean: against the mean description "
        "(both n=5, stride 2, step 4);\ndifference: plain absolute difference from the average "
        "picture. Milliseconds from the full picture to the score."
    )
    return 0
