"""The station itself: its settings, its service, its compiled kernels, its references."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from inspectd import jit
from inspectd.commands.checks import Examination, Finding, error, ok, teaching, warning
from inspectd.commands.warmup import rehearse
from inspectd.config import load_to_run
from inspectd.control import StatusRequest, ask
from inspectd.errors import (
    ControlError,
    ImageError,
    NotCompiled,
    Problem,
    ReferencesError,
    SettingsError,
)
from inspectd.payload import StatePayload
from inspectd.settings import AlignmentSettings, Program, Settings
from inspectd.soartc import kernels
from inspectd.state import State
from inspectd.teaching import Lesson, learn_program, reference_store


def check_settings(known: Examination) -> Iterator[Finding]:
    """Every mistake in the files; only a warning where the station runs all the same."""
    try:
        settings, others = load_to_run(known.path)
    except SettingsError as wrong:
        for problem in wrong.problems:
            yield error("settings", *_without_hint(problem))
        return
    known.loaded = settings
    for problem in others:
        message, fix = _without_hint(problem)
        yield warning("settings", f"{message} (a program that is not in use)", fix)
    if not others:
        programs = (
            "1 program" if len(settings.programs) == 1 else f"{len(settings.programs)} programs"
        )
        yield ok("settings", f"{known.path}: nothing wrong; {programs}")


def _without_hint(problem: Problem) -> tuple[str, str]:
    place = f"{problem.file}:{problem.line}" if problem.line else problem.file
    key = f" {problem.key}:" if problem.key else ""
    return f"{place}:{key} {problem.message}", problem.hint


def check_service(known: Examination) -> Iterator[Finding]:
    """Whether it runs, and what it says of itself."""
    settings = known.settings
    known.hidden = "the service cannot be asked"  # until it has answered: it may hang
    try:
        known.service = ask(settings.control_socket, StatusRequest())
    except ControlError as refused:
        yield error("service", str(refused))
        return
    known.hidden = ""
    if known.service is None or known.service.state is None:
        yield warning(
            "service",
            f"does not run: nothing listens on {settings.control_socket}",
            "start it when the rest is well: `inspectd run`, or by systemctl",
        )
        return
    yield _condition(known.service.state, settings)


def _condition(state: StatePayload, settings: Settings) -> Finding:
    since = f"since {state.since:%Y-%m-%d %H:%M:%S} UTC"
    if state.state == State.STARTING:
        return warning("service", f"is starting {since}", "ask again in a minute")
    if state.state != State.JUDGING:
        return error("service", f"{state.state.replace('_', ' ')} {since}: {state.detail}")
    if state.settings_hash != settings.hash:
        return warning(
            "service",
            f"judges {since}, but by settings {state.settings_hash}; the files are {settings.hash}",
            "restart the service, so that it reads them",
        )
    last = f"; last error: {state.last_error}" if state.last_error else "; no error so far"
    return ok("service", f"judges by {state.program} {since}{last}")


def check_kernels(known: Examination) -> Iterator[Finding]:
    """Whether the programs' kernels need not be compiled at the service's start."""
    folder = jit.cache_folder(kernels.responses)
    if folder is None:
        yield warning(
            "kernels", "numba is switched off: all is slow", "unset the variable NUMBA_DISABLE_JIT"
        )
        return
    try:
        for program in known.settings.programs.values():
            mode, method = program.alignment.mode, program.method
            rehearse(Program(alignment=AlignmentSettings(mode=mode), method=method))
    except NotCompiled:
        trouble = "not compiled yet: the service's start takes up to a minute longer"
    else:
        trouble = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as refused:
        trouble = trouble or "compiled, but a new version cannot be"
        yield warning(
            "kernels",
            f"{trouble}; this user cannot write to {folder}: {refused.strerror}",
            "set NUMBA_CACHE_DIR to a folder that the service's user can write to, for the "
            "service and for `inspectd warmup`",
        )
        return
    if trouble:
        yield warning(
            "kernels",
            f"{trouble} (they belong into {folder})",
            "`inspectd warmup`, as the user that the service runs as",
        )
    else:
        yield ok("kernels", f"compiled, in {folder}")


def check_references(known: Examination) -> Iterator[Finding]:
    """Of each program: whether they suffice, and how sure the limits are."""
    settings = known.settings
    for name in sorted(
        settings.programs, key=lambda name: (name != settings.station.program, name)
    ):
        used = name == settings.station.program
        try:
            lesson = known.lesson if used else learn_program(settings, name)
        except NotCompiled:
            yield _count_only(settings, name)
        else:
            yield _references(settings, name, lesson)


def _references(settings: Settings, name: str, lesson: Lesson) -> Finding:
    used = name == settings.station.program
    inspector = lesson.inspector
    if lesson.hindrance:
        grave = error if used else warning
        return grave("references", f"{name}: {lesson.hindrance}")
    count = f"{name}: {inspector.reference_count}, {inspector.references_needed} are needed"
    if lesson.empties:
        count += f"; {lesson.empties} of the empty station"
    doubts = (*lesson.problems, *lesson.doubts)
    if doubts:
        return warning("references", f"{count}; {' '.join(doubts)}")
    return ok("references", count)


def _count_only(settings: Settings, name: str) -> Finding:
    """Without the kernels the limits cannot be learned."""
    used = name == settings.station.program
    minimum = settings.programs[name].references.minimum
    grave = error if used else warning
    try:
        found = reference_store(settings, name).check()
    except (ReferencesError, ImageError) as damage:
        return grave("references", f"{name}: {damage}")
    count = f"{name}: {len(found.pictures)}, {minimum} are needed"
    if len(found.pictures) < minimum:
        return grave("references", f"{count}; {' '.join(found.problems)}", teaching(name))
    return warning(
        "references",
        "; ".join([count, "their limits were not learned: see kernels", *found.problems]),
    )
