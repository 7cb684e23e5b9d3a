"""Codebook usage, perplexity and histograms on counts small enough to write down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.metrics import codebook
from fsq_jax.quantizers import fsq


def test_count():
    indices = jnp.array([[[0, 1]], [[1, 5]], [[2, 2]]])
    np.testing.assert_array_equal(codebook.count(indices, 6), [1, 2, 2, 0, 0, 1])
    count = jax.jit(codebook.count, static_argnums=1)
    mask = jnp.array([True, False, True])
    np.testing.assert_array_equal(count(indices, 6, mask), [1, 1, 2, 0, 0, 0])
    np.testing.assert_array_equal(count(jnp.array([-1, 0, 6, 7]), 6), [1, 0, 0, 0, 0, 0])


def test_usage_and_perplexity():
    assert codebook.usage(jnp.array([3, 0, 1, 0])) == 0.5
    assert codebook.usage(jnp.zeros(4)) == 0
    np.testing.assert_allclose(codebook.perplexity(jnp.full(64, 7)), 64, rtol=1e-5)
    np.testing.assert_allclose(codebook.perplexity(jnp.array([5, 0, 0])), 1)
    np.testing.assert_allclose(codebook.perplexity(jnp.array([1, 1, 0, 0])), 2, rtol=1e-6)
    assert np.isnan(codebook.perplexity(jnp.zeros(3)))


def test_level_histograms_count_digits():
    levels = (3, 5, 4)
    indices = np.random.default_rng(0).integers(0, 60, 200)
    codes = np.asarray(fsq.indices_to_codes(indices, levels))
    half = np.array(levels) // 2
    digits = np.rint(codes * half + half).astype(int)
    got = codebook.level_histograms(codebook.count(jnp.array(indices), 60), levels)
    for channel, histogram in enumerate(got):
        want = np.bincount(digits[:, channel], minlength=levels[channel])
        np.testing.assert_array_equal(histogram, want)
    with pytest.raises(ValueError, match="60 codes"):
        codebook.level_histograms(jnp.zeros(61), levels)
