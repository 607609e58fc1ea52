"""Telling good from bad on labelled pictures: the folders, the figures, the published result."""

import json
import math
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from photographs import photographs
from small_parts import HEIGHT, PADS, WIDTH, pad, part, parts, program

from inspectd.commands.evaluate import (
    Findings,
    Pooled,
    evaluate,
    goals,
    known,
)
from inspectd.commands.labelled import find_folders, load_pairs, load_set, load_views
from inspectd.commands.measurements import (
    BASELINES,
    DRAWS,
    EyeJudge,
    FalseAlarms,
    Found,
    Row,
    SiteBoxes,
    Sites,
    added_up,
    auroc,
    baseline_rows,
    draws,
    map_in_picture,
    measure_pair,
    measure_sites,
    measure_view,
    measured,
    patches_of_pixels,
    pixel_auroc,
    regions_and_boxes,
)
from inspectd.errors import PermanentError
from inspectd.eye import Eye
from inspectd.imaging.align import to_picture
from inspectd.records import PatchGrid, Pose
from inspectd.settings import AlignmentSettings, LimitSettings, Program, SoartcSettings

PUBLISHED = {"transistor": 0.63, "bottle": 0.80, "aliens": 0.29, "screws": 0.41}
LONGEST = 64
QUICK = program()


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


