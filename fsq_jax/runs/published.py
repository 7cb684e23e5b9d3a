"""A run made out of files of weights: what was published, or exported, evaluated and sampled.

A safetensors export brings its config; for MaskGIT's and UViM's files it is made up here, from the
shapes and from the authors' own settings. From there on all is as with a workdir.
"""

import dataclasses
from collections.abc import Mapping

import ml_collections
import numpy as np

from fsq_jax.pretrained import maskgit, parameter_trees, published, weights
from fsq_jax.runs import predictor
from fsq_jax.runs.config import override_config
from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages import stage_1

# Stages that need a stage I, and the section of the config that names it.
_STAGE_1 = {"maskgit": "tokenizer", "uvim_lm": "base"}
_FEATURES = dict(
    every=0, features="efficientnet", reference_split="train", reference_limit=0
)
_DATA = dict(
    source="tfds:imagenet2012", data_dir="", size=256, train_split="train",
    eval_split="validation", transform="square", min_area=1.0, max_aspect=1.0, flip=False,
    eval_crop=(), workers=0, cache=False, eval_limit=0,
)
# What UViM is evaluated on: depth on the part of an image that is known.
_UVIM_DATA = {
    "depth": dict(source="tfds:nyu_depth_v2", eval_crop=(54, 480, 41, 601)),
    "colorization": dict(source="tfds:imagenet2012", train_split="train[4096:]"),
    "panoptic": dict(source="tfds:coco/2017_panoptic", train_split="train[4096:]"),
}


def load(path: str, tokenizer: str = "", overrides: Mapping | None = None):
    """(config, stage, Run) of a file of weights, as `runs.load` gives them of a workdir.

    Args:
      path: a checkpoint of MaskGIT or UViM, or a safetensors export (a workdir does as well).
      tokenizer: the same of a stage I, which a stage II needs; a stage II's export names the
        workdir of its own.
      overrides: {dotted key: value} put over the config, such as {"data.source": "scenes"}.

    Raises:
      UserError: a file can't be read, the two don't belong together, or there is no such key.
    """
    loaded = weights.load(path)
    overrides = dict(overrides or {})
    config = loaded.config or _config(loaded, tokenizer, overrides)
    if config.stage in _STAGE_1:
        section = config[_STAGE_1[config.stage]]
        section.workdir = tokenizer or section.workdir
    elif tokenizer:
        raise UserError(f"{path} is of stage {config.stage!r}, which takes no {tokenizer=}.")
    override_config(config, overrides)
    config, stage, run = predictor.assemble(config, loaded)
    if config.stage == "maskgit":
        _check_positions(path, loaded.params, config, stage.info["grid"])
    source = {"pretrained": path, "fingerprint": loaded.fingerprint}
    if loaded.config is None:
        source["weights"] = "published"
    return config, stage, dataclasses.replace(run, protocol=dict(run.protocol) | source)


def check_choice(options, purpose: str) -> None:
    """Raises a UserError unless the flags name one of a run and a file, and no more than it takes.

    Args:
      options: flags with workdir, pretrained, tokenizer and step.
      purpose: what the program does with it, for the message.
    """
    if bool(options.workdir) == bool(options.pretrained):
        raise UserError(f"Give one of --workdir=RUN and --pretrained=FILE: {purpose}.")
    if options.tokenizer and not options.pretrained:
        raise UserError("--tokenizer goes with --pretrained; a run has its own.")
    if options.step is not None and options.pretrained:
        raise UserError(f"--step={options.step} is one of a run's; a file has no checkpoints.")


def data_overrides(source: str, data_dir: str, size: int) -> dict:
    """Overrides for what is given of --data, --data_dir and --size."""
    given = {"data.source": source, "data.data_dir": data_dir, "data.size": size}
    return {name: value for name, value in given.items() if value}


def _config(
    loaded: weights.Weights, tokenizer: str, overrides: Mapping
) -> ml_collections.ConfigDict:
    """The config of a published file, by what its arrays are."""
    layout = parameter_trees.identify(loaded.params)
    if layout in published.STAGES:
        return _stage_1(published.stage_1_config(loaded, overrides))
    if layout not in _STAGE_2:
        known = " or ".join(parameter_trees.LAYOUTS[name][0] for name in _STAGE_2)
        raise UserError(f"{loaded.path} holds {parameter_trees.name(loaded.params)}; expected {known}.")
    if not tokenizer:
        raise UserError(
            f"{loaded.path} holds {parameter_trees.name(loaded.params)}, which writes codes: give "
            "--tokenizer=PATH, the stage I that they are of."
        )
    config = _STAGE_2[layout](loaded, tokenizer)
    config[_STAGE_1[config.stage]] = dict(workdir=tokenizer, fingerprint="")
    config.token_cache = ""
    return config


def _stage_1(known: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    evals = {"codebook": dict(every=0)}
    if known.stage == "tokenizer":
        config = _complete(known, _DATA, evals | dict(reconstruction=_FEATURES))
        config.loss = dict(adversarial=0.0, perceptual=0.0)
        return config
    return _complete(known, _uvim_data(known), evals | {known.task.name: dict(every=0)})


def _uvim_data(config) -> dict:
    return _DATA | _UVIM_DATA[config.task.name] | dict(
        size=config.data.size, transform="uvim"
    )


def _maskgit(loaded, tokenizer: str) -> ml_collections.ConfigDict:
    first = stage_1.load(tokenizer, ("tokenizer",))
    known = maskgit.transformer_config(
        loaded.path, loaded.params, first.codes["codebook_size"]
    )
    side = round((known.num_positions - 1) ** 0.5)
    config = _complete(known, _DATA | dict(size=side * first.codes["downsampling"]), dict(
        compression=dict(every=0), generation=_FEATURES | dict(num_samples=50_000)
    ))
    # MaskGIT's own: twelve steps and no guidance, for which its labels were never dropped.
    config.sampling = dict(
        num_steps=12, schedule="cosine", choice_temperature=4.5, guidance=0.0
    )
    config.masking = dict(schedule="cosine", label_smoothing=0.1, min_ratio=0.45)
    config.label_dropping = 0.0
    return config


def _uvim_lm(loaded, tokenizer: str) -> ml_collections.ConfigDict:
    known = published.uvim_lm_config(loaded.path)
    known.task = stage_1.load(tokenizer, ("uvim_base",)).config.task.to_dict()
    config = _complete(known, _uvim_data(known), {
        known.task.name: dict(every=0), "validation": dict(every=0)
    })
    config.sampling = dict(temperature=0.0)  # the likeliest code, as UViM's evaluators take it
    return config


_STAGE_2 = {"maskgit_transformer": _maskgit, "uvim_lm": _uvim_lm}


def _complete(known, data: dict, evals: dict) -> ml_collections.ConfigDict:
    """A config that evaluation can be run with; nothing in it is meant to be trained."""
    config = known.copy_and_resolve_references()
    config.update(dict(
        seed=42, steps=1, eval_batch_size=128, accumulate=1, ema_decay=0.0, evals=evals,
        optim=dict(learning_rate=0.0), data=data,
    ))
    return config


def _check_positions(path: str, params, config, side: int) -> None:
    positions = np.shape(params["Embed_0"]["position_embeddings"]["embedding"])[0]
    if positions != side**2 + 1:
        raise UserError(
            f"{path} has {positions} positions, the class and {positions - 1} tokens, but images "
            f"of {config.data.size} pixels have {side**2} tokens of {config.tokenizer.workdir}."
        )
