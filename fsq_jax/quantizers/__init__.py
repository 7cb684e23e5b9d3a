"""Quantizers that return the same `Quantized`, by name; docs/quantizers.md compares them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.quantizers import binary, fsq, residual_fsq, simvq, vq
from fsq_jax.runtime.user_error import UserError, did_you_mean

BATCH = vq.BATCH  # the collection in which a call leaves what `after_step` takes
PART = vq.PART  # the collection of `part_of_step`
QUANTIZERS = {
    "fsq": fsq.FSQ,
    "residual_fsq": residual_fsq.ResidualFSQ,
    "grouped_fsq": residual_fsq.GroupedFSQ,
    "lfq": binary.LFQ,
    "bsq": binary.BSQ,
    "vq": vq.VectorQuantizer,
    "vq_ema": vq.EMAVectorQuantizer,
    "simvq": simvq.SimVQ,
}


def make(name: str, **kwargs) -> nn.Module:
    """Returns the quantizer called `name`, made with its own keyword arguments.

    What each takes is in its class, one line of `QUANTIZERS`.
    Raises UserError for another name, with the nearest one, and for sizes that cannot be.
    """
    if name not in QUANTIZERS:
        raise UserError(f"There is no quantizer {name!r}{did_you_mean(name, QUANTIZERS)}")
    try:
        return QUANTIZERS[name](**kwargs)
    except ValueError as error:  # of FSQ, whose file stands alone and knows no UserError
        raise UserError(str(error)) from None


def levels(quantizer: nn.Module) -> tuple[int, ...]:
    """Returns the FSQ's levels whose index a quantizer's is; () where the codes are no FSQ's."""
    if isinstance(quantizer, residual_fsq.GroupedFSQ):
        return tuple(quantizer.levels) * quantizer.num_groups
    return tuple(quantizer.levels) if isinstance(quantizer, fsq.FSQ) else ()


def of_config(config) -> nn.Module:
    """Returns the quantizer of a stage I config."""
    return make(**dict(config.quantizer))


def part_of_step(rows_b: jax.Array, num_rows: int, key: jax.Array) -> dict:
    """Returns what a model's variables must have for a microbatch of a training step.

    Args:
      rows_b: which rows of the step's batch it has, ascending.
      num_rows: of the step's batch.
      key: of the step, the same for all its microbatches.
    """
    present_B = jnp.zeros(num_rows, bool).at[rows_b].set(True)
    return {PART: {"quantizer": {"present": present_B, "key": key}}}


def after_step(
    quantizer: nn.Module, model_state: Mapping, batch: Mapping, key: jax.Array, rest: Any
) -> dict:
    """Returns what a model carries besides parameters, after one step of all its microbatches.

    It is computed after the rest of the step. While idle words are split, the host of a GPU must
    see when they all are, and can't queue what comes after that; on several GPUs XLA would else
    leave half of a step's operations for then.

    Args:
      quantizer: the model's.
      model_state: the model's collections before the step.
      batch: the sum over the microbatches of what they left in the collection `BATCH`; {} of a
        quantizer that leaves nothing there, whose state is none.
      key: of this step.
      rest: arrays that the step computes besides.
    """
    if BATCH not in batch:
        return dict(model_state)
    batch, _ = jax.lax.optimization_barrier((batch, rest))
    moved = {
        name: quantizer.after_step(model_state[vq.STATE][name], seen, key)
        for name, seen in batch[BATCH].items()
    }
    return {**model_state, vq.STATE: moved}
