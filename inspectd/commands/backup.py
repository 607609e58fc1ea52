"""``inspectd backup`` and ``inspectd restore``: a station moves to another machine."""

from __future__ import annotations

from pathlib import Path

import typer

from inspectd import config
from inspectd.journal.lock import in_use
from inspectd.settings import Settings
from inspectd.station_copy import JOURNAL, Manifest, Restored, Wanted, back_up
from inspectd.station_copy import restore as put_in_place

_MIB = 1 << 20
_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


def backup(path: Path, target: Path, *, journal: bool, archive: bool, secrets: bool) -> int:
    """Write the station of a settings file into ``target``; tells what is in it and what is not.

    Raises:
        SettingsError: the settings are wrong: where the station's files are is not known.
        PermanentError: something cannot be read or written; ``target`` is as it was.
    """
    settings, problems = config.load_to_run(path)
    for problem in problems:
        typer.echo(f"taken as it is: {problem}", err=True)
    manifest = back_up(settings, target, Wanted(journal, archive, secrets))
    typer.echo(f"{target}: station {manifest.station}, {target.stat().st_size / _MIB:.1f} MiB")
    _describe(manifest)
    if manifest.secret:
        typer.echo(
            "  secrets     it holds passwords or keys (or a password in the URL of a camera): "
            "keep it where nobody else can read it"
        )
        if target.stat().st_mode & 0o077:
            typer.echo("  WARNING     the disk it lies on cannot close it to other users")
    if manifest.journal is not None:
        part = manifest.journal
        typer.echo(f"  journal     {part.id}, up to seq {part.last_seq}")
        if in_use(settings.directory / JOURNAL):
            typer.echo(
                "  WARNING     the service runs: what it judges from now on is not in it. To move "
                "the station, stop the service and take the backup then"
            )
    return 0


def restore(source: Path, config_dir: Path, *, force: bool) -> int:
    """Put the station of a backup in place; tells what was done and what remains to be done.

    Raises:
        SettingsError: the settings in it are wrong.
        PermanentError: it is damaged or not sound, the station runs, or others are in the way.
    """
    restored = put_in_place(source, config_dir, force=force)
    settings, manifest = restored.settings, restored.manifest
    typer.echo(f"station {manifest.station} restored to {settings.path} and {settings.directory}")
    typer.echo(
        f"  made        {manifest.created_at:%Y-%m-%d %H:%M} UTC on {manifest.hostname} by "
        f"inspectd {manifest.inspectd}"
    )
    _describe(manifest)
    for problem in restored.problems:
        typer.echo(f"  WARNING     a program it does not judge by: {problem}")
    for path in restored.moved_aside:
        typer.echo(f"  moved aside {path}")
    typer.echo(f"  journal     {_of_the_journal(restored)}")
    look = f"sudo -u inspectd inspectd doctor -c {settings.path}"
    typer.echo(f"  next        {_start(settings)}; then {look}")
    return 0


def _start(settings: Settings) -> str:
    """How the service is started on a machine on which it has never run by these settings."""
    instance, mqtt = settings.path.stem, settings.station.mqtt
    if mqtt.host not in _THIS_MACHINE or mqtt.tls is None:
        return f"sudo systemctl enable --now inspectd@{instance}"
    return (
        f"the broker is on this machine: sudo sh deploy/install.sh --mosquitto --instance "
        f"{instance}, which lets the station in there and starts it"
    )


def _describe(manifest: Manifest) -> None:
    names = [member.name for member in manifest.members]
    programs = [
        Path(name).stem
        for name in names
        if name.startswith("config/programs/") and name.endswith(".yaml")
    ]
    pictures = sum(name.startswith("state/references/") and name.endswith(".png") for name in names)
    typer.echo(f"  programs    {', '.join(programs) or 'none'}")
    typer.echo(f"  references  {pictures} pictures")
    for words in manifest.left_out:
        typer.echo(f"  not in it   {words}")


def _of_the_journal(restored: Restored) -> str:
    part = restored.manifest.journal
    if part is None:
        return (
            "the backup has none: the service begins a new one, with a new journal_id and seq from "
            "1; verdicts that the old station had not sent are not sent from here"
        )
    return (
        f"{part.id} is continued after seq {part.last_seq}: the old station must not run any more, "
        "or both give the same numbers to different parts. Verdicts that were not sent when the "
        "backup was made are sent, marked historical"
    )
