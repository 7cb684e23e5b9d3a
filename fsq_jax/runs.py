"""A run put together from its config, or from its workdir: data, stage, state, evaluation."""

import ast
import difflib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from fsq_jax import checkpoint, evaluators, sharding, stages, tasks
from fsq_jax.data import cached_views, pipeline, sources, transforms
from fsq_jax.data.source import Source
from fsq_jax.evaluators.run import Run
from fsq_jax.pretrained import initialize, weights
from fsq_jax.stages.stage import Stage, TrainState

DTYPES = ("float32", "bfloat16", "float16")


def make_source(data: Mapping, split: str, features: Sequence[str] = ()) -> Source:
    """The source of `config.data`, for one of its splits; a cache keeps `features`, too."""
    return sources.make_source(
        data["source"], split, data["size"], data_dir=data["data_dir"], cache=data["cache"],
        features=features,
    )


def features(config) -> tuple[str, ...]:
    """What batches carry besides images and labels: what the task is trained on."""
    return tasks.make(**config.task).features if "task" in config else ()


def transforms_of(config) -> tuple[transforms.Transform, transforms.Transform]:
    """(the transform of training, that of evaluation), as `config.data` says."""
    data, kind = config.data, config.data.transform
    augment = transforms.augment(data.size, data.min_area, data.max_aspect, data.flip, kind)
    return augment, transforms.evaluation(data.size, kind)


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy in which what the data decides stands as a number: `num_classes` 0 is replaced.

    Raises:
      ValueError: where a run of this config could only fail later.
    """
    config = config.copy_and_resolve_references()
    for name in ("steps", "log_every", "preview_every", "checkpoint_every"):
        if config[name] < 1:
            raise ValueError(f"{name}={config[name]} must be at least 1.")
    if config.model.dtype not in DTYPES:
        raise ValueError(f"model.dtype={config.model.dtype!r} must be one of {DTYPES}.")
    evaluators.check(config.evals)
    sharding.check_batch_size(config.batch_size, config.accumulate)
    sharding.check_batch_size(config.eval_batch_size, name="eval_batch_size")
    if config.get("num_classes") == 0:
        config.num_classes = make_source(config.data, config.data.train_split).num_classes
    return config


def train_batches(config) -> pipeline.TrainBatches:
    """This host's training batches, from the first one on."""
    source, transform, names = _training(config)
    return pipeline.train_batches(
        source,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        features=names,
    )


def _training(config) -> tuple[Source, transforms.Transform, tuple[str, ...]]:
    """(source, transform, features) that training reads: of images, of a token cache, of both."""
    data, names = config.data, features(config)
    augment, plain = transforms_of(config)
    if not config.get("token_cache"):
        return make_source(data, data.train_split, names), augment, names
    tokens = sources.make_source(f"tokens:{config.token_cache}", "train", data.size)
    if "task" not in config:
        return tokens, transforms.random_view, ()
    source = cached_views.paired(make_source(data, data.train_split), tokens)
    views = dict(seed=tokens.meta["seed"], views=tokens.meta["views"])
    return source, cached_views.random_view(augment, plain, **views), ()


def eval_batches(
    config, split: str, limit: int = 0, transform: transforms.Transform | None = None
) -> Iterable[dict[str, np.ndarray]]:
    """This host's batches of a split, each record once, as it is (no augmentation).

    "train" and "eval" stand for the data's own two splits; `transform` takes the place of the
    config's own.
    """
    source = eval_source(config, split)
    return every_record(config, source, transform or transforms_of(config)[1], limit)


def eval_source(config, split: str) -> Source:
    """The records of a split, as they are before any transform.

    "train" and "eval" stand for the data's own two splits; `data.eval_crop` is all that is seen
    of the latter's.
    """
    data = config.data
    name = {"train": data.train_split, "eval": data.eval_split}.get(split, split)
    source = make_source(data, name, features(config))
    if split == "eval" and data.eval_crop:
        return source.mapped(transforms.crop_to(data.eval_crop))
    return source


def every_record(
    config, source: Source, transform: transforms.Transform, limit: int = 0
) -> Iterable[dict[str, np.ndarray]]:
    """This host's batches of a source, each record once, the last batch filled up and masked."""
    return pipeline.eval_batches(
        source,
        transform,
        batch_size=config.eval_batch_size,
        limit=limit or None,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        features=features(config),
    )


def preview_batch(config, num_images: int = 32) -> dict[str, np.ndarray]:
    """The held-out images that previews show, the same at every step; this host's rows."""
    plain = config.copy_and_resolve_references()
    plain.data.workers = 0  # for one batch they would not be worth their start
    batch = next(iter(eval_batches(plain, "eval")))
    rows = max(1, num_images // jax.device_count()) * jax.local_device_count()
    return {name: value[:rows] for name, value in batch.items()}


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
      ValueError: the weights can't be read, or nothing of them fits.
    """
    path = config.init_from
    if not path or checkpoint.saved_steps(workdir):
        return initialize.Start()
    return initialize.load(shapes, path)


def claim_workdir(workdir: str, config, stage: Stage) -> None:
    """Makes the workdir this run's own, with what its stage pinned in the config.

    Raises:
      ValueError: with the differing keys, where it belongs to a run of another config.
    """
    config.update_from_flattened_dict(dict(stage.pins))
    if os.path.exists(os.path.join(workdir, "config.json")):
        there = checkpoint.load_config(workdir).to_dict()
        differing = checkpoint.differing_keys(config.to_dict(), there)
        if "stage" in differing:  # nearly every key differs then
            differing = {"stage": differing["stage"]}
        if differing:
            listed = [f"{k}: {there} there, {ours} here" for k, (ours, there) in differing.items()]
            if len(listed) > 8:
                listed[8:] = [f"and {len(listed) - 8} more"]
            raise ValueError(f"{workdir!r} holds a run of another config ({'; '.join(listed)}).")
    elif jax.process_index() == 0:
        checkpoint.save_config(workdir, config)


def evaluation(config, stage: Stage, predict, state: TrainState, mesh, workdir: str) -> Run:
    """What evaluators take, for a state of this config."""
    device = jax.devices()[0]
    return Run(
        predict=predict,
        state=state,
        batches=lambda split, limit, transform=None: eval_batches(
            config, split, limit or config.data.eval_limit, transform
        ),
        source=lambda split: eval_source(config, split),
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
      ValueError: where there is no run or no such checkpoint, or it can't be read; for an
        override of a key that the config doesn't have, or of another type.
    """
    config = checkpoint.load_config(workdir)
    override(config, overrides or {})
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


def override(config: ml_collections.ConfigDict, overrides: Mapping) -> None:
    """Puts {dotted key: value} over the values of a config that has all these keys."""
    known = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for name, value in overrides.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"The config has no {name!r}{hint}")
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError:
            raise ValueError(
                f"{name}={value!r} is not of type {type(known[name]).__name__}, as "
                f"{known[name]!r} is."
            ) from None


def parse_overrides(assignments: Iterable[str]) -> dict:
    """{dotted key: value} of "KEY=VALUE" strings; a value is read as a Python literal if it can."""
    overrides = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"{assignment!r} is not of the form KEY=VALUE.")
        try:
            overrides[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[name] = text
    return overrides
