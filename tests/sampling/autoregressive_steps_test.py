"""Autoregressive decoding with a model whose right answer is known at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.sampling import autoregressive

VOCABULARY, TOKENS = 6, 5


@pytest.fixture
def drawn(monkeypatch):
    """[(key, logits)] of each draw; the likeliest is taken."""
    seen = []

    def categorical(key, logits, *args, **kwargs):
        seen.append((tuple(np.ravel(jax.random.key_data(key)).tolist()), np.asarray(logits)))
        return jnp.argmax(logits, axis=-1)

    def scan(step, carry, xs):
        outputs = []
        for x in xs:
            carry, out = step(carry, x)
            outputs.append(out)
        return carry, jnp.stack(outputs)

    monkeypatch.setattr(jax.random, "categorical", categorical)
    monkeypatch.setattr(jax.lax, "scan", scan)
    return seen


def table(cache, tokens_B, position):
    """Logits that the position and the token before it decide; the cache notes both."""
    rng = np.random.default_rng(0)
    logits_NVV = rng.standard_normal((TOKENS, VOCABULARY, VOCABULARY))
    assert len(cache) == int(position)  # what the steps before it noted is there
    cache = [*cache, (int(position), np.asarray(tokens_B).tolist())]
    return jnp.asarray(logits_NVV)[position, tokens_B], cache


def by_hand(forbid_begin: bool) -> list[int]:
    """Each time the likeliest, given the one before."""
    logits_NVV = np.random.default_rng(0).standard_normal((TOKENS, VOCABULARY, VOCABULARY))
    tokens = [0]
    for n in range(TOKENS):
        row = logits_NVV[n, tokens[-1]].copy()
        if forbid_begin:
            row[0] = -np.inf
        tokens.append(int(row.argmax()))
    return tokens[1:]


def run(temperature, function=autoregressive.decode, **options):
    return function(
        table, [], jax.random.key(3), batch=2, temperature=temperature, num_tokens=TOKENS, **options
    )


@pytest.mark.parametrize("temperature", [0.0, 1e-7, 0.7])
def test_each_token_follows_the_one_before(drawn, temperature):
    tokens = run(temperature)
    np.testing.assert_array_equal(tokens, [by_hand(False)] * 2)
    assert len(drawn) == (TOKENS if temperature > 1e-6 else 0)


def test_logits_are_divided_by_the_temperature_and_keys_differ(drawn):
    run(0.25)
    cold = [logits for _, logits in drawn]
    keys = [key for key, _ in drawn]
    drawn.clear()
    run(1.0)
    for one, other in zip(cold, drawn, strict=True):
        np.testing.assert_allclose(one, other[1] / 0.25, rtol=1e-5)
    assert len(set(keys)) == TOKENS


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_codes_are_tokens_less_one_and_never_the_beginning(drawn, temperature):
    indices = np.asarray(run(temperature, autoregressive.sample_indices))
    np.testing.assert_array_equal(indices + 1, [by_hand(True)] * 2)
    assert indices.min() >= 0 and indices.max() < VOCABULARY - 1
