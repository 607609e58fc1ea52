"""How commands that a person watches are ended."""

from __future__ import annotations

import signal


def end_like_ctrl_c() -> None:
    """Let SIGTERM, and the end of the terminal, clean up as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, signal.default_int_handler)
