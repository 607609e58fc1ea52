"""``inspectd run``: the service in the foreground."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType

from inspectd import config
from inspectd.service import Service

_logger = logging.getLogger(__name__)


def run(path: Path) -> int:
    """Run the station of a settings file until SIGTERM, Ctrl-C or the end of a recording.

    Raises:
        SettingsError: the station file or its program is wrong; every mistake is in it.
        InspectdError: what kept the service from starting, or from going on.
    """
    # Else it would end the process, which a service manager takes for a wish. Nothing is missed:
    # the files are read again as soon as they are watched.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings, problems = config.load_to_run(path)
    for problem in problems:
        _logger.warning("left out, a program that is not judged by: %s", problem)
    service = Service(settings, problems)

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
    return 0
