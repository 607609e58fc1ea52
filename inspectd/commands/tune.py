"""``inspectd tune``: how sure a program's limit is, and whether its threshold suits known parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from inspectd.camera.files import find_images, picture_name, read_image
from inspectd.commands.margins import Findings, Group, Part, above, find
from inspectd.commands.teach import load_for, progress_bar
from inspectd.errors import ImageError, PermanentError, PictureUnreadable
from inspectd.imaging import preprocess
from inspectd.imaging.heatmap import encode_png
from inspectd.imaging.histogram import Lane, LimitMarks, render_histogram
from inspectd.inspector import Inspector
from inspectd.limits import FEWEST_SCORES
from inspectd.records import Image, Verdict
from inspectd.references import pixel_checksum
from inspectd.settings import Program
from inspectd.teaching import learn_program, reference_store

THRESHOLDS = (0.8, 0.9, 1.0, 1.1, 1.2)
"""What is tried in the table."""
MOST_NAMES = 20
"""Names that are printed of each kind; the rest is counted."""


def tune(path: Path, program: str, good: Path | None, bad: Path | None, output: Path | None) -> int:
    """Print margins, expected false rejects and a suggestion, and draw the histogram.

    Args:
        path: the station file.
        program: its name.
        good: folder with pictures of good parts that are no references, whole frames.
        bad: the same of bad parts.
        output: the drawing; PROGRAM-tune.png if absent.

    Returns:
        0, whatever was found.

    Raises:
        InspectdError: the settings are wrong, the program cannot judge, a folder holds no image,
            or the drawing cannot be written.
    """
    settings = load_for(path, program)
    store = reference_store(settings, program)
    with progress_bar() as progress:
        learning = progress.add_task("learning", total=None)
        lesson = learn_program(settings, program)
        progress.remove_task(learning)
        for problem in lesson.problems:
            typer.echo(problem, err=True)
        if lesson.inspector.learned is None:
            raise PermanentError(f"program {program} cannot judge: {lesson.hindrance}")
        references = store.check()
        known = frozenset(reference.sha256 for reference in references.pictures)
        groups = [
            judge_folder(lesson.inspector, folder, known, progress, is_good=is_good)
            if folder
            else None
            for folder, is_good in ((good, True), (bad, False))
        ]
    origins = {entry.file: entry.origin for entry in store.entries()}
    names = [f"{origins.get(one.file, '?')} ({one.file})" for one in references.pictures]
    found = find(program, settings.programs[program], lesson.inspector.learned, names, groups)
    show(found)
    write_histogram(found, output or Path(f"{program}-tune.png"))
    return 0


def judge_folder(
    inspector: Inspector,
    folder: Path,
    known: frozenset[str],
    progress: Progress,
    *,
    is_good: bool,
) -> Group:
    """Judge every image of a folder and its subfolders.

    Raises:
        PermanentError: there is none.
    """
    files = find_images(folder) if folder.is_dir() else []
    if not files:
        raise PermanentError(f"{folder}: no image files there")
    described = f"judging {'good' if is_good else 'bad'} parts"
    parts = [
        judge_file(inspector, folder / file, picture_name(file), known)
        for file in progress.track(files, description=described)
    ]
    return Group(is_good, tuple(parts))


def judge_file(inspector: Inspector, file: Path, name: str, known: frozenset[str]) -> Part:
    """Judge one file; one that cannot be read is NOT_JUDGED."""
    try:
        pixels = read_image(file)
    except PictureUnreadable as error:
        return Part(name, Verdict.NOT_JUDGED, None, f"the file {error}")
    found = inspector.inspect(pixels)
    reason = ": ".join(part for part in (found.reason or "", found.detail) if part)
    return Part(
        name, found.verdict, found.score, reason, is_reference(inspector.program, pixels, known)
    )


def is_reference(program: Program, pixels: Image, known: frozenset[str]) -> bool:
    """Whether a frame is the one that a reference was cut from."""
    try:
        return pixel_checksum(preprocess.crop(pixels, program.roi)) in known
    except ImageError:
        return False


# ---- telling it --------------------------------------------------------------------------------


def show(found: Findings) -> None:
    """Print everything for a person; warnings go to standard error."""
    console = Console()
    console.print(margin_table(found))
    for line in names_of_note(found):
        typer.echo(line)
    console.print(threshold_table(found))
    typer.echo(found.suggestion.why)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


def margin_table(found: Findings) -> Table:
    """How far from the limit the parts are."""
    table = Table(title=f"Program {found.name}: scores, 1.00 is the limit")
    table.add_column("")
    for column in ("judged", "right", "smallest", "median", "largest", "margin", "not judged"):
        table.add_column(column, justify="right")
    within = sum(score <= 1.0 for score in found.scores)
    table.add_row(
        "references, each by the others",
        str(len(found.scores)),
        share(within, len(found.scores)),
        *figures(found.scores, good=True),
        "",
    )
    for group in found.groups:
        table.add_row(
            "good parts" if group.good else "bad parts",
            str(len(group.judged)),
            share(len(group.judged) - len(group.wrong), len(group.judged)),
            *figures(group.scores, good=group.good),
            str(sum(part.verdict is Verdict.NOT_JUDGED for part in group.parts)),
        )
    return table


def figures(scores: Sequence[float], *, good: bool) -> Iterable[Text]:
    """Smallest, median and largest score, and the margin of the one nearest to the limit."""
    if not scores:
        return [Text("-")] * 4
    smallest, median, largest = (float(each) for each in np.quantile(scores, (0.0, 0.5, 1.0)))
    margin = 1.0 - largest if good else smallest - 1.0
    shown = [Text(f"{each:.2f}") for each in (smallest, median, largest)]
    return [*shown, Text(f"{margin:+.2f}", "red" if margin < 0 else "green")]


def share(part: int, whole: int) -> str:
    """A count with its percentage."""
    return f"{part} ({100 * part / whole:.0f} %)" if whole else "-"


def names_of_note(found: Findings) -> Iterator[str]:
    """The parts that came out wrong or not at all, and the references above the limit."""
    named = zip(found.names, found.scores, strict=False)  # a single reference has no score
    odd = sorted(((score, name) for name, score in named if score > 1.0), reverse=True)
    yield from listed(
        "references above the limit: look whether they are good parts (inspectd teach "
        f"{found.name} --remove FILE takes one out)",
        [f"{name}: score {score:.2f}" for score, name in odd],
    )
    for group in found.groups:
        kind = "good" if group.good else "bad"
        fate = "that FAIL" if group.good else "that PASS"
        yield from listed(
            f"{kind} parts {fate}",
            [f"{part.name}: {part.reason or f'score {part.score:.2f}'}" for part in group.wrong],
        )
        doubtful = [part for part in group.parts if part.verdict is Verdict.NOT_JUDGED]
        yield from listed(
            f"{kind} parts that are NOT_JUDGED",
            [f"{part.name}: {part.reason}" for part in doubtful],
        )


def listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    """The lines below their title; nothing without lines, and no more than a screen takes."""
    if not lines:
        return
    yield f"{title}:"
    for line in lines[:MOST_NAMES]:
        yield f"  {line}"
    if len(lines) > MOST_NAMES:
        yield f"  and {len(lines) - MOST_NAMES} more"


def threshold_table(found: Findings) -> Table:
    """What to expect of other thresholds."""
    present = found.program.limit.threshold
    table = Table(title=f"limit.threshold, {present:g} at present")
    columns = ["threshold", "false rejects expected", "90 % sure of", "references above"]
    columns += ["good that fail" if group.good else "bad that pass" for group in found.groups]
    for column in columns:
        table.add_column(column, justify="right")
    suggested = [found.suggestion.threshold] if found.suggestion.threshold else []
    for threshold in sorted({*THRESHOLDS, present, *suggested}):
        rate = found.expected(threshold)
        mark = " suggested" if threshold in suggested else " now" if threshold == present else ""
        table.add_row(
            f"{threshold:g}{mark}",
            percent(rate.expected) if rate else "not known",
            f"{percent(rate.low)} to {percent(rate.high)}" if rate else "-",
            f"{above(found.scores, threshold / present)} of {len(found.scores)}",
            *(
                f"{group.wrong_at(threshold / present)} of {len(group.judged)}"
                for group in found.groups
            ),
            style="bold" if mark else "",
        )
    return table


def percent(rate: float) -> str:
    """Two digits that count, and never a rate of nothing."""
    if rate < 0.0001:
        return "< 0.01 %"
    digits = 0 if rate >= 0.0995 else 1 if rate >= 0.00995 else 2
    return f"{100 * rate:.{digits}f} %"


def write_histogram(found: Findings, output: Path) -> None:
    """Draw the scores, and say where.

    Raises:
        PermanentError: the file cannot be written.
    """
    limit, suggested = found.limit, found.suggestion.threshold
    present = found.program.limit.threshold
    lanes = [
        Lane(
            "references, each judged by the others",
            found.scores,
            good=True,
            references=True,
            note="a single reference has no others to be judged by",
        ),
        *(
            Lane("good parts" if group.good else "bad parts", group.scores, group.good, note="none")
            for group in found.groups
        ),
    ]
    canvas = render_histogram(
        lanes,
        LimitMarks(
            low=limit.low / limit.value if limit.low else None,
            high=limit.high / limit.value if limit.high else None,
            suggested=suggested / present if suggested else None,
            suggestion=f"threshold {suggested:g} suggested" if suggested else "",
        ),
        title=found.name,
        subtitle=learned_from(found),
        limit=f"limit {found.raw:.4g} raw, threshold {present:g}",
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(encode_png(canvas))
    except OSError as error:
        raise PermanentError(f"cannot write {output}: {error.strerror}") from error
    typer.echo(f"histogram in {output}")


def learned_from(found: Findings) -> str:
    """What the limit follows from, in few words."""
    count = len(found.names)
    references = f"{count} reference{'s' if count > 1 else ''}"
    if len(found.scores) < FEWEST_SCORES:
        return f"{references}, {found.limit.method}"
    rate = 100 * found.program.limit.false_reject
    return f"{references}, {found.limit.method}, {rate:g} % false rejects aimed at"
