"""A trained stage I, as stage II uses it: images to tokens and tokens to images, never trained."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from fsq_jax.models.tokenizer import Tokenizer
from fsq_jax.pretrained import maskgit, weights
from fsq_jax.stages import tokenizer as tokenizer_stage

PyTree = Any


@dataclasses.dataclass(frozen=True)
class FrozenTokenizer:
    """A tokenizer and its weights (moving averages), on the host.

    Attributes:
      model: the autoencoder.
      variables: what `model.apply` takes; to be passed to compiled functions as an argument.
      fingerprint: tells these weights from any others; token caches carry it.
      step: the checkpoint that they come from.
      config: the config of the run that they come from.
    """

    model: Tokenizer
    variables: PyTree
    fingerprint: str
    step: int
    config: ml_collections.ConfigDict


def load(path: str, step: int | None = None) -> FrozenTokenizer:
    """The tokenizer that a run trained, or that a file holds.

    Args:
      path: a run's workdir, a safetensors export, or a MaskGIT checkpoint.
      step: which of a run's checkpoints; the latest by default.

    Raises:
      ValueError: there is no tokenizer.
    """
    loaded = weights.load(path, step)
    config = loaded.config or maskgit.tokenizer_config(path, loaded.params)
    if config.stage != "tokenizer":
        raise ValueError(
            f"{path!r} is a run of stage {config.stage!r}; a run of stage 'tokenizer' is needed."
        )
    return FrozenTokenizer(
        tokenizer_stage.make_model(config), loaded.variables, loaded.fingerprint, loaded.step,
        config,
    )


def encode(model: Tokenizer, variables: PyTree, images_BHWC: jax.Array) -> jax.Array:
    """Tokens [B, h*w] int32 in raster order, of images in [0, 1]."""
    indices = model.apply(variables, images_BHWC, method="encode").indices
    return indices.reshape(indices.shape[0], -1)


def decode(model: Tokenizer, variables: PyTree, tokens_BL: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] in [0, 1], of tokens of a square grid in raster order."""
    side = round(tokens_BL.shape[1] ** 0.5)
    indices = tokens_BL.reshape(-1, side, side)
    return jnp.clip(model.apply(variables, indices, method="decode_indices"), 0, 1)
