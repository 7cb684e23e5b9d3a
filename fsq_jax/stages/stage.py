"""What one kind of training is to the loop: three pure functions and a state."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

PyTree = Any


class TrainState(struct.PyTreeNode):
    """All that changes in training, and the frozen weights that travel with it.

    Attributes:
      step: updates made so far, int32 scalar.
      params: trained parameters, float32.
      opt_state: of optax; one for each optimiser of the stage.
      ema_params: moving average of the parameters that evaluation and the next stage use.
      model_state: what the averaged network carries besides parameters (UViM's codebook).
      train_only: what training carries and no prediction reads (LeCam's averages).
      frozen: weights of another network that the stage only reads. An argument of the compiled
        update rather than a constant in it, and never written into this run's checkpoints.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    ema_params: PyTree
    model_state: PyTree
    train_only: PyTree = struct.field(default_factory=dict)
    frozen: PyTree = None


@dataclasses.dataclass(frozen=True)
class StageFacts:
    """What programs, evaluators and results record of a stage.

    Attributes:
      codebook_size: number of codes.
      levels: FSQ's; () for a VQ.
      downsampling: pixels along the side of a token.
      num_classes: of a masked transformer; 0 elsewhere.
      grid: tokens along the side of an image, of a masked transformer; 0 elsewhere.
      stage_1: fingerprint of the stage I that a stage II reads; "" elsewhere.
      sampling: how a stage II draws tokens; {} elsewhere.
    """

    codebook_size: int
    levels: tuple[int, ...]
    downsampling: int
    num_classes: int = 0
    grid: int = 0
    stage_1: str = ""
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the loop must know of a stage, and nothing else.

    Attributes:
      init: (key, batch) -> TrainState without `frozen`; pure, so that shapes come first.
      update: (state, batch, key) -> (TrainState, {name: scalar}); one optimiser step.
      predict: name -> (state, batch, key) -> dict of arrays, for evaluators, previews, programs.
      facts: what is recorded of it.
      frozen: host arrays (or shapes) that the loop puts on the devices as `TrainState.frozen`.
      recorded: {dotted config key: value} that belong into the run's config.json: what the stage
        was made with, and must be made with again when the run is resumed.
      gpu_options: XLA's options for a program of `update` on a GPU.
    """

    init: Callable
    update: Callable
    predict: Mapping[str, Callable]
    facts: StageFacts
    frozen: PyTree = None
    recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gpu_options: Mapping[str, int] = dataclasses.field(default_factory=dict)


def first_state(
    params: PyTree, optimizer: optax.GradientTransformation, model_state: PyTree
) -> TrainState:
    """The state before the first update, of a stage with one network and one optimiser."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=params,
        model_state=model_state,
    )


def next_state(
    state: TrainState,
    grads: PyTree,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """The state after an update with these gradients; `ema_decay` 0 averages nothing."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema_params=optax.incremental_update(params, state.ema_params, 1 - ema_decay),
    )
