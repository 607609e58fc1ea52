"""``inspectd evaluate``: how well good and bad are told apart on folders of labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import resources
from pathlib import Path
from statistics import fmean

import cv2
import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from inspectd.commands.labelled import (
    Folders,
    find_folders,
    load_pairs,
    load_set,
    load_views,
)
from inspectd.commands.measurements import (
    DEFAULT,
    EyeJudge,
    FalseAlarms,
    Found,
    Row,
    SiteBoxes,
    Sites,
    added_up,
    baseline_rows,
    default_row,
    drawn_rows,
    measure_pair,
    measure_sites,
    measure_view,
    pixel_auroc,
    reduced,
)
from inspectd.commands.teach import progress_bar
from inspectd.settings import Program

FEW = 5
"""References from which a target is set."""
NOTES = (
    "published: against the average picture; mean: against the mean description (both n=5, "
    "stride 2, step 4, nothing aligned); difference: plain absolute difference from the average "
    "picture; default: the default program, its alignment chosen by set.",
    "missed, false: bad parts not above the limit, good parts above it; the limit follows from "
    "the references alone, for 2 % false rejects. From fewer references: means over 5 draws.",
    "ms: the median, from the full picture to the score, one thread.",
)
SITES_NOTE = "each site: the same for each site on its own, at its own limit."
PAIRS_NOTE = (
    "template: one limit for all pairs; missed: boxes that no region above it touches; false: "
    "regions that touch no box, and in how many pictures."
)


class Targets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is aimed at; see evaluate.toml."""

    auroc: dict[str, float]
    auroc_from_5: float
    missed: float
    false_rejects: float
    sites: dict[str, float]
    pixel_auroc: dict[str, float]
    board_false_alarms: int
    pcb_found: float
    pcb_false_regions: float


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What evaluate.toml says of the sets, by the name of their folder."""

    programs: dict[str, Program]
    sites: dict[str, SiteBoxes]
    targets: Targets

    def program(self, name: str) -> Program:
        """The settings that a set is judged by."""
        return self.programs.get(name, Program())


@cache
def known() -> Known:
    """The content of evaluate.toml."""
    text = resources.files("inspectd.commands").joinpath("evaluate.toml").read_bytes()
    return msgspec.toml.decode(text, type=Known)


@dataclass(frozen=True, slots=True)
class Pooled:
    """The default method with all references, over all sets."""

    sets: int
    auroc: float
    missed: int
    bad: int
    false_rejects: int
    good: int


@dataclass(frozen=True, slots=True)
class Goal:
    """A target and what was reached."""

    what: str
    wanted: str
    reached: float
    met: bool


@dataclass(slots=True)
class Findings:
    """Everything measured; printed as a table, or as this object in JSON.

    Attributes:
        sets: one row a set and method.
        pictures: by set, how many there are of each kind.
        sites: by set, where the names of the pictures tell what each site holds.
        pixel_auroc: by set, where there are masks.
        boards: by folder, its views without defects.
        pcb: by folder, its pairs with boxes.
    """

    sets: list[Row] = field(default_factory=list)
    pictures: dict[str, dict[str, int]] = field(default_factory=dict)
    pooled: Pooled | None = None
    sites: dict[str, Sites] = field(default_factory=dict)
    pixel_auroc: dict[str, float] = field(default_factory=dict)
    boards: dict[str, list[FalseAlarms]] = field(default_factory=dict)
    pcb: dict[str, Found] = field(default_factory=dict)
    targets: list[Goal] = field(default_factory=list)

    def default_rows(self) -> dict[str, Row]:
        """By set, the default method's row with all references."""
        rows = [row for row in self.sets if row.method == DEFAULT]
        return {row.set: row for row in reversed(rows)}


