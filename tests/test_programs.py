"""Programs while settings and references change beneath them."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from broker import eventually
from small_parts import part, program

from inspectd import programs as module
from inspectd.errors import ControlError, TransientError
from inspectd.programs import Programs
from inspectd.references import ReferenceStore
from inspectd.settings import (
    Program,
    Settings,
    SimulatedCamera,
    Station,
    StorageSettings,
)
from inspectd.teaching import Candidate, Lesson, learn_program, reference_store, teach

HASH = "0123456789ab"
TAKEN = datetime(2026, 7, 29, 6, 30, tzinfo=UTC)


def settings(folder: Path, **programs: Program) -> Settings:
    station = Station(
        station="line1",
        program="connector",
        camera=SimulatedCamera(),
        storage=StorageSettings(directory="store"),
    )
    made = Settings(path=folder / "line1.yaml", station=station, programs=programs, hash=HASH)
    made.directory.mkdir(parents=True, exist_ok=True)
    return made


def add_references(store: ReferenceStore, first: int, count: int) -> None:
    candidates = [Candidate(f"{n}", part(n), TAKEN) for n in range(first, first + count)]
    assert len(teach(program(), store, candidates, HASH).added) == count


def following(made: Settings) -> Programs:
    return Programs(made, lambda _lesson: None, lambda _about, _words: None)


def switched(programs: Programs, name: str) -> bool:
    try:
        programs.switch(name)
    except TransientError:
        return False
    return True


def test_references_taught_while_a_threshold_is_set_are_judged_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = settings(tmp_path, connector=program())
    store = reference_store(made, "connector")
    add_references(store, 0, 5)
    programs = following(made)
    programs.learn_first()
    add_references(store, 5, 3)

    def learn_and_be_overtaken(found: Settings, name: str) -> Lesson:
        lesson = learn_program(found, name)
        monkeypatch.setattr(module, "learn_program", learn_program)
        programs.set_threshold("connector", None, 1.25)
        return lesson

    monkeypatch.setattr(module, "learn_program", learn_and_be_overtaken)
    programs.learn_again("connector")
    programs.start()
    try:
        assert eventually(lambda: programs.lesson().inspector.reference_count == 8)
        assert programs.lesson().inspector.program.limit.threshold == 1.25
    finally:
        programs.stop()


def test_a_program_that_was_away_is_learned_anew_when_it_comes_again(tmp_path: Path):
    both = settings(tmp_path, connector=program(), other=program())
    alone = settings(tmp_path, connector=program())
    store = reference_store(both, "other")
    add_references(reference_store(both, "connector"), 0, 5)
    add_references(store, 0, 5)
    programs = following(both)
    programs.learn_first()
    programs.learn_again("other")
    programs.adopt(alone)
    add_references(store, 5, 3)
    programs.adopt(both)
    programs.start()
    try:
        assert eventually(lambda: switched(programs, "other"))
        assert programs.lesson().inspector.reference_count == 8
    finally:
        programs.stop()


def test_a_program_that_cannot_be_learned_is_told_and_refused_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = settings(tmp_path, connector=program(), other=program())
    for name in made.programs:
        add_references(reference_store(made, name), 0, 6)
    told: dict[str, str] = {}
    programs = Programs(made, lambda _lesson: None, told.__setitem__)

    def fail(_settings: Settings, _name: str) -> Lesson:
        raise ZeroDivisionError("a mistake")

    programs.learn_first()
    monkeypatch.setattr(module, "learn_program", fail)
    programs.start()
    assert eventually(lambda: "ZeroDivisionError: a mistake" in told.get("program other", ""))
    with pytest.raises(ControlError, match="could not be learned"):
        programs.switch("other")
    assert programs.present == "connector"
    monkeypatch.setattr(module, "learn_program", learn_program)
    programs.learn_again("other")
    assert told["program other"] == ""
    programs.switch("other")
    assert programs.present == "other"
    programs.stop()
