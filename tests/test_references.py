"""The store of reference pictures, with real files: above all that nothing is lost or half done."""

import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from photographs import photographs

from inspectd.errors import ReferencesError
from inspectd.records import Image
from inspectd.references import NewReference, ReferenceStore, pixel_checksum
from inspectd.settings import RegionOfInterest

ROI = RegionOfInterest(x=10, y=20, width=40, height=30)
TAKEN = datetime(2026, 7, 29, 6, 30, tzinfo=UTC)


def picture(seed: int, *, colour: bool = True) -> Image:
    shape = (30, 40, 3) if colour else (30, 40)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def new(seed: int, *, colour: bool = True) -> NewReference:
    return NewReference(
        picture(seed, colour=colour), TAKEN + timedelta(minutes=seed), f"part_{seed}.png", "abc123"
    )


def whole(pixels: Image) -> Image:
    """Keep the picture itself."""
    return pixels


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(tmp_path / "references" / "connector")


def pngs(store: ReferenceStore) -> set[str]:
    return {path.name for path in store.directory.glob("*.png")}


def own_files(store: ReferenceStore) -> set[str]:
    return {path.name for path in store.directory.iterdir()}


# ---- keeping them ------------------------------------------------------------------------------


def test_an_empty_store_has_no_references_and_makes_no_folder(store):
    loaded = store.check()
    assert loaded.pictures == ()
    assert loaded.anchor is None
    assert loaded.problems == ()
    assert store.entries() == ()
    assert store.add([], ROI) == ()
    assert not store.directory.exists()


def test_no_more_than_one_picture_is_held_at_a_time(store):
    """A hundred of them at full resolution are half a gigabyte."""
    store.add([new(seed) for seed in range(4)], ROI)
    read: list[weakref.ref] = []

    def mean(pixels: Image) -> float:
        read.append(weakref.ref(pixels))
        assert [one() is None for one in read[:-1]] == [True] * (len(read) - 1)
        return float(pixels.mean())

    loaded = store.load(mean)
    assert [one.kept for one in loaded.pictures] == [picture(seed).mean() for seed in range(4)]
    assert loaded.anchor is not None
    assert loaded.anchor.kept == picture(0).mean()
    assert read[-1]() is None


@pytest.mark.parametrize("colour", [True, False])
def test_pictures_come_back_pixel_by_pixel_in_their_order(store, colour):
    added = store.add([new(seed, colour=colour) for seed in (3, 1, 2)], ROI)
    loaded = store.load(whole)
    assert loaded.problems == ()
    assert loaded.roi == ROI
    assert [one.file for one in loaded.pictures] == [one.file for one in added]
    for one, seed in zip(loaded.pictures, (3, 1, 2), strict=True):
        assert one.kept.dtype == np.uint8
        assert np.array_equal(one.kept, picture(seed, colour=colour))
        assert one.sha256 == pixel_checksum(picture(seed, colour=colour))
        assert one.file == f"{one.sha256[:16]}.png"
    assert loaded.anchor is not None
    assert loaded.anchor.file == added[0].file


def test_any_program_can_read_the_files(store):
    (added,) = store.add([new(1)], ROI)
    assert np.array_equal(cv2.imread(str(store.directory / added.file)), picture(1))
    index = json.loads((store.directory / "index.json").read_text())
    assert index["schema"] == 1
    assert index["roi"] == [10, 20, 40, 30]
    assert index["anchor"] == added.file
    (entry,) = index["entries"]
    assert entry["origin"] == "part_1.png"
    assert entry["settings_hash"] == "abc123"
    assert (entry["width"], entry["height"]) == (40, 30)
    assert datetime.fromisoformat(entry["taken_at"]) == TAKEN + timedelta(minutes=1)
    assert own_files(store) == {added.file, "index.json", ".lock"}


