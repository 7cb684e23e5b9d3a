"""torch-fidelity's recorded answer, the formula in float64, and devices."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from fsq_jax.metrics.kernel_distance import kernel_distance
from fsq_jax.runtime import sharding

REFERENCE = Path(__file__).parent.parent / "features" / "reference"


def points(count, seed, shift=0.0, features=8):
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32) + shift


def formula(x, y):
    x, y, n = x.astype(np.float64), y.astype(np.float64), len(x)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()


def test_is_torch_fidelitys():
    expected = np.load(REFERENCE / "inception_metrics.npz")
    first, second = runpy.run_path(str(REFERENCE / "inputs.py"))["metric_sets"]()
    mean, deviation = kernel_distance(first["pool"], second["pool"])
    np.testing.assert_allclose(mean, expected["kid"], rtol=1e-5)
    np.testing.assert_allclose(deviation, expected["kid_deviation"], rtol=1e-4)


def test_a_subset_of_everything_is_the_formula():
    x, y = points(50, 0), points(50, 1, 0.3)
    mean, deviation = kernel_distance(x, y, num_subsets=3, subset_size=50)
    np.testing.assert_allclose(mean, formula(x, y), rtol=1e-5)
    assert deviation < 1e-6


def test_small_distances_of_large_kernels_keep_their_digits():
    x, y = points(400, 2, 3.0), points(400, 3, 3.0)
    mean, _ = kernel_distance(x, y, num_subsets=1, subset_size=400)
    np.testing.assert_allclose(mean, formula(x, y), rtol=1e-4)


def test_devices_change_nothing():
    x, y = points(40, 4), points(60, 5, 0.2)
    values = [
        kernel_distance(x, y, num_subsets=11, subset_size=20, mesh=sharding.make_mesh(n))
        for n in (1, 8)
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_mistakes():
    with pytest.raises(ValueError, match=r"here of 1000; .* of shape \(40, 8\)"):
        kernel_distance(points(40, 0), points(2000, 0))
    with pytest.raises(ValueError, match="subsets of 2 images or more, here of 1"):
        kernel_distance(points(1, 0), points(1, 0), subset_size=1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        kernel_distance(points(9, 0) * np.nan, points(9, 0), subset_size=5)
    with pytest.raises(ValueError, match="of 8 and of 4 dimensions"):
        kernel_distance(points(9, 0), points(9, 0, features=4), subset_size=5)