def mask_of(index: int) -> np.ndarray:
    left, top, right, bottom = pad(index)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One labelled set, with two kinds of bad parts, and folders that are none."""
    folder = tmp_path / "data" / "pads"
    for number in range(5):
        write(folder / "good" / f"{number}.png", part(number))
    for number in range(3):
        write(folder / "test" / "good" / f"{number}.png", part(20 + number))
    for number in range(2):
        write(folder / "test" / "missing_first" / f"{number}.png", part(40 + number, missing=0))
        write(folder / "test" / "missing_last" / f"{number}.png", part(60 + number, missing=11))
        write(folder / "mask" / "missing_last" / f"{number}.png", mask_of(11))
    write(tmp_path / "data" / "flat" / "1.png", part(1))
    (tmp_path / "data" / "README.md").write_text("pictures")
    return tmp_path / "data"


# ---- the figure --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        ([1, 2], [3, 4], 1.0),
        ([3, 4], [1, 2], 0.0),
        ([1, 1], [1, 1], 0.5),
        ([1, 3], [2], 0.5),
        ([1, 2, 2], [2, 3], 5 / 6),
    ],
)
def test_auroc_counts_the_pairs_in_the_right_order(good, bad, expected):
    assert auroc(good, bad) == pytest.approx(expected)


def test_auroc_is_the_share_of_pairs():
    rng = np.random.default_rng(4)
    good, bad = rng.integers(0, 20, 300), rng.integers(5, 25, 200)
    difference = np.subtract.outer(bad, good)
    assert auroc(good, bad) == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)))


# ---- the folders -------------------------------------------------------------------------------


def test_the_folders_are_told_apart_by_their_layout(data):
    for name in ("P1-P-L1_1.jpg", "P1-P-NL1_4.jpg", "taught-only_1.jpg"):
        write(data / "stations" / name, part(1))
    (data / "scans").mkdir()
    (data / "scans" / "a_boxes.txt").write_text("")
    folders = find_folders(data)
    assert folders.sets == (data / "pads",)
    assert folders.views == (data / "stations",)
    assert folders.pairs == (data / "scans",)


@pytest.mark.parametrize("empty", [True, False])
def test_a_folder_without_labelled_pictures_is_told_of(tmp_path, empty):
    folder = tmp_path / "nothing"
    if empty:
        write(folder / "flat" / "1.png", part(1))
    with pytest.raises(PermanentError, match="no labelled pictures there") as caught:
        evaluate(folder)
    assert str(folder) in str(caught.value)


def test_references_good_and_all_kinds_of_bad_are_read(data):
    labelled = load_set(data / "pads", LONGEST)
    assert labelled.name == "pads"
    counts = len(labelled.references), len(labelled.good), len(labelled.bad)
    assert counts == (5, 3, 4)
    assert np.array_equal(labelled.good[1].pixels, part(21))
    assert np.array_equal(labelled.bad[2].pixels, part(60, missing=11))


def test_each_mask_belongs_to_the_picture_of_its_name(data):
    (data / "pads" / "mask" / "missing_last" / "0.png").unlink()
    labelled = load_set(data / "pads", LONGEST)
    test, mask = data / "pads" / "test", data / "pads" / "mask"
    assert labelled.masks == {test / "missing_last" / "1.png": mask / "missing_last" / "1.png"}


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ("good/*.png", "0 references, 3 good and 4 bad"),
        ("test/good/*.png", "0 good"),
        ("test/missing*/*.png", "0 bad"),
    ],
)
def test_a_set_with_too_few_pictures_is_told_of(data, left, words):
    for path in (data / "pads").glob(left):
        path.unlink()
    with pytest.raises(PermanentError, match=words) as caught:
        load_set(data / "pads", LONGEST)
    assert str(data / "pads") in str(caught.value)


def test_a_picture_that_cannot_be_read_is_named(data):
    damaged = data / "pads" / "test" / "missing_last" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(PermanentError, match="is cut short") as caught:
        load_set(data / "pads", LONGEST)
    assert str(caught.value).startswith(str(damaged))


@pytest.mark.parametrize("place", ["good/3.png", "test/good/1.png", "test/missing_last/0.png"])
def test_a_picture_of_another_shape_is_named(data, place):
    """The kernels trust their caller: such a picture would be read beyond its end."""
    odd = data / "pads" / place
    write(odd, part(1)[:48, :96])
    with pytest.raises(PermanentError, match=r"96 x 48 pixels, .* has 128 x 96") as caught:
        load_set(data / "pads", LONGEST)
    assert str(odd) in str(caught.value)


def test_a_larger_picture_of_the_same_shape_is_welcome(data):
    write(data / "pads" / "test" / "good" / "1.png", cv2.resize(part(21), (256, 192)))
    assert len(load_set(data / "pads", LONGEST).good) == 3


def test_views_are_taught_by_their_first_three_repeats_of_every_light(tmp_path):
    for name in ("P2-UP-L1", "P2-UP-NL1", "P1-P-L1"):
        for repeat in range(1, 6):
            write(tmp_path / f"{name}_{repeat}.png", part(repeat))
    first, second = load_views(tmp_path, LONGEST)
    assert (first.name, second.name) == ("P1-P", "P2-UP")
    assert (len(first.references), len(first.judged)) == (3, 2)
    names = [picture.path.stem for picture in second.judged]
    assert sorted(names) == ["P2-UP-L1_4", "P2-UP-L1_5", "P2-UP-NL1_4", "P2-UP-NL1_5"]
    assert len(second.references) == 6


def write_pair(folder: Path, name: str = "a", boxes: str = "10 10 27 27 3\n") -> None:
    write(folder / f"{name}_template.png", part(1))
    write(folder / f"{name}_test.png", part(1, missing=0))
    (folder / f"{name}_boxes.txt").write_text(boxes)


def test_pairs_are_read_with_their_boxes(tmp_path):
    write_pair(tmp_path, boxes="10 10 27 27 3\n1 2 3 4 6\n\n")
    (pair,) = load_pairs(tmp_path, LONGEST)
    assert pair.boxes == ((10, 10, 27, 27), (1, 2, 3, 4))
    assert np.array_equal(pair.template.pixels, part(1))
    assert np.array_equal(pair.test.pixels, part(1, missing=0))


def test_a_line_that_is_no_box_is_told_of(tmp_path):
    write_pair(tmp_path, boxes="10 10 27 27 3\n10 10 27\n")
    with pytest.raises(PermanentError, match=r"a_boxes\.txt, line 2: wanted are five whole"):
        list(load_pairs(tmp_path, LONGEST))


def test_boxes_without_their_picture_are_told_of(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "a_test.png").unlink()
    with pytest.raises(PermanentError, match=r"there is no picture a_test"):
        list(load_pairs(tmp_path, LONGEST))


# ---- labelled sets -----------------------------------------------------------------------------


class LargestGrey:
    """A method whose score is the picture's largest grey value; its references score 1 to 5."""

    stated_limit = None

    def map(self, picture):
        return picture.astype(np.float32)

    def leave_one_out(self):
        return np.arange(1, 6, dtype=np.float32).reshape(5, 1, 1)


