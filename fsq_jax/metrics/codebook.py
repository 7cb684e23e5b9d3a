"""How a codebook is used, from how often each of its codes was chosen.

Counts of batches and of hosts add up; usage, perplexity and histograms are taken once, of the sum,
on the host.

Legend: K codes.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.runtime.user_error import UserError


def count(indices: jax.Array, codebook_size: int, mask: jax.Array | None = None) -> jax.Array:
    """Returns how often each code occurs in `indices`: int32 [K].

    indices: int32 [...]; those outside [0, K), such as a mask token's, are not counted.
    mask: bool, of the leading dimensions of indices, such as [B]; False leaves an example out.
    """
    is_counted = (indices >= 0) & (indices < codebook_size)
    if mask is not None:
        is_counted &= mask.reshape(mask.shape + (1,) * (indices.ndim - mask.ndim))
    # One extra bin takes what does not count.
    bins = jnp.where(is_counted, indices, codebook_size)
    return jnp.bincount(bins.ravel(), length=codebook_size + 1)[:codebook_size]


def usage(counts_K: np.ndarray) -> float:
    """Returns the share of codes that occur at least once, 0 to 1 (the paper's section 4.2)."""
    return float(np.mean(np.asarray(counts_K) > 0))


def perplexity(counts_K: np.ndarray) -> float:
    """Returns exp(entropy) of the codes' frequencies, 1 to K; NaN where nothing was counted."""
    counts_K = np.asarray(counts_K, np.float64)
    if not counts_K.any():
        return math.nan
    share_K = counts_K[counts_K > 0] / counts_K.sum()
    return float(np.exp(-np.sum(share_K * np.log(share_K))))


def level_histograms(counts_K: np.ndarray, levels: Sequence[int]) -> list[np.ndarray]:
    """Returns for each FSQ channel how often each of its digits occurs: d arrays [L_i].

    Raises UserError unless there are as many counts as the levels have codes.
    """
    if counts_K.shape != (math.prod(levels),):
        raise UserError(
            f"Levels {tuple(levels)} have {math.prod(levels)} codes, but the counts are of shape "
            f"{counts_K.shape}."
        )
    # The first channel is the least significant digit, hence the last axis.
    grid = counts_K.reshape(tuple(levels)[::-1])
    axes = range(grid.ndim - 1, -1, -1)
    return [grid.sum(axis=tuple(a for a in range(grid.ndim) if a != axis)) for axis in axes]
