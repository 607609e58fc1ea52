"""The checks behind `inspectd doctor`: one function a check, from what is known to findings.

A check reads what earlier ones have found out from the `Examination` and adds its own; where it
needs what is not there, `NotChecked` says why. It may raise whatever it meets: `doctor` makes a
finding of it and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from inspectd.control import Reply
from inspectd.looking import Look
from inspectd.records import Exposure, Frame
from inspectd.settings import Settings
from inspectd.teaching import Lesson, learn_program


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        subject: what was looked at, in one or two words.
        message: what was found.
        fix: what to do; empty where nothing is to be done, or the message says it.
    """

    level: Level
    subject: str
    message: str
    fix: str = ""


class NotChecked(Exception):
    """A check cannot be made because another one failed; the message says which."""


@dataclass
class Examination:
    """What the checks know of a station; each adds what it finds out.

    Attributes:
        path: the station file.
        loaded: the settings; None while they are wrong.
        service: the running service's answer; None where none runs.
        hidden: why it is not known whether a service runs, and has camera and pins; empty when it
            is.
        exposures: of pictures the camera gave, one after the other; None where it tells nothing.
        frame: the last of them; None while there is none, or the service has it.
        look: what the service says of its last one; None where none runs.
    """

    path: Path
    loaded: Settings | None = None
    service: Reply | None = None
    hidden: str = ""
    exposures: list[Exposure | None] = field(default_factory=list)
    frame: Frame | None = None
    look: Look | None = None

    @property
    def settings(self) -> Settings:
        """Raises NotChecked while they are wrong."""
        if self.loaded is None:
            raise NotChecked("the settings are wrong")
        return self.loaded

    @cached_property
    def lesson(self) -> Lesson:
        """What the references of the program in use teach.

        Raises:
            NotCompiled: its kernels would have to be compiled first.
        """
        return learn_program(self.settings, self.settings.station.program)


Check = Callable[[Examination], Iterable[Finding]]


def ok(subject: str, message: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, subject, message)


def warning(subject: str, message: str, fix: str = "") -> Finding:
    """It works, but not as well or not as long as it should."""
    return Finding(Level.WARNING, subject, message, fix)


def teaching(program: str) -> str:
    """How references are taken."""
    return f"`inspectd teach {program} --frames 10` with good parts, or `--from-folder DIR`"


def error(subject: str, message: str, fix: str = "") -> Finding:
    """Parts cannot be judged, or not be trusted to be."""
    return Finding(Level.ERROR, subject, message, fix)
