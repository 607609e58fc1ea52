"""From pictures to references, and from references to an inspector."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_parts import HEIGHT, WIDTH, blurred, darkened, part, png, program

from inspectd.errors import ReferencesError
from inspectd.records import Image, Reason, Verdict
from inspectd.references import ReferenceStore
from inspectd.settings import (
    Box,
    ReferenceSettings,
    Region,
    RegionOfInterest,
    Settings,
    SimulatedCamera,
    Station,
    StorageSettings,
)
from inspectd.teaching import (
    Candidate,
    empty_store,
    learn_program,
    reference_store,
    teach,
    teach_empty,
    teach_files,
)

TAKEN = datetime(2026, 7, 29, 6, 30, tzinfo=UTC)
PROGRAM = program()
HASH = "0123456789ab"


def offered(**pictures: Image) -> list[Candidate]:
    return [Candidate(name, pixels, TAKEN) for name, pixels in pictures.items()]


def good(count: int, first: int = 0) -> list[Candidate]:
    return offered(**{f"good{first + n}": part(first + n) for n in range(count)})


def whole(pixels: Image) -> Image:
    """Keep the picture itself."""
    return pixels


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(tmp_path / "references" / "connector")


# ---- teaching ----------------------------------------------------------------------------------


def test_good_pictures_become_references_with_their_origin(store):
    written = []
    taught = teach(PROGRAM, store, good(6), HASH, written.append)
    assert taught.added == tuple(f"good{n}" for n in range(6))
    assert (taught.duplicates, taught.refused, taught.total) == ((), (), 6)
    assert written == [1, 2, 3, 4, 5, 6]
    for number, reference in enumerate(store.load(whole).pictures):
        assert np.array_equal(reference.kept, part(number))
    for entry, candidate in zip(store.entries(), good(6), strict=True):
        assert (entry.origin, entry.taken_at) == (candidate.name, TAKEN)
        assert entry.settings_hash == HASH


def test_the_region_of_interest_is_cut_out(store):
    roi = RegionOfInterest(x=8, y=4, width=100, height=80)
    teach(program(roi=roi), store, good(2), HASH)
    loaded = store.load(whole)
    assert loaded.roi == roi
    assert np.array_equal(loaded.pictures[0].kept, part(0)[4:84, 8:108])


def test_a_reference_already_is_named_and_not_added_again(store):
    teach(PROGRAM, store, good(3), HASH)
    taught = teach(PROGRAM, store, [*good(3), *good(1, first=7)], HASH)
    assert taught.added == ("good7",)
    assert taught.duplicates == ("good0", "good1", "good2")
    assert taught.total == 4


def test_the_same_picture_twice_among_the_candidates_is_added_once(store):
    taught = teach(PROGRAM, store, offered(one=part(1), again=part(1), other=part(2)), HASH)
    assert taught.added == ("one", "other")
    assert taught.duplicates == ("again",)
    assert taught.total == 2


def test_nothing_offered_adds_nothing(store):
    taught = teach(PROGRAM, store, [], HASH)
    assert (taught.added, taught.refused, taught.total) == ((), (), 0)


@pytest.mark.parametrize("known", [0, 4])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (darkened(part(90)), Reason.TOO_DARK),
        (255 - darkened(part(90)), Reason.TOO_BRIGHT),
        (128 + darkened(part(90)), Reason.NO_CONTRAST),
        (blurred(part(90)), Reason.OUT_OF_FOCUS),
        (part(90)[:-2], Reason.WRONG_SIZE),
    ],
    ids=["dark", "bright", "flat", "blurred", "wrong size"],
)
def test_a_bad_picture_is_refused_by_name_and_the_others_are_taken(store, known, bad, reason):
    teach(PROGRAM, store, good(known), HASH)
    taught = teach(PROGRAM, store, [*offered(bad=bad), *good(4, first=10)], HASH)
    (refusal,) = taught.refused
    assert refusal.name == "bad"
    assert refusal.reason.startswith(f"{reason.value}: ")
    assert taught.added == ("good10", "good11", "good12", "good13")
    assert taught.total == known + 4
    assert "bad" not in {entry.origin for entry in store.entries()}


def test_a_frame_smaller_than_the_region_of_interest_is_refused_by_name(store):
    roi = RegionOfInterest(x=28, y=0, width=100, height=80)
    candidates = [*offered(small=part(90)[:, :100]), *good(2)]
    taught = teach(program(roi=roi), store, candidates, HASH)
    (refusal,) = taught.refused
    assert refusal.name == "small"
    assert "[28, 0, 100, 80]" in refusal.reason
    assert taught.added == ("good0", "good1")


def test_the_size_is_that_of_the_references_and_not_of_most_candidates(store):
    teach(PROGRAM, store, good(2), HASH)
    larger = {f"large{n}": cv2.resize(part(20 + n), (2 * WIDTH, 2 * HEIGHT)) for n in range(3)}
    taught = teach(PROGRAM, store, [*offered(**larger), *good(1, first=5)], HASH)
    assert taught.added == ("good5",)
    assert [refusal.name for refusal in taught.refused] == ["large0", "large1", "large2"]
    for refusal in taught.refused:
        assert f"{2 * WIDTH} x {2 * HEIGHT}" in refusal.reason
        assert f"{WIDTH} x {HEIGHT}" in refusal.reason


def test_sharpness_is_judged_against_the_references_too(store):
    teach(PROGRAM, store, good(5), HASH)
    soft = {f"soft{n}": blurred(part(20 + n)) for n in range(3)}
    taught = teach(PROGRAM, store, offered(**soft), HASH)
    assert taught.added == ()
    assert {refusal.name for refusal in taught.refused} == set(soft)
    assert taught.total == 5


def test_pictures_that_are_bad_otherwise_have_no_say_in_sharpness(store):
    """With the cap on the lens for half of them, a blurred picture is still a blurred picture."""
    black = {f"black{n}": np.zeros((HEIGHT, WIDTH), np.uint8) for n in range(6)}
    taught = teach(PROGRAM, store, [*offered(**black, soft=blurred(part(20))), *good(3)], HASH)
    assert taught.added == ("good0", "good1", "good2")
    assert {refusal.name for refusal in taught.refused} == {*black, "soft"}


def test_a_picture_in_mist_is_refused_by_the_contrast_of_the_others(store):
    misty = (part(20) * 0.35 + 50).astype(np.uint8)
    taught = teach(PROGRAM, store, [*offered(misty=misty), *good(4)], HASH)
    (refusal,) = taught.refused
    assert refusal.name == "misty"
    assert refusal.reason.startswith(f"{Reason.NO_CONTRAST.value}: ")
    assert "beside the references'" in refusal.reason


def test_another_region_of_interest_than_the_references_is_refused_as_a_whole(store):
    teach(PROGRAM, store, good(3), HASH)
    moved = program(roi=RegionOfInterest(x=8, y=4, width=100, height=80))
    with pytest.raises(ReferencesError, match="region of interest"):
        teach(moved, store, good(2, first=5), HASH)
    assert len(store.entries()) == 3


# ---- image files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"no picture", png(part(1))[:-40]], ids=["empty", "text", "cut short"]
)
def test_a_file_that_cannot_be_read_is_refused_by_name(store, content):
    files = [("bad.png", content), ("a.png", png(part(1))), ("b.png", png(part(2)))]
    taught = teach_files(PROGRAM, store, files, HASH)
    (refusal,) = taught.refused
    assert refusal.name == "bad.png"
    assert refusal.reason.startswith("is ")
    assert taught.added == ("a.png", "b.png")


def test_everything_that_is_wrong_with_files_is_told_together(store):
    files = [
        ("empty.png", b""),
        ("dark.png", png(darkened(part(9)))),
        *((f"{n}.png", png(part(n))) for n in range(3)),
    ]
    before = datetime.now(UTC)
    taught = teach_files(PROGRAM, store, files, HASH)
    assert [refusal.name for refusal in taught.refused] == ["empty.png", "dark.png"]
    assert taught.total == 3
    assert all(entry.taken_at >= before for entry in store.entries())


def test_files_that_are_all_unreadable_leave_the_references_alone(store):
    teach(PROGRAM, store, good(2), HASH)
    taught = teach_files(PROGRAM, store, [("x.png", b"x")], HASH)
    assert (taught.added, taught.total) == ((), 2)


# ---- the empty station -------------------------------------------------------------------------


def bare(seed: int) -> Image:
    """The station without a part: plain, and far below the references' contrast."""
    noise = np.random.default_rng(seed).normal(40, 2, (HEIGHT, WIDTH))
    return np.clip(noise, 0, 255).astype(np.uint8)


