"""``inspectd`` and ``python -m inspectd``."""

from __future__ import annotations

import logging
import os
import sys
import threading


def main() -> None:
    """Run the command line."""
    from inspectd.cli import run_command_line  # noqa: PLC0415 - the sooner, the sooner --help

    leave(run_command_line())


def leave(status: int) -> None:
    """End the process with an exit status, whatever daemon threads still do.

    One that comes back from a library's C++ code while Python takes itself apart is ended in the
    middle of it, and that aborts the process: SIGABRT after a stop in which nothing went wrong.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join()
    if not any(thread.daemon for thread in others):
        sys.exit(status)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
