"""``inspectd inspect``: image files judged as the service would judge them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inspectd.camera.files import find_images, read_image
from inspectd.commands.teach import load_for, progress_bar
from inspectd.errors import PermanentError, PictureUnreadable
from inspectd.imaging.heatmap import encode_png, render_heatmap
from inspectd.inspector import Inspector
from inspectd.payload import judgement
from inspectd.records import Inspection, Verdict
from inspectd.settings import Settings
from inspectd.teaching import learn_program

NOT_PASSED = 3
COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.NOT_JUDGED: "yellow"}


@dataclass(frozen=True, slots=True)
class Result:
    """One file with what was found; ``heatmap`` is None where there was nothing to draw."""

    image: Path
    inspection: Inspection | None
    heatmap: Path | None
    error: str = ""

    @property
    def verdict(self) -> Verdict:
        return self.inspection.verdict if self.inspection else Verdict.NOT_JUDGED

    @property
    def reason(self) -> str:
        if self.inspection is None:
            return self.error
        why = self.inspection.reason
        return f"{why}: {self.inspection.detail}" if why else ""


def inspect(path: Path, program: str, images: list[Path], *, as_json: bool, output: Path) -> int:
    """Judge image files and write their heatmaps.

    Returns:
        0 if every one got PASS, else 3.

    Raises:
        InspectdError: the settings are wrong, there are no images, or the heatmaps cannot be
            written.
    """
    settings = load_for(path, program)
    lesson = learn_program(settings, program)
    for problem in (*lesson.problems, lesson.hindrance):
        if problem:
            typer.echo(problem, err=True)
    files = list(expanded(images))
    if not files:
        raise PermanentError("there are no image files to inspect")
    results = []
    with progress_bar() as progress:
        for image, name in progress.track(files, description="inspecting"):
            results.append(inspect_one(settings, program, lesson.inspector, image, output / name))
    if as_json:
        for result in results:
            typer.echo(json_line(result))
    else:
        print_table(results, program)
        drawn = sum(result.heatmap is not None for result in results)
        typer.echo(f"{drawn} heatmaps in {output}")
    return 0 if all(result.verdict is Verdict.PASS for result in results) else NOT_PASSED


def expanded(images: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Each file with a name for its heatmap, no two alike; folders give all their images."""
    taken: set[Path] = set()
    for file, place in image_files(images):
        heatmap = place.with_name(f"{place.name}.heatmap.png")
        number = 1
        while heatmap in taken:
            number += 1
            heatmap = place.with_name(f"{place.name}.{number}.heatmap.png")
        taken.add(heatmap)
        yield file, heatmap


def image_files(images: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Each file with its place: within the folder that was given, or its mere name."""
    for image in images:
        if image.is_dir():
            for file in find_images(image):
                yield image / file, file
        else:
            yield image, Path(image.name)


def inspect_one(
    settings: Settings, program: str, inspector: Inspector, image: Path, heatmap: Path
) -> Result:
    """Judge one file; one that cannot be read is NOT_JUDGED.

    Raises:
        PermanentError: the heatmap cannot be written.
    """
    try:
        inspection = inspector.inspect(read_image(image))
    except PictureUnreadable as error:
        return Result(image, None, None, f"the file {error}")
    canvas = render_heatmap(
        inspection,
        program=program,
        regions=settings.programs[program].regions,
        grid=inspector.learned.grid if inspector.learned else None,
    )
    try:
        heatmap.parent.mkdir(parents=True, exist_ok=True)
        heatmap.write_bytes(encode_png(canvas))
    except OSError as error:
        raise PermanentError(f"cannot write {heatmap}: {error.strerror}") from error
    return Result(image, inspection, heatmap)


def json_line(result: Result) -> str:
    """One picture as a JSON object; what was found has the fields of the verdict's payload."""
    unreadable = Inspection(Verdict.NOT_JUDGED, detail=result.error)
    inspection = result.inspection or unreadable
    record = {
        "image": str(result.image),
        **judgement(inspection),
        "timings_ms": dict(inspection.timings_ms),
        "heatmap": str(result.heatmap) if result.heatmap else None,
    }
    return msgspec.json.encode(record).decode()


def print_table(results: list[Result], program: str) -> None:
    """The verdicts for a person."""
    table = Table(title=f"Program {program}: 1.00 is the limit")
    table.add_column("image", overflow="fold")
    table.add_column("verdict")
    table.add_column("score", justify="right")
    table.add_column("reason", overflow="fold")
    for result in results:
        score = result.inspection.score if result.inspection else None
        table.add_row(
            Text(str(result.image)),
            Text(result.verdict.value, COLOURS[result.verdict]),
            "" if score is None else f"{score:.2f}",
            Text(result.reason),
        )
    Console().print(table)
