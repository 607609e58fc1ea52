"""What was set by request rather than in the files: the program in force, and thresholds.

It outlives a restart. A choice stands in place of a value in a file, and is void once that value
is another: whoever edits the file has the last word.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from inspectd.config import settings_hash
from inspectd.durable import replace_file, sync_folder
from inspectd.errors import ControlError, TransientError
from inspectd.settings import Program, Settings
from inspectd.typed_json import JsonError, JsonReader

FILE = "chosen.json"


class ChosenProgram(msgspec.Struct, frozen=True):
    """Attributes:
    instead_of: the program that the station file names.
    """

    name: str
    instead_of: str


class ChosenThreshold(msgspec.Struct, frozen=True):
    """Attributes:
    region: of the program; None for the program's own threshold.
    instead_of: the threshold in the program's file.
    """

    program: str
    region: str | None
    threshold: float
    instead_of: float


class Chosen(msgspec.Struct, frozen=True):
    """All that was chosen."""

    program: ChosenProgram | None = None
    thresholds: tuple[ChosenThreshold, ...] = ()

    def program_of(self, filed: Settings) -> str:
        """The name of the program to judge by, be it there or not."""
        own = filed.station.program
        return self.program.name if self.program and self.program.instead_of == own else own

    def applied(self, filed: Settings) -> Settings:
        """The settings of the files with the choices in them, as far as they are there."""
        programs = dict(filed.programs)
        for one in self.thresholds:
            if self._stands(one, filed):
                programs[one.program] = with_threshold(
                    programs[one.program], one.region, one.threshold
                )
        station, name = filed.station, self.program_of(filed)
        if name in programs:
            station = msgspec.structs.replace(station, program=name)
        return Settings(
            path=filed.path,
            station=station,
            programs=programs,
            hash=settings_hash(station, programs[station.program]),
        )

    def without_void(self, filed: Settings) -> Chosen:
        """What still stands now that the files are these."""
        void = self.program is not None and self.program.instead_of != filed.station.program
        return Chosen(
            None if void else self.program,
            tuple(one for one in self.thresholds if self._stands(one, filed)),
        )

    def with_program(self, name: str, filed: Settings) -> Chosen:
        own = filed.station.program
        chosen = None if name == own else ChosenProgram(name, own)
        return msgspec.structs.replace(self, program=chosen)

    def with_threshold(
        self, program: str, region: str | None, threshold: float | None, filed: Settings
    ) -> Chosen:
        """Without a threshold, that of the file.

        Raises:
            ControlError: there is no such region, or it is ignored.
        """
        own = threshold_of(filed.programs[program], region)
        if own is None:
            known = [one.name for one in filed.programs[program].regions if not one.ignore]
            raise ControlError(
                f"program {program} judges no region {region!r}; it judges: "
                f"{', '.join(known) or 'none'}"
            )
        others = [one for one in self.thresholds if (one.program, one.region) != (program, region)]
        if threshold is not None and threshold != own:
            others.append(ChosenThreshold(program, region, threshold, own))
        return msgspec.structs.replace(self, thresholds=tuple(others))

    def in_words(self) -> str:
        """For `state`; empty where all is as in the files."""
        words = []
        if self.program is not None:
            words.append(f"program {self.program.name} (station file: {self.program.instead_of})")
        words += [
            f"threshold of {one.program}{f', region {one.region}' if one.region else ''}: "
            f"{one.threshold:g} (program file: {one.instead_of:g})"
            for one in self.thresholds
        ]
        return f"set by request, not in the files: {'; '.join(words)}" if words else ""

    def _stands(self, one: ChosenThreshold, filed: Settings) -> bool:
        program = filed.programs.get(one.program)
        return program is not None and threshold_of(program, one.region) == one.instead_of


def threshold_of(program: Program, region: str | None) -> float | None:
    """None where no such region is judged."""
    if region is None:
        return program.limit.threshold
    judged = (one for one in program.regions if one.name == region and not one.ignore)
    return next((one.threshold for one in judged), None)


def with_threshold(program: Program, region: str | None, threshold: float) -> Program:
    """The program with another threshold; of a region it has."""
    replace = msgspec.structs.replace
    if region is None:
        return replace(program, limit=replace(program.limit, threshold=threshold))
    regions = tuple(
        replace(one, threshold=threshold) if one.name == region else one for one in program.regions
    )
    return replace(program, regions=regions)


_CHOSEN: JsonReader[Chosen] = JsonReader(Chosen)


def read(folder: Path) -> tuple[Chosen, str]:
    """What was chosen, and why that is not known, for a person; empty where it is."""
    path = folder / FILE
    try:
        return _CHOSEN.read(path.read_bytes()), ""
    except FileNotFoundError:
        return Chosen(), ""
    except OSError as error:
        trouble = str(error.strerror)
    except JsonError as error:
        trouble = str(error)
        # Where it cannot be moved, it is replaced by the next choice.
        with contextlib.suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
    return Chosen(), (
        f"{path} cannot be read ({trouble}): what was set by request is lost, program and "
        "thresholds are those of the files"
    )


def write(folder: Path, chosen: Chosen) -> None:
    """Put the whole file in place, or leave what was there.

    Raises:
        TransientError: it cannot be written.
    """
    path = folder / FILE
    try:
        replace_file(path, msgspec.json.encode(chosen))
        sync_folder(folder)
    except OSError as error:
        raise TransientError(
            f"nothing was changed, for it could not be written down in {path}: {error.strerror}; "
            "make room on the disk and repeat the request"
        ) from error