def test_a_store_within_another_ones_folder_is_left_alone_and_not_reported(store):
    """Pictures of the empty station lie in a folder of their own beside the references."""
    inner = ReferenceStore(store.directory / "empty", "teach --empty")
    first = store.add([new(1), new(2)], None)
    inner.add([new(3)], None)
    store.remove([first[0].file])
    store.add([new(4)], None)
    assert store.check().problems == ()
    assert [entry.origin for entry in store.entries()] == ["part_2.png", "part_4.png"]
    assert [entry.origin for entry in inner.entries()] == ["part_3.png"]
    store.remove([entry.file for entry in store.entries()])
    assert store.entries() == ()
    assert np.array_equal(inner.load(whole).pictures[0].kept, picture(3))


def test_advice_names_the_command_that_the_store_is_kept_with(store):
    inner = ReferenceStore(store.directory / "empty", "teach --empty")
    (added,) = inner.add([new(3)], None)
    (inner.directory / added.file).unlink()
    (problem,) = inner.check().problems
    assert f"teach --empty --remove {added.file}" in problem
    with pytest.raises(ReferencesError, match="see teach --empty --list"):
        inner.remove(["nothing like it"])


def test_entries_are_listed_without_opening_the_pictures(store):
    added = store.add([new(1), new(2)], None)
    for one in added:
        (store.directory / one.file).write_bytes(b"")
    assert [entry.origin for entry in store.entries()] == ["part_1.png", "part_2.png"]
    assert store.entries()[0].taken_at == TAKEN + timedelta(minutes=1)


def test_an_instant_of_another_zone_is_stored_as_utc(store):
    store.add([replace(new(1), taken_at=datetime.fromisoformat("2026-07-29T08:30:00+02:00"))], ROI)
    assert store.entries()[0].taken_at == TAKEN
    assert '"2026-07-29T06:30:00Z"' in (store.directory / "index.json").read_text()


def test_the_same_pixels_are_kept_once_and_reported(store):
    store.add([new(1)], ROI)
    again = replace(new(1), origin="copy.png", pixels=np.asfortranarray(picture(1)))
    outcomes = store.add([new(2), again, replace(new(2), origin="twice.png")], ROI)
    assert [one.duplicate_of for one in outcomes] == [None, "part_1.png", "part_2.png"]
    assert [entry.origin for entry in store.entries()] == ["part_1.png", "part_2.png"]
    assert len(pngs(store)) == 2


def test_the_same_bytes_in_another_shape_are_another_picture():
    flat = np.arange(12, dtype=np.uint8)
    shapes = ((3, 4), (4, 3), (2, 2, 3))
    assert len({pixel_checksum(flat.reshape(shape)) for shape in shapes}) == len(shapes)


def test_the_hash_depends_on_the_usable_pictures_and_not_on_their_order(store, tmp_path):
    other = ReferenceStore(tmp_path / "other")
    store.add([new(1), new(2)], ROI)
    other.add([new(2), new(1)], ROI)
    both = store.check().hash
    assert len(both) == 12
    assert int(both, 16) >= 0
    assert other.check().hash == both
    other.add([new(3)], ROI)
    assert other.check().hash != both
    other.remove([store_file(other, 3)])
    assert other.check().hash == both
    (other.directory / store_file(other, 1)).write_bytes(b"broken")
    assert other.check().hash != both


def store_file(store: ReferenceStore, seed: int) -> str:
    return next(entry.file for entry in store.entries() if entry.origin == f"part_{seed}.png")


def test_progress_is_told_after_every_picture(store):
    seen = []
    store.add([new(1), new(2), new(3)], ROI, seen.append)
    assert seen == [1, 2, 3]


def test_references_cut_otherwise_are_refused_whole(store):
    store.add([new(1)], ROI)
    before = own_files(store)
    with pytest.raises(ReferencesError, match=r"\[10, 20, 40, 30\], these with none"):
        store.add([new(2)], None)
    small = replace(new(3), pixels=picture(3)[:20])
    with pytest.raises(ReferencesError, match=r"part_3.png has 40 x 20 .* 40 x 30"):
        store.add([new(2), small], ROI)
    assert own_files(store) == before
    assert len(store.entries()) == 1


