"""YAML to settings: every mistake of the files at once, each with its line and a way out.

Stricter than YAML on purpose. Anchors, aliases, merge keys, tags, duplicate keys and further
documents are refused; numbers are plain decimal ones and finite (``1e-3`` is one; ``010``,
``0x1F`` and ``1:30`` are not); text that YAML 1.1 takes for something else (``on``, ``no``, ``12``,
``2024-01-01``) must be quoted where text is meant.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from inspectd.config import words
from inspectd.config.nodes import Mistake
from inspectd.config.walk import WRONG, Walk
from inspectd.errors import Problem, SettingsError
from inspectd.settings import NAME_PATTERN, NAME_RULE, Program, Settings, Station

MAX_BYTES = 256 * 1024
"""A larger file is no settings file; the bound keeps a wrong path from filling the memory."""

R = TypeVar("R", bound=msgspec.Struct)


def load(path: Path) -> Settings:
    """The station file and every program of the folder ``programs`` beside it.

    Raises:
        SettingsError: with every problem of the station file and of all program files.
    """
    settings, others = load_to_run(path)
    if others:
        raise SettingsError(others)
    return settings


def load_to_run(path: Path) -> tuple[Settings, tuple[Problem, ...]]:
    """The same as far as a station needs it to run: a mistake in the file of a program that it
    does not judge by must not keep it from starting.

    Returns:
        The settings without the programs that are faulty, and the problems of their files.

    Raises:
        SettingsError: the station file or its program is wrong; with every problem of all files.
    """
    walk = Walk(str(path))
    station = _read_file(walk, path, Station)
    folder = path.parent / "programs"
    programs, problems = _read_programs(folder)
    problems += walk.problems
    name = getattr(station, "program", None)
    if name is not None and name not in programs:
        problems.append(_no_such_program(walk, name, folder, sorted(programs)))
    needed = {str(path), str(folder), str(folder / f"{name}.yaml")}
    if any(problem.file in needed for problem in problems):
        raise SettingsError(problems)
    faulty = {problem.file for problem in problems}
    settled = cast("Station", station)
    sound = cast(
        "dict[str, Program]",
        {
            program: record
            for program, record in programs.items()
            if str(folder / f"{program}.yaml") not in faulty
        },
    )
    settings = Settings(
        path=path,
        station=settled,
        programs=sound,
        hash=settings_hash(settled, sound[settled.program]),
    )
    return settings, tuple(sorted(problems))


def load_program(path: Path) -> Program:
    """One program file.

    Raises:
        SettingsError: with every problem of the file.
    """
    walk = Walk(str(path))
    return _settled(walk, _read_file(walk, path, Program), Program)


def parse(text: str, kind: type[R], file: str = "<text>") -> R:
    """The record that a YAML text describes; ``file`` names the text in the problems.

    Raises:
        SettingsError: with every problem of the text.
    """
    walk = Walk(file)
    return _settled(walk, walk.read(text, kind), kind)


def settings_hash(station: Station, program: Program) -> str:
    """12 hex digits of the SHA-256 over the canonical JSON of a station and its program.

    Canonical: defaults written out, keys sorted, no spaces, ASCII. Comments, the order of the keys
    and whether a default is written down therefore do not change it.
    """
    content = msgspec.to_builtins({"station": station, "program": program})
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:12]


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each kind of settings file."""
    return {
        "station": msgspec.json.schema(Station),
        "program": msgspec.json.schema(Program),
    }


def _settled(walk: Walk, record: object, kind: type[R]) -> R:
    """The record of a walk that has found nothing wrong."""
    if walk.problems:
        raise SettingsError(walk.problems)
    assert isinstance(record, kind)
    return record


def _read_file(walk: Walk, path: Path, kind: type[msgspec.Struct]) -> object:
    """A file's record as far as it can be read; the problems are in ``walk``."""
    try:
        if path.is_fifo():  # whoever opens one waits for a writer, maybe for ever
            walk.mistake(Mistake(0, "cannot be read: Is a pipe"))
            return WRONG
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        walk.mistake(Mistake(0, "there is no such file"))
        return WRONG
    except OSError as error:
        walk.mistake(Mistake(0, f"cannot be read: {error.strerror}"))
        return WRONG
    if len(content) > MAX_BYTES:
        walk.mistake(Mistake(0, f"is larger than {MAX_BYTES // 1024} KiB, so no settings file"))
        return WRONG
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"not text in UTF-8: byte 0x{content[error.start]:02X} on this line"
        walk.mistake(Mistake(line, message, "save the file in the encoding UTF-8"))
        return WRONG
    return walk.read(text, kind)


def _read_programs(folder: Path) -> tuple[dict[str, object], list[Problem]]:
    """The programs by name, a faulty one as far as it can be read, and the problems."""
    programs: dict[str, object] = {}
    problems: list[Problem] = []
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return programs, problems
    except OSError as error:
        return programs, [Problem(str(folder), 0, "", f"cannot be read: {error.strerror}")]
    for path in paths:
        walk = Walk(str(path))
        if path.suffix == ".yml":
            walk.mistake(Mistake(0, "would not be read", f"rename it to {path.stem}.yaml"))
        elif path.suffix == ".yaml":
            if not re.fullmatch(NAME_PATTERN, path.stem):
                message = f"the file's name is the program's: expected {NAME_RULE}"
                walk.mistake(Mistake(0, message))
            programs[path.stem] = _read_file(walk, path, Program)
        problems += walk.problems
    return programs, problems


def _no_such_program(walk: Walk, name: str, folder: Path, known: list[str]) -> Problem:
    """The station names a program that has no file."""
    there = f"the programs there are {', '.join(known)}" if known else "there are no programs yet"
    return Problem(
        file=walk.name,
        line=walk.lines.get("program", 1),
        key="program",
        message=f"there is no file {folder / name}.yaml; {there}",
        hint=words.did_you_mean(name, known),
    )
