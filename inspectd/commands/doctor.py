"""``inspectd doctor``: everything a station needs, looked at one after the other."""

from __future__ import annotations

import logging
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import msgspec
import typer
from rich.console import Console

from inspectd import jit
from inspectd.commands.checks import (
    Check,
    Examination,
    Finding,
    Level,
    NotChecked,
    error,
    warning,
)
from inspectd.commands.checks.broker import check_broker
from inspectd.commands.checks.camera import check_camera, check_exposure, check_picture
from inspectd.commands.checks.machine import (
    check_clock,
    check_disk,
    check_heat,
    check_journal,
    check_pins,
)
from inspectd.commands.checks.station import (
    check_kernels,
    check_references,
    check_service,
    check_settings,
)
from inspectd.errors import InspectdError, NotCompiled

_logger = logging.getLogger(__name__)

CHECKS: tuple[tuple[str, Check, float], ...] = (
    ("settings", check_settings, 10.0),
    ("service", check_service, 10.0),
    ("camera", check_camera, 45.0),
    ("exposure", check_exposure, 5.0),
    ("picture", check_picture, 5.0),
    ("broker", check_broker, 40.0),
    ("clock", check_clock, 5.0),
    ("disk", check_disk, 10.0),
    ("journal", check_journal, 15.0),
    ("heat", check_heat, 10.0),
    ("kernels", check_kernels, 30.0),
    ("references", check_references, 60.0),
    ("pins", check_pins, 10.0),
)
"""Subject, check and the seconds it may take, in the order in which they build on each other."""
HANGS = {
    "service": "restart the service; its log tells what it did last",
    "camera": "unplug the camera and plug it in again, one with a ribbon cable with the power off",
}
"""What to do where it is not the machine that hangs."""
WIDTH = 100
_COLOURS = {
    Level.OK: typer.colors.GREEN,
    Level.WARNING: typer.colors.YELLOW,
    Level.ERROR: typer.colors.RED,
}
LEVEL, SUBJECT = 9, 13
"""Widths of the first two columns."""


class Report(msgspec.Struct, frozen=True):
    """What ``--json`` prints; ``level`` is the worst of the findings'."""

    level: Level
    findings: tuple[Finding, ...]


def doctor(path: Path, *, as_json: bool) -> int:
    """Make every check and print what it found; the exit status, 1 where there is any error."""
    findings: list[Finding] = []
    console = Console(stderr=True)
    with _quiet(), jit.compiling_refused():
        for finding in _examine(Examination(path), console):
            findings.append(finding)
            if not as_json:
                _print(finding)
    levels = list(Level)
    worst = max((finding.level for finding in findings), key=levels.index)
    report = Report(worst, tuple(findings))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        typer.echo(_summary(findings))
    return 1 if report.level is Level.ERROR else 0


def _examine(known: Examination, console: Console) -> Iterator[Finding]:
    for subject, check, limit_s in CHECKS:
        with console.status(f"looking at the {subject}"):
            found = carry_out(subject, check, known, limit_s)
        yield from found


def carry_out(subject: str, check: Check, known: Examination, limit_s: float) -> list[Finding]:
    """Make one check; whatever becomes of it is a finding, after those it made before.

    It is made on a thread of its own, which is left behind when it does not end within
    ``limit_s`` seconds: a driver may hang for good.
    """
    findings: list[Finding] = []
    result: Future[None] = Future()

    def work() -> None:
        try:
            findings.extend(check(known))
            result.set_result(None)
        except Exception as trouble:  # noqa: BLE001 - told by the caller's thread
            result.set_exception(trouble)

    Thread(target=work, name=f"check-{subject}", daemon=True).start()
    if not wait([result], limit_s).done:
        hanging = error(
            subject,
            f"no answer within {limit_s:g} s: what was asked hangs",
            HANGS.get(subject, "ask again; if it goes on, restart the machine"),
        )
        return [*findings, hanging]
    trouble = result.exception()
    return findings if trouble is None else [*findings, _of_trouble(subject, trouble)]


def _of_trouble(subject: str, trouble: BaseException) -> Finding:
    """What a check's exception means."""
    match trouble:
        case NotChecked():
            return warning(subject, f"not checked: {trouble}")
        case NotCompiled():
            return warning(
                subject, "not checked: the kernels are not compiled", "`inspectd warmup`"
            )
        case InspectdError():
            return error(subject, str(trouble))
    _logger.debug("the check of the %s failed", subject, exc_info=trouble)
    return error(
        subject,
        f"the check itself failed: {type(trouble).__name__}: {trouble}",
        "report this as a bug, with what `inspectd --verbose doctor` says",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The findings tell what logs would, unless ``--verbose`` asks for both."""
    root = logging.getLogger()
    before = root.level
    if before > logging.DEBUG:
        root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(before)


def _print(finding: Finding) -> None:
    """The level, the subject, the message; the fix, where there is one, on a line of its own."""
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    head = f"{finding.level:<{LEVEL}}{finding.subject:<{SUBJECT}}"
    lines = _wrapped(finding.message, head, width)
    if finding.fix:
        lines += _wrapped(finding.fix, " " * (LEVEL + SUBJECT) + "fix: ", width)
    level = typer.style(str(finding.level), fg=_COLOURS[finding.level])
    typer.echo("\n".join(lines).replace(finding.level, level, 1))


def _wrapped(text: str, head: str, width: int) -> list[str]:
    """Lines of at most ``width``, where no single word is longer; paths stay whole."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * (LEVEL + SUBJECT),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head.rstrip()]


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    errors = f"{counts[Level.ERROR]} error{'' if counts[Level.ERROR] == 1 else 's'}"
    warnings = f"{counts[Level.WARNING]} warning{'' if counts[Level.WARNING] == 1 else 's'}"
    return f"{errors}, {warnings}, {counts[Level.OK]} ok"
