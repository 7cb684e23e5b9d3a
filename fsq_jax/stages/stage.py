"""What one kind of training is to the loop: three pure functions and a state."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import struct

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
