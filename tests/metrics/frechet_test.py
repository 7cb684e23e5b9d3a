"""Moments from ragged, merged and ill-placed batches; Frechet distances that are known."""

import numpy as np
import pytest
import scipy.linalg

from fsq_jax.metrics import frechet
from fsq_jax.metrics.frechet import Moments


def rows(seed, count=100, features=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, features)) @ rng.normal(size=(features, features)) + seed


def gather(x, batch=16):
    moments = Moments.empty(x.shape[1])
    for i in range(0, len(x), batch):
        moments = moments.update(x[i : i + batch])
    return moments


def test_moments_are_numpys():
    x = rows(0, 101)
    whole = gather(x)
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-12)
    merged = gather(x[:40], 7).merge(Moments.empty(6)).merge(gather(x[40:], 100))
    assert merged.count == 101
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-12)


def test_padding_rows_do_not_count():
    x = rows(1, 20)
    padded = np.concatenate([x[16:], np.full((12, 6), np.nan)])
    got = Moments.empty(6).update(x[:16]).update(padded, np.arange(16) < 4)
    np.testing.assert_allclose(got.covariance, np.cov(x.T), rtol=1e-12)
    assert got.update(padded, np.zeros(16, bool)) is got


def test_large_mean_costs_no_digits():
    x = rows(2, 200)
    got = gather(x + 1e7).covariance
    np.testing.assert_allclose(got, np.cov(x.T), rtol=1e-6)


def test_distance_to_itself_is_zero():
    for count in (4, 300):  # of rank 3, of full rank
        x = gather(rows(3, count, 20) * 10)
        np.testing.assert_allclose(frechet.distance(x, x), 0, atol=1e-9)


def test_distance_is_the_formula():
    a, b = gather(rows(4)), gather(rows(5))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    want = ((a.mean - b.mean) ** 2).sum()
    want += np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet.distance(a, b), want, rtol=1e-9)
    np.testing.assert_allclose(frechet.distance(b, a), want, rtol=1e-9)


def test_singular_covariances():
    # Commuting covariances: the distance is that of their roots' eigenvalues.
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    first, second = np.array([4, 1, 0, 0, 9.0]), np.array([1, 0, 0, 16, 4.0])
    zero = np.zeros(5)
    got = frechet.frechet_distance(
        zero, rotation * first @ rotation.T, zero + 2, rotation * second @ rotation.T
    )
    want = 20 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    np.testing.assert_allclose(got, want, rtol=1e-12)
    nothing = np.zeros((5, 5))
    np.testing.assert_allclose(frechet.frechet_distance(zero, nothing, zero, nothing), 0)
    got = frechet.frechet_distance(zero, nothing, zero, np.diag(first))
    np.testing.assert_allclose(got, first.sum())


@pytest.mark.parametrize("small", [1e-4, 1e-8])
def test_near_singular_covariances(small):
    # In two dimensions there is a closed form:
    # tr (S1^1/2 S2 S1^1/2)^1/2 = sqrt(tr S1 S2 + 2 sqrt(det S1 det S2)).
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(2, 2)))[0]
    first, second = np.diag([1.0, small]), rotation @ np.diag([2.0, small]) @ rotation.T
    cross = np.sqrt(np.trace(first @ second) + 2 * np.sqrt(2.0) * small)
    want = np.trace(first) + np.trace(second) - 2 * cross
    zero = np.zeros(2)
    np.testing.assert_allclose(
        frechet.frechet_distance(zero, first, zero, second), want, rtol=1e-10
    )


def test_fewer_rows_than_features():
    # Of rank 9 in 30 dimensions, where sqrtm of the product fails or is complex.
    a, b = gather(rows(7, 10, 30)), gather(rows(8, 12, 30))
    eigenvalues = scipy.linalg.eigvals(a.covariance @ b.covariance).astype(complex)
    want = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance)
    want -= 2 * np.sqrt(eigenvalues).real.sum()
    np.testing.assert_allclose(frechet.distance(a, b), want, rtol=1e-5)


def test_float32_statistics_pass_and_no_covariance_does_not():
    x = gather(rows(9, 10, 30))  # singular: rounding leaves eigenvalues below zero
    zero, rounded = np.zeros(30), x.covariance.astype(np.float32).astype(np.float64)
    got = frechet.frechet_distance(zero, rounded, zero, x.covariance)
    assert 0 <= got < 1e-5 * np.trace(rounded)
    with pytest.raises(ValueError, match="root of a covariance is off by .* negative eigenvalues"):
        frechet.frechet_distance(zero[:2], np.diag([1.0, -0.1]), zero[:2], np.eye(2))
    with pytest.raises(ValueError, match="not symmetric"):
        frechet.frechet_distance(zero[:2], np.array([[1, 0.5], [0, 1]]), zero[:2], np.eye(2))


def test_mistakes():
    with pytest.raises(ValueError, match="at least 2 rows of features, not 1"):
        _ = gather(rows(0, 1)).covariance
    with pytest.raises(ValueError, match="1 of 3 rows .* NaN"):
        Moments.empty(2).update(np.array([[1, 2], [np.nan, 0], [0, 0]]))
    with pytest.raises(ValueError, match=r"\(3, 4\) do not fit \[rows, 6\]"):
        Moments.empty(6).update(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="4 and of 6 dimensions"):
        frechet.distance(gather(rows(0, 9, 4)), gather(rows(0, 9, 6)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        frechet.frechet_distance(np.zeros(2), np.full((2, 2), np.nan), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="square covariance"):
        frechet.frechet_distance(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2))
