"""What a published stage I is, as the part of a run's config that makes its model."""

import math
from collections.abc import Mapping

import ml_collections

from fsq_jax.pretrained import maskgit, parameter_trees, uvim
from fsq_jax.pretrained.weights import Weights
from fsq_jax.runtime.user_error import UserError

STAGES = ("maskgit_tokenizer", "uvim_base")
_SIZES = ("patch", "width", "encoder_depth", "decoder_depth", "num_heads", "mlp_dim")


def stage_1_config(loaded: Weights, overrides: Mapping | None = None) -> ml_collections.ConfigDict:
    """The config of a stage I's weights: their run's, or what is read from a published file.

    Args:
      loaded: the weights.
      overrides: {dotted key: value}; of these "quantizer.levels" and "model.num_groups" are read,
        which no array tells.

    Raises:
      UserError: the file is of no stage I.
    """
    if loaded.config is not None:
        return loaded.config
    overrides = overrides or {}
    layout = parameter_trees.identify(loaded.params)
    levels = tuple(overrides.get("quantizer.levels", ()))
    if layout == "uvim_base":
        return _uvim_base(loaded.path, levels)
    if layout == "maskgit_tokenizer":
        groups = overrides.get("model.num_groups", 32)
        return maskgit.tokenizer_config(loaded.path, loaded.params, levels, groups)
    known = " or ".join(parameter_trees.LAYOUTS[name][0] for name in STAGES)
    raise UserError(f"{loaded.path} holds {parameter_trees.name(loaded.params)}; expected {known}.")


def uvim_lm_config(path: str) -> ml_collections.ConfigDict:
    """The stage, model and image size of a published language model's config."""
    loaded = uvim.load_uvim_lm(path)
    model = loaded.model
    return ml_collections.ConfigDict({
        "stage": "uvim_lm",
        "model": {name: getattr(model, name) for name in _SIZES} | {"dtype": "float32"},
        "data": {"size": _image_size(loaded)},
    })


def _image_size(loaded) -> int:
    """Pixels along the side of the images that a network's positions are for."""
    patches = loaded.variables["params"]["pos_embedding_encoder"].shape[1]
    return math.isqrt(patches) * loaded.model.patch


def _uvim_base(path: str, levels: tuple[int, ...]) -> ml_collections.ConfigDict:
    loaded = uvim.load_uvim_base(path, levels=levels)
    model = loaded.model
    quantizer = {"name": "fsq", "levels": levels}
    if not levels:
        words = model.quantizer
        quantizer = {
            "name": "vq_ema", "codebook_size": words.codebook_size, "channels": words.channels
        }
    sizes = (*_SIZES, "code_side", "encoder_context", "decoder_context")
    return ml_collections.ConfigDict({
        "stage": "uvim_base",
        "task": _task(path, model.kinds),
        "model": {name: getattr(model, name) for name in sizes} | {"dtype": "float32"},
        "quantizer": quantizer,
        "data": {"size": _image_size(loaded)},
    })


def _task(path: str, kinds: Mapping[str, int]) -> dict:
    """The task whose labels are of these kinds."""
    if set(kinds) == {"depth"}:
        return {"name": "depth", "num_bins": kinds["depth"], "min_depth": 0.001, "max_depth": 10.0}
    if set(kinds) == {"color"}:
        return {"name": "colorization"}
    if set(kinds) == {"semantics", "instances"}:
        return {
            "name": "panoptic", "num_semantics": kinds["semantics"],
            "num_instances": kinds["instances"], "min_fraction": 0.0,
        }
    raise UserError(f"{path} codes labels {sorted(kinds)}, which no task here has.")
