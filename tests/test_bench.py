"""The benchmark: it compares like with like, and prints what it measured."""

import cv2
import numpy as np
import pytest

from inspectd.commands import bench as module
from inspectd.commands.bench import Case, Kernels, NumpyOpenCv, PublishedWay, bench, time_case

WAYS = [Kernels, NumpyOpenCv, PublishedWay]
SMALL = [Case(24, 4), Case(24, 2), Case(25, 2)]


@pytest.fixture(autouse=True)
def opencv_threads():
    """The benchmark holds OpenCV to one thread."""
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("way", [NumpyOpenCv, PublishedWay])
def test_every_way_computes_the_same_map(case, way):
    image, reference = np.random.default_rng(1).random((2, case.side, case.side), np.float32)
    own, other = Kernels(case, image, reference), way(case, image, reference)
    expected = own.stage2(own.stage1(image))
    assert expected.shape == (case.patches, case.patches)
    assert expected.max() > 1
    np.testing.assert_allclose(other.stage1(image), own.stage1(image), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(other.stage2(other.stage1(image)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_the_reference_itself_has_no_distance(way):
    (reference,) = np.random.default_rng(2).random((1, 24, 24), np.float32)
    own = way(SMALL[0], reference, reference)
    np.testing.assert_allclose(own.stage2(own.stage1(reference)), 0, atol=1e-3)


def test_a_way_that_computes_something_else_is_not_timed(monkeypatch):
    right = NumpyOpenCv.stage2
    monkeypatch.setattr(NumpyOpenCv, "stage2", lambda *given: right(*given) * 1.01)
    with pytest.raises(AssertionError, match=r"numpy \+ OpenCV computes something else"):
        time_case(Case(24, 4), 1, lambda: None)


def test_each_way_is_timed_in_every_round():
    advanced = []
    timings = time_case(Case(24, 4), 2, lambda: advanced.append(1))
    assert [timing.way for timing in timings] == [way.name for way in WAYS]
    assert len(advanced) == 2 * len(WAYS)
    for timing in timings:
        assert timing.stage1 > 0
        assert timing.stage2 > 0
        assert timing.total == timing.stage1 + timing.stage2


def test_the_published_way_is_left_out_where_it_needs_too_long(monkeypatch):
    monkeypatch.setattr(module, "PUBLISHED_WAY_UP_TO", 23)
    assert [timing.way for timing in time_case(Case(24, 4), 1, lambda: None)] == [
        "inspectd",
        "numpy + OpenCV",
    ]


def test_the_table_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(module, "CASES", (Case(24, 4), Case(24, 2)))
    assert bench(rounds=1) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "24x24" in line]
    assert len(rows) == 6
    for row, way in zip(rows, [way.name for way in WAYS] * 2, strict=True):
        assert way in row
    assert rows[0].split()[-2] == "1.0"  # the ratio to itself
    assert "Medians of 1 rounds" in printed


def test_it_measures_the_cases_that_are_promised():
    assert set(module.CASES) == {Case(100, 4), Case(100, 2), Case(640, 4), Case(640, 2)}
    assert Case(100, 2).patches == 47
    assert Case(100, 4).patches == 24