def test_the_first_batch_must_be_of_one_size_too(store):
    with pytest.raises(ReferencesError, match=r"40 x 20 .* 40 x 30 \(as part_1.png\)"):
        store.add([new(1), replace(new(2), pixels=picture(2)[:20])], ROI)
    assert store.check().pictures == ()


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    store = ReferenceStore(tmp_path / "file" / "connector")
    with pytest.raises(ReferencesError, match=r"cannot make .*connector"):
        store.add([new(1)], ROI)


# ---- taking them out ---------------------------------------------------------------------------


def test_remove_by_name_and_by_beginning(store):
    added = store.add([new(seed) for seed in (1, 2, 3, 4)], ROI)
    removed = store.remove([added[1].file, added[2].file[:6]])
    assert [entry.origin for entry in removed] == ["part_2.png", "part_3.png"]
    assert [entry.origin for entry in store.entries()] == ["part_1.png", "part_4.png"]
    assert pngs(store) == {added[0].file, added[3].file}
    assert store.check().problems == ()


def test_an_unknown_name_removes_nothing_and_tells_the_nearest(store):
    added = store.add([new(1), new(2)], ROI)
    wrong = added[1].file.replace(".png", ".pgn")
    with pytest.raises(ReferencesError) as caught:
        store.remove([added[0].file, wrong])
    assert wrong in str(caught.value)
    assert f"{added[1].file} (from part_2.png)" in str(caught.value)
    with pytest.raises(ReferencesError, match=rf"nearest: .*{added[0].file} \(from part_1.png\)"):
        store.remove(["part_1.png"])
    with pytest.raises(ReferencesError, match="teach --list"):
        store.remove(["~~~~~~~"])
    assert len(store.entries()) == 2


def test_a_beginning_of_several_names_is_refused(store):
    store.add([new(seed) for seed in range(20)], ROI)
    files = [entry.file for entry in store.entries()]
    shared = next(file[0] for file in files if sum(one[0] == file[0] for one in files) > 1)
    with pytest.raises(ReferencesError, match="more than one"):
        store.remove([shared])
    with pytest.raises(ReferencesError, match="no reference ''"):
        store.remove([""])
    assert len(store.entries()) == 20


def test_removing_from_an_empty_store_says_so(store):
    with pytest.raises(ReferencesError, match="none at all"):
        store.remove(["abc"])
    assert store.remove([]) == ()


def test_the_anchor_stays_for_the_others_when_it_is_removed(store):
    added = store.add([new(1), new(2)], ROI)
    store.remove([added[0].file])
    loaded = store.load(whole)
    assert [one.file for one in loaded.pictures] == [added[1].file]
    assert loaded.anchor is not None
    assert np.array_equal(loaded.anchor.kept, picture(1))
    assert loaded.problems == ()
    assert [entry.origin for entry in store.entries()] == ["part_2.png"]
    with pytest.raises(ReferencesError, match="there is no reference"):
        store.remove([added[0].file])
    (again,) = store.add([new(1)], ROI)
    assert again.duplicate_of is None
    assert len(store.check().pictures) == 2


def test_with_the_last_reference_everything_goes(store):
    added = store.add([new(1), new(2)], ROI)
    store.remove([added[0].file])
    store.remove([added[1].file])
    assert pngs(store) == set()
    assert store.check().anchor is None
    (other,) = store.add([new(3)], None)  # another region of interest is welcome now
    assert store.check().anchor is not None
    assert store.check().roi is None
    assert pngs(store) == {other.file}


# ---- damage ------------------------------------------------------------------------------------


