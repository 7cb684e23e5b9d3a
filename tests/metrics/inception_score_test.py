"""torch-fidelity's recorded answer, the formula, and batches that change nothing."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from fsq_jax.metrics import inception_score
from fsq_jax.metrics.inception_score import Blocks

REFERENCE = Path(__file__).parent.parent / "features" / "reference"


def logits(count, classes=7, seed=0):
    return 3 * np.random.default_rng(seed).normal(size=(count, classes))


def formula(logits_NV):
    p = scipy.special.softmax(logits_NV, axis=1)
    return np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())


def test_shuffled_is_torch_fidelitys():
    expected = np.load(REFERENCE / "inception_metrics.npz")
    first, _ = runpy.run_path(str(REFERENCE / "inputs.py"))["metric_sets"]()
    mean, deviation = inception_score.inception_score(first["logits"], "shuffled")
    np.testing.assert_allclose(mean, expected["inception_score"], rtol=1e-9)
    np.testing.assert_allclose(deviation, expected["inception_score_deviation"], rtol=1e-9)


def test_blocks_are_consecutive_and_count_alike():
    x = logits(5_700)  # a block of 5,000, and one of 700
    scores = formula(x[:5_000]), formula(x[5_000:])
    got = inception_score.inception_score(x)
    np.testing.assert_allclose(got, (np.mean(scores), np.std(scores)), rtol=1e-9)


def test_any_batches_give_the_same():
    x, block = logits(40), inception_score.shuffled_blocks(40, 3, seed=1)
    assert sorted(np.bincount(block)) == [13, 13, 14]
    whole = Blocks.empty(3, 7).update(x, block)
    padded = np.concatenate([x[30:], np.full((2, 7), np.nan)])
    parts = (
        Blocks.empty(3, 7)
        .update(x[:11], block[:11])
        .merge(Blocks.empty(3, 7).update(x[11:30], block[11:30]))
        .update(padded, np.append(block[30:], [0, 0]), np.arange(12) < 10)
    )
    np.testing.assert_array_equal(parts.count_S, whole.count_S)
    np.testing.assert_allclose(parts.scores_S, whole.scores_S, rtol=1e-12)


def test_extremes():
    one_class = np.zeros((20, 5))
    np.testing.assert_allclose(inception_score.inception_score(one_class), (1, 0), atol=1e-12)
    certain = 1e4 * np.eye(5)[np.arange(20) % 5]  # probabilities of 0 and of 1
    np.testing.assert_allclose(inception_score.inception_score(certain), (5, 0), atol=1e-9)
    np.testing.assert_allclose(inception_score.inception_score(logits(1))[0], 1, rtol=1e-12)


def test_mistakes():
    with pytest.raises(ValueError, match="no cut 'random' into blocks"):
        inception_score.inception_score(logits(5), "random")
    with pytest.raises(ValueError, match="10 blocks needs images in each; there are 9 in all"):
        inception_score.inception_score(logits(9), "shuffled")
    with pytest.raises(ValueError, match="1 of 3 rows of logits have NaN"):
        inception_score.inception_score(np.array([[1, 2], [0, np.nan], [1, 1.0]]))
    with pytest.raises(ValueError, match=r"\(4, 5\) do not fit \[images, 7\]"):
        Blocks.empty(1, 7).update(np.zeros((4, 5)), np.zeros(4, int))
    with pytest.raises(ValueError, match="there are 0 in all"):
        inception_score.inception_score(np.zeros((0, 7)))
