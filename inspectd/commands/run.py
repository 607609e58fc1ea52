"""``inspectd run``: the service in the foreground, or under systemd."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType

from inspectd import config
from inspectd.errors import InspectdError, Problem, SettingsError
from inspectd.service import Service
from inspectd.settings import Settings
from inspectd.systemd import Manager

_logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
"""Settings that keep the service from starting are looked at that often, until they are mended."""
PATIENCE_S = 60.0
"""What else keeps it from starting is tried again after so long, or with other settings."""
EXTENSION_S = 30.0


def run(path: Path) -> int:
    """Run the station of a settings file until SIGTERM, Ctrl-C or the end of a recording.

    Under a service manager it ends by no mistake that a person must mend: a process that is started
    again and again would only fill the log. It says in its status what is wrong, and waits.

    Raises:
        SettingsError: the station file or its program is wrong; every mistake is in it.
        InspectdError: what kept the service from starting, or from going on.
    """
    faulthandler.enable(2)  # the watchdog ends what hangs by SIGABRT: the log shows where it stood
    # Else it would end the process, which a service manager takes for a wish. Nothing is missed:
    # the files are read again as soon as they are watched.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    manager = Manager.of(os.environ)
    manager.status("starting: reading the settings")
    settings, problems = _load(path, manager)
    for problem in problems:
        _logger.warning("left out, a program that is not judged by: %s", problem)
    try:
        service = Service(settings, problems, manager)
        _run(service)
    except InspectdError as error:
        if not manager.is_there or manager.was_ready:
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _logger.error("the service does not start: %s", error)
        _wait_for_change(settings, manager, f"does not start: {error}")
        return 1
    return 0


def _run(service: Service) -> None:
    """Raises InspectdError."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        service.request_stop()

    def reload(_number: int, _frame: FrameType | None) -> None:
        service.request_reload()

    signal.signal(signal.SIGHUP, reload)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        service.run()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _load(path: Path, manager: Manager) -> tuple[Settings, tuple[Problem, ...]]:
    """The settings, once they are right if a service manager can be told meanwhile.

    Raises:
        SettingsError: they are wrong, and there is none.
    """
    told = ""
    while True:
        try:
            return config.load_to_run(path)
        except SettingsError as error:
            if not manager.is_there:
                raise
            if str(error) != told:
                told = str(error)
                _logger.error("the settings are wrong; they are waited for:\n%s", told)
            _wait(manager, f"starting: waiting for settings that are right: {error}")


def _wait_for_change(settings: Settings, manager: Manager, words: str) -> None:
    """Until the files are right and other ones, or it is worth another attempt anyway."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        _wait(manager, words)
        try:
            if config.load_to_run(settings.path)[0] != settings:
                return
        except SettingsError as error:
            _logger.debug("not yet: %s", error)


def _wait(manager: Manager, words: str) -> None:
    manager.status(words)
    manager.extend(EXTENSION_S)
    time.sleep(LOOK_EVERY_S)