def test_damaged_and_missing_pictures_are_named_and_the_rest_goes_on(store):
    added = store.add([new(seed) for seed in range(5)], ROI)
    paths = [store.directory / one.file for one in added]
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    paths[1].write_bytes(b"")
    cv2.imwrite(str(paths[2]), picture(99))
    paths[3].unlink()
    loaded = store.check()
    assert [one.file for one in loaded.pictures] == [added[4].file]
    assert loaded.anchor is None
    assert len(loaded.problems) == 4
    for one, problem in zip(added[:4], loaded.problems, strict=True):
        assert one.file in problem
        assert one.origin in problem
        assert "teach --remove" in problem
    assert "not those that were taught" in loaded.problems[2]
    assert "not in the folder" in loaded.problems[3]


def test_one_flipped_bit_is_noticed(store):
    (added,) = store.add([new(1)], ROI)
    path = store.directory / added.file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    loaded = store.check()
    assert loaded.pictures == ()
    assert len(loaded.problems) == 1


def test_teaching_a_damaged_picture_again_mends_it(store):
    added = store.add([new(1), new(2)], ROI)
    (store.directory / added[1].file).write_bytes(b"")
    assert len(store.check().problems) == 1
    store.add([new(2)], ROI)
    assert store.check().problems == ()
    assert len(store.check().pictures) == 2


def test_a_damaged_picture_can_be_removed(store):
    added = store.add([new(1), new(2)], ROI)
    (store.directory / added[1].file).unlink()
    store.remove([added[1].file])
    assert store.check().problems == ()


def test_pictures_that_no_index_names_are_not_used_and_foreign_ones_never_deleted(store):
    store.add([new(1)], ROI)
    foreign = store.directory / "my_part.png"
    cv2.imwrite(str(foreign), picture(7))
    loaded = store.check()
    assert len(loaded.pictures) == 1
    (problem,) = loaded.problems
    assert "my_part.png" in problem
    store.add([new(2)], ROI)
    assert foreign.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"\xff\xfe",
        lambda raw: raw.replace(b'"schema": 1', b'"schema": 2'),
        lambda raw: raw.replace(b'"file": "', b'"file": "../'),
        lambda raw: raw.replace(b'"entries"', b'"entrees"'),
        lambda raw: raw.replace(b'"anchor": "', b'"anchor": "0'),
    ],
    ids=["half", "empty", "binary", "other schema", "path", "unknown key", "anchor"],
)
def test_a_damaged_index_is_an_error_and_is_never_overwritten(store, damage):
    added = store.add([new(1), new(2)], ROI)
    index = store.directory / "index.json"
    index.write_bytes(damage(index.read_bytes()))
    left = index.read_bytes()
    for use in (
        store.check,
        store.entries,
        lambda: store.add([new(3)], ROI),
        lambda: store.remove([added[0].file]),
    ):
        with pytest.raises(ReferencesError) as caught:
            use()
        assert str(index) in str(caught.value)
        assert "teach again" in str(caught.value)
    assert index.read_bytes() == left
    assert pngs(store) == {one.file for one in added}


def test_a_lost_index_is_an_error_and_no_picture_is_deleted(store):
    added = store.add([new(1), new(2)], ROI)
    (store.directory / "index.json").unlink()
    for use in (store.check, lambda: store.add([new(3)], ROI)):
        with pytest.raises(ReferencesError, match=r"index.json is not there, but 2 pictures are"):
            use()
    assert pngs(store) == {one.file for one in added}


# ---- crashes and two writers -------------------------------------------------------------------

WRITER = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
import numpy as np
from inspectd.references import NewReference, ReferenceStore
from inspectd.settings import RegionOfInterest

folder, action, crash_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
steps = 0

def dying(function):
    def step(*args, **options):
        global steps
        steps += 1
        if steps == crash_at:
            os._exit(9)  # as a power cut would: no clean-up runs
        return function(*args, **options)
    return step

for name in ("open", "fsync", "rename", "replace", "unlink"):
    setattr(os, name, dying(getattr(os, name)))

