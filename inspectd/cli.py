"""The command line: arguments, logging, exit codes. The work is in `inspectd.commands`.

Heavy libraries are imported inside the command that needs them, so that ``--help`` answers at once.

Exit codes: 0 all is well; 1 an error, told on standard error; 2 the command line is wrong; 3 a part
did not PASS (`inspectd inspect`), or the service cannot judge (`inspectd status`); 130 Ctrl-C.
`inspectd status` ends with 1, too, where the service judges on, but the settings files are wrong.
`inspectd doctor` tells on standard output: 1 if any of its checks found an error, 0 with warnings.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from inspectd import __version__
from inspectd.errors import InspectdError, SettingsError
from inspectd.systemd import JournalHandler, is_journal

INTERRUPTED = 130
DEFAULT_SETTINGS = Path("/etc/inspectd/default.yaml")

app = typer.Typer(
    name="inspectd",
    help="A vision sensor: looks at every part and says pass or fail.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Settings = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        envvar="INSPECTD_CONFIG",
        help="The station file; its programs lie in programs/ beside it.",
    ),
]
Program = Annotated[str, typer.Argument(help="NAME for programs/NAME.yaml beside the station file")]


def run_command_line() -> int:
    """Run the command that the arguments name; returns the exit code."""
    try:
        result = app(standalone_mode=False)
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        return 1
    except InspectdError as error:
        typer.echo(f"inspectd: {error}", err=True)
        return 1
    except Exception as error:
        show = getattr(error, "show", None)  # click's usage errors
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    if result == INTERRUPTED:  # typer's answer to Ctrl-C
        typer.echo("inspectd: interrupted", err=True)
    return result if isinstance(result, int) else 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inspectd {__version__}")
        raise typer.Exit


@app.callback()
def common(
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """What holds for every command."""
    level = logging.DEBUG if verbose else logging.INFO
    if is_journal(2, os.environ):
        logging.basicConfig(level=level, handlers=[JournalHandler()])
    else:
        logging.basicConfig(
            level=level, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr
        )
    for library in ("numba", "watchfiles"):
        logging.getLogger(library).setLevel(logging.WARNING)


@app.command()
def run(config: Settings = DEFAULT_SETTINGS) -> int:
    """Run the service: judge parts until SIGTERM or Ctrl-C."""
    from inspectd.footprint import share_one_heap

    share_one_heap()  # before the import that brings all the libraries, and their threads
    from inspectd.commands.run import run as command

    return command(config)


@app.command()
def check(
    config: Settings = DEFAULT_SETTINGS,
    *,
    to_run: Annotated[
        bool,
        typer.Option("--to-run", help="Only fail where `run` would not start the station."),
    ] = False,
) -> int:
    """Check the station file and its programs; print every mistake."""
    from inspectd.commands.check import check as command

    return command(config, to_run=to_run)


@app.command()
def schema(
    name: Annotated[
        str | None, typer.Argument(help="One of them, such as station or verdict; all if absent")
    ] = None,
    *,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print all settings as a page for people instead."),
    ] = False,
) -> int:
    """Print the JSON Schemas of settings and MQTT payloads."""
    from inspectd.commands import schema as commands

    if markdown and name is not None:
        raise typer.BadParameter("--markdown prints all settings; leave the name out")
    return commands.reference() if markdown else commands.schema(name)


@app.command()
def status(config: Settings = DEFAULT_SETTINGS) -> int:
    """Ask the running service how it is, also while its settings files are wrong.

    Exit status: 0 it judges; 3 it does not; 1 it does not run, or its settings files are wrong.
    """
    from inspectd.commands.status import status as command

    return command(config)


@app.command()
def doctor(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the lines.")
    ] = False,
    config: Settings = DEFAULT_SETTINGS,
) -> int:
    """Look at everything a station needs, from the camera to the broker; say what to do."""
    from inspectd.commands.doctor import doctor as command

    return command(config, as_json=as_json)


@app.command()
def teach(
    program: Program,
    *,
    from_folder: Annotated[
        Path | None, typer.Option(help="Take the pictures in this folder, whole frames.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Take so many from the camera.")
    ] = None,
    empty: Annotated[
        bool,
        typer.Option(
            "--empty",
            help="The pictures show the empty station, not good parts; so for --list and --remove.",
        ),
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="List the references.")] = False,
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Take this reference out; may be given several times."),
    ] = None,
    config: Settings = DEFAULT_SETTINGS,
) -> int:
    """Teach a program with pictures of good parts, or of the empty station; while it runs, too."""
    from inspectd.commands import teach as commands

    chosen = [from_folder is not None, frames is not None, show, bool(remove)]
    if sum(chosen) != 1:
        raise typer.BadParameter("give one of --from-folder, --frames, --list and --remove")
    if from_folder is not None:
        return commands.teach_from_folder(config, program, from_folder, empty=empty)
    if frames is not None:
        return commands.teach_from_camera(config, program, frames, empty=empty)
    if remove:
        return commands.remove(config, program, remove, empty=empty)
    return commands.show(config, program, empty=empty)


@app.command()
def focus(
    program: Annotated[
        str | None, typer.Argument(help="Another program than the station's own")
    ] = None,
    *,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many readings; at Ctrl-C if absent.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a reading.")
    ] = False,
    config: Settings = DEFAULT_SETTINGS,
) -> int:
    """Mount and focus the camera: live brightness, sharpness and place of the part."""
    from inspectd.commands.focus import focus as command

    return command(config, program, count=count, as_json=as_json)


@app.command()
def inspect(
    program: Program,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files or folders of them")
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a picture instead of the table.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the heatmaps.")] = Path(
        "inspectd-heatmaps"
    ),
    config: Settings = DEFAULT_SETTINGS,
) -> int:
    """Judge image files by a program, without camera, journal or broker."""
    from inspectd.commands.inspect import inspect as command

    return command(config, program, images, as_json=as_json, output=output)


@app.command()
def tune(
    program: Program,
    *,
    good: Annotated[
        Path | None, typer.Option(help="Folder with good parts that are no references.")
    ] = None,
    bad: Annotated[Path | None, typer.Option(help="Folder with bad parts.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.png", help="The histogram; PROGRAM-tune.png if absent."
        ),
    ] = None,
    config: Settings = DEFAULT_SETTINGS,
) -> int:
    """Tell how sure a program's limit is, and whether its threshold suits known parts."""
    from inspectd.commands.tune import tune as command

    return command(config, program, good, bad, output)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To be written, a .tar.gz")],
    *,
    journal: Annotated[
        bool, typer.Option("--journal", help="With the journal, to continue it elsewhere.")
    ] = False,
    archive: Annotated[
        bool, typer.Option("--archive", help="With the archive of pictures judged.")
    ] = False,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="With passwords and keys; for your eyes only.")
    ] = False,
    config: Settings = DEFAULT_SETTINGS,
) -> int:
    """Write the station into one file: settings, programs, references; while it runs, too."""
    from inspectd.commands.backup import backup as command

    return command(config, file, journal=journal, archive=archive, secrets=secrets)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="From `inspectd backup`")],
    *,
    config_dir: Annotated[
        Path, typer.Option(help="Folder for the settings.")
    ] = DEFAULT_SETTINGS.parent,
    force: Annotated[
        bool, typer.Option("--force", help="Move aside what is in the way; nothing is deleted.")
    ] = False,
) -> int:
    """Put the station of a backup in place, such as on a spare Raspberry Pi."""
    from inspectd.commands.backup import restore as command

    return command(file, config_dir, force=force)


