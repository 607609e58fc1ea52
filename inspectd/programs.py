"""The programs of a station: all learned and in memory, one of them in force.

Other settings, another program and another threshold come in one way. What only limits and bounds
depend on holds at once; where references must be learned from anew, the last that was learned
judges until that is done. A trigger is judged by the program that was in force when it came.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from inspectd import chosen as chosen_module
from inspectd.chosen import Chosen
from inspectd.errors import ControlError, TransientError
from inspectd.inspector import Inspector
from inspectd.settings import Program, Settings
from inspectd.teaching import Lesson, adapt, hash_of, learn_program, not_learned

_logger = logging.getLogger(__name__)


class Programs:
    """What the station can judge by, and what it judges by now. Safe to use from any thread."""

    def __init__(
        self,
        filed: Settings,
        judged_by: Callable[[Lesson], None],
        tell: Callable[[str, str], None],
    ) -> None:
        """Nothing is learned yet; see `learn_first`.

        Args:
            filed: the settings as the files have them.
            judged_by: is given each lesson that comes into force; does not wait, and asks for
                nothing here.
            tell: notes what is amiss: what about, and in words, which are empty when it is over.
        """
        self._filed = filed
        self._judged_by = judged_by
        self._tell = tell
        chosen, trouble = chosen_module.read(filed.directory)
        self._chosen = chosen.without_void(filed)
        self._settings = self._chosen.applied(filed)
        # Replaced as a whole, so that the thread that judges need not wait for a lock.
        self._lessons: dict[str, Lesson] = {}
        self._present = self._chosen.program_of(filed)
        self._pending = set(self._settings.programs)
        self._failed: set[str] = set()
        self._stopping = False
        self._changed = threading.Condition(threading.RLock())
        # Held while learning: what was learned later is what stays. Taken before the other.
        self._learning = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="programs", daemon=True)
        self._lessons = {self._present: self._first_lesson()}
        if trouble:
            tell("choices", trouble)
        tell("set by request", self._chosen.in_words())

    def _first_lesson(self) -> Lesson:
        """By which nothing is judged."""
        name = self._present
        if name in self._settings.programs:
            return not_learned(self._settings, name)
        words = (
            f"program {name} was asked for, and its file is missing or faulty: mend it, or ask for "
            "another program"
        )
        return Lesson(
            Inspector(Program(), (), words),
            name,
            hash_of(self._settings.station, name, Program()),
            hindrance=words,
        )

    @property
    def settings(self) -> Settings:
        """Those in force, with the choices made by request."""
        return self._settings

    @property
    def present(self) -> str:
        """The name of the program in force."""
        return self._present

    def lesson(self, name: str | None = None) -> Lesson:
        """What to judge by; of a program that was in force once, or of the one that is."""
        return self._lessons[name or self._present]

    # ---- learning ------------------------------------------------------------------------------

    def learn_first(self) -> None:
        """Learn the program in force; may take long."""
        if self._present in self._settings.programs:
            self.learn_again(self._present)
        else:
            self._judged_by(self.lesson())

    def start(self) -> None:
        """Learn the others in the background, and later on what changes."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to learn nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def learn_again(self, name: str) -> None:
        """Derive anew from a program's references, and judge by that."""
        with self._learning:
            settings = self._settings
            lesson = learn_program(settings, name)
            with self._changed:
                if self._settings.programs.get(name) != settings.programs[name]:
                    # Changed meanwhile. The old lesson may have been adapted to that, but it does
                    # not know the references of now.
                    if name in self._settings.programs:
                        self._pending.add(name)
                    self._changed.notify_all()
                    return
                self._pending.discard(name)
                self._install(lesson)
        for problem in (*lesson.problems, *lesson.doubts):
            _logger.warning("%s: %s", name, problem)

    def _install(self, lesson: Lesson) -> None:
        """The lock is held."""
        name = lesson.program
        if name in self._failed:
            self._failed.discard(name)
            self._tell(f"program {name}", "")
        program = lesson.inspector.program
        current = replace(lesson, settings_hash=hash_of(self._settings.station, name, program))
        self._lessons = {**self._lessons, name: current}
        if self._chosen.program_of(self._filed) == name:
            self._present = name
        if name == self._present:
            self._judged_by(current)

    def _run(self) -> None:
        while (name := self._next()) is not None:
            try:
                self.learn_again(name)
            except Exception as error:
                # The line goes on with what it has; asked for, the program is refused.
                _logger.exception("program %s could not be learned", name)
                with self._changed:
                    self._pending.discard(name)
                    self._failed.add(name)
                self._tell(f"program {name}", _not_learned_in_words(name, error))

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._stopping)
            if self._stopping:
                return None
            return min(self._pending, key=lambda name: (name != self._present, name))

    # ---- other settings ------------------------------------------------------------------------

    def settings_by(self, filed: Settings) -> Settings:
        """Those that would be in force after `adopt`."""
        with self._changed:
            return self._chosen.without_void(filed).applied(filed)

    def adopt(self, filed: Settings) -> None:
        """Follow other files; what they keep of the choices stands."""
        with self._changed:
            chosen = self._chosen.without_void(filed)
            if chosen != self._chosen:
                try:
                    chosen_module.write(filed.directory, chosen)
                except TransientError as error:
                    _logger.error("%s", error)  # void choices are void at the next start, too
            self._apply(filed, chosen)

    def switch(self, name: str) -> None:
        """Judge the triggers that come from now on by another program.

        Raises:
            ControlError: there is no such program, or it cannot judge; the old one stays.
            TransientError: it is still being learned, or cannot be written down; likewise.
        """
        with self._changed:
            self.require(name)
            if name in self._failed:
                raise ControlError(f"program {name} could not be learned; see `state` and the log")
            if name not in self._lessons or name in self._pending:
                raise TransientError(f"program {name} is still being learned: ask again soon")
            if hindrance := self._lessons[name].hindrance:
                raise ControlError(f"program {name} cannot judge: {hindrance}")
            self._choose(self._chosen.with_program(name, self._filed))

    def set_threshold(self, program: str, region: str | None, threshold: float | None) -> None:
        """Set a threshold in place of the file's; None for that again.

        Raises:
            ControlError: there is no such program or region.
            TransientError: it cannot be written down.
        """
        with self._changed:
            self.require(program)
            self._choose(
                self._chosen.with_threshold(program, region, threshold, self._filed),
            )

    def require(self, name: str) -> str:
        """The name, of a program that there is; raises ControlError."""
        if name not in self._settings.programs:
            known = ", ".join(sorted(self._settings.programs))
            raise ControlError(f"there is no program {name!r}; there are: {known}")
        return name

    def _choose(self, chosen: Chosen) -> None:
        """The lock is held; raises TransientError."""
        if chosen != self._chosen:
            chosen_module.write(self._filed.directory, chosen)
            self._apply(self._filed, chosen)

    def _apply(self, filed: Settings, chosen: Chosen) -> None:
        """The lock is held."""
        before = self._lessons[self._present]
        known = self._settings.programs.keys()
        self._filed, self._chosen = filed, chosen
        self._settings = settings = chosen.applied(filed)
        lessons = self._lessons.copy()
        self._pending &= settings.programs.keys()
        for name in settings.programs:
            old = lessons.get(name)
            # What is left of a program that was away knows nothing of its references of now.
            adapted = adapt(old, settings) if old and name in known else None
            if adapted is not None:
                lessons[name] = adapted
                continue
            self._pending.add(name)
            if old is not None:
                of_station = hash_of(settings.station, name, old.inspector.program)
                lessons[name] = replace(old, settings_hash=of_station)
        self._lessons = lessons
        wanted = chosen.program_of(filed)
        if wanted in lessons and wanted not in self._pending:
            self._present = wanted
        self._changed.notify_all()
        self._tell("set by request", chosen.in_words())
        present = lessons[self._present]
        if present is not before and present != before:
            self._judged_by(present)


def _not_learned_in_words(name: str, error: Exception) -> str:
    return (
        f"program {name} could not be learned ({type(error).__name__}: {error}); it is judged by "
        "what was learned before, if anything. Save its file again or restart the service; the log "
        "tells more"
    )
