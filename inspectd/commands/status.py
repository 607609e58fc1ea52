"""``inspectd status``: what the running service says of itself."""

from __future__ import annotations

from pathlib import Path

import msgspec
import typer

from inspectd import config
from inspectd.control import Reply, StatusRequest, ask, find_service
from inspectd.errors import ControlError, SettingsError
from inspectd.settings import Settings


def status(path: Path) -> int:
    """Print the station's state as on topic `state`.

    Mistakes in the settings files go to standard error. The service judges on by the last good
    ones and is asked all the same.

    Returns:
        0: it judges, and could be started again; 3: it does not judge; 1: it judges, but the
        settings files are wrong.

    Raises:
        ControlError: no service of this station runs, or it may not be asked.
    """
    settings = None
    try:
        settings = config.load_to_run(path)[0]
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
    reply = _ask(path, settings)
    if reply.state is None:
        raise ControlError("the service does not say how it is; see its log")
    if settings is None:
        typer.echo(
            f"inspectd: {path} or a program beside it is wrong, as told above; the service goes on "
            f"by settings {reply.state.settings_hash} and says of itself:",
            err=True,
        )
    typer.echo(msgspec.json.format(msgspec.json.encode(reply.state), indent=2).decode())
    if reply.state.state != "judging":
        return 3
    return 1 if settings is None else 0


def _ask(path: Path, settings: Settings | None) -> Reply:
    """Raises ControlError."""
    if settings is not None and (reply := ask(settings.control_socket, StatusRequest())):
        return reply
    if reply := find_service(path):
        return reply
    if settings is not None:
        raise ControlError(
            f"no service of station {settings.station.station} runs here "
            f"(nothing listens on {settings.control_socket})"
        )
    raise ControlError(
        f"no service was found that runs by {path}: it cannot start until what is told above is "
        "mended; if it runs, ask as its user or a member of its group, or with sudo"
    )