def evaluate(data: Path, *, as_json: bool = False) -> int:
    """Measure on everything below a folder and print it.

    Raises:
        PermanentError: nothing is labelled there, or a picture cannot be read.
    """
    folders = find_folders(data)
    cv2.setNumThreads(1)
    findings = Findings()
    steps = list(measurements(folders, findings))
    with progress_bar() as progress:
        bar = progress.add_task("evaluating", total=len(steps))
        for name, measure in steps:
            progress.update(bar, description=name)
            measure()
            progress.advance(bar)
    findings.pooled = pooled(findings)
    findings.targets = list(goals(findings))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(findings)).decode())
    else:
        print_table(findings)
    return 0


# ---- measuring ---------------------------------------------------------------------------------


def measurements(folders: Folders, findings: Findings) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is to be done, by name, each step adding to the findings."""
    for folder in folders.sets:
        yield folder.name, partial(evaluate_set, folder, findings)
    for folder in folders.views:
        yield folder.name, partial(evaluate_views, folder, findings)
    for folder in folders.pairs:
        yield folder.name, partial(evaluate_pairs, folder, findings)


def evaluate_set(folder: Path, findings: Findings) -> None:
    """Every method on one labelled set, and what its masks and names tell beyond."""
    program = known().program(folder.name)
    labelled = load_set(folder, program.resolution)
    findings.pictures[labelled.name] = {
        "references": len(labelled.references),
        "good": len(labelled.good),
        "bad": len(labelled.bad),
    }
    judge = EyeJudge(program, reduced(labelled.references, program))
    findings.sets += baseline_rows(labelled, program)
    findings.sets.append(default_row(labelled, program, judge))
    findings.sets += drawn_rows(labelled, program)
    pixels = pixel_auroc(labelled, program, judge.eye)
    if pixels is not None:
        findings.pixel_auroc[labelled.name] = pixels
    boxes = known().sites.get(labelled.name)
    sites = measure_sites(labelled, program, boxes) if boxes else None
    if sites is not None:
        findings.sites[labelled.name] = sites


def evaluate_views(folder: Path, findings: Findings) -> None:
    """False alarms on views without defects."""
    program = known().program(folder.name)
    views = load_views(folder, program.resolution)
    findings.boards[folder.name] = [measure_view(view, program) for view in views]


def evaluate_pairs(folder: Path, findings: Findings) -> None:
    """Boxes found with one golden picture each."""
    program = known().program(folder.name)
    pairs = load_pairs(folder, program.resolution)
    findings.pcb[folder.name] = added_up([measure_pair(pair, program) for pair in pairs])


def pooled(findings: Findings) -> Pooled | None:
    """The default method's rows with all references, added up; None where there are none."""
    rows = findings.default_rows()
    if not rows:
        return None
    return Pooled(
        sets=len(rows),
        auroc=fmean(row.auroc for row in rows.values()),
        missed=round(sum(row.missed or 0 for row in rows.values())),
        bad=sum(findings.pictures[name]["bad"] for name in rows),
        false_rejects=round(sum(row.false_rejects or 0 for row in rows.values())),
        good=sum(findings.pictures[name]["good"] for name in rows),
    )


# ---- targets -----------------------------------------------------------------------------------


def goals(findings: Findings) -> Iterator[Goal]:
    """The targets of the known sets that were measured."""
    targets = known().targets
    rows = findings.default_rows()
    for name, least in targets.auroc.items():
        if name in rows:
            yield at_least(f"AUROC, {name}", rows[name].auroc, least)
    if rows.keys() == targets.auroc.keys():
        yield from goals_over_all(findings, targets)
    for name, least in targets.sites.items():
        if sites := findings.sites.get(name):
            yield at_least(f"sites right, {name}", sites.right / sites.sites, least)
    for name, least in targets.pixel_auroc.items():
        if name in findings.pixel_auroc:
            yield at_least(f"pixel AUROC, {name}", findings.pixel_auroc[name], least)
    if views := findings.boards.get("boards"):
        alarms = sum(view.false_alarms for view in views)
        yield at_most("false alarms, boards", alarms, targets.board_false_alarms)
    if found := findings.pcb.get("pcb"):
        yield at_least("boxes found, pcb", found.found / found.boxes, targets.pcb_found)
        each = found.false_regions / found.pairs
        yield at_most("false regions an image, pcb", each, targets.pcb_false_regions)


