"""Teaching and learning: pictures of good parts become references, references an inspector.

Pictures of the empty station are kept beside the references, and are none of them: nothing that is
learned of good parts comes from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256

import msgspec

from inspectd.camera.files import decode_image
from inspectd.config import settings_hash as hash_settings
from inspectd.errors import ImageError, PictureUnreadable, ReferencesError
from inspectd.imaging import gate, preprocess
from inspectd.imaging.empty import LEAST_PRESENCE
from inspectd.inspector import Inspector, ReducedCrop, empty_station
from inspectd.records import Image, Reason, View
from inspectd.references import NewReference, Reference, References, ReferenceStore
from inspectd.settings import Program, Settings, Station

EMPTY = "empty"
"""Folder within a program's references."""
Progress = Callable[[int], None]
"""Called with the number of pictures written so far."""


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
        total: references that the program has now; or pictures of the empty station.
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
    progress: Progress = lambda _count: None,
) -> Taught:
    """Add the good ones among the candidates to a program's references.

    The size must be that of the references already taught, or else of most of the candidates.
    Sharpness and contrast are judged against the median of all that are fit otherwise, those
    already taught included. A picture that hardly differs from the empty station is refused, where
    that is known.

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
    prepared, refused = _prepare(program, candidates)
    references = _load(store, program)
    known = [reference.kept for reference in references.pictures]
    offered = [one.reduced for one in prepared]
    # References of another region of interest are for the store to refuse, whatever their size.
    size = _usual_size(known if known and references.roi == program.roi else offered)
    fit = [reduced for reduced in known if reduced.size == size]
    fit += [reduced for reduced in offered if _doubt(program, reduced, size, None) is None]
    usual = gate.usual([one.health for one in fit], [one.picture for one in fit]) if fit else None
    bare = [one.kept for one in _load_empties(store, program, size)[0]]
    doubts = [
        _in_words(_doubt(program, reduced, size, usual)) or _doubt_of_part(program, reduced, bare)
        for reduced in offered
    ]
    return _add(program, store, prepared, doubts, refused, settings_hash, progress)


def teach_empty(
    program: Program,
    store: ReferenceStore,
    candidates: Sequence[Candidate],
    settings_hash: str,
    progress: Progress = lambda _count: None,
) -> Taught:
    """Keep pictures of the empty station, so that an empty station is told from a bad part.

    The size must be that of the references, or else of the pictures kept already, or of most of
    the candidates. A picture that hardly differs from a reference is refused.

    Args:
        program: its region of interest is cut out.
        store: of this program's references.
        candidates: whole frames.
        settings_hash: noted with each picture.
        progress: called with the number of pictures written so far.

    Raises:
        ReferencesError: the pictures kept already were cut with another region of interest, or
            a store cannot be read or written.
    """
    kept_in = empty_store(store)
    prepared, refused = _prepare(program, candidates)
    references, empties = _load(store, program), _load(kept_in, program)
    known = [one.kept for one in references.pictures if references.roi == program.roi]
    size = _usual_size(
        known
        or [one.kept for one in empties.pictures if empties.roi == program.roi]
        or [one.reduced for one in prepared]
    )
    good = [reduced for reduced in known if reduced.size == size]
    doubts = [_doubt_of_empty(program, one.reduced, size, good) for one in prepared]
    return _add(program, kept_in, prepared, doubts, refused, settings_hash, progress)


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A candidate, its region of interest, and that reduced."""

    candidate: Candidate
    crop: Image
    reduced: ReducedCrop


def _prepare(
    program: Program, candidates: Sequence[Candidate]
) -> tuple[list[_Prepared], list[Refusal]]:
    """The candidates cut and reduced, and those that cannot be."""
    prepared, refused = [], []
    for candidate in candidates:
        try:
            crop = preprocess.crop(candidate.pixels, program.roi, candidate.view)
            prepared.append(_Prepared(candidate, crop, ReducedCrop.of(crop, program.resolution)))
        except ImageError as error:
            refused.append(Refusal(candidate.name, str(error)))
    return prepared, refused