def test_missed_and_false_rejects_are_counted_against_the_limit(tmp_path):
    folder = tmp_path / "greys"
    for kind, greys in (("good", [1]), ("test/good", [4, 100, 3]), ("test/bad", [2, 120, 130])):
        for number, grey in enumerate(greys):
            write(folder / kind / f"{number}.png", np.full((20, 20), grey, np.uint8))
    row = measured(load_set(folder, LONGEST), QUICK, "largest", 5, [LargestGrey(), LargestGrey()])
    assert (row.set, row.method, row.references, row.draws) == ("greys", "largest", 5, 2)
    assert (row.missed, row.false_rejects) == (1, 1)
    assert row.auroc == pytest.approx(6 / 9)
    assert row.ms > 0


def test_missing_pads_are_told_from_good_parts(data):
    labelled = load_set(data / "pads", LONGEST)
    rows = {row.method: row for row in baseline_rows(labelled, QUICK)}
    assert set(rows) == set(BASELINES)
    for row in rows.values():
        assert (row.set, row.references, row.draws) == ("pads", 5, 1)
        assert row.auroc == 1.0
        assert (row.missed, row.false_rejects) == (0, 0)


@pytest.mark.parametrize("method", BASELINES)
def test_the_baselines_leave_a_reference_out_as_if_it_had_never_been_there(method):
    pictures = parts(4)
    maps = BASELINES[method](pictures).leave_one_out()
    assert len(maps) == 4
    expected = BASELINES[method](pictures[:2] + pictures[3:]).map(pictures[2])
    np.testing.assert_allclose(maps[2], expected, rtol=1e-3, atol=1e-3)


def test_good_parts_are_not_told_from_good_parts(data):
    for number in range(2):
        write(data / "pads" / "test" / "missing_first" / f"{number}.png", part(20))
        write(data / "pads" / "test" / "missing_last" / f"{number}.png", part(20))
    for number in range(3):
        write(data / "pads" / "test" / "good" / f"{number}.png", part(20))
    rows = baseline_rows(load_set(data / "pads", LONGEST), QUICK)
    assert {row.auroc for row in rows} == {0.5}


def test_references_that_are_all_alike_are_told_of(data):
    for number in range(5):
        write(data / "pads" / "good" / f"{number}.png", part(1))
    with pytest.raises(PermanentError, match=r"^pads, method published: no limit follows"):
        baseline_rows(load_set(data / "pads", LONGEST), QUICK)


def test_draws_are_seeded_different_and_without_repeats():
    drawn = draws(12, 5)
    assert drawn == draws(12, 5)
    assert len(drawn) == DRAWS
    assert len({tuple(indices) for indices in drawn}) == DRAWS
    for indices in drawn:
        assert indices == sorted(set(indices))
        assert len(indices) == 5
        assert indices[0] >= 0
        assert indices[-1] < 12


# ---- where in the picture ----------------------------------------------------------------------


def test_the_patches_of_pixels_are_to_picture_turned_round():
    grid = PatchGrid(rows=20, cols=29, step=(2, 2), extent=(10, 10))
    pose, shape = Pose(dx=3.0, dy=-2.0, rotation=0.2), (48, 64)
    rows, columns = patches_of_pixels(grid, pose, shape, (96, 128))
    for row, column in ((0, 0), (11, 17), (19, 28)):
        x, y = to_picture(pose, *grid.centre(row, column), shape)
        pixel = round(2 * y - 0.5), round(2 * x - 0.5)
        if 0 <= pixel[0] < 96 and 0 <= pixel[1] < 128:
            assert math.hypot(rows[pixel] - row, columns[pixel] - column) < 0.3


def test_the_map_lies_where_the_picture_differs():
    """In a picture that is shifted, the missing pad is found where the picture would show it."""
    quick = msgspec.structs.replace(QUICK, alignment=AlignmentSettings(mode="rigid"))
    references = [cv2.resize(one, (64, 48), interpolation=cv2.INTER_AREA) for one in parts(3)]
    shifted = np.roll(part(50, missing=5), (4, 6), axis=(0, 1))
    picture = cv2.resize(shifted, (64, 48), interpolation=cv2.INTER_AREA)
    eye = Eye(quick, references)
    values = map_in_picture(eye.look(picture), eye.grid, (HEIGHT, WIDTH))
    row, column = np.unravel_index(np.argmax(values), values.shape)
    left, top, right, bottom = pad(5)
    assert top + 4 <= row < bottom + 4
    assert left + 6 <= column < right + 6


