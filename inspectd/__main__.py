"""``inspectd`` and ``python -m inspectd``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    from inspectd.cli import run_command_line  # noqa: PLC0415 - the sooner, the sooner --help

    sys.exit(run_command_line())


if __name__ == "__main__":
    main()
