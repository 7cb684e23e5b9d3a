"""A run made out of files of weights: what was published, or exported, evaluated and sampled.

A safetensors export brings its config; for MaskGIT's files it is made up here, from the shapes and
from MaskGIT's own settings. From there on all is as with a workdir.
"""

import dataclasses
from collections.abc import Mapping

import ml_collections
import numpy as np

from fsq_jax import runs
from fsq_jax.pretrained import layouts, maskgit, weights
from fsq_jax.stages import frozen

DEFAULT_DATA, DEFAULT_SIZE = "tfds:imagenet2012", 256


def load(path: str, tokenizer: str = "", overrides: Mapping | None = None):
    """(config, stage, Run) of a file of weights, as `runs.load` gives them of a workdir.

    Args:
      path: a MaskGIT checkpoint or a safetensors export (a workdir does as well).
      tokenizer: the same of a tokenizer, which a transformer needs; a transformer's export names
        the workdir of its own.
      overrides: {dotted key: value} put over the config, such as {"data.source": "scenes"}.

    Raises:
      ValueError: a file can't be read, the two don't belong together, or there is no such key.
    """
    loaded = weights.load(path)
    overrides = dict(overrides or {})
    published = loaded.config is None
    config = _config(loaded, tokenizer, overrides) if published else loaded.config
    if config.stage == "maskgit":
        config.tokenizer.workdir = tokenizer or config.tokenizer.workdir
    elif tokenizer:
        raise ValueError(f"{path} is of stage {config.stage!r}, which takes no {tokenizer=}.")
    runs.override(config, overrides)
    config, stage, run = runs.assemble(config, loaded)
    if config.stage == "maskgit":
        _check_positions(path, loaded.params, config, stage.info["grid"])
    source = {"pretrained": path, "fingerprint": loaded.fingerprint}
    if published:
        source["weights"] = "published"
    return config, stage, dataclasses.replace(run, protocol=dict(run.protocol) | source)


def data_overrides(source: str, data_dir: str, size: int) -> dict:
    """Overrides for what is given of --data, --data_dir and --size."""
    given = {"data.source": source, "data.data_dir": data_dir, "data.size": size}
    return {name: value for name, value in given.items() if value}


def _config(
    loaded: weights.Weights, tokenizer: str, overrides: Mapping
) -> ml_collections.ConfigDict:
    """The config of a published file, by what its arrays are."""
    layout = layouts.identify(loaded.params)
    if layout not in _CONFIGS:
        known = " or ".join(layouts.LAYOUTS[name][0] for name in _CONFIGS)
        raise ValueError(f"{loaded.path} holds {layouts.name(loaded.params)}; expected {known}.")
    return _CONFIGS[layout](loaded, tokenizer, overrides)


def _tokenizer(loaded, tokenizer, overrides) -> ml_collections.ConfigDict:
    del tokenizer
    sizes = maskgit.tokenizer_config(
        loaded.path, loaded.params, tuple(overrides.get("quantizer.levels", ())),
        overrides.get("model.num_groups", 32),
    )
    return _complete(sizes, DEFAULT_SIZE, evals=dict(
        codebook=dict(every=0),
        reconstruction=dict(
            every=0, features="efficientnet", reference_split="train", reference_limit=0
        ),
    ))


def _transformer(loaded, tokenizer, overrides) -> ml_collections.ConfigDict:
    del overrides
    if not tokenizer:
        raise ValueError(
            f"{loaded.path} holds a transformer, which draws tokens: give --tokenizer=PATH, which "
            "makes images of them."
        )
    stage_1 = frozen.load(tokenizer, ("tokenizer",)).model
    sizes = maskgit.transformer_config(
        loaded.path, loaded.params, stage_1.quantizer.codebook_size
    )
    side = round((sizes.num_positions - 1) ** 0.5)
    config = _complete(sizes, side * stage_1.downsampling, evals=dict(
        compression=dict(every=0),
        generation=dict(
            every=0, features="efficientnet", num_samples=50_000, reference_split="train",
            reference_limit=0,
        ),
    ))
    config.tokenizer = dict(workdir=tokenizer, fingerprint="")
    config.token_cache = ""
    # MaskGIT's own: twelve steps and no guidance, for which its labels were never dropped.
    config.sampling = dict(
        num_steps=12, schedule="cosine", choice_temperature=4.5, guidance=0.0
    )
    config.masking = dict(schedule="cosine", label_smoothing=0.1, min_ratio=0.45)
    config.label_dropping = 0.0
    return config


_CONFIGS = {"maskgit_tokenizer": _tokenizer, "maskgit_transformer": _transformer}


def _complete(sizes, size: int, evals: dict) -> ml_collections.ConfigDict:
    """A config that evaluation can be run with; nothing in it is meant to be trained."""
    config = sizes.copy_and_resolve_references()
    config.update(dict(
        seed=42, steps=1, eval_batch_size=128, accumulate=1, ema_decay=0.0, evals=evals,
        loss=dict(adversarial=0.0, perceptual=0.0),
        optim=dict(learning_rate=0.0),
        data=dict(
            source=DEFAULT_DATA, data_dir="", size=size, train_split="train",
            eval_split="validation", transform="square", min_area=1.0, max_aspect=1.0,
            flip=False, eval_crop=(), workers=0, cache=False, eval_limit=0,
        ),
    ))
    return config


def _check_positions(path: str, params, config, side: int) -> None:
    positions = np.shape(params["Embed_0"]["position_embeddings"]["embedding"])[0]
    if positions != side**2 + 1:
        raise ValueError(
            f"{path} has {positions} positions, the class and {positions - 1} tokens, but images "
            f"of {config.data.size} pixels have {side**2} tokens of {config.tokenizer.workdir}."
        )
