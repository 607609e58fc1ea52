"""``inspectd check``: every mistake of the settings files, or what they say in short."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from inspectd.config import load, load_to_run
from inspectd.errors import JournalUnusable, Problem, SettingsError
from inspectd.journal.outside import refuse_newer_journal
from inspectd.settings import CREDENTIALS


def check(path: Path, *, to_run: bool = False) -> int:
    """Checks the station file and all programs beside it; the exit status, 1 where one is wrong.

    The folders that the settings name are not looked at, but for the journal if ``to_run``.

    Args:
        path: the station file.
        to_run: a mistake is no more than told where `inspectd run` leaves that program out; and a
            journal of a newer version, which this one cannot go on with, is one as well.
    """
    try:
        settings, left_out = load_to_run(path) if to_run else (load(path), ())
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        typer.echo(_count(error.problems), err=True)
        return 1
    for problem in left_out:
        typer.echo(f"left out, a program that is not judged by: {problem}", err=True)
    journal = settings.directory / "journal.db"
    if to_run and os.path.exists(journal):  # noqa: PTH110 (Path's may raise)
        try:
            refuse_newer_journal(journal)
        except JournalUnusable as error:
            typer.echo(str(error), err=True)
            return 1
    station = settings.station
    trigger = type(station.trigger).__struct_config__.tag
    driver = type(station.camera).__struct_config__.tag
    typer.echo(f"{path}: {'it can run' if left_out else 'nothing wrong'}")
    typer.echo(f"  station   {station.station}: camera {driver}, trigger {trigger}")
    typer.echo(f"  program   {station.program}: {settings.program.description or '-'}")
    typer.echo(f"  programs  {', '.join(sorted(settings.programs))}")
    typer.echo(f"  hash      {settings.hash}")
    tls = station.mqtt.tls
    for secret in (station.mqtt.password_file, tls.key if tls else None):
        if secret is not None and secret.startswith(CREDENTIALS):
            typer.echo(f"  secret    {secret} is not looked at: systemd hands it to the service")
    return 0


def _count(problems: tuple[Problem, ...]) -> str:
    """How many problems in how many files."""
    files = {problem.file for problem in problems}
    found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{found} in {'1 file' if len(files) == 1 else f'{len(files)} files'}"
