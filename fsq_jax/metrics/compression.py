"""Compression cost: how many bits a masked transformer needs to code its tokens without loss.

The FSQ paper (section 4.2, figure 3d) takes the ideal code length under the deterministic masking
schedule of M2T (Mentzer et al., arXiv 2304.07313): the image's tokens are split into S groups, the
same for all images, and each group costs its -log2 p given all groups before it. The FSQ paper
states neither S nor the exponent of the group sizes; the defaults are M2T's S = 12, alpha = 2.2.
How M2T rounds sizes and places points is not known to the last token; this file fixes one way.

Legend: B images  L tokens, the class token first  P = L - 1 image positions  V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.runtime.user_error import UserError

_R2 = 1.32471795724  # the plastic number: x**3 = x + 1


def groups(height: int, width: int, num_steps: int = 12, alpha: float = 2.2) -> np.ndarray:
    """Returns the step, from 0, at which each position is coded: int32 [P] in raster order.

    Sizes grow like (step + 1) ** alpha, with no group empty; a group's positions follow each other
    in `low_discrepancy_order`, and so are spread over the image.
    Raises UserError for more steps than positions.
    """
    num_positions = height * width
    if not 1 <= num_steps <= num_positions:
        raise UserError(
            f"{num_steps=} must be from 1 to the {num_positions} positions of a {height} x {width} "
            "grid, since no step may be empty."
        )
    share = np.cumsum(np.arange(1, num_steps + 1) ** float(alpha))
    ends = np.rint(num_positions * share / share[-1]).astype(int)
    # At least one position per step: push the first steps' ends apart, keep room for the last.
    ends = np.maximum.accumulate(ends - np.arange(num_steps)).clip(1) + np.arange(num_steps)
    ends = np.minimum(ends, num_positions - np.arange(num_steps)[::-1])
    steps = np.empty(num_positions, np.int32)
    steps[low_discrepancy_order(height, width)] = np.repeat(
        np.arange(num_steps), np.diff(ends, prepend=0)
    )
    return steps


def low_discrepancy_order(height: int, width: int) -> np.ndarray:
    """Returns all positions of the grid in the order in which Roberts' R2 sequence visits them.

    Point n of the sequence is frac(1/2 + n (1/g, 1/g**2)), in the unit square; the cell that it
    falls in comes next, unless it has come before. int64 [P] of raster positions.
    """
    num_points = 4 * height * width
    while True:
        n = np.arange(num_points)
        rows = ((0.5 + n / _R2) % 1 * height).astype(int)
        columns = ((0.5 + n / _R2**2) % 1 * width).astype(int)
        positions, first = np.unique(rows * width + columns, return_index=True)
        if len(positions) == height * width:
            return positions[np.argsort(first)]
        num_points *= 2


def bits(
    logits_fn: Callable[[jax.Array], jax.Array],
    tokens_BL: jax.Array,
    steps_P: np.ndarray,
    *,
    codebook_size: int,
    mask_id: int,
) -> jax.Array:
    """Returns the bits that code each image: float32 [B]; divide by P for bits per token.

    logits_fn: tokens_BL -> logits_BLV; probabilities are taken over the first `codebook_size`
        entries only, since no other token can occur.
    tokens_BL: int32; position 0 holds the class token, which is always seen and costs nothing.
    steps_P: the concrete result of `groups`. One call of logits_fn per step, in a loop inside jit.
    """
    steps_P = np.asarray(steps_P)
    if tokens_BL.shape[1] != len(steps_P) + 1:
        raise UserError(
            f"Tokens of shape {tokens_BL.shape} must be the class token and the {len(steps_P)} "
            "positions of the schedule."
        )
    steps_L = jnp.array(np.concatenate([[-1], steps_P]), jnp.int32)

    def add_group(step, bits_B):
        logits_BLV = logits_fn(jnp.where(steps_L < step, tokens_BL, mask_id))
        logits_BPK = logits_BLV[:, 1:, :codebook_size].astype(jnp.float32)
        log_p_BPK = jax.nn.log_softmax(logits_BPK)
        log_p_BP = jnp.take_along_axis(log_p_BPK, tokens_BL[:, 1:, None], axis=2)[..., 0]
        return bits_B - jnp.sum(jnp.where(steps_L[1:] == step, log_p_BP, 0), axis=1) / np.log(2)

    start_B = jnp.zeros(tokens_BL.shape[0], jnp.float32)
    return jax.lax.fori_loop(0, int(steps_P.max()) + 1, add_group, start_B)