def _add(
    program: Program,
    store: ReferenceStore,
    prepared: Sequence[_Prepared],
    doubts: Sequence[str],
    refused: Sequence[Refusal],
    settings_hash: str,
    progress: Progress,
) -> Taught:
    """Add those of whom nothing is doubted to a store."""
    refused, accepted = list(refused), []
    for one, doubt in zip(prepared, doubts, strict=True):
        if doubt:
            refused.append(Refusal(one.candidate.name, doubt))
        else:
            accepted.append(
                NewReference(
                    pixels=one.crop,
                    taken_at=one.candidate.taken_at,
                    origin=one.candidate.name,
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
        return _wrong_size(reduced, size)
    health = reduced.health
    if usual:
        compared = gate.compare(health, reduced.picture, usual, program.health)
        health = replace(health, measures=compared)
    return gate.judge(health, program.health) or gate.judge_good(health)


def _doubt_of_empty(
    program: Program, reduced: ReducedCrop, size: tuple[int, ...], good: Sequence[ReducedCrop]
) -> str:
    """Why a picture cannot be one of the empty station; empty if it can."""
    if reduced.size != size:
        return _in_words(_wrong_size(reduced, size))
    doubt = gate.judge(reduced.health, program.health)
    if doubt and doubt[0] is Reason.TOO_DARK:
        return _in_words(doubt)
    if good and _faintest(program, [reduced], good) < LEAST_PRESENCE:
        return (
            "it hardly differs from a reference: does it show a part, or does a reference show "
            "the empty station?"
        )
    return ""


def _doubt_of_part(program: Program, reduced: ReducedCrop, empties: Sequence[ReducedCrop]) -> str:
    """Why a picture cannot show a part; empty if it can."""
    if empties and _faintest(program, empties, [reduced]) < LEAST_PRESENCE:
        return "it hardly differs from the empty station as it was taught: does it show a part?"
    return ""


def _faintest(
    program: Program, empties: Sequence[ReducedCrop], good: Sequence[ReducedCrop]
) -> float:
    """How far the good part that differs least from the empty station does."""
    pictures = [one.picture for one in good]
    usual = gate.usual([one.health for one in good], pictures)
    return empty_station(program, empties, usual, pictures).faintest


def _in_words(doubt: gate.Doubt | None) -> str:
    return f"{doubt[0]}: {doubt[1]}" if doubt else ""


def _wrong_size(reduced: ReducedCrop, size: tuple[int, ...]) -> gate.Doubt:
    height, width = reduced.size
    return Reason.WRONG_SIZE, (
        f"{width} x {height} pixels, the others have {size[1]} x {size[0]}; "
        "take all pictures with one camera mode"
    )


def teach_files(
    program: Program,
    store: ReferenceStore,
    files: Sequence[tuple[str, bytes]],
    settings_hash: str,
    progress: Progress = lambda _count: None,
    *,
    empty: bool = False,
) -> Taught:
    """`teach`, or `teach_empty`, with image files, given by name and content.

    Those that cannot be read are refused.

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
    take = teach_empty if empty else teach
    taught = take(program, store, candidates, settings_hash, progress)
    return msgspec.structs.replace(taught, refused=(*refused, *taught.refused))


@dataclass(frozen=True, slots=True)
class Lesson:
    """An inspector and what it was taught.

    Attributes:
        program: the name of the program that it judges by.
        settings_hash: names the settings that it judges by, those of the station included.
        references_hash: names the set of references, the pictures of the empty station included;
            None where they could not be read.
        empties: pictures of the empty station in use.
        hindrance: why nothing can PASS, and what to do, for a person; empty when all is well.
        problems: references that were left out, and why.
        doubts: why the limits are less sure than they could be, and what to do.
    """

    inspector: Inspector
    program: str
    settings_hash: str
    references_hash: str | None = None
    empties: int = 0
    hindrance: str = ""
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def reference_store(settings: Settings, program: str) -> ReferenceStore:
    """Where a station keeps a program's references."""
    return ReferenceStore(settings.references_directory / program)


def empty_store(references: ReferenceStore) -> ReferenceStore:
    """Where pictures of the empty station are kept, beside a program's references."""
    return ReferenceStore(references.directory / EMPTY, "teach --empty")


def learn_program(settings: Settings, name: str) -> Lesson:
    """Load a program's references and learn from them.

    References that cannot be used are no exception here but a hindrance: a station without a
    usable set goes on, judges nothing, and says why.
    """
    untaught = not_learned(settings, name)
    program = settings.programs[name]
    try:
        store = reference_store(settings, name)
        references = _load(store, program)
        if references.pictures and references.roi != program.roi:
            raise ReferencesError(
                f"the references of {name} were cut with another region of interest than the "
                "program file has now: set roi back, or remove them and teach anew"
            )
        size = _usual_size([reference.kept for reference in references.pictures])
        empties, unfit = _load_empties(store, program, size)
        inspector = Inspector(
            program,
            [reference.kept for reference in references.pictures],
            frame=references.anchor.kept if references.anchor else None,
            empties=[empty.kept for empty in empties],
        )
    except (ReferencesError, ImageError) as error:
        return replace(untaught, inspector=Inspector(program, (), str(error)), hindrance=str(error))
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
    return replace(
        untaught,
        inspector=inspector,
        references_hash=_hash(references, empties),
        empties=len(empties),
        hindrance=hindrance,
        problems=(*references.problems, *unfit),
        doubts=inspector.learned.warnings if inspector.learned else (),
    )


def not_learned(settings: Settings, name: str) -> Lesson:
    """A lesson by which nothing can be judged yet."""
    program = settings.programs[name]
    return Lesson(Inspector(program, ()), name, hash_of(settings.station, name, program))


def adapt(lesson: Lesson, settings: Settings) -> Lesson | None:
    """A lesson's program as the settings have it now, without a look at the references.

    Returns:
        None where the references must be learned from anew.
    """
    before, program = lesson.inspector.program, settings.programs[lesson.program]
    settings_hash = hash_of(settings.station, lesson.program, program)
    if program == before:
        return replace(lesson, settings_hash=settings_hash)
    try:
        inspector = lesson.inspector.adapted(program)
    except ReferencesError as error:
        return replace(
            lesson,
            inspector=Inspector(program, (), str(error)),
            settings_hash=settings_hash,
            hindrance=str(error),
        )
    if inspector is None or inspector.learned is None:
        return None
    return replace(
        lesson,
        inspector=inspector,
        settings_hash=settings_hash,
        doubts=inspector.learned.warnings,
    )


def hash_of(station: Station, name: str, program: Program) -> str:
    """The hash of the settings when a station judges by a program, whichever it began with."""
    return hash_settings(msgspec.structs.replace(station, program=name), program)


def _load_empties(
    store: ReferenceStore, program: Program, size: tuple[int, ...]
) -> tuple[tuple[Reference[ReducedCrop], ...], tuple[str, ...]]:
    """The pictures of the empty station that can be used, and what is wrong with the others.

    Without them it is judged as before they were taught, which the lesson tells.

    Args:
        store: of the program's references.
        program: its region of interest is asked for.
        size: (height, width) of the references; nothing where that is not known.
    """
    kept_in = empty_store(store)
    try:
        empties = _load(kept_in, program)
    except (ReferencesError, ImageError) as error:
        return (), (f"the empty station is not known: {error}",)
    if empties.pictures and empties.roi != program.roi:
        return (), (
            *empties.problems,
            f"the pictures of the empty station in {kept_in.directory} were cut with another region"
            " of interest than the program file has now; they are not used: remove them, and teach "
            "with --empty anew",
        )
    fit = tuple(empty for empty in empties.pictures if not size or empty.kept.size == size)
    problems = empties.problems
    if len(fit) < len(empties.pictures):
        problems += (
            f"{len(empties.pictures) - len(fit)} pictures of the empty station in "
            f"{kept_in.directory} are of another size than the references; they are not used: "
            "remove them, and teach with --empty anew",
        )
    return fit, problems


def _hash(references: References[ReducedCrop], empties: Sequence[Reference[ReducedCrop]]) -> str:
    """12 hex digits over all that is judged by; the references' own where that is all."""
    if not empties:
        return references.hash
    checksums = sorted(empty.sha256 for empty in empties)
    return sha256("\n".join([references.hash, EMPTY, *checksums]).encode()).hexdigest()[:12]
