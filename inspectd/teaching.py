"""Teaching and learning: pictures of good parts become references, references an inspector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from inspectd.camera.files import decode_image
from inspectd.errors import ImageError, PictureUnreadable, ReferencesError
from inspectd.imaging import gate, preprocess
from inspectd.inspector import Inspector, ReducedCrop
from inspectd.records import Image, Reason, View
from inspectd.references import NewReference, References, ReferenceStore
from inspectd.settings import Program, Settings


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A picture offered as a reference.

    Attributes:
        name: file name, or the camera's own name of the frame.
        taken_at: UTC.
        view: what part of the frame the pixels show; None for the whole, pixel by pixel.
    """

    name: str
    pixels: Image
    taken_at: datetime
    view: View | None = None


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

    The size must be that of the references already taught, or else of most of the candidates.
    Sharpness is judged against the median of all that are fit otherwise, those already taught
    included.

    Args:
        program: its region of interest is cut out, its health bounds decide.
        store: of this program.
        candidates: whole frames.
        settings_hash: noted with each reference.
        progress: called with the number of pictures written so far.

    Raises:
        ReferencesError: those already taught were cut with another region of interest, or the
            store cannot be read or written.
    """
    refused: list[Refusal] = []
    prepared: list[tuple[Candidate, Image, ReducedCrop]] = []
    for candidate in candidates:
        try:
            crop = preprocess.crop(candidate.pixels, program.roi, candidate.view)
            prepared.append((candidate, crop, ReducedCrop.of(crop, program.resolution)))
        except ImageError as error:
            refused.append(Refusal(candidate.name, str(error)))
    references = _load(store, program)
    known = [reference.kept for reference in references.pictures]
    offered = [reduced for _, _, reduced in prepared]
    # References of another region of interest are for the store to refuse, whatever their size.
    size = _usual_size(known if known and references.roi == program.roi else offered)
    fit = [reduced for reduced in known if reduced.size == size]
    fit += [reduced for reduced in offered if _doubt(program, reduced, size, None) is None]
    usual = gate.usual([one.focus for one in fit], [one.picture for one in fit]) if fit else None
    accepted = []
    for candidate, crop, reduced in prepared:
        doubt = _doubt(program, reduced, size, usual)
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


def _load(store: ReferenceStore, program: Program) -> References[ReducedCrop]:
    """A program's references, as it looks at them."""
    return store.load(lambda pixels: ReducedCrop.of(pixels, program.resolution))


def _usual_size(pictures: Sequence[ReducedCrop]) -> tuple[int, ...]:
    """(height, width) of most of them; of none, nothing."""
    sizes = Counter(picture.size for picture in pictures).most_common(1)
    return sizes[0][0] if sizes else ()


def _doubt(
    program: Program, reduced: ReducedCrop, size: tuple[int, ...], usual: gate.Usual | None
) -> tuple[Reason, str] | None:
    """Why a picture is not fit to be a reference; None if it is."""
    if reduced.size != size:
        height, width = reduced.size
        return Reason.WRONG_SIZE, (
            f"{width} x {height} pixels, the others have {size[1]} x {size[0]}; "
            "take all pictures with one camera mode"
        )
    return gate.judge(gate.measure(reduced.focus, reduced.picture, usual), program.health)


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
        doubts: why the limits are less sure than they could be, and what to do.
    """

    inspector: Inspector
    references_hash: str | None = None
    hindrance: str = ""
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


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
        references = _load(reference_store(settings, name), program)
        if references.pictures and references.roi != program.roi:
            raise ReferencesError(
                f"the references of {name} were cut with another region of interest than the "
                "program file has now: set roi back, or remove them and teach anew"
            )
        inspector = Inspector(
            program,
            [reference.kept for reference in references.pictures],
            frame=references.anchor.kept if references.anchor else None,
        )
    except (ReferencesError, ImageError) as error:
        return Lesson(Inspector(program, (), str(error)), hindrance=str(error))
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
    doubts = inspector.learned.warnings if inspector.learned else ()
    return Lesson(inspector, references.hash, hindrance, references.problems, doubts)
