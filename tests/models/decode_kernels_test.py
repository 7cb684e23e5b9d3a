"""The kernels that decode token by token, interpreted on the CPU, against plain products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax.experimental.pallas.triton")

from fsq_jax.models import decode_kernels as lib

RNG = np.random.default_rng(0)
EPSILON = 1e-6


def _draw(*shape):
    return jnp.asarray(RNG.standard_normal(shape, np.float32))


def _attend(query_RHD, cache_R2HKD):
    keys, values = cache_R2HKD[:, 0], cache_R2HKD[:, 1]
    scores = jnp.einsum("rhd,rhkd->rhk", query_RHD, keys) * query_RHD.shape[-1] ** -0.5
    return jnp.einsum("rhk,rhkd->rhd", jax.nn.softmax(scores, -1), values)


@pytest.mark.parametrize("keys", [192, 40])  # several parts, less than a tile
def test_a_read_is_attention_to_the_whole_cache(keys):
    query, cache = _draw(2, 2, 16), _draw(2, 2, 2, keys, 16)
    got = lib.read(query, cache, interpret=True)
    np.testing.assert_allclose(got, _attend(query, cache), atol=1e-6)


@pytest.mark.parametrize("position", [0, 149])
def test_a_token_is_appended_and_reads_itself_and_those_before(position):
    new, cache = _draw(2, 3, 2, 16), _draw(2, 2, 2, 150, 16)
    cache = cache.at[:, :, :, position:].set(jnp.nan)  # not written yet, and not to be read
    expected = cache.at[:, 0, :, position].set(new[:, 1]).at[:, 1, :, position].set(new[:, 2])
    read, got = lib.append_and_read(new, cache, jnp.int32(position), interpret=True)
    np.testing.assert_array_equal(got, expected)
    so_far = expected[..., : position + 1, :]
    np.testing.assert_allclose(read, _attend(new[:, 0], so_far), atol=1e-6)


def test_a_product_has_the_norm_before_and_bias_gelu_and_residual_after():
    x, weight, bias, residual = _draw(1, 64), _draw(256, 64), _draw(256), _draw(1, 256)
    scale, shift = _draw(64), _draw(64)
    normed = (x - x.mean()) / jnp.sqrt(x.var() + EPSILON)
    expected = jax.nn.gelu((normed * scale + shift) @ weight.T + bias) + residual
    got = lib.row_product(
        x, weight, bias, norm=(scale, shift), epsilon=EPSILON, gelu=True, residual_1O=residual,
        interpret=True,
    )  # fmt: skip
    np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(lib.row_product(x, weight, interpret=True), x @ weight.T, atol=2e-5)


def test_what_widths_a_product_takes():
    assert lib.takes(1024, 4096) and lib.takes(4096, 1024) and lib.takes(1024, 3072)
    assert not lib.takes(768, 1024) and not lib.takes(64, 100)