def goals_over_all(findings: Findings, targets: Targets) -> Iterator[Goal]:
    """The targets over all sets together."""
    few = [row.auroc for row in findings.sets if (row.method, row.references) == (DEFAULT, FEW)]
    if few:
        yield at_least(f"AUROC from {FEW} references, mean", fmean(few), targets.auroc_from_5)
    total = findings.pooled
    if total:
        yield at_most("bad parts missed", total.missed / total.bad, targets.missed)
        rejected = total.false_rejects / total.good
        yield at_most("good parts rejected", rejected, targets.false_rejects)


def at_least(what: str, reached: float, wanted: float) -> Goal:
    """A target from below."""
    return Goal(what, f">= {wanted:g}", reached, reached >= wanted)


def at_most(what: str, reached: float, wanted: float) -> Goal:
    """A target from above."""
    return Goal(what, f"<= {wanted:g}", reached, reached <= wanted)


# ---- printing ----------------------------------------------------------------------------------


def print_table(findings: Findings) -> None:
    """The figures, and the targets of the sets that have any, for a person."""
    console = Console()
    console.print(figures_table(findings))
    notes = [*NOTES, *[SITES_NOTE] * bool(findings.sites), *[PAIRS_NOTE] * bool(findings.pcb)]
    console.print("\n".join(notes), style="dim")
    if findings.targets:
        console.print()
        console.print(targets_table(findings.targets))


def figures_table(findings: Findings) -> Table:
    """One row a set and method."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("set", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("refs", "AUROC", "pixels", "missed", "false", "ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, counts in findings.pictures.items():
        add_set(table, findings, name, counts)
    if len(findings.pictures) > 1 and (total := findings.pooled):
        missed, rejected = of(total.missed, total.bad), of(total.false_rejects, total.good)
        table.add_row(
            "all sets", DEFAULT, "", f"{total.auroc:.3f}", "", missed, rejected, "", style="bold"
        )
        table.add_section()
    for name, views in findings.boards.items():
        alarms = sum(view.false_alarms for view in views)
        pictures = sum(view.pictures for view in views)
        references = str(round(fmean(view.references for view in views)))
        ms = f"{fmean(view.ms for view in views):.2f}"
        table.add_row(name, "each view", references, "", "", "", of(alarms, pictures), ms)
    for name, found in findings.pcb.items():
        missed = of(found.boxes - found.found, found.boxes)
        false_regions = of(found.false_regions, found.pairs)
        table.add_row(name, "template", "1", "", "", missed, false_regions, f"{found.ms:.2f}")
    return table


def add_set(table: Table, findings: Findings, name: str, counts: dict[str, int]) -> None:
    """The rows of one labelled set, the default method with all references in bold."""
    best = findings.default_rows()[name]
    for row in findings.sets:
        if row.set == name:
            pixels = findings.pixel_auroc.get(name) if row is best else None
            table.add_row(
                name,
                row.method,
                str(row.references),
                f"{row.auroc:.3f}",
                "" if pixels is None else f"{pixels:.3f}",
                of(row.missed, counts["bad"]),
                of(row.false_rejects, counts["good"]),
                f"{row.ms:.2f}",
                style="bold" if row is best else None,
            )
    if sites := findings.sites.get(name):
        missed = of(sites.missed, sites.empty)
        rejected = of(sites.false_rejects, sites.filled)
        table.add_row(name, "each site", str(sites.references), "", "", missed, rejected, "")
    table.add_section()


def of(count: float | None, total: int) -> str:
    """How many of how many; a dash where it is not known."""
    if count is None:
        return "-"
    return f"{count:.0f}/{total}" if count == round(count) else f"{count:.1f}/{total}"


def targets_table(targets: list[Goal]) -> Table:
    """What is aimed at and what was reached."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("target", no_wrap=True)
    for column in ("wanted", "reached"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for goal in targets:
        met = "met" if goal.met else "missed"
        style = "green" if goal.met else "bold red"
        table.add_row(goal.what, goal.wanted, f"{goal.reached:.3g}", f"[{style}]{met}[/]")
    return table
