"""The drawing: what it shows lies where it belongs, whatever the picture."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from photographs import photographs

from inspectd.errors import ImageError
from inspectd.imaging import heatmap, preprocess
from inspectd.records import Inspection, PatchGrid, Reason, RegionScore, Verdict
from inspectd.settings import Box, Region


def grid_of(picture, step=2, extent=7):
    height, width = picture.shape
    return PatchGrid(
        (height - extent) // step + 1, (width - extent) // step + 1, (step, step), (extent, extent)
    )


def inspection(picture, values, verdict=Verdict.FAIL, **others):
    score = float(np.max(values))
    return Inspection(verdict, score=score, limit=12.5, map=values, picture=picture, **others)


def scene(canvas, picture):
    """The inspected picture within the drawing, found as the drawing is laid out: centred in the
    room left of the colour bar and above the lower margin.
    """
    scale = heatmap.PICTURE_SIDE / max(picture.shape)
    height, width = (round(length * scale) for length in picture.shape)
    room_height = max(height, 240)
    room_width = max(width, 420)
    top = canvas.shape[0] - 12 - room_height + (room_height - height) // 2
    left = 12 + (room_width - width) // 2
    return canvas[top : top + height, left : left + width]


def colourfulness(canvas):
    """0 for grey."""
    return canvas.max(axis=2).astype(int) - canvas.min(axis=2)


def grey(shape=(75, 100), value=120):
    return np.full(shape, value, np.uint8)


@pytest.mark.parametrize("shape", [(75, 100), (100, 75), (640, 480)])
@pytest.mark.parametrize(("step", "extent"), [(2, 7), (4, 7), (1, 5), (4, 15)])
def test_a_hot_patch_is_coloured_over_the_pixels_it_describes(shape, step, extent):
    picture = grey(shape)
    grid = grid_of(picture, step, extent)
    rng = np.random.default_rng(11)
    patches = [(0, grid.cols - 1), (grid.rows - 1, 0)]
    patches += [tuple(rng.integers(8, (grid.rows, grid.cols))) for _ in range(4)]
    for row, col in patches:
        hot = np.zeros((grid.rows, grid.cols), np.float32)
        hot[row, col] = 1.9
        hot[0, 0] = 2.0  # draws the mark of the peak upon itself
        canvas = heatmap.render_heatmap(inspection(picture, hot), program="p", grid=grid)
        colour = colourfulness(scene(canvas, picture))
        scale = np.array(colour.shape) / shape
        centre = np.array(grid.centre(row, col)[::-1]) * scale  # y, x in drawn pixels
        assert colour[tuple(centre.astype(int))] > 60
        near = [slice(max(0, int(place) - 60), int(place) + 60) for place in centre]
        offset = [part.start for part in near]
        drawn = np.argwhere(colour[tuple(near)]) + 0.5 + offset - centre
        drawn = drawn[(drawn + centre > (6 * step + extent) * scale).any(axis=1)]
        # Nothing a whole step away is coloured, but for what rounding to drawn pixels adds.
        assert (np.abs(drawn).max(axis=0) <= step * scale + 1.5).all()
        if (row, col) not in patches[:2]:
            assert (drawn.min(axis=0) + drawn.max(axis=0)) / 2 == pytest.approx(0, abs=1.01)


def test_the_map_lies_over_the_picture_it_was_made_from():
    """A bright square and a map that is hot where the picture is bright coincide in the drawing."""
    picture = grey((100, 100), 40)
    picture[60:80, 20:50] = 200
    grid = grid_of(picture)
    hot = np.array(
        [
            [
                2.0 if picture[int(grid.centre(row, col)[1]), int(grid.centre(row, col)[0])] == 200
                else 0.0
                for col in range(grid.cols)
            ]
            for row in range(grid.rows)
        ],
        np.float32,
    )  # fmt: skip
    drawn = scene(heatmap.render_heatmap(inspection(picture, hot), program="p", grid=grid), picture)
    coloured = cv2.resize((colourfulness(drawn) > 60).astype(np.float32), (100, 100))
    rows, columns = np.nonzero(coloured > 0.5)
    borders = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
    assert np.abs(np.array(borders) - (60, 80, 20, 50)).max() <= 2  # one step of the grid


def test_colour_begins_at_half_the_limit_and_is_strong_at_it():
    picture = grey()
    grid = grid_of(picture)

    def colour(value):
        even = np.full((grid.rows, grid.cols), value, np.float32)
        drawn = heatmap.render_heatmap(
            inspection(picture, even, Verdict.PASS), program="p", grid=grid
        )
        return int(np.median(colourfulness(scene(drawn, picture))))

    assert colour(0.0) == 0
    assert colour(0.49) == 0
    assert 0 < colour(0.7) < colour(0.99) < colour(1.0)
    assert colour(1.0) - colour(0.99) > 5  # the limit is a step
    assert colour(1.5) > 90
    assert colour(2.0) == colour(50.0) == colour(float("inf")) == colour(float("nan"))


def test_the_scale_is_fixed():
    """The same value has the same colour, whatever else the map holds."""
    picture = grey()
    grid = grid_of(picture)
    drawings = []
    for other in (0.1, 9.0):
        values = np.full((grid.rows, grid.cols), 0.8, np.float32)
        values[:10] = other
        canvas = heatmap.render_heatmap(inspection(picture, values), program="p", grid=grid)
        drawings.append(scene(canvas, picture)[250:300, 100:200])
    assert (drawings[0] == drawings[1]).all()
    assert len(np.unique(drawings[0].reshape(-1, 3), axis=0)) == 1


def test_a_line_runs_around_what_is_at_the_limit():
    picture = grey()
    grid = grid_of(picture)

    def drawn(value):
        values = np.zeros((grid.rows, grid.cols), np.float32)
        values[10:20, 10:30] = value
        canvas = heatmap.render_heatmap(inspection(picture, values), program="p", grid=grid)
        return scene(canvas, picture)

    (_, top), (_, bottom) = (grid.centre(row, 20) for row in (10, 19))
    for value, line in ((0.999, False), (1.0, True)):
        column = drawn(value)[:, int(grid.centre(0, 25)[0] * 4.8)].min(axis=1)
        white = np.flatnonzero(column > 220)
        if line:
            assert len(white) == 2
            assert white == pytest.approx([top * 4.8, bottom * 4.8], abs=2)
        else:
            assert not len(white)


def test_no_patch_slips_through_where_there_are_more_patches_than_pixels():
    picture = grey((1000, 1000))
    grid = grid_of(picture, step=1)
    for col in range(400, 406):
        values = np.zeros((grid.rows, grid.cols), np.float32)
        values[500, col] = 1.2
        placement = heatmap._placement(picture, values, grid, grey((480, 480)))
        steps = heatmap._resampled(heatmap._scale_steps(values), placement, (480, 480))
        assert steps.max() >= 128


def test_the_peak_is_marked_where_it_is_visible():
    picture = grey()
    grid = grid_of(picture)
    marked = []
    for value in (0.3, 0.6):
        values = np.full((grid.rows, grid.cols), 0.1, np.float32)
        values[20, 30] = value
        drawn = scene(
            heatmap.render_heatmap(
                inspection(picture, values, Verdict.PASS), program="p", grid=grid
            ),
            picture,
        )
        x, y = (int(place * 4.8) for place in grid.centre(20, 30))
        marked.append(drawn[y - 12 : y + 13, x - 12 : x + 13].min(axis=2).max() > 220)
    assert marked == [False, True]


def test_regions_are_outlined_by_their_outcome():
    picture = grey()
    grid = grid_of(picture)
    regions = (
        Region(name="good", box=Box(0.1, 0.5, 0.3, 0.9)),
        Region(name="bad", polygon=((0.4, 0.5), (0.6, 0.5), (0.6, 0.9), (0.4, 0.9))),
        Region(name="off", box=Box(0.7, 0.5, 0.9, 0.9), ignore=True),
    )
    judged = inspection(
        picture,
        np.zeros((grid.rows, grid.cols), np.float32),
        regions=(RegionScore("good", 0.5, failed=False), RegionScore("bad", 1.5, failed=True)),
    )
    drawn = scene(
        heatmap.render_heatmap(judged, program="p", regions=regions, grid=grid), picture
    ).astype(int)
    height, width = drawn.shape[:2]
    bottom = round(0.9 * (height - 1))

    def lower_edge(left, right):
        return drawn[bottom, round(left * width) + 5 : round(right * width) - 5]

    blue, _, red = lower_edge(0.4, 0.6).T
    assert (red - blue > 150).all()
    blue, _, red = lower_edge(0.1, 0.3).T
    assert (blue - red > 40).all()
    ignored = lower_edge(0.7, 0.9)
    assert colourfulness(ignored[None]).max() == 0
    assert ignored.min() == 120  # the picture between the dashes
    assert ignored.max() > 140


@pytest.mark.parametrize("shape", [(16, 16), (10, 100), (100, 10), (3, 300), (640, 640), (1, 1)])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_any_picture_can_be_drawn_with_and_without_map(shape, verdict):
    picture = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    regions = (Region(name="a_rather_long_name_" * 3, box=Box(0.8, 0.8, 1.0, 1.0)),)
    reason = None if verdict is Verdict.PASS else Reason.INTERNAL_ERROR
    bare = Inspection(verdict, reason, "words " * 60, picture=picture)
    canvas = heatmap.render_heatmap(bare, program="p" * 64, regions=regions)
    assert canvas.dtype == np.uint8
    assert canvas.ndim == 3
    assert colourfulness(canvas).max() > 0
    if min(shape) >= 7:
        grid = grid_of(picture)
        values = np.random.default_rng(4).uniform(0, 3, (grid.rows, grid.cols)).astype(np.float32)
        judged = replace(bare, map=values, score=3.0, limit=1e-9)
        mapped = heatmap.render_heatmap(judged, program="p", regions=regions, grid=grid)
        assert mapped.shape == canvas.shape


def test_without_a_map_the_picture_stays_grey():
    picture = grey()
    refused = Inspection(Verdict.NOT_JUDGED, Reason.TOO_DARK, "mean grey 0.01", picture=picture)
    drawn = scene(heatmap.render_heatmap(refused, program="p"), picture)
    assert (drawn == 120).all()


def test_without_a_picture_the_strip_still_tells():
    refused = Inspection(Verdict.NOT_JUDGED, Reason.CAMERA_TIMEOUT, "no frame within 2 s")
    canvas = heatmap.render_heatmap(refused, program="p")
    other = heatmap.render_heatmap(replace(refused, detail="no frame within 9 s"), program="p")
    assert (canvas != other).any()
    assert colourfulness(canvas[120:, :480]).max() == 0


def test_the_strip_tells_the_verdicts_apart():
    colours = {
        verdict: tuple(heatmap.render_heatmap(Inspection(verdict), program="p")[2, 2])
        for verdict in Verdict
    }
    green, red, amber = (
        colours[verdict] for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.NOT_JUDGED)
    )
    assert green[1] > green[2]
    assert green[1] > green[0]
    assert red[2] > 2 * red[1]
    assert amber[2] > amber[1] > amber[0]


def test_the_inspection_is_not_changed_by_drawing_it():
    picture = np.random.default_rng(3).integers(0, 256, (75, 100), dtype=np.uint8)
    grid = grid_of(picture)
    values = np.random.default_rng(4).uniform(0, 3, (grid.rows, grid.cols)).astype(np.float32)
    judged = inspection(picture.copy(), values.copy())
    heatmap.render_heatmap(
        judged, program="p", regions=(Region(name="a", box=Box(0, 0, 1, 1)),), grid=grid
    )
    assert (judged.picture == picture).all()
    assert (judged.map == values).all()


def test_a_map_that_does_not_fit_is_refused():
    picture = grey()
    values = np.zeros((5, 6), np.float32)
    with pytest.raises(ImageError, match="no grid"):
        heatmap.render_heatmap(inspection(picture, values), program="p")
    with pytest.raises(ImageError, match=r"\(5, 6\).*35 x 47"):
        heatmap.render_heatmap(inspection(picture, values), program="p", grid=grid_of(picture))
    too_far = PatchGrid(5, 6, (20, 20), (7, 7))
    with pytest.raises(ImageError, match="100 x 75"):
        heatmap.render_heatmap(inspection(picture, values), program="p", grid=too_far)


def test_the_png_holds_the_drawing():
    canvas = heatmap.render_heatmap(Inspection(Verdict.PASS, picture=grey()), program="p")
    png = heatmap.encode_png(canvas)
    assert png.startswith(b"\x89PNG")
    assert (cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) == canvas).all()


def test_a_photograph_is_drawn_where_it_lies():
    """The drawing without map is the photograph, enlarged."""
    folder = photographs("bottle", "test", "good")
    picture = preprocess.reduce(cv2.imread(str(min(folder.glob("*"))), 0), 100)
    canvas = heatmap.render_heatmap(Inspection(Verdict.PASS, picture=picture), program="bottle")
    back = preprocess.reduce(np.ascontiguousarray(scene(canvas, picture)[:, :, 0]), 100)
    assert np.abs(back.astype(int) - picture).mean() < 3
