"""The config of a published file, from its arrays: they tell the sizes, `configs/` all the rest."""

from collections.abc import Mapping

import ml_collections

from configs import maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm
from fsq_jax.pretrained import maskgit, parameter_trees, uvim
from fsq_jax.pretrained.weights import Weights
from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages.stage_1 import Stage1


def config_of(
    loaded: Weights, stage_1: Stage1 | None = None, overrides: Mapping | None = None
) -> ml_collections.ConfigDict:
    """The config with which weights that bring none are evaluated: that of scale=paper.

    Args:
      loaded: weights of MaskGIT or UViM.
      stage_1: the stage I that a stage II reads.
      overrides: {dotted key: value}; "quantizer.levels" and "model.num_groups" are read here, which
        no array tells.

    Raises:
      UserError: they are of another network, or their sizes don't add up.
    """
    layout = parameter_trees.identify(loaded.params)
    if layout not in _CONFIGS:
        known = " or ".join(parameter_trees.LAYOUTS[name][0] for name in _CONFIGS)
        raise UserError(
            f"{loaded.path} holds {parameter_trees.name(loaded.params)}; expected {known}."
        )
    config = _CONFIGS[layout](loaded, stage_1, overrides or {})
    config.data.workers = 0  # few images are read, or many by whoever sets data.workers
    return config


def _maskgit_tokenizer(loaded, stage_1, overrides):
    del stage_1
    known = maskgit.tokenizer_config(
        loaded.path,
        loaded.params,
        tuple(overrides.get("quantizer.levels", ())),
        overrides.get("model.num_groups", 32),
    )
    config = _with(maskgit_tokenizer.get_config("scale=paper"), known)
    config.loss.update(adversarial=0.0, perceptual=0.0)  # there is no discriminator in the file
    return config


def _maskgit_transformer(loaded, stage_1, overrides):
    del overrides
    facts = stage_1.facts
    known = maskgit.transformer_config(loaded.path, loaded.params, facts.codebook_size)
    config = _with(maskgit_transformer.get_config("scale=paper"), known)
    config.num_classes = known.num_classes
    config.data.size = round((known.num_positions - 1) ** 0.5) * facts.downsampling
    # MaskGIT's labels were never dropped in training, so that there is nothing to guide by.
    config.label_dropping = config.sampling.guidance = 0.0
    return _reading(config, stage_1)


def _uvim_base(loaded, stage_1, overrides):
    del stage_1
    known = uvim.base_config(
        loaded.path,
        loaded.params,
        loaded.model_state.get("codebook_state"),
        levels=tuple(overrides.get("quantizer.levels", ())),
    )
    config = _with(uvim_base.get_config(f"scale=paper,task={known.task.name}"), known)
    config.task = known.task
    return config


def _uvim_lm(loaded, stage_1, overrides):
    del overrides
    known = uvim.lm_config(loaded.path, loaded.params)
    config = _with(uvim_lm.get_config(f"scale=paper,task={stage_1.config.task.name}"), known)
    config.task = stage_1.config.task.to_dict()
    return _reading(config, stage_1)


_CONFIGS = {
    "maskgit_tokenizer": _maskgit_tokenizer,
    "maskgit_transformer": _maskgit_transformer,
    "uvim_base": _uvim_base,
    "uvim_lm": _uvim_lm,
}


def _with(config, known) -> ml_collections.ConfigDict:
    """A config with the sizes that are known from the arrays."""
    config.model.update(known.model.to_dict())
    if "quantizer" in known:
        config.quantizer = known.quantizer.to_dict()
    if "data" in known:
        config.data.size = known.data.size
    return config


def _reading(config, stage_1: Stage1) -> ml_collections.ConfigDict:
    """The config of a stage II that reads this stage I."""
    config.stage_1.update(
        workdir=stage_1.path,
        model=stage_1.config.model.to_dict(),
        quantizer=stage_1.config.quantizer.to_dict(),
    )
    return config
