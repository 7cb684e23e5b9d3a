"""What one kind of training is to the loop: three pure functions and a state."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fsq_jax.stages import optim

PyTree = Any


@struct.dataclass
class TrainState:
    """All that changes in training, and the frozen weights that travel with it.

    Attributes:
      step: updates made so far, int32 scalar.
      params: trained parameters, float32.
      opt_state: of optax; one for each optimiser of the stage.
      ema_params: moving average of the parameters that evaluation and the next stage use.
      model_state: what modules carry besides parameters (UViM's codebook, LeCam's averages).
      frozen: weights of another network that the stage only reads. An argument of the compiled
        update rather than a constant in it, and never written into this run's checkpoints.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    ema_params: PyTree
    model_state: PyTree
    frozen: PyTree = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the loop must know of a stage, and nothing else.

    Attributes:
      init: (key, batch) -> TrainState without `frozen`; pure, so that shapes come first.
      update: (state, batch, key) -> (TrainState, {name: scalar}); one optimiser step.
      predict: name -> (state, batch, key) -> dict of arrays, for evaluators, previews, programs.
      frozen: host arrays that the loop puts on the devices as `TrainState.frozen`.
      info: plain facts that programs and results record, such as the size of the codebook.
      pins: {dotted config key: value} that the stage found, and that a resumed run must find again.
    """

    init: Callable
    update: Callable
    predict: Mapping[str, Callable]
    frozen: PyTree = None
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pins: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
    model_state: PyTree,
) -> TrainState:
    """The state after an update with these gradients; `ema_decay` 0 averages nothing."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema_params=optim.moving_average(state.ema_params, params, ema_decay),
        model_state=model_state,
    )
