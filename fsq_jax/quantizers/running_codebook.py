"""A codebook of running counts and sums of tokens, and two ways to revive its idle words.

UViM splits busy words; vector-quantize-pytorch puts tokens in the place of idle ones.

Legend: K words  D channels  N tokens of a call  B examples of a step's batch.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fsq_jax.runtime.placement import automatic


def after_step(
    state: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    momentum: float,
    split_threshold: float,
    key: Any,
) -> dict[str, jax.Array]:
    """Returns the state after one step: faded by `momentum`, with a whole batch's tokens added.

    Args:
      state: "counts" [K] and "dictionary" [K, D], the running sums.
      batch: "counts" [K] and "sums" [K, D] of the step's tokens, over all its microbatches.
      momentum: what is left of the old counts and sums.
      split_threshold: words that count less are revived by `split_idle_words`; 0: none are.
      key: draws the splitting's noise; None where nothing is split.
    """
    # A word that stays idle without splitting would fade to 0 / 0 after some 17,000 steps. It
    # stops fading at 1e-9, which next to one new token is nothing in float32.
    decay_K = jnp.where(state["counts"] > 1e-9, momentum, 1.0)
    counts_K = decay_K * state["counts"] + batch["counts"]
    sums_KD = decay_K[:, None] * state["dictionary"] + batch["sums"]
    if split_threshold > 0:
        counts_K, sums_KD = split_idle_words(counts_K, sums_KD, key, split_threshold)
    return {"counts": counts_K, "dictionary": sums_KD}


def split_idle_words(
    counts_K: jax.Array, sums_KD: jax.Array, key: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array]:
    """Returns counts and sums in which no word counts less than `threshold`, if there is a way.

    Again and again the least used word becomes a copy of the most used one, each coordinate times
    U(0.999, 1.001), and both get half of its count and sum. Stops when all counts reach the
    threshold, or when half of the largest would not; so after K - 1 splits at the latest.
    """

    def can_split(carry):
        counts_K, _, _ = carry
        return (counts_K.min() < threshold) & (counts_K.max() >= 2 * threshold)

    def split(carry):
        counts_K, sums_KD, step = carry
        idle, busy = jnp.argmin(counts_K), jnp.argmax(counts_K)
        count, sum_D = counts_K[busy] / 2, sums_KD[busy] / 2
        noise_D = perturbation(jax.random.fold_in(key, step), sum_D.shape)
        counts_K = counts_K.at[idle].set(count).at[busy].set(count)
        sums_KD = sums_KD.at[idle].set(sum_D * noise_D).at[busy].set(sum_D)
        return counts_K, sums_KD, step + 1

    counts_K, sums_KD, _ = jax.lax.while_loop(can_split, split, (counts_K, sums_KD, 0))
    return counts_K, sums_KD


def perturbation(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns what the copy of a word is multiplied by, U(0.999, 1.001)."""
    return jax.random.uniform(key, shape, minval=0.999, maxval=1.001)


def means(counts_K: jax.Array, sums_KD: jax.Array, momentum: float) -> jax.Array:
    """Returns words that are the means of their tokens, [K, D].

    Counts are smoothed, (count + e) / (total + K e) total, as in vector-quantize-pytorch, whose e
    of 1e-5 is in tokens a step. A word that counts nothing is 0 then, and not 0 / 0.
    """
    epsilon, total = 1e-5 / (1 - momentum), counts_K.sum()
    smoothed_K = (counts_K + epsilon) / (total + counts_K.shape[0] * epsilon) * total
    return sums_KD / smoothed_K[:, None]


@automatic()
def seeds(z_bTD: jax.Array, present_B: jax.Array, num_codes: int, key: Any) -> dict[str, jax.Array]:
    """Returns what each word would become if it were replaced, as far as one call of a step knows.

    Each word draws a token of the step's batch, no two the same one; of fewer tokens than words
    random words have none. All calls of a step draw alike, and leave zeros where the token is
    another call's, so that their sum is what the whole batch in one call gives.

    Args:
      z_bTD: this call's tokens, T of each of its b examples.
      present_B: which of the batch's examples these are, in the same order.
      num_codes: K.
      key: the same in all calls of the step.

    Returns:
      {"seeds" [K, D], "seeded" [K]}: tokens, and 1 where there is one.
    """
    num_examples, num_tokens = present_B.shape[0], present_B.shape[0] * z_bTD.shape[1]
    drawn_K = jax.random.permutation(key, max(num_codes, num_tokens))[:num_codes]
    example_K, token_K = jnp.divmod(drawn_K, z_bTD.shape[1])
    example_K = jnp.minimum(example_K, num_examples - 1)  # of words without a token: not used
    is_here_K = (drawn_K < num_tokens) & present_B[example_K]
    row_K = jnp.where(is_here_K, (jnp.cumsum(present_B) - 1)[example_K], 0)
    seeds_KD = jnp.where(is_here_K[:, None], z_bTD[row_K, token_K], 0.0)
    return {"seeds": seeds_KD, "seeded": is_here_K.astype(jnp.float32)}


def reseed(
    state: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    momentum: float,
    threshold: float,
) -> dict[str, jax.Array]:
    """Returns the state with idle words replaced by tokens, as `expire_codes_` and `replace` of
    vector-quantize-pytorch 1.32 do.

    A word is idle where fewer tokens a step than `threshold` choose it, on the running average; its
    seed then counts as `threshold` tokens a step. Words without a seed stay what they are.

    Args:
      state: after the step.
      batch: "seeds" [K, D] and "seeded" [K], summed over the calls of the step.
      momentum: of the state.
      threshold: tokens a step, above 0.
    """
    count = threshold / (1 - momentum)
    is_replaced_K = (state["counts"] < count) & (batch["seeded"] > 0)
    return {
        "counts": jnp.where(is_replaced_K, count, state["counts"]),
        "dictionary": jnp.where(
            is_replaced_K[:, None], count * batch["seeds"], state["dictionary"]
        ),
    }
