"""A run put together from its config, or from its workdir: data, stage, state, evaluation."""

import os
import platform
from collections.abc import Mapping

import jax
import numpy as np

from fsq_jax import stages
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.pretrained import weights
from fsq_jax.runs import inputs
from fsq_jax.runs.config import override_config
from fsq_jax.runtime import sharding
from fsq_jax.runtime.workdir import load_config
from fsq_jax.stages.stage import Stage, TrainState


def evaluation(config, stage: Stage, predict, state: TrainState, mesh, workdir: str) -> Predictor:
    """What evaluators take, for a state of this config."""
    device = jax.devices()[0]
    return Predictor(
        predict=predict,
        state=state,
        batches=lambda split, limit, transform=None: inputs.eval_batches(
            config, split, limit or config.data.eval_limit, transform
        ),
        source=lambda split: inputs.eval_source(config, split),
        eval_split="eval",
        mesh=mesh,
        batch_size=config.eval_batch_size,
        info=stage.info,
        protocol={
            "data": config.data.source, "size": config.data.size,
            "eval_split": config.data.eval_split, "train_split": config.data.train_split,
            "seed": config.seed, "weights": "ema" if config.ema_decay else "latest",
            "device": device.device_kind, "jax": jax.__version__,
            "python": platform.python_version(),
        },
        seed=config.seed,
        step=int(state.step),
        workdir=workdir,
    )


def load(workdir: str, step: int | None = None, overrides: Mapping | None = None):
    """(config, stage, Run) of a trained run, its averaged weights on all devices.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the latest by default.
      overrides: {dotted key: value} put over the run's config, such as {"sampling.guidance": 1.0}.

    Raises:
      UserError: where there is no run or no such checkpoint, or it can't be read; for an
        override of a key that the config doesn't have, or of another type.
    """
    config = load_config(workdir)
    override_config(config, overrides or {})
    return assemble(config, weights.load(workdir, step))


def assemble(config, loaded: weights.Weights):
    """(config, stage, Run) of weights and the config that they are to be run with."""
    if config.stage == "tokenizer":
        config.loss.perceptual = 0.0  # its network is for training, and may not be at hand
    stage = stages.make(config)
    mesh = sharding.make_mesh()
    replicated = sharding.replicated(mesh)
    state = TrainState(
        step=np.int32(loaded.step), params=None, opt_state=None,
        ema_params=sharding.put(loaded.params, replicated),
        model_state=sharding.put(loaded.model_state, replicated),
        frozen=sharding.put(stage.frozen, replicated),
    )
    predict = {name: jax.jit(fn) for name, fn in stage.predict.items()}
    workdir = loaded.path if os.path.isdir(loaded.path) else ""
    return config, stage, evaluation(config, stage, predict, state, mesh, workdir)