def empties(count: int, first: int = 0) -> list[Candidate]:
    return offered(**{f"empty{first + n}": bare(first + n) for n in range(count)})


@pytest.mark.parametrize("known", [0, 4])
def test_pictures_of_the_empty_station_are_kept_apart_from_the_references(store, known):
    teach(PROGRAM, store, good(known), HASH)
    written = []
    taught = teach_empty(PROGRAM, store, empties(3), HASH, written.append)
    assert taught.added == ("empty0", "empty1", "empty2")
    assert (taught.duplicates, taught.refused, taught.total) == ((), (), 3)
    assert written == [1, 2, 3]
    assert len(store.entries()) == known
    kept = empty_store(store)
    assert kept.directory == store.directory / "empty"
    assert [entry.origin for entry in kept.entries()] == list(taught.added)
    assert np.array_equal(kept.load(whole).pictures[2].kept, bare(2))
    assert teach_empty(PROGRAM, store, empties(2), HASH).duplicates == ("empty0", "empty1")
    assert teach(PROGRAM, store, good(2, first=20), HASH).total == known + 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (darkened(part(90)), "too dark: "),
        (bare(9)[:-2], "wrong size: "),
        (part(90), "it hardly differs from a reference: does it show a part"),
    ],
    ids=["dark", "wrong size", "a part"],
)
def test_what_is_no_empty_station_is_refused_by_name(store, bad, reason):
    teach(PROGRAM, store, good(4), HASH)
    taught = teach_empty(PROGRAM, store, [*offered(bad=bad), *empties(1)], HASH)
    assert taught.added == ("empty0",)
    (refusal,) = taught.refused
    assert refusal.name == "bad"
    assert refusal.reason.startswith(reason)


