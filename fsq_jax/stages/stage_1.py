"""A trained stage I, as stage II and `fsq_jax.encode` use it: it gives tokens, and never trains."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages import maskgit_tokenizer, model_values, uvim_base
from fsq_jax.stages.blank import blank_batch
from fsq_jax.stages.stage import StageFacts

PyTree = Any

# The stages that give tokens.
KINDS = {"maskgit_tokenizer": maskgit_tokenizer, "uvim_base": uvim_base}


@dataclasses.dataclass(frozen=True)
class Stage1:
    """A stage I with its weights (moving averages) on the host, or with shapes in their place.

    Attributes:
      config: of the run that they come from, or of the published file.
      model: the network.
      encode: (variables, batch) -> tokens int32 [B, L]; pure.
      variables: what `model.apply` takes; to be passed to compiled functions as an argument.
      facts: of its codebook.
      fingerprint: tells these weights from any others; token caches carry it. "" for shapes.
      path: where the weights come from.
      step: the checkpoint that they come from.
    """

    config: ml_collections.ConfigDict
    model: Any
    encode: Callable
    variables: PyTree
    facts: StageFacts
    fingerprint: str = ""
    path: str = ""
    step: int = 0


def variable_shapes(config) -> PyTree:
    """The shapes of the variables of a stage I of this config."""
    make_variables = KINDS[config.stage].make_variables
    return jax.eval_shape(lambda: make_variables(config, jax.random.key(0), blank_batch(config)))


def make(config, variables: PyTree, fingerprint: str = "", path: str = "", step: int = 0) -> Stage1:
    """The stage I of a config and weights; a UserError where the config is of another stage."""
    if config.stage not in KINDS:
        needed = " or ".join(map(repr, KINDS))
        raise UserError(f"{path!r} is of stage {config.stage!r}; a stage I, {needed}, is needed.")
    model_values.check(config.model)
    stage = KINDS[config.stage]
    model = stage.make_model(config)
    return Stage1(
        config,
        model,
        stage.make_encode(config),
        variables,
        stage.facts_of(config, model),
        fingerprint,
        path,
        step,
    )


def shapes(config) -> Stage1:
    """The stage I that a stage II's config describes, with shapes for weights.

    Enough to count what a run takes, and to compile its programs; nothing is read.
    """
    described = {"data": config.data.to_dict()} | config.stage_1.to_dict()
    described["stage"] = {"maskgit_transformer": "maskgit_tokenizer"}.get(config.stage, "uvim_base")
    if "task" in config:
        described["task"] = config.task.to_dict()
    own = ml_collections.ConfigDict(described)
    return make(own, variable_shapes(own))


def verify(stage_1: Stage1, config) -> None:
    """Checks that a stage I fits a stage II.

    Args:
      stage_1: what was found at `config.stage_1.workdir`.
      config: of the stage II. `config.stage_1.fingerprint` is that of the weights that the run was
        trained on, "" before it has begun.

    Raises:
      UserError: it was trained on or replaced since, is of the other family, or doesn't divide
        the images.
    """
    recorded, path = config.stage_1.fingerprint, stage_1.path
    if recorded and stage_1.fingerprint and recorded != stage_1.fingerprint:
        raise UserError(
            f"This run was trained on stage I {recorded}, but {path!r} holds {stage_1.fingerprint} "
            f"(step {stage_1.step}): it was trained on since, or replaced."
        )
    if config.data.size % stage_1.facts.downsampling:
        raise UserError(
            f"data.size={config.data.size} is not a multiple of the "
            f"{stage_1.facts.downsampling} pixels that a token of {path!r} covers."
        )