def test_pixel_auroc_asks_for_the_place(data):
    labelled = load_set(data / "pads", LONGEST)
    eye = EyeJudge(QUICK, [picture.reduced(LONGEST) for picture in labelled.references]).eye
    right = pixel_auroc(labelled, QUICK, eye)
    for mask in (data / "pads" / "mask" / "missing_last").iterdir():
        write(mask, mask_of(0))
    wrong = pixel_auroc(labelled, QUICK, eye)
    assert right > 0.95
    assert wrong < 0.7


def test_without_masks_there_is_no_pixel_auroc(data):
    for mask in (data / "pads" / "mask" / "missing_last").iterdir():
        mask.unlink()
    labelled = load_set(data / "pads", LONGEST)
    eye = EyeJudge(QUICK, [picture.reduced(LONGEST) for picture in labelled.references]).eye
    assert pixel_auroc(labelled, QUICK, eye) is None


SITE_BOXES = SiteBoxes(picture=(WIDTH, HEIGHT), boxes=(pad(0), pad(PADS - 1)))


def test_each_site_is_judged_against_what_the_name_says(data):
    test = data / "pads" / "test"
    write(test / "missing_first" / "2_01.png", part(41, missing=0))
    write(test / "missing_first" / "3_10.png", part(42, missing=11))
    write(test / "missing_first" / "4_11.png", part(43, missing=0))  # the name is wrong
    write(test / "missing_first" / "5_00.png", part(44, missing=11))  # likewise
    sites = measure_sites(load_set(data / "pads", LONGEST), QUICK, SITE_BOXES)
    assert sites.pictures == 4
    assert (sites.empty, sites.missed) == (4, 1)
    assert (sites.filled, sites.false_rejects) == (4, 1)
    assert sites.right_by_site == (2, 4)
    assert (sites.right, sites.sites) == (6, 8)


def test_names_that_tell_nothing_of_the_sites_give_no_figure(data):
    assert measure_sites(load_set(data / "pads", LONGEST), QUICK, SITE_BOXES) is None


# ---- views and pairs ---------------------------------------------------------------------------


def test_false_alarms_of_a_view_are_counted(tmp_path):
    for repeat in range(1, 5):
        write(tmp_path / f"P1-L_{repeat}.png", part(repeat))
        write(tmp_path / f"P1-NL_{repeat}.png", part(10 + repeat))
    write(tmp_path / "P1-NL_5.png", part(15, missing=3))
    (view,) = load_views(tmp_path, LONGEST)
    alarms = measure_view(view, QUICK)
    assert (alarms.view, alarms.references, alarms.pictures) == ("P1", 6, 3)
    assert alarms.false_alarms == 1
    assert alarms.highest > 1


def test_regions_and_boxes():
    above = np.zeros((40, 40), bool)
    above[5:8, 5:8] = True
    above[8, 8] = True  # the same region, by its corner
    above[20, 13] = True  # 3 pixels from the box that ends at 10
    above[30, 14] = True  # 4 pixels
    above[12, 22] = True  # 3 pixels below the box that ends at 9
    above[35, 30] = True  # in two boxes
    boxes = [(6, 6, 8, 8), (5, 18, 10, 22), (5, 28, 10, 32), (28, 33, 31, 36), (30, 35, 32, 38)]
    boxes.append((20, 5, 24, 9))
    assert regions_and_boxes(above, boxes) == (5, 1)
    assert regions_and_boxes(np.zeros((40, 40), bool), boxes) == (0, 0)
    assert regions_and_boxes(above, []) == (0, 5)


def test_what_is_missing_from_the_template_is_found_in_its_box(tmp_path):
    write_pair(tmp_path, "found")
    write_pair(tmp_path, "elsewhere", boxes="70 70 90 90 1\n")
    nearest = Program(
        resolution=128,
        method="nearest",
        alignment=AlignmentSettings(mode="none"),
        light="none",
        soartc=SoartcSettings(part=5, stride=1, step=2, blur=1.5, pedestal=0.03, tolerance=3),
        # The stated limit of a single reference suits board scans of 640 pixels, not this drawing.
        limit=LimitSettings(threshold=0.8),
    )
    elsewhere, found = (measure_pair(pair, nearest) for pair in load_pairs(tmp_path, 128))
    assert (found.boxes, found.found) == (1, 1)
    assert (elsewhere.boxes, elsewhere.found) == (1, 0)
    assert elsewhere.false_regions > found.false_regions
    total = added_up([elsewhere, found])
    assert (total.pairs, total.boxes, total.found) == (2, 2, 1)
    assert total.false_regions == elsewhere.false_regions + found.false_regions
    assert total.limit == found.limit == elsewhere.limit