def test_the_empty_station_is_no_good_part(store):
    teach_empty(PROGRAM, store, empties(2), HASH)
    structured = bare(9)
    structured[:, ::8] = 200
    teach_empty(PROGRAM, store, offered(structured=structured), HASH)
    taught = teach(PROGRAM, store, [*offered(again=structured), *good(3)], HASH)
    assert taught.added == ("good0", "good1", "good2")
    (refusal,) = taught.refused
    assert "hardly differs from the empty station" in refusal.reason


def test_an_empty_station_may_be_white_and_blurred_and_taught_from_files(store):
    teach(PROGRAM, store, good(4), HASH)
    files = [("white.png", png(np.full((HEIGHT, WIDTH), 255, np.uint8))), ("bad.png", b"x")]
    taught = teach_files(PROGRAM, store, files, HASH, empty=True)
    assert taught.added == ("white.png",)
    assert [refusal.name for refusal in taught.refused] == ["bad.png"]
    assert len(store.entries()) == 4


def test_the_region_of_interest_is_cut_out_of_the_empty_station_too(store):
    roi = RegionOfInterest(x=8, y=4, width=100, height=80)
    teach_empty(program(roi=roi), store, empties(1), HASH)
    assert np.array_equal(empty_store(store).load(whole).pictures[0].kept, bare(0)[4:84, 8:108])


# ---- learning ----------------------------------------------------------------------------------


def settings(tmp_path: Path) -> Settings:
    station = Station(
        station="line1",
        program="connector",
        camera=SimulatedCamera(),
        storage=StorageSettings(directory="store"),
    )
    path = tmp_path / "line1.yaml"
    return Settings(path=path, station=station, programs={"connector": PROGRAM}, hash=HASH)


def taught_settings(tmp_path: Path, count: int) -> Settings:
    made = settings(tmp_path)
    teach(PROGRAM, reference_store(made, "connector"), good(count), HASH)
    return made


