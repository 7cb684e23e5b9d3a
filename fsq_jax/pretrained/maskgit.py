"""MaskGIT's checkpoints as the models that are trained here; every size is read from the shapes.

tok = load_maskgit_tokenizer("tokenizer_imagenet256_checkpoint")
mg = load_maskgit_transformer("maskgit_imagenet256_checkpoint")
indices_Bhw = tok.encode(images_BHWC);  images_BHWC = tok.decode(indices_Bhw)
logits_BLV = mg.logits(tokens_BL)

B batch  H W image height, width  h w token grid  L tokens, the class first  V vocabulary
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from fsq_jax import quantizers
from fsq_jax.formats import weights_file
from fsq_jax.models.maskgit_tokenizer import Tokenizer
from fsq_jax.models.maskgit_transformer import MaskedTransformer
from fsq_jax.pretrained import parameter_trees
from fsq_jax.runtime.user_error import UserError

PyTree = Any

# Rows of a vocabulary -> indices among them; the rest are 1000 classes and the mask token.
KNOWN_VOCABULARIES = {2025: 1024, 2001: 1000}


@dataclasses.dataclass(frozen=True)
class PretrainedTokenizer:
    """A stage I with its weights. The first call with a shape compiles."""

    model: Tokenizer
    variables: PyTree

    def encode(self, images_BHWC) -> jax.Array:
        """Codebook indices int32 [B,h,w] of images in [0, 1]."""
        return _encode(self.model, self.variables, images_BHWC)

    def decode(self, indices_Bhw) -> jax.Array:
        """Images float32 [B,H,W,3] of codebook indices; about [0, 1], not clipped."""
        return _decode(self.model, self.variables, indices_Bhw)


@dataclasses.dataclass(frozen=True)
class PretrainedTransformer:
    """A stage II with its weights. Class c is token `codebook_size` + c.

    Attributes:
      model: scores all rows of the vocabulary.
      variables: what `model.apply` takes.
      codebook_size: how many rows are the codebook's indices.
      num_classes: how many are classes; the mask is the last row.
    """

    model: MaskedTransformer
    variables: PyTree
    codebook_size: int
    num_classes: int

    def logits(self, tokens_BL) -> jax.Array:
        """Logits float32 [B,L,V] of tokens; the mask is V - 1, or -1 as MaskGIT writes it."""
        return _logits(self.model, self.variables, tokens_BL)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, images_BHWC):
    return model.apply(variables, images_BHWC, method="encode").indices


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, variables, indices_Bhw):
    return model.apply(variables, indices_Bhw, method="decode_indices")


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, variables, tokens_BL):
    tokens_BL = jnp.where(tokens_BL == -1, model.vocab_size - 1, tokens_BL)
    return model.apply(variables, tokens_BL)


def load_maskgit_tokenizer(
    path: str, levels: tuple[int, ...] = (), num_groups: int = 32
) -> PretrainedTokenizer:
    """The tokenizer of a MaskGIT checkpoint, or of one that `fsq_jax.export` wrote.

    Args:
      path: a flax msgpack file, {"params": {"encoder", "decoder", "quantizer"}}.
      levels: FSQ's, where the file has no codebook: the arrays tell only how many there are.
      num_groups: of the group norms, which the arrays do not tell; MaskGIT's are 32.

    Raises:
      UserError: the file can't be read, or holds something else.
    """
    params = weights_file.read(path)[0]["params"]
    config = tokenizer_config(path, params, levels, num_groups)
    return PretrainedTokenizer(_tokenizer(config), weights_file.on_device({"params": params}))


def load_maskgit_transformer(path: str, codebook_size: int = 0) -> PretrainedTransformer:
    """The masked transformer of a MaskGIT checkpoint.

    Args:
      path: a flax msgpack file, {"params": {"Embed_0", "TransformerLayer_...", "MlmLayer_0"}}.
      codebook_size: how many rows of the vocabulary are indices, which the arrays do not tell; 0
        where it is known: 1024 of MaskGIT's 2025 rows.

    Raises:
      UserError: the file can't be read, holds something else, or codebook_size must be given.
    """
    params = weights_file.read(path)[0]["params"]
    config = transformer_config(path, params, codebook_size)
    model = MaskedTransformer(
        vocab_size=config.codebook_size + config.num_classes + 1,
        num_positions=config.num_positions,
        **config.model,
    )
    parameter_trees.check_shapes(path, model, params, np.zeros((1, model.num_positions), np.int32))
    return PretrainedTransformer(
        model, weights_file.on_device({"params": params}), config.codebook_size, config.num_classes
    )


def _tokenizer(config) -> Tokenizer:
    """The autoencoder of `config.model` and `config.quantizer`."""
    return Tokenizer(quantizer=quantizers.make(**config.quantizer), **config.model)


@parameter_trees.named_arrays
def tokenizer_config(
    path: str, params: Mapping, levels: tuple[int, ...] = (), num_groups: int = 32
) -> ml_collections.ConfigDict:
    """The stage, model and quantizer of a tokenizer's config, from the shapes of its parameters.

    Arguments and errors are those of `load_maskgit_tokenizer`.
    """
    parameter_trees.expect(path, params, "maskgit_tokenizer")
    config = ml_collections.ConfigDict(
        {
            "stage": "maskgit_tokenizer",
            "model": _tokenizer_sizes(path, params) | {"num_groups": num_groups},
            "quantizer": {"name": "fsq", "levels": tuple(levels)},
        }
    )
    channels = np.shape(params["encoder"]["Conv_1"]["kernel"])[-1]
    if "quantizer" in params:
        if levels:
            raise UserError(f"{path} has a codebook, but {levels=} are for FSQ.")
        codebook_size = np.shape(params["quantizer"]["codebook"])[0]
        config.quantizer = {"name": "vq", "codebook_size": codebook_size, "channels": channels}
    elif len(levels) != channels:
        raise UserError(
            f"{path} has no codebook, so that it is of FSQ: give its {channels} levels, which the "
            f"arrays do not tell (given: {tuple(levels) or 'none'}); a safetensors export does, "
            "and is what quantizers without levels or codebook need."
        )
    model = _tokenizer(config)
    image = np.zeros((1, model.downsampling, model.downsampling, 3), np.float32)
    parameter_trees.check_shapes(path, model, params, image)
    return config


def _tokenizer_sizes(path: str, params: Mapping) -> dict[str, Any]:
    encoder, decoder = params["encoder"], params["decoder"]
    shape = lambda tree, name: np.shape(tree[name]["kernel"])  # noqa: E731
    filters = shape(encoder, "Conv_0")[-1]
    # In the decoder: a convolution to begin with, one after each doubling, one to the pixels.
    num_levels = sum(name.startswith("Conv_") for name in decoder) - 1
    blocks = sum(name.startswith("ResBlock_") for name in encoder)
    if num_levels < 1 or blocks % (num_levels + 1):
        raise UserError(f"{path}: {blocks} blocks do not make {num_levels} levels and a middle.")
    widths = [shape(decoder, f"Conv_{num_levels}")[2]]
    widths += [shape(decoder, f"Conv_{num_levels - i}")[-1] for i in range(1, num_levels)]
    if num_levels > 1 and not blocks:
        widths[0] = filters  # nothing is as wide as the first level then
    if any(width % filters for width in widths):
        raise UserError(f"{path}: the levels' {widths=} are no multiples of {filters=}.")
    return {
        "filters": filters,
        "channel_multipliers": tuple(width // filters for width in widths),
        "num_res_blocks": blocks // (num_levels + 1),
        "shortcut": _shortcut(encoder, decoder),
        "remat": False,
        "dtype": "float32",
    }


def _shortcut(*networks: Mapping) -> str:
    """What the first block that changes the width reads in its shortcut, by the kernel's shape."""
    for network in networks:
        for name, block in network.items():
            if name.startswith("ResBlock_") and "Conv_2" in block:
                channels = np.shape(block["Conv_0"]["kernel"])[2]
                kernel_in = np.shape(block["Conv_2"]["kernel"])[2]
                return "input" if kernel_in == channels else "output"
    return "output"  # all widths are alike, and there is no such block


