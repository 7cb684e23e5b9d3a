"""A trained stage I, as stage II and `fsq_jax.encode` use it: it gives tokens, and never trains."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from fsq_jax.data.open import open_dataset
from fsq_jax.pretrained import published, weights
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import load_config
from fsq_jax.stages import maskgit_tokenizer, uvim_base

PyTree = Any

# Stages that give tokens: what makes their model, tokens of a batch, and facts of their codes.
KINDS = {"tokenizer": maskgit_tokenizer, "uvim_base": uvim_base}


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A stage I and its weights (moving averages), on the host.

    Attributes:
      model: the network.
      encode: (variables, batch) -> tokens int32 [B, L]; pure.
      variables: what `model.apply` takes; to be passed to compiled functions as an argument.
      fingerprint: tells these weights from any others; token caches carry it.
      codes: "codebook_size", "levels" and "downsampling" (pixels along the side of a token).
      step: the checkpoint that they come from.
      config: the config of the run that they come from.
    """

    model: Any
    encode: Callable
    variables: PyTree
    fingerprint: str
    codes: Mapping[str, Any]
    step: int
    config: ml_collections.ConfigDict


def load(path: str, kinds: tuple[str, ...] = tuple(KINDS), step: int | None = None) -> Frozen:
    """The stage I that a run trained, or that a file holds.

    Args:
      path: a run's workdir, a safetensors export, or a checkpoint of MaskGIT or UViM.
      kinds: the stages that it may be of.
      step: which of a run's checkpoints; the latest by default.

    Raises:
      UserError: there is no stage I of these kinds.
    """
    if weights.is_run(path):  # before its arrays are read
        _check_kind(path, load_config(path).stage, kinds)
    loaded = weights.load(path, step)
    config = published.stage_1_config(loaded)
    _check_kind(path, config.stage, kinds)
    stage = KINDS[config.stage]
    model = stage.make_model(config)
    return Frozen(
        model, stage.make_encode(config), loaded.variables, loaded.fingerprint,
        stage.describe_codes(config, model), loaded.step, config,
    )


def _check_kind(path: str, stage: str, kinds: tuple[str, ...]) -> None:
    if stage not in kinds:
        needed = " or ".join(map(repr, kinds))
        raise UserError(
            f"{path!r} is a run of stage {stage!r}; a run of stage {needed} is needed."
        )


def load_pinned(config, section: str, kind: str) -> Frozen:
    """The stage I of a stage II, held against what this run does with it.

    Args:
      config: of the stage II; `config[section]` names the run ("workdir") and, once it was
        trained on, its weights ("fingerprint").
      section: "tokenizer" or "base".
      kind: the stage that it must be.

    Raises:
      UserError: where it isn't there, was trained on since, or doesn't fit the images or a cache.
    """
    pinned = config[section]
    trained = load(pinned.workdir, (kind,))
    if pinned.fingerprint not in ("", trained.fingerprint):
        raise UserError(
            f"This run was trained on {section} {pinned.fingerprint}, but {pinned.workdir!r} "
            f"holds {section} {trained.fingerprint} (step {trained.step}): it was trained on "
            "since, or replaced."
        )
    if config.data.size % trained.codes["downsampling"]:
        raise UserError(
            f"data.size={config.data.size} is not a multiple of the "
            f"{trained.codes['downsampling']} pixels that a token of {pinned.workdir!r} covers."
        )
    if config.token_cache:
        _check_cache(config, section, trained)
    return trained


def _check_cache(config, section: str, trained: Frozen) -> None:
    """Raises a UserError where a token cache isn't what this run would make of its images."""
    cache = open_dataset(f"tokens:{config.token_cache}", "train", config.data.size)
    if cache.meta["fingerprint"] != trained.fingerprint:
        raise UserError(
            f"The tokens in {config.token_cache!r} were made by {section} "
            f"{cache.meta['fingerprint']}, but {config[section].workdir!r} holds {section} "
            f"{trained.fingerprint}."
        )
    tokens = (config.data.size // trained.codes["downsampling"]) ** 2
    pairs = {"tokens an image": (cache[0]["tokens_VL"].shape[-1], tokens)}
    if "num_classes" in config:
        pairs["classes"] = (cache.num_classes, config.num_classes)
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UserError(
                f"The cache {config.token_cache!r} is of {theirs} {name}, this run of {ours}."
            )