def test_references_lie_in_the_folder_of_station_and_program(tmp_path):
    store = reference_store(settings(tmp_path), "connector")
    assert store.directory == tmp_path / "store" / "line1" / "references" / "connector"


def test_what_was_taught_is_judged_by(tmp_path):
    made = taught_settings(tmp_path, 6)
    lesson = learn_program(made, "connector")
    assert lesson.hindrance == ""
    assert lesson.problems == ()
    (doubt,) = lesson.doubts
    assert doubt.startswith("from 6 good parts the limit")
    assert lesson.references_hash == reference_store(made, "connector").check().hash
    assert lesson.inspector.reference_count == 6
    assert lesson.inspector.inspect(part(100)).verdict is Verdict.PASS
    assert lesson.inspector.inspect(part(100, missing=4)).verdict is Verdict.FAIL


def test_the_empty_station_that_was_taught_is_known_and_no_reference(tmp_path):
    made = taught_settings(tmp_path, 6)
    store = reference_store(made, "connector")
    before = learn_program(made, "connector")
    teach_empty(PROGRAM, store, empties(2), HASH)
    lesson = learn_program(made, "connector")
    assert (before.empties, lesson.empties) == (0, 2)
    assert (lesson.hindrance, lesson.problems, lesson.doubts) == ("", (), before.doubts)
    assert lesson.inspector.reference_count == 6
    assert lesson.inspector.inspect(bare(9)).reason is Reason.NO_PART
    crumb = bare(9)
    crumb[40:50, 60:70] = 120
    assert before.inspector.inspect(crumb).reason is Reason.NO_PART
    assert lesson.inspector.inspect(crumb).verdict is Verdict.FAIL


def test_the_hash_names_all_that_is_judged_by(tmp_path):
    made = taught_settings(tmp_path, 6)
    store = reference_store(made, "connector")
    without = learn_program(made, "connector").references_hash
    teach_empty(PROGRAM, store, empties(2), HASH)
    both = learn_program(made, "connector").references_hash
    first, second = empty_store(store).entries()
    empty_store(store).remove([first.file])
    one = learn_program(made, "connector").references_hash
    assert len({without, both, one}) == 3
    assert all(len(found) == 12 for found in (without, both, one))
    empty_store(store).remove([second.file])
    assert learn_program(made, "connector").references_hash == without == store.check().hash


def damaged(made: Settings) -> Settings:
    store = empty_store(reference_store(made, "connector"))
    for entry in store.entries():
        (store.directory / entry.file).write_bytes(b"rust")
    return made


def lost(made: Settings) -> Settings:
    (empty_store(reference_store(made, "connector")).directory / "index.json").unlink()
    return made


def of_another_size(made: Settings) -> Settings:
    store = empty_store(reference_store(made, "connector"))
    store.remove([entry.file for entry in store.entries()])
    alone = ReferenceStore(made.path.parent / "elsewhere")
    teach_empty(PROGRAM, alone, offered(small=bare(1)[:-2]), HASH)
    empty_store(alone).directory.rename(store.directory.with_name("moved"))
    shutil.rmtree(store.directory)
    store.directory.with_name("moved").rename(store.directory)
    return made


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damaged, "teach --empty --remove"),
        (lost, "the empty station is not known: "),
        (of_another_size, "1 pictures of the empty station"),
    ],
)
def test_pictures_of_the_empty_station_that_cannot_be_used_stop_nothing(tmp_path, spoil, words):
    made = taught_settings(tmp_path, 6)
    teach_empty(PROGRAM, reference_store(made, "connector"), empties(1), HASH)
    lesson = learn_program(spoil(made), "connector")
    assert lesson.hindrance == ""
    assert words in lesson.problems[0]
    assert lesson.empties == 0
    assert lesson.references_hash == reference_store(made, "connector").check().hash
    assert lesson.inspector.inspect(part(100)).verdict is Verdict.PASS


def test_the_empty_station_of_another_region_of_interest_is_not_used(tmp_path):
    made = settings(tmp_path)
    store = reference_store(made, "connector")
    teach_empty(PROGRAM, store, empties(1), HASH)
    roi = RegionOfInterest(x=8, y=4, width=100, height=80)
    moved = with_program(made, roi=roi)
    teach(moved.programs["connector"], store, good(6), HASH)
    lesson = learn_program(moved, "connector")
    assert lesson.empties == 0
    assert "cut with another region of interest" in lesson.problems[0]
    assert lesson.inspector.inspect(part(100)).verdict is Verdict.PASS


