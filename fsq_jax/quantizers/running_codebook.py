"""UViM's codebook: running counts and sums of the tokens that chose each word, and its splitting.

Legend: K words  D channels.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def after_step(
    state: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    momentum: float,
    split_threshold: float,
    key: jax.Array | None,
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
