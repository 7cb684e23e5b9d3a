"""From any path to weights to something that predicts, and from a training state to the same."""

import functools
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fsq_jax import stages
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.transforms import Transform
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.pretrained import parameter_trees, weights
from fsq_jax.runs import frozen, inputs, published, recorded
from fsq_jax.runs.config import check_ranges, override_config
from fsq_jax.runtime import sharding
from fsq_jax.runtime.compiler import compiler_options
from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages.blank import blank_batch
from fsq_jax.stages.stage import Stage, TrainState


def load(
    path: str, stage_1: str = "", step: int | None = None, overrides: Mapping | None = None
) -> Predictor:
    """The predictor of a workdir, an export or a published file, its weights on all devices.

    Args:
      path: a run's workdir, a safetensors export, or a checkpoint of MaskGIT or UViM.
      stage_1: the same of the stage I that a stage II reads; by default where its config says that
        it is, which a published file cannot say.
      step: which of a run's checkpoints; the latest by default.
      overrides: {dotted key: value} over the config, such as {"sampling.guidance": 1.0}.

    Raises:
      UserError: there are no weights of the kind, or they can't be read; the two stages don't
        belong together; the config has no such key, or its value is of another type.
    """
    overrides = dict(overrides or {})
    loaded = weights.load(path, step)
    if loaded.config is not None:
        recorded.check(loaded.config, path)
    first = _load_stage_1(loaded, stage_1)
    config = loaded.config
    if config is None:
        config = published.config_of(loaded, first, overrides)
    override_config(config, overrides)
    check_ranges(config)
    if config.stage == "maskgit_tokenizer":
        config.loss.perceptual = 0.0  # its network is for training, and may not be at hand
    if first is not None:  # as it is, whatever the run's config said of it
        config.stage_1.workdir = first.path
        config.stage_1.model = first.config.model.to_dict()
        config.stage_1.quantizer = first.config.quantizer.to_dict()
    stage = stages.make(config, **({"stage_1": first} if first is not None else {}))
    if config.stage == "maskgit_transformer":
        _check_positions(loaded, config, stage.facts.grid)
    expected = jax.eval_shape(lambda: stage.init(jax.random.key(0), blank_batch(config))).ema_params
    parameter_trees.check_tree(path, loaded.params, expected)
    mesh = sharding.make_mesh()
    replicated = sharding.replicated(mesh)
    updates: Any = np.int32(loaded.step)
    state = TrainState(
        step=updates,
        params=None,
        opt_state=None,
        ema_params=sharding.put(loaded.params, replicated),
        model_state=sharding.put(loaded.model_state, replicated),
        frozen=sharding.put(stage.frozen, replicated),
    )
    of_file = not os.path.isdir(path)
    source = {"weights_file": path, "fingerprint": loaded.fingerprint} if of_file else {}
    if of_file and loaded.config is None:
        source["weights"] = "published"
    workdir = "" if of_file else path
    return of_state(config, stage, compiled(stage), state, mesh, workdir, source)


def of_state(
    config,
    stage: Stage,
    predict: Mapping,
    state: TrainState,
    mesh,
    workdir: str,
    source: Mapping | None = None,
) -> Predictor:
    """The predictor of a state on the devices; `source` goes into the protocol of its results."""

    @functools.cache  # several evaluators read a split, and opening it looks at its records
    def dataset(split: str) -> Dataset:
        return inputs.eval_dataset(config, split)

    def batches(split: str | Dataset, limit: int, transform: Transform | None = None):
        records = dataset(split) if isinstance(split, str) else split
        rows = sharding.padded(config.eval_batch_size, mesh)
        limit = limit or config.data.eval_limit
        return inputs.eval_batches(config, records, limit, transform, rows)

    return Predictor(
        config=config,
        stage=stage,
        predict=predict,
        state=state,
        batches=batches,
        dataset=dataset,
        mesh=mesh,
        protocol={
            "data": config.data.source,
            "size": config.data.size,
            "transform": config.data.transform,
            "eval_split": config.data.eval_split,
            "train_split": config.data.train_split,
            "seed": config.seed,
            "weights": "ema" if config.ema_decay else "latest",
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "python": platform.python_version(),
        }
        | dict(source or {}),
        seed=config.seed,
        step=int(state.step),
        workdir=workdir,
    )


def compiled(stage: Stage) -> dict:
    """The stage's functions, each compiled when it is first called."""
    options = compiler_options()
    return {
        name: jax.jit(function, compiler_options=options)
        for name, function in stage.predict.items()
    }


def _load_stage_1(loaded: weights.Weights, path: str):
    """The stage I that weights need; None where they need none."""
    kind = frozen.reads_stage_1(loaded)
    if not kind:
        if path:
            raise UserError(f"{loaded.path} is no stage II, which alone takes a stage_1={path!r}.")
        return None
    if not path and loaded.config is not None:
        path = loaded.config.stage_1.workdir
    if not path:
        raise UserError(
            f"{loaded.path} holds {parameter_trees.name(loaded.params)}, which writes tokens: give "
            "--stage_1=PATH, the stage I that they are of."
        )
    return frozen.load_stage_1(path, (kind,))


def _check_positions(loaded: weights.Weights, config, side: int) -> None:
    """Raises a UserError where images have another number of tokens than the weights are for."""
    positions = np.shape(loaded.params["Embed_0"]["position_embeddings"]["embedding"])[0]
    if positions != side**2 + 1:
        raise UserError(
            f"{loaded.path} has {positions} positions, the class and {positions - 1} tokens, but "
            f"images of {config.data.size} pixels have {side**2} tokens of "
            f"{config.stage_1.workdir}."
        )
