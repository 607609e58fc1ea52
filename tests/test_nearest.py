"""The comparison with the nearest reference against the plain-loop oracle, compiled and not."""

import naive
import numpy as np
import pytest
from interpreted import check_without_the_compiler, once

from inspectd.errors import ReferencesError
from inspectd.soartc import kernels, nearest, part_bank
from inspectd.soartc.features import PatchDescriber, PatchLayout
from inspectd.soartc.nearest import NearestComparison

WEIGHTS = np.tile(nearest.SINGLE_WEIGHTS, 6)


def described(rng, rows, cols, hidden=0.0):
    """Planes, and which of their patches are seen."""
    planes = rng.standard_normal((6, 3, rows, cols)).astype(np.float32)
    return planes, rng.random((rows, cols)) >= hidden


def alike(rng, count, rows=12, cols=13, hidden=0.0):
    """References that vary about a common mean, here more and there less."""
    mean, _ = described(rng, rows, cols)
    spread = np.linspace(0.1, 0.5, cols, dtype=np.float32)
    return [
        (mean + spread * planes, seen)
        for planes, seen in (described(rng, rows, cols, hidden) for _ in range(count))
    ]


def last(planes, matrix=None):
    """Planes as the oracle reads them, (rows, cols, 18), multiplied by a matrix."""
    values = planes.reshape(18, *planes.shape[2:]).transpose(1, 2, 0).astype(float)
    return values if matrix is None else values @ np.asarray(matrix).T


def distances(comparison, planes, seen):
    out = np.full(seen.shape, np.nan, np.float32)
    comparison.distances(planes, seen, out)
    return out


def oracle(references, planes, seen, tolerance=1):
    """Two references or more, at the inspected patches' own places."""
    matrix = naive.whitening([(last(p), s) for p, s in references], nearest.LEAST_VARIANCE)
    whitened = [(last(p, matrix), s) for p, s in references]
    spread = naive.squared_spread(whitened, tolerance=tolerance)
    squares = naive.nearest(last(planes, matrix), seen, whitened, 1, tolerance)
    return np.sqrt(squares / spread)


