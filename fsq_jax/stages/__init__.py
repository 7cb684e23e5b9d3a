"""The training stages, by the name that `config.stage` gives."""

from fsq_jax.features.network import perceptual_shapes
from fsq_jax.runtime.user_error import UserError, did_you_mean
from fsq_jax.stages import (
    maskgit_tokenizer,
    maskgit_transformer,
    model_values,
    stage_1,
    uvim_base,
    uvim_lm,
)
from fsq_jax.stages.stage import Stage

STAGES = {
    "maskgit_tokenizer": maskgit_tokenizer.make,
    "maskgit_transformer": maskgit_transformer.make,
    "uvim_base": uvim_base.make,
    "uvim_lm": uvim_lm.make,
}


def make(config, **frozen) -> Stage:
    """The stage that the config asks for; it opens no file.

    Args:
      config: of a run; `config.stage` is a name of `STAGES`.
      frozen: the network that the stage only reads, by the name of its argument: `stage_1` of a
        stage II, `perceptual` of a tokenizer with a perceptual loss. `runs.frozen` loads it, and
        `frozen_shapes` stands in for it.

    Raises:
      UserError: there is no stage of that name, or what it reads doesn't fit the config.
    """
    if config.stage not in STAGES:
        raise UserError(f"stage={config.stage!r} is unknown{did_you_mean(config.stage, STAGES)}")
    model_values.check(config.model)
    return STAGES[config.stage](config, **frozen)


def frozen_shapes(config) -> dict:
    """What `make` takes besides the config, with shapes for weights: nothing is read.

    Enough to count what a run would take and to compile it, not to run it.
    """
    if "stage_1" in config:
        return {"stage_1": stage_1.shapes(config)}
    if config.stage == "maskgit_tokenizer" and config.loss.perceptual:
        return {"perceptual": perceptual_shapes(config.perceptual.name)}
    return {}
