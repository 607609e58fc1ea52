"""``inspectd teach``: fill, list and prune a program's references, or its empty station's pictures.

Where the service runs, it owns camera and references, and is asked through its control socket;
else the command does the same work itself.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from inspectd import config
from inspectd.camera.factory import make_camera
from inspectd.camera.files import find_images, picture_name
from inspectd.control import PictureHeader, RemoveRequest, Reply, TeachRequest, ask
from inspectd.errors import ControlError, PermanentError
from inspectd.references import ReferenceStore
from inspectd.settings import Settings
from inspectd.teaching import (
    Candidate,
    Refusal,
    Taught,
    empty_store,
    learn_program,
    reference_store,
    teach,
    teach_empty,
    teach_files,
)


def teach_from_folder(path: Path, program: str, folder: Path, *, empty: bool = False) -> int:
    """Offer every image of a folder, and of its subfolders, as a reference.

    Args:
        path: the station file.
        program: its name.
        folder: of whole frames.
        empty: they show the empty station; the same below.

    Returns:
        1 if any was refused, else 0.

    Raises:
        InspectdError: the settings are wrong, the folder holds no image, or the references cannot
            be written.
    """
    settings = load_for(path, program)
    if not folder.is_dir():
        raise PermanentError(f"{folder} is no folder")
    files = find_images(folder)
    if not files:
        raise PermanentError(f"{folder}: no image files there")
    with progress_bar() as progress:
        reading = progress.add_task("reading", total=len(files))
        pictures: list[tuple[str, bytes]] = []
        unreadable: list[Refusal] = []
        for file in files:
            try:
                pictures.append((picture_name(file), (folder / file).read_bytes()))
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
                unreadable.append(Refusal(picture_name(file), reason))
            progress.advance(reading)
        handing = progress.add_task("teaching", total=len(pictures))

        def advance(count: int) -> None:
            progress.update(handing, completed=count)

        headers = [PictureHeader(name, len(content)) for name, content in pictures]
        request = TeachRequest(program=program, empty=empty, pictures=tuple(headers))
        contents = [content for _, content in pictures]
        reply = ask(settings.control_socket, request, contents, advance)
        taught = (
            taught_of(reply)
            if reply
            else teach_files(
                settings.programs[program],
                reference_store(settings, program),
                pictures,
                settings.hash,
                advance,
                empty=empty,
            )
        )
    taught = msgspec.structs.replace(taught, refused=(*unreadable, *taught.refused))
    return report(taught, settings, program, empty=empty)


def teach_from_camera(path: Path, program: str, frames: int, *, empty: bool = False) -> int:
    """Offer pictures from the station's camera as references.

    Returns:
        1 if any was refused, else 0.

    Raises:
        InspectdError: the settings are wrong, the camera fails, or the references cannot be
            written.
    """
    settings = load_for(path, program)
    with progress_bar() as progress:
        taking = progress.add_task("taking pictures", total=None)
        request = TeachRequest(program=program, empty=empty, frames=frames)
        reply = ask(settings.control_socket, request)
        if reply is not None:
            return report(taught_of(reply), settings, program, empty=empty)
        progress.update(taking, total=frames)
        candidates = []
        with make_camera(settings) as camera:
            for _ in range(frames):
                frame = camera.capture(time.monotonic_ns(), settings.station.capture_timeout_s)
                candidates.append(
                    Candidate(frame.name, frame.pixels, frame.captured_at, frame.view)
                )
                progress.advance(taking)
        take = teach_empty if empty else teach
        taught = take(
            settings.programs[program],
            reference_store(settings, program),
            candidates,
            settings.hash,
        )
    return report(taught, settings, program, empty=empty)


def remove(path: Path, program: str, names: list[str], *, empty: bool = False) -> int:
    """Take references out.

    Raises:
        InspectdError: the settings are wrong, a name fits none or several, or the references
            cannot be written.
    """
    settings = load_for(path, program)
    request = RemoveRequest(program=program, empty=empty, names=tuple(names))
    reply = ask(settings.control_socket, request)
    store = store_of(settings, program, empty=empty)
    removed = reply.removed if reply else tuple(entry.file for entry in store.remove(names))
    typer.echo(f"removed {', '.join(removed)}; {len(store.entries())} {called(empty)} are left")
    return 0


def show(path: Path, program: str, *, empty: bool = False) -> int:
    """List the references of a program, and what is wrong with them.

    Returns:
        1 if one is damaged or missing, else 0.

    Raises:
        InspectdError: the settings or the references' index are wrong.
    """
    settings = load_for(path, program)
    store = store_of(settings, program, empty=empty)
    table = Table(title=f"{called(empty).capitalize()} of {program}")
    for column in ("file", "taken at (UTC)", "size", "origin"):
        table.add_column(column, no_wrap=column == "file")
    for entry in store.entries():
        table.add_row(
            entry.file,
            entry.taken_at.strftime("%Y-%m-%d %H:%M:%S"),
            f"{entry.width} x {entry.height}",
            entry.origin,
        )
    Console().print(table)
    problems = store.check().problems
    for problem in problems:
        typer.echo(problem, err=True)
    typer.echo(f"{len(store.entries())} {called(empty)} in {store.directory}")
    return 1 if problems else 0


def store_of(settings: Settings, program: str, *, empty: bool) -> ReferenceStore:
    """The program's references, or its pictures of the empty station."""
    store = reference_store(settings, program)
    return empty_store(store) if empty else store


def called(empty: bool) -> str:
    """What such a store holds, in words."""
    return "pictures of the empty station" if empty else "references"


def load_for(path: Path, program: str) -> Settings:
    """The settings, when they hold the program.

    Raises:
        SettingsError: the settings are wrong.
        PermanentError: there is no such program.
    """
    settings = config.load(path)
    if program not in settings.programs:
        known = ", ".join(sorted(settings.programs))
        raise PermanentError(f"there is no program {program!r} beside {path}; there are: {known}")
    return settings


def progress_bar() -> Progress:
    """A bar on standard error that leaves nothing behind; none where that is no terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def taught_of(reply: Reply) -> Taught:
    """Raises ControlError when the service has answered something else."""
    if reply.taught is None:
        raise ControlError("the service answered something else than what was taught")
    return reply.taught


def report(taught: Taught, settings: Settings, program: str, *, empty: bool = False) -> int:
    """Say what became of the pictures; 1 if any was refused, else 0."""
    for refusal in taught.refused:
        typer.echo(f"refused {refusal.name}: {refusal.reason}", err=True)
    for name in taught.duplicates:
        typer.echo(f"already {'there' if empty else 'a reference'}: {name}", err=True)
    typer.echo(
        f"{program}: {len(taught.added)} pictures added, {len(taught.refused)} refused, "
        f"{taught.total} {called(empty)} now"
    )
    lesson = learn_program(settings, program)
    if lesson.hindrance:
        typer.echo(f"not ready to judge: {lesson.hindrance}", err=True)
    for problem in (*lesson.problems, *lesson.doubts):
        typer.echo(problem, err=True)
    return 1 if taught.refused else 0