def new(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return NewReference(pixels, datetime(2026, 7, 29, tzinfo=UTC), f"part_{seed}.png", "abc123")

store = ReferenceStore(folder)
if action == "add":
    seeds = [int(seed) for seed in sys.argv[4:]]
    store.add([new(seed) for seed in seeds], RegionOfInterest(10, 20, 40, 30))
else:
    store.remove(sys.argv[4:])
"""


def writer(store, action, crash_at, *arguments):
    command = [sys.executable, "-c", WRITER, store.directory, action, crash_at, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([str(word) for word in command], env=environment)


def crash(store, action, *arguments):
    """Run the action again and again, killed at its first step, its second ..., until it is done;
    yields after every death.
    """
    for crash_at in range(1, 60):
        died = writer(store, action, crash_at, *arguments).wait(timeout=60)
        assert died in (0, 9)
        yield
        if died == 0:
            return
    raise AssertionError("it never came to its end")


def origins(store):
    return [entry.origin for entry in store.entries()]


def test_a_crash_while_adding_leaves_the_old_state_or_the_new(store):
    store.add([new(1)], ROI)
    deaths = 0
    for _ in crash(store, "add", 2, 3):
        deaths += 1
        loaded = store.check()
        assert origins(store) in (["part_1.png"], ["part_1.png", "part_2.png", "part_3.png"])
        assert len(loaded.pictures) == len(store.entries())
        assert all("not in the index" in problem for problem in loaded.problems)
    assert deaths > 8
    assert len(store.check().pictures) == 3
    assert own_files(store) == {*pngs(store), "index.json", ".lock"}


def test_a_crash_in_the_first_teach_leaves_a_store_that_can_be_taught(store):
    for _ in crash(store, "add", 1, 2):
        assert len(store.check().pictures) in (0, 2)
    assert own_files(store) == {*pngs(store), "index.json", ".lock"}
    assert len(pngs(store)) == 2


def test_a_crash_while_removing_never_brings_a_picture_back(store):
    added = store.add([new(1), new(2), new(3)], ROI)
    gone = False
    for crash_at in range(1, 60):
        if added[1].file not in {entry.file for entry in store.entries()}:
            gone = True
            break
        writer(store, "remove", crash_at, added[1].file).wait(timeout=60)
        loaded = store.check()
        assert origins(store)[0] == "part_1.png"
        assert len(loaded.pictures) == len(store.entries())
    assert gone
    # The crash may have left the picture's file: not used, and swept by the next writer.
    assert len(store.check().pictures) == 2
    store.add([new(4)], ROI)
    assert added[1].file not in pngs(store)
    assert store.check().problems == ()


def test_what_an_interrupted_write_left_is_swept_by_the_next(store):
    (added,) = store.add([new(1)], ROI)
    (store.directory / ".writing-index.json").write_bytes(b"{")
    (store.directory / "0123456789abcdef.png").write_bytes(b"half a pict")
    (problem,) = store.check().problems
    assert "interrupted teach" in problem
    store.add([new(1)], ROI)
    assert own_files(store) == {added.file, "index.json", ".lock"}


def test_two_writers_at_once_lose_nothing(store):
    running = [writer(store, "add", 0, *range(first, first + 6)) for first in (0, 100, 200)]
    assert [one.wait(timeout=60) for one in running] == [0, 0, 0]
    loaded = store.check()
    assert loaded.problems == ()
    assert sorted(origins(store)) == sorted(
        f"part_{first + number}.png" for first in (0, 100, 200) for number in range(6)
    )
    assert len(loaded.pictures) == 18


def test_photographs_are_kept_without_loss(store):
    paths = sorted(photographs("aliens", "good").glob("*"))
    pictures = [cv2.imread(str(path)) for path in paths]
    store.add(
        [
            NewReference(pixels, TAKEN, path.name, "abc123")
            for path, pixels in zip(paths, pictures, strict=True)
        ],
        None,
    )
    loaded = store.load(whole)
    assert loaded.problems == ()
    for one, pixels in zip(loaded.pictures, pictures, strict=True):
        assert np.array_equal(one.kept, pixels)