@parameter_trees.named_arrays
def transformer_config(
    path: str, params: Mapping, codebook_size: int = 0
) -> ml_collections.ConfigDict:
    """The stage, model and numbers of a transformer's config, from the shapes of its parameters.

    Beside what a run's config has there are `num_positions` and `codebook_size`. Arguments and
    errors are those of `load_maskgit_transformer`.
    """
    parameter_trees.expect(path, params, "maskgit_transformer")
    rows, width = np.shape(params["Embed_0"]["word_embeddings"]["embedding"])
    num_positions = np.shape(params["Embed_0"]["position_embeddings"]["embedding"])[0]
    layer = params["TransformerLayer_0"]
    codebook_size = codebook_size or KNOWN_VOCABULARIES.get(rows, 0)
    if not codebook_size:
        raise UserError(
            f"{path} has a vocabulary of {rows} rows, indices + classes + 1, and the arrays do not "
            "tell indices from classes: give codebook_size, or the tokenizer that it goes with."
        )
    if not 0 < codebook_size < rows - 1:
        raise UserError(f"{path}: {codebook_size=} leaves no class of {rows} rows and the mask.")
    if math.isqrt(num_positions - 1) ** 2 != num_positions - 1:
        raise UserError(
            f"{path}: {num_positions} positions are not a class and a square of tokens."
        )
    return ml_collections.ConfigDict(
        {
            "stage": "maskgit_transformer",
            "model": {
                "width": width,
                "depth": sum(name.startswith("TransformerLayer_") for name in params),
                "num_heads": np.shape(layer["Attention_0"]["self_attention"]["query"]["kernel"])[1],
                "mlp_dim": np.shape(layer["Mlp_0"]["intermediate_output"]["kernel"])[1],
                "dtype": "float32",
            },
            "num_positions": num_positions,
            "codebook_size": codebook_size,
            "num_classes": rows - 1 - codebook_size,
        }
    )
