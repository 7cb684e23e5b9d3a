"""Our attention kernels, interpreted on the CPU, against plain float32 matrix products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax.experimental.pallas.triton")

from fsq_jax.models import attention as plain
from fsq_jax.models import fused_attention as lib


def _draw(num_tokens, seed=0):
    return jax.random.normal(jax.random.key(seed), (1, num_tokens, 3, 2, 24))


def _settings(length, rate):
    kept = 1 / (1 - plain.dropped_share(rate))
    return lib.Settings(length, 24**-0.5, kept, tile=32, forward_inner=32, backward_inner=16,
                        interpret=True)  # fmt: skip


# A whole tile and one of a single token, as 257 has it; with padding, and no dropout.
@pytest.mark.parametrize("num_tokens, length, rate", [(33, 33, 0.3), (40, 33, 0.0)])
def test_value_and_gradient_are_those_of_plain_products_with_the_same_mask(
    num_tokens, length, rate
):
    qkv, key = _draw(num_tokens), jax.random.key(7)
    weight = jax.random.normal(jax.random.key(1), (1, length, 2, 24))
    keep = None
    if rate:  # as `attention.self_attention` draws it
        keep = plain.keep_mask(key, rate, (num_tokens, num_tokens)).astype(jnp.int8)

    def total(attend, qkv):
        out = attend(qkv)
        return (out[:, :length] * weight).sum(), out

    def fused(qkv):
        return lib.self_attention(qkv, keep, _settings(length, rate))

    def expected(qkv):
        return plain.self_attention(
            qkv, dropout_rate=rate, key=key, implementation="xla", length=length
        )

    grads = [
        jax.jit(jax.grad(functools.partial(total, attend), has_aux=True))(qkv)
        for attend in (fused, expected)
    ]
    (grad, out), (expected_grad, expected_out) = grads
    np.testing.assert_allclose(out[:, :length], expected_out[:, :length], atol=2e-6)
    np.testing.assert_array_equal(out[:, length:], 0)
    np.testing.assert_allclose(grad, expected_grad, atol=5e-6)


def test_more_padding_than_the_last_tile_takes_is_refused():
    with pytest.raises(ValueError, match="72 tokens, of which 33"):
        lib.self_attention(_draw(72), None, _settings(33, 0.0))