# ---- targets -----------------------------------------------------------------------------------


def test_the_file_beside_the_command_is_read_and_names_one_default():
    """But for the alignment, the sets of one product are all judged by the default program."""
    for name in known().targets.auroc:
        aligned = known().program(name)
        assert msgspec.structs.replace(aligned, alignment=AlignmentSettings()) == Program()
    assert known().program("screws").alignment.mode == "search"
    assert known().program("unheard-of") == Program()
    (site, *_) = known().sites["screws"].regions()
    assert msgspec.structs.astuple(site.box) == pytest.approx((5 / 600, 69 / 789, 0.435, 326 / 789))


def findings_of(auroc_value: float) -> Findings:
    findings = Findings()
    for name in known().targets.auroc:
        findings.sets.append(Row(name, "default", 100, 1, auroc_value, 0, 0, 1.0))
        findings.sets.append(Row(name, "default", 5, 5, auroc_value, 0, 0, 1.0))
    findings.pooled = Pooled(4, auroc_value, missed=11, bad=118, false_rejects=6, good=65)
    findings.sites["screws"] = Sites(7, 43, 65, 4, 107, 1, (42, 42, 42, 41))
    findings.pixel_auroc = {"transistor": 0.94, "bottle": 0.94}
    findings.boards["boards"] = [FalseAlarms("P1", 6, 8, 1, 1.1, 1.0)] * 2
    findings.pcb["pcb"] = Found(72, 500, 485, 72, 0.9, 50.0)
    return findings


def test_targets_are_met_or_missed():
    met = {goal.what: goal.met for goal in goals(findings_of(0.975))}
    assert met == {
        "AUROC, transistor": True,
        "AUROC, bottle": False,
        "AUROC, aliens": False,
        "AUROC, screws": True,
        "AUROC from 5 references, mean": True,
        "bad parts missed": True,
        "good parts rejected": False,
        "sites right, screws": True,
        "pixel AUROC, transistor": True,
        "pixel AUROC, bottle": False,
        "false alarms, boards": False,
        "boxes found, pcb": True,
        "false regions an image, pcb": True,
    }


def test_there_are_no_targets_over_all_sets_when_one_is_absent():
    findings = findings_of(0.99)
    findings.sets = [row for row in findings.sets if row.set != "screws"]
    named = {goal.what for goal in goals(findings)}
    assert "AUROC, aliens" in named
    assert not named & {"AUROC, screws", "bad parts missed", "AUROC from 5 references, mean"}


# ---- the result --------------------------------------------------------------------------------


@pytest.fixture
def everything(data, tmp_path):
    """The labelled set, a view and a pair."""
    for repeat in range(1, 5):
        write(data / "stations" / f"P1-P-L1_{repeat}.png", part(repeat))
    write_pair(data / "scans")
    return data


def test_the_table_is_printed(everything, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert evaluate(everything) == 0
    printed = capsys.readouterr().out
    for method in (*BASELINES, "default"):
        line = next(line for line in printed.splitlines() if "pads" in line and method in line)
        assert "1.000" in line
        assert " 5 " in line
    for word in ("stations", "each view", "scans", "template"):
        assert word in printed
    assert "…" not in printed
    assert "target" not in printed  # none of the known sets


def test_json_is_one_object_and_nothing_else(everything, capsys):
    assert evaluate(everything, as_json=True) == 0
    result = json.loads(capsys.readouterr().out)
    rows = result["sets"]
    assert {tuple(row) for row in rows} == {
        ("set", "method", "references", "draws", "auroc", "missed", "false_rejects", "ms")
    }
    default = [row for row in rows if row["method"] == "default"]
    assert [(row["references"], row["draws"]) for row in default] == [(5, 1), (3, 5), (1, 5)]
    assert default[0]["auroc"] == 1.0
    assert result["pictures"] == {"pads": {"references": 5, "good": 3, "bad": 4}}
    assert result["pooled"]["bad"] == 4
    assert result["pixel_auroc"]["pads"] > 0.9
    assert result["boards"]["stations"][0]["pictures"] == 1
    assert result["pcb"]["scans"]["boxes"] == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_method_reaches_the_published_figure(name):
    rows = baseline_rows(load_set(photographs(name), 100), Program())
    published = next(row for row in rows if row.method == "published")
    assert published.auroc == pytest.approx(PUBLISHED[name], abs=0.02)
