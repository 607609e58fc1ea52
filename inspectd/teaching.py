"""Teaching and learning: pictures of good parts become references, references an inspector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import numpy as np

from inspectd.camera.files import decode_image
from inspectd.errors import ImageError, PictureUnreadable, ReferencesError
from inspectd.imaging import gate, preprocess
from inspectd.inspector import Inspector
from inspectd.records import GreyImage, Image
from inspectd.references import NewReference, ReferenceStore
from inspectd.settings import Program, Settings


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A picture offered as a reference: the whole frame.

    Attributes:
        name: file name, or the camera's own name of the frame.
        taken_at: UTC.
    """

    name: str
    pixels: Image
    taken_at: datetime


class Refusal(msgspec.Struct, frozen=True):
    """A picture that was not taken, and why."""

    name: str
    reason: str


class Taught(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the candidates, by their names.

    Attributes:
        duplicates: pictures that are references already.
        total: references that the program has now.
    """

    added: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    total: int = 0


def teach(
    program: Program,
    store: ReferenceStore,
    candidates: Sequence[Candidate],
    settings_hash: str,
    progress: Callable[[int], None] = lambda _count: None,
) -> Taught:
    """Add the good ones among the candidates to a program's references.

    Sharpness is judged against the median of all of them, those already taught included.

    Args:
        program: its region of interest is cut out, its health bounds decide.
        store: of this program.
        candidates: whole frames.
        settings_hash: noted with each reference.
        progress: called with the number of pictures written so far.

    Raises:
        ReferencesError: the pictures do not fit those already taught, or the store cannot be
            written.
    """
    refused: list[Refusal] = []
    prepared: list[tuple[Candidate, Image, GreyImage]] = []
    for candidate in candidates:
        try:
            crop = preprocess.crop(candidate.pixels, program.roi)
            prepared.append((candidate, crop, preprocess.grey(crop)))
        except ImageError as error:
            refused.append(Refusal(candidate.name, str(error)))
    known = [preprocess.grey(reference.pixels) for reference in store.load().pictures]
    greys = known + [grey for _, _, grey in prepared]
    usual_focus = float(np.median([gate.focus_measure(grey) for grey in greys])) if greys else None
    accepted = []
    for candidate, crop, grey in prepared:
        reduced = preprocess.reduce(grey, program.resolution)
        doubt = gate.judge(gate.measure(grey, reduced, usual_focus), program.health)
        if doubt:
            refused.append(Refusal(candidate.name, f"{doubt[0]}: {doubt[1]}"))
        else:
            accepted.append(
                NewReference(
                    pixels=crop,
                    taken_at=candidate.taken_at,
                    origin=candidate.name,
                    settings_hash=settings_hash,
                )
            )
    outcomes = store.add(accepted, program.roi, progress)
    return Taught(
        added=tuple(outcome.origin for outcome in outcomes if outcome.duplicate_of is None),
        duplicates=tuple(outcome.origin for outcome in outcomes if outcome.duplicate_of),
        refused=tuple(refused),
        total=len(store.entries()),
    )


def teach_files(
    program: Program,
    store: ReferenceStore,
    files: Sequence[tuple[str, bytes]],
    settings_hash: str,
    progress: Callable[[int], None] = lambda _count: None,
) -> Taught:
    """`teach` with image files, given by name and content; those that cannot be read are refused.

    Raises:
        ReferencesError: as for `teach`.
    """
    now = datetime.now(UTC)
    candidates, refused = [], []
    for name, content in files:
        try:
            candidates.append(Candidate(name, decode_image(content), now))
        except PictureUnreadable as error:
            refused.append(Refusal(name, str(error)))
    taught = teach(program, store, candidates, settings_hash, progress)
    return msgspec.structs.replace(taught, refused=(*refused, *taught.refused))


@dataclass(frozen=True, slots=True)
class Lesson:
    """An inspector and what it was taught.

    Attributes:
        references_hash: names the set of references; None without any.
        hindrance: why nothing can PASS, and what to do, for a person; empty when all is well.
        problems: references that were left out, and why.
    """

    inspector: Inspector
    references_hash: str | None = None
    hindrance: str = ""
    problems: tuple[str, ...] = ()


def reference_store(settings: Settings, program: str) -> ReferenceStore:
    """Where a station keeps a program's references."""
    return ReferenceStore(settings.references_directory / program)


def learn_program(settings: Settings, name: str) -> Lesson:
    """Load a program's references and learn from them.

    References that cannot be used are no exception here but a hindrance: a station without a
    usable set goes on, judges nothing, and says why.
    """
    program = settings.programs[name]
    try:
        references = reference_store(settings, name).load()
        if references.pictures and references.roi != program.roi:
            raise ReferencesError(
                f"the references of {name} were cut with another region of interest than the "
                "program file has now: set roi back, or remove them and teach anew"
            )
        inspector = Inspector(program, [picture.pixels for picture in references.pictures])
    except (ReferencesError, ImageError) as error:
        return Lesson(Inspector(program, ()), hindrance=str(error))
    hindrance = ""
    if inspector.learned is None:
        hindrance = " ".join(
            [
                f"{inspector.reference_count} usable references of the "
                f"{inspector.references_needed} needed: teach good parts with "
                f"`inspectd teach {name}`.",
                *references.problems,
            ]
        )
    return Lesson(inspector, references.hash, hindrance, references.problems)
