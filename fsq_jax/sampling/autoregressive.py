"""Autoregressive generation (UViM's stage II): one token after the other, with a cache.

A sampler takes the model as a function, `step_fn`: (cache, tokens_B, position) -> (logits_BV,
cache), where tokens_B are those at position - 1 (0, which begins, at position 0) and the cache is
any tree of arrays. Token 0 begins, index i of the codebook is token i + 1.

Shapes: B batch  N tokens of a sequence  V vocabulary
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fsq_jax.runtime.user_error import UserError

StepFn = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
GREEDY = 1e-6  # no higher a temperature, and the likeliest token is taken


def decode(
    step_fn: StepFn,
    cache: Any,
    key: jax.Array,
    *,
    num_tokens: int,
    batch: int,
    temperature: float = 0.0,
) -> jax.Array:
    """Tokens int32 [B, N], each from softmax(logits / temperature) given those before it.

    A temperature of 0 takes the likeliest token, as does UViM's 1e-7. The loop is one `lax.scan`;
    wrap the call in `jax.jit`. The result is a function of the key, however the batch is sharded.
    Raises UserError for num_tokens < 1 or a temperature below 0.
    """
    if num_tokens < 1 or temperature < 0:
        raise UserError(f"{num_tokens=} must be at least 1 and {temperature=} at least 0.")

    def step(carry, position):
        cache, tokens_B = carry
        logits_BV, cache = step_fn(cache, tokens_B, position)
        logits_BV = logits_BV.astype(jnp.float32)
        if temperature <= GREEDY:
            tokens_B = jnp.argmax(logits_BV, axis=-1)
        else:
            key_now = jax.random.fold_in(key, position)
            tokens_B = jax.random.categorical(key_now, logits_BV / temperature)
        tokens_B = tokens_B.astype(jnp.int32)
        return (cache, tokens_B), tokens_B

    start = (cache, jnp.zeros((batch,), jnp.int32))
    _, tokens_NB = jax.lax.scan(step, start, jnp.arange(num_tokens))
    return tokens_NB.T


def sample_indices(
    step_fn: StepFn,
    cache: Any,
    key: jax.Array,
    *,
    num_tokens: int,
    batch: int,
    temperature: float = 0.0,
    allow_begin: bool = False,
) -> jax.Array:
    """Indices int32 [B, N] of the codebook: the tokens that `decode` gives, less 1.

    Token 0 stands for no index. It is never a target in training and is left out here; with
    `allow_begin` it can be chosen, and then stands for the last index, as in UViM's own decoding.
    """

    def without_begin(cache, tokens_B, position):
        logits_BV, cache = step_fn(cache, tokens_B, position)
        return logits_BV.at[:, 0].set(-jnp.inf), cache

    tokens_BN = decode(
        step_fn if allow_begin else without_begin,
        cache,
        key,
        num_tokens=num_tokens,
        batch=batch,
        temperature=temperature,
    )
    if not allow_begin:
        return tokens_BN - 1
    vocab_size = jax.eval_shape(step_fn, cache, tokens_BN[:, 0], 0)[0].shape[-1]
    return (tokens_BN - 1) % (vocab_size - 1)