@pytest.mark.parametrize("count", [0, 4])
def test_too_few_references_are_a_hindrance_and_no_error(tmp_path, count):
    lesson = learn_program(taught_settings(tmp_path, count), "connector")
    assert f"{count} usable references of the 5 needed" in lesson.hindrance
    assert "inspectd teach connector" in lesson.hindrance
    inspection = lesson.inspector.inspect(part(100))
    assert inspection.verdict is Verdict.NOT_JUDGED
    assert inspection.reason is Reason.TOO_FEW_REFERENCES


def test_a_damaged_reference_is_a_problem_while_enough_are_left(tmp_path):
    made = taught_settings(tmp_path, 6)
    store = reference_store(made, "connector")
    (store.directory / store.entries()[2].file).write_bytes(b"rust")
    lesson = learn_program(made, "connector")
    assert lesson.hindrance == ""
    assert store.entries()[2].file in lesson.problems[0]
    assert lesson.inspector.reference_count == 5
    assert lesson.inspector.inspect(part(100)).verdict is Verdict.PASS


def test_damaged_references_that_leave_too_few_are_named_in_the_hindrance(tmp_path):
    made = taught_settings(tmp_path, 5)
    store = reference_store(made, "connector")
    (store.directory / store.entries()[0].file).unlink()
    lesson = learn_program(made, "connector")
    assert "4 usable references of the 5 needed" in lesson.hindrance
    assert store.entries()[0].file in lesson.hindrance
    assert lesson.inspector.inspect(part(100)).verdict is Verdict.NOT_JUDGED


def lost_index(made: Settings) -> Settings:
    (reference_store(made, "connector").directory / "index.json").unlink()
    return made


def with_program(made: Settings, **changes) -> Settings:
    programs = {"connector": program(**changes)}
    return Settings(path=made.path, station=made.station, programs=programs, hash="b")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lost_index, "index of the references is lost"),
        (
            lambda made: with_program(made, roi=RegionOfInterest(x=8, y=4, width=100, height=80)),
            "another region of interest",
        ),
        (
            lambda made: with_program(
                made, regions=(Region(name="all", box=Box(0, 0, 1, 1), ignore=True),)
            ),
            "nothing is left to judge",
        ),
    ],
    ids=["lost index", "moved region of interest", "all ignored"],
)
def test_references_that_cannot_be_used_are_told_as_what_they_are(tmp_path, spoil, words):
    lesson = learn_program(spoil(taught_settings(tmp_path, 6)), "connector")
    assert words in lesson.hindrance
    inspection = lesson.inspector.inspect(part(100))
    assert inspection.verdict is Verdict.NOT_JUDGED
    assert words in inspection.detail


def test_references_smaller_than_a_patch_are_a_hindrance(tmp_path):
    made = settings(tmp_path)
    strips = offered(**{f"strip{n}": part(n)[10:22] for n in range(6)})
    teach(PROGRAM, reference_store(made, "connector"), strips, HASH)
    lesson = learn_program(made, "connector")
    assert "smaller than one patch" in lesson.hindrance
    assert lesson.inspector.inspect(part(0)[10:22]).verdict is Verdict.NOT_JUDGED


def test_a_program_that_asks_for_one_reference_can_judge_by_one(tmp_path):
    made = with_program(settings(tmp_path), references=ReferenceSettings(minimum=1))
    store = reference_store(made, "connector")
    assert "0 usable references of the 1 needed" in learn_program(made, "connector").hindrance
    teach(PROGRAM, store, good(1), HASH)
    lesson = learn_program(made, "connector")
    assert lesson.hindrance == ""
    assert lesson.inspector.learned.zones[0].learned.method == "stated default"


def test_the_references_of_two_programs_are_apart(tmp_path):
    made = taught_settings(tmp_path, 3)
    assert len(reference_store(made, "connector").entries()) == 3
    assert reference_store(made, "other").entries() == ()