@pytest.mark.parametrize("block", [5, 64])
def test_the_kernel_takes_the_nearest_candidate(block):
    rng = np.random.default_rng(1)
    patches, margin = 23, 6
    metrics = rng.random((18, patches), np.float32)
    references = rng.random((3, 18, patches + margin), np.float32)
    candidates = np.array([(0, 0), (0, 6), (1, 3), (2, 5), (2, 1)])
    out = np.empty(patches, np.float32)
    kernels.nearest(metrics, references, candidates, np.empty(block, np.float32), out)
    expected = [
        min(
            naive.squared_distance(metrics[:, patch], references[reference, :, patch + offset])
            for reference, offset in candidates
        )
        for patch in range(patches)
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize("finer", [1, 2, 3])
@pytest.mark.parametrize("tolerance", [0, 1, 2, 3, 4])
def test_a_single_reference_equals_the_oracle(finer, tolerance):
    rng = np.random.default_rng(2)
    rows, cols = 5, 7
    # As many patches as a picture has that is not a whole number of steps: a remainder is left.
    reference = described(rng, (rows - 1) * finer + 1, cols * finer, hidden=0.2)
    planes, seen = described(rng, rows, cols, hidden=0.2)
    comparison = NearestComparison([reference], finer=finer, tolerance=tolerance)
    weighed = [(last(reference[0]) * WEIGHTS, reference[1])]
    squares = naive.nearest(last(planes) * WEIGHTS, seen, weighed, finer, tolerance)
    np.testing.assert_allclose(
        distances(comparison, planes, seen), np.sqrt(squares), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("count", "tolerance", "hidden"), [(2, 1, 0), (3, 0, 0.1), (4, 1, 0.3), (5, 2, 0)]
)
def test_several_references_equal_the_oracle(count, tolerance, hidden):
    rng = np.random.default_rng(3)
    references = alike(rng, count, hidden=hidden)
    planes, seen = described(rng, 12, 13, hidden)
    comparison = NearestComparison(references, tolerance=tolerance)
    expected = oracle(references, planes, seen, tolerance)
    np.testing.assert_allclose(distances(comparison, planes, seen), expected, rtol=2e-3, atol=1e-3)


def test_leave_one_out_compares_with_the_others_only():
    references = alike(np.random.default_rng(4), 4, hidden=0.2)
    comparison = NearestComparison(references)
    matrix = naive.whitening([(last(p), s) for p, s in references], nearest.LEAST_VARIANCE)
    whitened = [(last(p, matrix), s) for p, s in references]
    for index, (values, seen) in enumerate(whitened):
        others = [other for position, other in enumerate(whitened) if position != index]
        squares = naive.nearest(values, seen, others)
        expected = np.sqrt(squares / naive.squared_spread(whitened, left_out=index))
        np.testing.assert_allclose(comparison.leave_one_out(index), expected, rtol=2e-3, atol=1e-3)


def test_good_parts_score_about_one_however_the_metrics_are_scaled():
    rng = np.random.default_rng(5)
    references = alike(rng, 6)
    scales = np.linspace(1, 6, 18, dtype=np.float32).reshape(6, 3, 1, 1)
    scaled = [(planes * scales, seen) for planes, seen in references]
    plain, again = NearestComparison(references[:5]), NearestComparison(scaled[:5])
    good = distances(plain, *references[5])
    assert 0.5 < np.sqrt(np.mean(good**2)) < 2
    np.testing.assert_allclose(distances(again, *scaled[5]), good, rtol=0.03)


def test_a_part_may_be_like_one_reference_here_and_another_there():
    references = alike(np.random.default_rng(6), 3)
    planes = references[0][0].copy()
    planes[..., 6:] = references[1][0][..., 6:]
    out = distances(NearestComparison(references), planes, references[0][1])
    np.testing.assert_allclose(out, 0, atol=1e-3)


def test_what_lies_a_pixel_beside_is_found_only_by_a_finer_reference():
    picture = np.random.default_rng(7).random((31, 33), np.float32)
    moved = np.roll(picture, 1, axis=1)

    def describe(image, step):
        layout = PatchLayout(31, 33, 5, (1, 1), (step, step))
        planes = PatchDescriber(layout, part_bank()).described(image)
        return planes, np.ones(planes.shape[2:], np.bool_)

    inspected = describe(moved, 2)
    coarse = NearestComparison([describe(picture, 2)], tolerance=1)
    fine = NearestComparison([describe(picture, 1)], finer=2, tolerance=1)
    assert distances(coarse, *inspected)[:, 1:].min() > 0.1
    np.testing.assert_allclose(distances(fine, *inspected)[:, 1:], 0, atol=1e-4)


def test_what_was_not_seen_scores_nothing_and_is_no_match():
    rng = np.random.default_rng(8)
    planes, everywhere = described(rng, 6, 6)
    other, _ = described(rng, 6, 6)
    hidden = everywhere.copy()
    hidden[2, 3] = False
    comparison = NearestComparison([(planes, hidden)], tolerance=0)
    assert distances(comparison, planes, everywhere)[2, 3] == 0
    assert distances(comparison, other, hidden)[2, 3] == 0
    comparison = NearestComparison([(planes, hidden), (other, everywhere)], tolerance=0)
    out = distances(comparison, planes, everywhere)
    assert out[2, 3] > 0.5
    out[2, 3] = 0
    np.testing.assert_allclose(out, 0, atol=1e-3)


def test_a_bounded_number_of_references_is_compared_with(monkeypatch):
    references = alike(np.random.default_rng(9), 7)
    inspected = described(np.random.default_rng(10), 12, 13)
    monkeypatch.setattr(nearest, "MOST_REFERENCES", 3)
    bounded = NearestComparison(references)
    kept = NearestComparison([references[index] for index in (0, 2, 4)])
    np.testing.assert_array_equal(distances(bounded, *inspected), distances(kept, *inspected))
    np.testing.assert_array_equal(bounded.leave_one_out(4), kept.leave_one_out(2))
    assert bounded.leave_one_out(5).min() > 0
    # 18 metrics of 12 rows of 13 patches, each row padded by one, and 15 places before and after.
    monkeypatch.setattr(nearest, "MOST_BYTES", 2 * 18 * (12 * 14 + 2 * 15) * 4)
    fewest = NearestComparison(references)
    kept = NearestComparison([references[index] for index in (0, 3)])
    np.testing.assert_array_equal(distances(fewest, *inspected), distances(kept, *inspected))


def test_copies_of_one_picture_have_a_least_spread():
    reference = alike(np.random.default_rng(11), 1)[0]
    comparison = NearestComparison([reference] * 3)
    assert np.array_equal(comparison.leave_one_out(1), np.zeros((12, 13)))
    out = distances(comparison, reference[0] + np.float32(0.01), reference[1])
    assert np.isfinite(out).all()
    assert out.min() > 0


def test_no_reference_is_refused():
    with pytest.raises(ReferencesError, match="needs a reference"):
        NearestComparison([])


@once
def test_all_of_this_holds_without_the_compiler():
    check_without_the_compiler(__file__)
