"""The drawing of a limit: what stands on the wrong side of it is seen to."""

import cv2
import numpy as np
import pytest

from inspectd.imaging import histogram
from inspectd.imaging.histogram import WIDTH, Lane, LimitMarks, render_histogram
from inspectd.imaging.style import LARGE, MARGIN, NORMAL, STRIP_HEIGHT, text_size

GOOD, BAD = (0.4, 0.5, 0.5, 0.6, 0.9), (1.1, 1.5, 2.0, 2.0, 4.0)


def draw(*lanes, **marks):
    words = {"title": "block", "subtitle": "10 references", "limit": "limit 2.5 raw"}
    return render_histogram(lanes, LimitMarks(**marks), **words)


def has(canvas, colour):
    """bool (height, width), where the drawing has exactly this colour, in bars' height."""
    found = (canvas == colour).all(axis=2).astype(np.uint8)
    return cv2.erode(found, np.ones((3, 3), np.uint8)).astype(bool)


def limit_column(canvas):
    """Where the white line stands."""
    white = (canvas[STRIP_HEIGHT:] == 255).all(axis=2).sum(axis=0)
    return int(np.argmax(white))


def lanes(goods=GOOD, bads=BAD):
    return Lane("good parts", goods, good=True), Lane("bad parts", bads, good=False)


def test_right_parts_are_muted_and_on_their_side():
    canvas = draw(*lanes())
    assert not has(canvas, histogram._WRONG).any()
    middle = limit_column(canvas)
    assert np.flatnonzero(has(canvas, histogram._PASSED).any(axis=0)).max() < middle
    assert np.flatnonzero(has(canvas, histogram._FAILED).any(axis=0)).min() > middle


@pytest.mark.parametrize(
    ("goods", "bads", "right_of_limit"),
    [((*GOOD, 1.001), BAD, True), (GOOD, (*BAD, 0.999), False), (GOOD, (*BAD, 1.0), False)],
)
def test_a_part_on_the_wrong_side_stands_out(goods, bads, right_of_limit):
    canvas = draw(*lanes(goods, bads))
    columns = np.flatnonzero(has(canvas, histogram._WRONG).any(axis=0))
    assert len(columns)
    assert (columns.min() > limit_column(canvas)) == right_of_limit
    assert (columns.max() > limit_column(canvas)) == right_of_limit


def test_a_good_part_right_at_the_limit_passes():
    assert not has(draw(*lanes((*GOOD, 1.0))), histogram._WRONG).any()


def test_every_part_has_its_share_of_the_bars():
    """Bars of equal width: heights in proportion to the counts."""
    canvas = draw(Lane("good parts", (0.5,) * 4 + (0.7,) * 2, good=True))
    columns = has(canvas, histogram._PASSED).sum(axis=0)
    heights = sorted(set(columns.tolist()) - {0})
    assert len(heights) == 2
    assert heights[1] / heights[0] == pytest.approx(2, abs=0.1)


def test_the_interval_lies_about_the_limit():
    canvas = draw(*lanes(), low=0.9, high=1.2)
    columns = np.flatnonzero(has(canvas, histogram._BAND)[:-40].any(axis=0))
    assert columns.min() < limit_column(canvas) < columns.max()
    assert not has(draw(*lanes()), histogram._BAND).any()


@pytest.mark.parametrize("suggested", [0.02, 0.97, 1.02, 1.3, 50.0])
def test_a_suggestion_is_marked_on_its_side(suggested):
    canvas = draw(*lanes(), suggested=suggested, suggestion=f"threshold {suggested:g} suggested")
    marked = (canvas == histogram._SUGGESTED).all(axis=2).sum(axis=0)
    assert marked.max() > 80
    assert (int(np.argmax(marked)) > limit_column(canvas)) == (suggested > 1)


@pytest.mark.parametrize(
    "scores", [(), (0.0,), (1e-9, 1e9), (1.0,) * 1000, tuple(np.geomspace(0.01, 100, 500))]
)
def test_any_scores_can_be_drawn(scores):
    canvas = draw(Lane("good parts", scores, good=True, note="none"), *lanes())
    assert canvas.shape[1:] == (WIDTH, 3)
    assert canvas.dtype == np.uint8
    assert has(canvas, histogram._FAILED).any()


def test_the_head_tells_whether_all_parts_came_out_right():
    references = Lane("references", (*GOOD, 1.3), good=True, references=True)
    cases = {
        (references,): histogram.NEUTRAL,
        (references, *lanes()): histogram.GOOD,
        (references, *lanes((*GOOD, 1.2))): histogram.BAD,
    }
    for shown, colour in cases.items():
        assert (draw(*shown)[3, 3] == colour).all()


def test_long_names_do_not_run_into_each_other():
    limit, told = "limit 2.555 raw, threshold 1", "10 of 10 right"
    long, short = (
        render_histogram(lanes(), LimitMarks(), title=name, subtitle=name, limit=limit)
        for name in ("x" * 200, "x")
    )
    for rows, width in (
        (slice(0, 42), text_size(told, LARGE, 2)[0]),
        (slice(42, STRIP_HEIGHT), text_size(limit, NORMAL)[0]),
    ):
        words = slice(WIDTH - MARGIN - width - 4, WIDTH)
        assert (long[rows, words] == short[rows, words]).all()