@app.command()
def bundle(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="To be written; named after station and time if absent"
        ),
    ] = None,
    *,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="With the reference pictures.")
    ] = False,
    config: Settings = DEFAULT_SETTINGS,
) -> int:
    """Collect what whoever helps you needs to know of this station, without secrets."""
    from inspectd.commands.bundle import bundle as command

    return command(config, file, pictures=pictures)


@app.command()
def demo(
    *,
    parts: Annotated[int, typer.Option(min=1, max=10_000, help="Parts to judge.")] = 40,
    defect_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the parts with a defect.")
    ] = 0.15,
    references: Annotated[int, typer.Option(min=5, max=1000, help="Good parts to teach.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Another one shows other parts.")] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for heatmaps and contact sheet.")
    ] = Path("demo-output"),
) -> int:
    """See it work: a broker of its own, a simulated camera, the real service."""
    from inspectd.commands.demo import demo as command

    return command(
        parts=parts, defect_rate=defect_rate, references=references, seed=seed, output=output
    )


@app.command()
def warmup() -> int:
    """Compile all kernels into the cache; a start after an upgrade then takes no longer."""
    from inspectd.commands.warmup import warmup as command

    return command()


@app.command()
def bench(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often all is timed.")] = 5,
) -> int:
    """Time the two stages against other ways of computing them."""
    from inspectd.commands.bench import bench as command

    return command(rounds)


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Argument(help="Folder with SET/good, SET/test/good, SET/test/KIND")
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the table.")
    ] = False,
) -> int:
    """Measure on labelled pictures how well good and bad are told apart."""
    from inspectd.commands.evaluate import evaluate as command

    return command(data, as_json=as_json)
