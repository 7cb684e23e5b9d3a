"""Decoding with a model that can be reckoned by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.sampling import autoregressive as lib

V = 5


def counting(cache, tokens_B, position):
    """Likeliest is the token after the last, then the one after that; the cache keeps a record."""
    cache = cache.at[:, position].set(tokens_B)
    logits = 2.0 * jax.nn.one_hot((tokens_B + 1) % V, V) + jax.nn.one_hot((tokens_B + 2) % V, V)
    return logits, cache


def decode(temperature=0.0, key=0, batch=2, num_tokens=7, step_fn=counting):
    cache = jnp.full((batch, num_tokens), -1)
    return lib.decode(
        step_fn,
        cache,
        jax.random.key(key),
        num_tokens=num_tokens,
        batch=batch,
        temperature=temperature,
    )


@pytest.mark.parametrize("temperature", [0.0, 1e-7])
def test_greedy_takes_the_likeliest(temperature):
    tokens = decode(temperature)
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, [[1, 2, 3, 4, 0, 1, 2]] * 2)


def test_the_model_sees_the_tokens_before_in_turn():
    def check(cache, tokens_B, position):
        logits, cache = counting(cache, tokens_B, position)
        return jnp.where(position == 3, cache[:, 3:4] == jnp.arange(V), logits), cache

    # Position 3 repeats what it was fed: token 3 of position 2.
    np.testing.assert_array_equal(decode(step_fn=check)[0], [1, 2, 3, 3, 4, 0, 1])


def test_temperature_samples_from_the_softmax():
    first = np.asarray(decode(0.5, batch=20_000, num_tokens=1))[:, 0]
    logits = np.array([0, 2, 1, 0, 0]) / 0.5
    expected = np.exp(logits) / np.exp(logits).sum()
    shares = np.bincount(first, minlength=V) / 20_000
    np.testing.assert_allclose(shares, expected, atol=5 * (0.25 / 20_000) ** 0.5)
    tokens = decode(1.0, key=1)
    np.testing.assert_array_equal(tokens, decode(1.0, key=1))
    assert (tokens != decode(1.0, key=2)).any()


def test_sampling_does_not_depend_on_sharding():
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, there are {jax.device_count()}")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cache = jnp.full((16, 4), -1)

    @jax.jit
    def sample(cache):
        return lib.decode(
            counting, cache, jax.random.key(0), num_tokens=4, batch=16, temperature=1.0
        )

    sharded = jax.device_put(cache, jax.NamedSharding(mesh, jax.P("data")))
    np.testing.assert_array_equal(sample(sharded), sample(cache))


def test_codes_leave_the_beginning_out_unless_told():
    def indices(**options):
        return lib.sample_indices(
            counting, jnp.zeros((1, 7), int), jax.random.key(0), num_tokens=7, batch=1, **options
        )[0]

    # Tokens 1 2 3 4, then the next likeliest after 0, which is 1.
    np.testing.assert_array_equal(indices(), [0, 1, 2, 3, 0, 1, 2])
    # As published: token 0 is chosen, and its index of -1 is the last one.
    np.testing.assert_array_equal(indices(allow_begin=True), [0, 1, 2, 3, 3, 0, 1])


def test_errors_name_the_values():
    with pytest.raises(ValueError, match="num_tokens=0"):
        decode(num_tokens=0)
    with pytest.raises(ValueError, match="temperature=-1"):
        decode(-1.0)
