"""The kernels that read for a token, interpreted on the CPU, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax.experimental.pallas.triton")

from fsq_jax.models import decode_kernels as lib

RNG = np.random.default_rng(0)


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


@pytest.mark.parametrize("positions, rows", [(70, 3), (200, 128)])  # several parts, one
def test_a_memory_is_read_for_all_heads(positions, rows):
    query, memory = _draw(16, rows, 256), _draw(rows, positions, 256)
    weights = jax.nn.softmax(0.06 * jnp.einsum("hrm,rpm->hrp", query, memory), -1)
    got = lib.read_memory(query, memory, 0.06, interpret=True)
    np.testing.assert_allclose(got, jnp.einsum("hrp,rpm->hrm", weights, memory), atol=2e-6)


def test_what_memories_are_read():
    assert lib.takes_memory(16, 1024) and lib.takes_memory(16, 256) and lib.takes_memory(32, 512)
    assert not any(lib.takes_memory(*x) for x in [(8, 1024), (24, 256), (16, 2048), (16, 768)])
