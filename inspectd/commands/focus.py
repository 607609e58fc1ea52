"""``inspectd focus``: what the camera sees, in figures and bars, for mounting it.

Where the service runs, it owns the camera, and is asked through its control socket for a look
between two parts; else the command opens the camera itself.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from inspectd import config
from inspectd.camera.factory import make_camera
from inspectd.commands.focus_view import FocusView, Reading
from inspectd.commands.interruption import end_like_ctrl_c
from inspectd.commands.teach import load_for
from inspectd.control import LookRequest, StatusRequest, ask
from inspectd.errors import CameraLost, ControlError, EndOfFrames, TransientError
from inspectd.looking import Look, Looker
from inspectd.settings import Settings

OWN_PERIOD_S = 0.1
SERVICE_PERIOD_S = 0.25
"""From one look to the next; the service needs its camera for the parts."""
RETRY_S = 1.0
"""After an error."""

Show = Callable[[Reading], None]


def focus(path: Path, program: str | None, *, count: int | None, as_json: bool) -> int:
    """Show look after look, until Ctrl-C or the end of a recording.

    Args:
        path: the station file.
        program: whose region of interest and references; the station's own if None.
        count: end after so many readings; None for no end.
        as_json: print one JSON object a reading.

    Returns:
        1 if ``count`` readings were wanted and the camera failed in one of them, else 0: Ctrl-C is
        how this is meant to be ended.

    Raises:
        InspectdError: the settings are wrong, the camera cannot be used as it is set, or the
            service may not be asked.
    """
    # Another program's mistakes are no concern here, as they are none of the service's.
    settings = load_for(path, program) if program else config.load_to_run(path)[0]
    program = program or settings.station.program
    end_like_ctrl_c()
    failed = 0
    try:
        with look_source(settings, program) as source, display(program, as_json=as_json) as show:
            for reading in readings(source, count):
                show(reading)
                failed += isinstance(reading, str)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # whoever read the lines has seen enough
        discard_output()
        return 0
    return 1 if count and failed else 0


# ---- where the looks come from -------------------------------------------------------------------


class Service:
    """The running service, asked for one look after the other."""

    period_s = SERVICE_PERIOD_S

    def __init__(self, settings: Settings, program: str) -> None:
        self._socket = settings.control_socket
        self._program = program

    def look(self) -> Look:
        """Raises ControlError when the service gives none."""
        reply = ask(self._socket, LookRequest(program=self._program))
        if reply is None:
            # Not the moment to open the camera: a service that starts again would find it taken.
            raise ControlError(
                f"the service has stopped (nothing listens on {self._socket}); start it, or run "
                "this again to use the camera without it"
            )
        if reply.look is None:
            raise ControlError("the service answered something else than a look")
        return reply.look


class OwnCamera:
    """The station's camera, opened by this command; opened again when it was lost."""

    period_s = OWN_PERIOD_S

    def __init__(self, settings: Settings, program: str) -> None:
        self._camera = make_camera(settings)
        self._timeout_s = settings.station.capture_timeout_s
        self._program = program
        self._looker = Looker(settings)
        self._open = False

    def close(self) -> None:
        self._camera.close()

    def look(self) -> Look:
        """Raises CameraError when the camera gives no picture."""
        if not self._open:
            self._camera.open()
            self._open = True
        try:
            frame = self._camera.capture(time.monotonic_ns(), self._timeout_s)
        except CameraLost:
            self._camera.close()
            self._open = False
            raise
        return self._looker.look(frame, self._program)


@contextmanager
def look_source(settings: Settings, program: str) -> Iterator[Service | OwnCamera]:
    """The service where it runs, else the camera.

    Raises:
        ControlError: the service may not be asked.
    """
    if ask(settings.control_socket, StatusRequest()) is not None:
        yield Service(settings, program)
        return
    with closing(OwnCamera(settings, program)) as own:
        yield own


def readings(source: Service | OwnCamera, count: int | None) -> Iterator[Reading]:
    """One reading after the other, at the source's pace; errors that may pass are readings too.

    Raises:
        CameraUnusable: the camera cannot be used as it is set.
    """
    due = time.monotonic()
    for _ in itertools.count() if count is None else range(count):
        time.sleep(max(0.0, due - time.monotonic()))
        due = time.monotonic() + source.period_s
        try:
            yield source.look()
        except EndOfFrames:
            return
        except (TransientError, ControlError) as error:
            due = time.monotonic() + RETRY_S
            yield str(error)


# ---- how they are shown --------------------------------------------------------------------------


@contextmanager
def display(program: str, *, as_json: bool) -> Iterator[Show]:
    """Shows readings: as JSON, as lines, or on a terminal as bars that stay in place."""
    console = Console(highlight=False)
    view = FocusView(program)

    def show_line(reading: Reading) -> None:
        view.take(reading)
        typer.echo(view.line)

    if as_json:
        yield lambda reading: typer.echo(json_line(reading))
    elif not console.is_interactive:
        yield show_line
    else:
        with Live(view, console=console, auto_refresh=False) as live, logging_above():

            def show_bars(reading: Reading) -> None:
                view.take(reading)
                live.refresh()

            yield show_bars


def json_line(reading: Reading) -> str:
    """A reading as a JSON object: the fields of `Look`, or ``error``."""
    record = {"error": reading} if isinstance(reading, str) else reading
    return msgspec.json.encode(record).decode()


@contextmanager
def logging_above() -> Iterator[None]:
    """Let log records appear above the live view, which has its own standard error meanwhile."""
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__
    ]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(sys.__stderr__)


def discard_output() -> None:
    """What is still to be written to standard output goes nowhere, instead of failing at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
