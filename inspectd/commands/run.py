"""``inspectd run``: the service in the foreground."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

from inspectd import config
from inspectd.service import Service


def run(path: Path) -> int:
    """Run the station of a settings file until SIGTERM, Ctrl-C or the end of a recording.

    Raises:
        SettingsError: the settings are wrong; every mistake is in it.
        InspectdError: what kept the service from starting, or from going on.
    """
    service = Service(config.load(path))

    def stop(_number: int, _frame: FrameType | None) -> None:
        service.request_stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    service.run()
    return 0
