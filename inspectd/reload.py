"""Settings files that were saved while the station runs: watched, read whole, and taken over.

An editor may write twice, leave temporary files, or put another file in place of the old one: it is
waited until all is quiet. A file that is wrong changes nothing; it is told on `state`, with file,
line and key, and the last good settings stay in force.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import watchfiles

from inspectd import config
from inspectd.errors import ControlError, Problem, SettingsError
from inspectd.settings import Settings

_logger = logging.getLogger(__name__)

QUIET_MS = 100
"""Files are read when nothing was written for so long."""
LONGEST_MS = 400
"""Or so long after the first change."""
SECOND_LOOK_S = 0.25
"""What is wrong may be half written: it is looked at again before it is told."""
LOOK_UP_MS = 500
"""The watch looks this often whether to stop, or to read the files without a change."""
RETRY_S = 2.0
PROBLEMS_TOLD = 10
"""A broker may limit the size of `state`."""


class Reloader:
    """Keeps the settings in force those of the files."""

    def __init__(
        self,
        settings: Settings,
        problems: tuple[Problem, ...],
        in_force: Callable[[], str],
        adopt: Callable[[Settings], None],
        tell: Callable[[str, str], None],
    ) -> None:
        """Args:
        settings: as the files had them at the start.
        problems: of programs that were left out.
        in_force: the name of the program that is judged by.
        adopt: puts other settings in force; may raise InspectdError.
        tell: notes what is amiss: what about, and in words, which are empty when it is over.
        """
        self._filed = settings
        self._in_force = in_force
        self._adopt = adopt
        self._tell = tell
        self._reading = threading.Lock()
        self._wanted = threading.Event()
        self._asked = self._answered = 0
        self._unwatched = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
        if problems:
            tell("settings files", _in_words(problems))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the watch; one that is reading is left behind."""
        self._stopping.set()

    def ask(self) -> None:
        """Read the files soon; may be called from a signal handler."""
        self._asked += 1
        self._wanted.set()

    @property
    def is_pending(self) -> bool:
        """Whether something was asked for that is not through; refused is through."""
        return self._asked != self._answered

    def reload(self) -> str:
        """Read the files and put them in force; in words, what has changed.

        Raises:
            ControlError: they are wrong; nothing has changed.
        """
        with self._reading:
            before = self._filed
            try:
                loaded, problems = config.load_to_run(before.path)
            except SettingsError as error:
                words = _in_words(error.problems)
                self._tell("settings files", words)
                raise ControlError(words) from error
            problems += _missing(loaded, self._in_force())
            filed, kept = _kept(before, loaded, problems)
            if filed == before:
                detail = "nothing has changed"
            else:
                self._adopt(filed)
                self._filed = filed
                detail = f"the settings are {filed.hash} now"
                _logger.info("settings were read again: %s", detail)
            self._tell("settings files", _in_words(problems) if problems else "")
            self._tell("next start", _waiting(loaded, filed))
        return f"{detail}; {kept}" if kept else detail

    # ---- the watch -----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._watch()
            except Exception as error:
                # It stays possible to ask for it; a folder that went away may come again.
                words = f"saved settings are not seen at present, but read when asked for: {error}"
                if words != self._unwatched:  # else told already
                    _logger.exception("the settings files cannot be watched")
                self._note_unwatched(words)
                self._read_if_asked()
                self._stopping.wait(RETRY_S)

    def _read_if_asked(self) -> None:
        if self.is_pending:
            try:
                self._read()
            except Exception:
                _logger.exception("the settings files cannot be read")

    def _note_unwatched(self, words: str) -> None:
        if words != self._unwatched:
            self._tell("settings watch", words)
        self._unwatched = words

    def _watch(self) -> None:
        station = self._filed.path.absolute()
        programs = station.parent / "programs"
        folders = [station.parent, *([programs] if programs.is_dir() else [])]
        self._wanted.set()  # for what was saved before the watch stood
        for changes in watchfiles.watch(
            *folders,
            watch_filter=lambda _change, path: _is_settings(Path(path), station, programs),
            debounce=LONGEST_MS,
            step=QUIET_MS,
            rust_timeout=LOOK_UP_MS,
            yield_on_timeout=True,
            stop_event=self._stopping,
            recursive=False,
        ):
            if self._stopping.is_set():
                return
            self._note_unwatched("")
            if changes or self._wanted.is_set():
                self._read()
            replaced = any(Path(path) == programs for _, path in changes)
            if replaced or programs.is_dir() != (programs in folders):
                return  # to watch the folder that is there now

    def _read(self) -> None:
        self._wanted.clear()
        asked = self._asked
        try:
            self._look_twice()
        finally:
            self._answered = asked

    def _look_twice(self) -> None:
        before = self._filed.path
        try:
            config.load_to_run(before)
        except SettingsError:
            self._stopping.wait(SECOND_LOOK_S)
        try:
            self.reload()
        except ControlError as error:
            _logger.error("the settings stay as they were: %s", error)


def _is_settings(path: Path, station: Path, programs: Path) -> bool:
    """Editors' own files begin with a dot, or end otherwise."""
    if path in (station, programs):
        return True
    of_programs = path.parent == programs and path.suffix in (".yaml", ".yml")
    return of_programs and not path.name.startswith(".")


def _missing(loaded: Settings, in_force: str) -> tuple[Problem, ...]:
    """The program that is judged by must not go without a word."""
    if in_force in loaded.programs:
        return ()
    file = loaded.path.parent / "programs" / f"{in_force}.yaml"
    hint = "ask for another program first"
    return (Problem(str(file), 0, "", "is missing or faulty, but judged by", hint),)


def _kept(
    before: Settings, loaded: Settings, problems: tuple[Problem, ...]
) -> tuple[Settings, str]:
    """The settings with what cannot change while the station runs, and the last good version of
    programs that are faulty now; and in words what was kept.
    """
    replace = msgspec.structs.replace
    old, new = before.station, loaded.station
    storage = replace(new.storage, directory=old.storage.directory, sync=old.storage.sync)
    station = replace(new, station=old.station, storage=storage)
    programs, kept = dict(loaded.programs), []
    for problem in problems:
        name = Path(problem.file).stem
        if name in before.programs and name not in programs:
            programs[name] = before.programs[name]
            kept.append(name)
    words = f"as they were, for their files are wrong: {', '.join(kept)}" if kept else ""
    settings = Settings(
        path=before.path,
        station=station,
        programs=programs,
        hash=config.settings_hash(station, programs[station.program]),
    )
    return settings, words


def _waiting(loaded: Settings, filed: Settings) -> str:
    """What takes effect only later, in words."""
    was, new = filed.station, loaded.station
    keys = [
        key
        for key, differs in {
            "station": was.station != new.station,
            "storage.directory": was.storage.directory != new.storage.directory,
            "storage.sync": was.storage.sync != new.storage.sync,
        }.items()
        if differs
    ]
    if not keys:
        return ""
    return f"{', '.join(keys)}: changed in {filed.path}; takes effect at the next start"


def _in_words(problems: tuple[Problem, ...]) -> str:
    words = [str(problem) for problem in problems[:PROBLEMS_TOLD]]
    if len(problems) > PROBLEMS_TOLD:
        words.append(f"and {len(problems) - PROBLEMS_TOLD} more: see `inspectd check`")
    return "; ".join(words)
