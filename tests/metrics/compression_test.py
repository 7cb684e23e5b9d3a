"""The masking schedule covers the image once; ideal code lengths of models that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.metrics import compression

K, MASK = 20, 29


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (3, 4), (24, 10), (1, 12), (2, 30)])
def test_schedule(size):
    order = compression.low_discrepancy_order(*size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size[0] * size[1]))
    steps = compression.groups(*size)
    sizes = np.bincount(steps, minlength=12)
    assert len(sizes) == 12 and sizes.min() >= 1 and sizes.sum() == size[0] * size[1]
    assert (np.diff(sizes) >= -1).all()  # growing, but for rounding
    # a group follows the group before it in the order
    assert (np.diff(steps[order]) >= 0).all()


def test_sizes_follow_the_power_law():
    sizes = np.bincount(compression.groups(16, 16))
    share = np.arange(1, 13) ** 2.2
    np.testing.assert_allclose(sizes, 256 * share / share.sum(), atol=1.5)
    assert np.ptp(np.bincount(compression.groups(16, 16, alpha=0))) <= 1


def test_order_is_spread_out():
    # Any 16 successive positions of a 16 x 16 grid touch at least 3 of its 4 quadrants' halves.
    order = compression.low_discrepancy_order(16, 16)
    assert order[0] == 8 * 16 + 8
    quadrants = (order // 16 // 8) * 2 + order % 16 // 8
    assert all(len(np.unique(quadrants[i : i + 16])) == 4 for i in range(0, 128, 16))


def tokens(batch=3, positions=64):
    rng = np.random.default_rng(0)
    image = rng.integers(0, K, (batch, positions))
    return jnp.array(np.concatenate([np.full((batch, 1), 25), image], axis=1), jnp.int32)


def test_uniform_model_costs_log2_of_the_codebook():
    steps = compression.groups(8, 8)

    @jax.jit
    def bits(tokens_BL):
        def logits_fn(t):  # certain of what cannot occur, which must not matter
            return jnp.zeros((*t.shape, 30)).at[..., K:].set(50.0)

        return compression.bits(logits_fn, tokens_BL, steps, codebook_size=K, mask_id=MASK)

    np.testing.assert_allclose(bits(tokens()), 64 * np.log2(K), rtol=1e-6)


def test_each_token_is_coded_once_with_earlier_groups_seen():
    steps, all_tokens = compression.groups(8, 8), tokens()
    weights = jax.random.normal(jax.random.key(0), (65, 65, 30))
    embedding = jax.random.normal(jax.random.key(1), (30,))

    def logits_fn(t):
        return jnp.einsum("bm,mlv->blv", embedding[t], weights) / 8

    got = compression.bits(logits_fn, all_tokens, steps, codebook_size=K, mask_id=MASK)
    want = np.zeros(3)
    for step in range(12):
        seen = np.array(all_tokens)
        seen[:, 1:][:, steps >= step] = MASK
        log_p = np.asarray(jax.nn.log_softmax(logits_fn(seen)[:, 1:, :K]))
        for b in range(3):
            for p in np.flatnonzero(steps == step):
                want[b] -= log_p[b, p, all_tokens[b, p + 1]] / np.log(2)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_mistakes():
    with pytest.raises(ValueError, match="num_steps=12 .* 9 positions of a 3 x 3"):
        compression.groups(3, 3)
    with pytest.raises(ValueError, match="64 positions"):
        compression.bits(None, jnp.zeros((2, 64), int), compression.groups(8, 8),
                         codebook_size=K, mask_id=MASK)  # fmt: skip
