"""How a training run begins: its shapes, the weights that it starts from, its workdir."""

import os

import jax

from fsq_jax.pretrained import initialize
from fsq_jax.runtime import checkpoint
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import differing_keys, load_config, save_config
from fsq_jax.stages.stage import Stage, TrainState


def compiler_options() -> dict[str, bool]:
    """What XLA is told for a train step on the devices at hand.

    On a GPU all matrix products go to cuBLAS, which adds biases and residuals as it writes. With
    Triton's products to choose from, XLA leaves those additions to kernels of their own.
    """
    return {"xla_gpu_enable_triton_gemm": False} if jax.default_backend() == "gpu" else {}


def abstract_state(config, stage: Stage, batch) -> TrainState:
    """The state's shapes, of which nothing is allocated."""
    return jax.eval_shape(stage.init, jax.random.key(config.seed), batch)


def initial_weights(config, workdir: str, shapes: TrainState) -> initialize.Start:
    """What a run takes from `config.init_from`; nothing where it has a checkpoint of its own.

    Raises:
      UserError: the weights can't be read, or nothing of them fits.
    """
    path = config.init_from
    if not path or checkpoint.saved_steps(workdir):
        return initialize.Start()
    return initialize.load(shapes, path)


def claim_workdir(workdir: str, config, stage: Stage) -> None:
    """Makes the workdir this run's own, with what its stage pinned in the config.

    Raises:
      UserError: with the differing keys, where it belongs to a run of another config.
    """
    config.update_from_flattened_dict(dict(stage.pins))
    if os.path.exists(os.path.join(workdir, "config.json")):
        there = load_config(workdir).to_dict()
        differing = differing_keys(config.to_dict(), there)
        if "stage" in differing:  # nearly every key differs then
            differing = {"stage": differing["stage"]}
        if differing:
            listed = [f"{k}: {there} there, {ours} here" for k, (ours, there) in differing.items()]
            if len(listed) > 8:
                listed[8:] = [f"and {len(listed) - 8} more"]
            raise UserError(f"{workdir!r} holds a run of another config ({'; '.join(listed)}).")
    elif jax.process_index() == 0:
        save_config(workdir, config)
