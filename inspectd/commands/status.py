"""``inspectd status``: what the running service says of itself."""

from __future__ import annotations

from pathlib import Path

import msgspec
import typer

from inspectd import config
from inspectd.control import StatusRequest, ask
from inspectd.errors import ControlError


def status(path: Path) -> int:
    """Print the station's state as on topic `state`; 0 if it judges, else 3.

    Raises:
        SettingsError: the settings are wrong.
        ControlError: no service of this station runs, or it may not be asked.
    """
    settings = config.load_to_run(path)[0]
    reply = ask(settings.control_socket, StatusRequest())
    if reply is None or reply.state is None:
        raise ControlError(
            f"no service of station {settings.station.station} runs here "
            f"(nothing listens on {settings.control_socket})"
        )
    typer.echo(msgspec.json.format(msgspec.json.encode(reply.state), indent=2).decode())
    return 0 if reply.state.state == "judging" else 3
