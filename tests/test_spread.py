"""The comparison with references that know their own spread, against plain loops."""

import naive
import numpy as np
import pytest
from interpreted import check_without_the_compiler, once

from inspectd.errors import ReferencesError
from inspectd.soartc import kernels
from inspectd.soartc.spread import METRICS, PAIRS, SpreadComparison

ROWS, COLS = 9, 7
PLACES = ROWS * COLS


def described(rng, seen=None):
    planes = rng.normal(0, 1, (6, 3, ROWS, COLS)).astype(np.float32)
    return planes, np.ones((ROWS, COLS), np.bool_) if seen is None else seen


def flat(planes):
    return planes.reshape(METRICS, PLACES)


def no_noise():
    return np.zeros((6, 3, ROWS, COLS), np.float32)


def partly_seen(rng):
    return rng.random((ROWS, COLS)) < 0.7


@pytest.mark.parametrize("block", [1, 16, PLACES, 1000])
def test_mahalanobis_equals_the_oracle(block):
    rng = np.random.default_rng(1)
    metrics, mean = rng.normal(0, 1, (2, METRICS, PLACES)).astype(np.float32)
    roots = rng.normal(0, 1, (PLACES, METRICS, METRICS)) + 3 * np.eye(METRICS)
    covariance = roots @ roots.transpose(0, 2, 1)
    inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    rows, cols = np.tril_indices(METRICS)
    factors = np.ascontiguousarray(inverse[:, rows, cols].T, np.float32)
    out = np.empty(PLACES, np.float32)
    work = np.empty((METRICS + 1, block), np.float32)
    kernels.mahalanobis(metrics, mean, factors, work, out)
    expected = naive.mahalanobis(metrics.T, mean.T, covariance)
    np.testing.assert_allclose(np.sqrt(out / METRICS), expected, rtol=1e-4)


def test_scatter_equals_the_oracle():
    rng = np.random.default_rng(2)
    references = [described(rng, partly_seen(rng)) for _ in range(5)]
    mean, scatter = naive.mean_and_scatter(
        [flat(planes).T for planes, _ in references], [seen.ravel() for _, seen in references]
    )
    ours = np.zeros((PAIRS, PLACES))
    for planes, seen in references:
        weights = seen.ravel().astype(np.float32)
        kernels.add_scatter(flat(planes), mean.T.astype(np.float32), weights, ours)
    rows, cols = np.tril_indices(METRICS)
    np.testing.assert_allclose(ours, scatter[:, rows, cols].T, rtol=1e-4, atol=1e-4)


@once
def test_the_kernels_equal_the_oracle_without_the_compiler():
    check_without_the_compiler(__file__, "-k", "oracle")


def expected_covariance(references, noise, prior_weight=10, local=0.5, ridge=0.3):
    """The covariance of each place in plain numpy, for pictures so small that the neighbourhood
    of 15 x 15 places is mirrored at every border."""
    _, scatter = naive.mean_and_scatter(
        [flat(planes).T for planes, _ in references], [seen.ravel() for _, seen in references]
    )
    freedom = np.maximum(sum(seen.ravel() for _, seen in references).astype(int) - 1, 0)
    pooled = scatter.sum(axis=0) / freedom.sum()

    def around(values):
        grid = values.reshape(ROWS, COLS, -1)
        padded = np.pad(grid, ((7, 7), (7, 7), (0, 0)), mode="symmetric")
        return np.array(
            [
                padded[row : row + 15, col : col + 15].mean(axis=(0, 1))
                for row in range(ROWS)
                for col in range(COLS)
            ]
        )

    local_sums = around(scatter).reshape(PLACES, METRICS, METRICS)
    local_covariance = local_sums / np.maximum(around(freedom), 0.5)[..., None]
    prior = (1 - local) * pooled + local * local_covariance
    share = (prior_weight / (prior_weight + freedom))[:, None, None]
    own = scatter / np.maximum(freedom, 1)[:, None, None]
    return (1 - share) * own + share * prior + ridge * np.diag(np.diag(pooled)) + noise


