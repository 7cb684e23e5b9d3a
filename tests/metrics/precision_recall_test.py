"""torch-fidelity's recorded answer, the definition point by point, duplicates, and devices."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance

from fsq_jax.metrics.precision_recall import precision_recall
from fsq_jax.runtime import sharding

REFERENCE = Path(__file__).parent.parent / "features" / "reference"


def points(count, seed, shift=0.0, features=6):
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32) + shift


def definition(samples, reference, k=3):
    def share(queries, centres):
        within = scipy.spatial.distance.cdist(centres, centres)
        radius = np.sort(within, axis=1)[:, k]  # a point's own distance comes first
        between = scipy.spatial.distance.cdist(queries, centres)
        return (between <= radius).any(axis=1).mean()

    return share(samples, reference), share(reference, samples)


def test_is_torch_fidelitys():
    expected = np.load(REFERENCE / "inception_metrics.npz")
    first, second = runpy.run_path(str(REFERENCE / "inputs.py"))["metric_sets"]()
    got = precision_recall(first["pool"], second["pool"])
    np.testing.assert_allclose(got, (expected["precision"], expected["recall"]), rtol=1e-6)


@pytest.mark.parametrize("k, block", [(1, 7), (3, 64), (5, 1000)])
def test_is_the_definition_in_any_blocks(k, block):
    samples, reference = points(67, 0), points(41, 1, 0.8)
    got = precision_recall(samples, reference, k=k, block=block)
    np.testing.assert_allclose(got, definition(samples, reference, k))
    assert 0 < got[0] < 1 and 0 < got[1] < 1


def test_devices_change_nothing():
    samples, reference = points(67, 2), points(41, 3, 0.8)
    one = precision_recall(samples, reference, mesh=sharding.make_mesh(1))
    assert precision_recall(samples, reference, mesh=sharding.make_mesh(8)) == one


def test_a_mean_that_is_large_costs_no_digits():
    samples, reference = points(60, 4), points(50, 5, 0.8)
    want = definition(samples, reference)
    np.testing.assert_allclose(precision_recall(samples + 300, reference + 300), want, atol=0.021)


def test_sets_that_are_one():
    x = points(30, 6)
    assert precision_recall(x, x) == (1, 1)
    # All samples alike: balls without extent, which still hold what lies at their centre.
    collapsed = np.repeat(x[:1], 10, axis=0)
    precision, recall = precision_recall(collapsed, x)
    assert precision == 1 and recall == pytest.approx(1 / 30)
    assert precision_recall(x + 100, x) == (0, 0)


def test_mistakes():
    with pytest.raises(ValueError, match=r"k=3 need at least 4 rows of features, not \(1, 6\)"):
        precision_recall(points(1, 0), points(9, 0))
    with pytest.raises(ValueError, match="features of the reference have NaN"):
        precision_recall(points(9, 0), points(9, 0) * np.nan)
    with pytest.raises(ValueError, match="of 6 and of 4 dimensions"):
        precision_recall(points(9, 0), points(9, 0, features=4))
