"""The kernels that read for a token, interpreted on the CPU, against plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax.experimental.pallas.triton")

from fsq_jax.models import decode_kernels as lib

RNG = np.random.default_rng(0)


def _draw(*shape):
    return RNG.standard_normal(shape, np.float32)


_read = jax.jit(functools.partial(lib.read, interpret=True))
_append_and_read = jax.jit(functools.partial(lib.append_and_read, interpret=True))
_read_memory = jax.jit(functools.partial(lib.read_memory, scale=0.06, interpret=True))


@jax.jit
def _attend(query_RHD, cache_R2HKD):
    keys, values = cache_R2HKD[:, 0], cache_R2HKD[:, 1]
    scores = jnp.einsum("rhd,rhkd->rhk", query_RHD, keys) * query_RHD.shape[-1] ** -0.5
    return jnp.einsum("rhk,rhkd->rhd", jax.nn.softmax(scores, -1), values)


@pytest.mark.parametrize("keys", [192, 40])  # several parts, less than a tile
def test_a_read_is_attention_to_the_whole_cache(keys):
    query, cache = _draw(2, 2, 16), _draw(2, 2, 2, keys, 16)
    got = _read(query, cache)
    np.testing.assert_allclose(got, _attend(query, cache), atol=1e-6)


@pytest.mark.parametrize("position", [0, 149])
def test_a_token_is_appended_and_reads_itself_and_those_before(position):
    new, cache = _draw(2, 3, 2, 16), _draw(2, 2, 2, 150, 16)
    cache[:, :, :, position:] = np.nan  # not written yet, and not to be read
    expected = cache.copy()
    expected[:, 0, :, position], expected[:, 1, :, position] = new[:, 1], new[:, 2]
    read, got = _append_and_read(new, cache, position)
    np.testing.assert_array_equal(got, expected)
    so_far = expected[..., : position + 1, :]
    np.testing.assert_allclose(read, _attend(new[:, 0], so_far), atol=1e-6)


@pytest.mark.parametrize("positions, processors", [(70, 128), (200, 3)])  # several parts, one
def test_a_memory_is_read_for_all_heads(positions, processors, monkeypatch):
    monkeypatch.setattr(lib, "_PROCESSORS", processors)
    query, memory = _draw(16, 3, 256), _draw(3, positions, 256)
    weights = jax.nn.softmax(0.06 * jnp.einsum("hrm,rpm->hrp", query, memory), -1)
    got = _read_memory(query, memory)
    np.testing.assert_allclose(got, jnp.einsum("hrp,rpm->hrm", weights, memory), atol=2e-6)


def test_what_memories_are_read():
    assert lib.takes_memory(16, 1024) and lib.takes_memory(16, 256) and lib.takes_memory(32, 512)
    assert not any(lib.takes_memory(*x) for x in [(8, 1024), (24, 256), (16, 2048), (16, 768)])