def test_the_shrunk_covariance_is_as_documented():
    rng = np.random.default_rng(3)
    references = [described(rng, partly_seen(rng)) for _ in range(6)]
    noise = np.full((6, 3, ROWS, COLS), 0.25, np.float32)
    comparison = SpreadComparison(references, noise)
    planes, seen = described(rng)
    out = np.empty((ROWS, COLS), np.float32)
    comparison.distances(planes, seen, out)
    mean, _ = naive.mean_and_scatter(
        [flat(one).T for one, _ in references], [at.ravel() for _, at in references]
    )
    covariance = expected_covariance(references, 0.25 * np.eye(METRICS))
    expected = naive.mahalanobis(flat(planes).T, mean, covariance).reshape(ROWS, COLS)
    known = sum(at for _, at in references) > 0
    np.testing.assert_allclose(out, expected * known, rtol=2e-3)


def test_what_was_not_seen_has_no_distance():
    rng = np.random.default_rng(4)
    nowhere = np.ones((ROWS, COLS), np.bool_)
    nowhere[2, 3] = False
    references = [described(rng, nowhere) for _ in range(4)]
    comparison = SpreadComparison(references, no_noise())
    planes, seen = described(rng)
    seen[5, 1] = False
    out = np.empty((ROWS, COLS), np.float32)
    comparison.distances(planes, seen, out)
    assert out[2, 3] == out[5, 1] == 0
    assert (out > 0).sum() == PLACES - 2


@pytest.mark.parametrize("count", [20, 60])
def test_the_closed_form_agrees_with_learning_without_the_one(count):
    rng = np.random.default_rng(count)
    shared = rng.normal(0, 1, (METRICS, METRICS))

    def reference():
        free = rng.normal(0, 1, (PLACES, METRICS)) @ shared
        return np.ascontiguousarray(free.T, np.float32).reshape(6, 3, ROWS, COLS)

    references = [(reference(), np.ones((ROWS, COLS), np.bool_)) for _ in range(count)]
    noise = no_noise()
    whole = SpreadComparison(references, noise)
    for index in (0, count // 2):
        others = references[:index] + references[index + 1 :]
        relearned = np.empty((ROWS, COLS), np.float32)
        SpreadComparison(others, noise).distances(*references[index], relearned)
        closed = whole.leave_one_out(index)
        assert np.abs(np.log(closed / relearned)).max() < 0.1
        assert closed.max() > 0.8 * relearned.max()


def test_one_reference_needs_a_prior():
    rng = np.random.default_rng(5)
    one = [described(rng)]
    with pytest.raises(ReferencesError, match="two references or more"):
        SpreadComparison(one, no_noise())
    with pytest.raises(ReferencesError, match="two references or more"):
        SpreadComparison([], no_noise())
    comparison = SpreadComparison(one, no_noise(), prior=4 * np.eye(METRICS))
    planes, seen = described(rng)
    out = np.empty((ROWS, COLS), np.float32)
    comparison.distances(planes, seen, out)
    difference = flat(planes) - flat(one[0][0])
    expected = np.sqrt((difference**2).sum(axis=0) / METRICS / (4 * 1.3))
    np.testing.assert_allclose(out.ravel(), expected, rtol=1e-4)


def test_a_place_where_the_good_differ_forgives_more():
    rng = np.random.default_rng(6)
    references = []
    for _ in range(40):
        planes, seen = described(rng)
        planes[:, :, :, :3] *= 5
        references.append((planes, seen))
    comparison = SpreadComparison(references, no_noise())
    probe = np.full((6, 3, ROWS, COLS), 3, np.float32)
    out = np.empty((ROWS, COLS), np.float32)
    comparison.distances(probe, np.ones((ROWS, COLS), np.bool_), out)
    assert out[:, :3].max() < out[:, 3:].min()
