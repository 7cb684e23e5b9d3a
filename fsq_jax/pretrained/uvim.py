"""UViM's checkpoints as the models that are trained here; every size is read from the shapes.

    base = load_uvim_base("depth_stageI_params.npz")
    lm = load_uvim_lm("depth_stageII_params.npz")
    codes_BN = base.encode({"depth": bins_BPX}, image_BHWC);  logits = base.decode(codes_BN, image)
    logits_BNV = lm.logits(image_BHWC, codes_BN);  codes_BN = lm.decode(image_BHWC)

Images are in [-1, 1] and of the size that the positions in the file are for.

    B batch  H W pixels  P patches  X pixels of a patch  C channels  N codes  V vocabulary
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax import quantizers
from fsq_jax.formats import weights_file
from fsq_jax.models.uvim_base import LabelAutoencoder
from fsq_jax.models.uvim_decode import decoding
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.pretrained import parameter_trees
from fsq_jax.sampling import autoregressive

PyTree = Any


@dataclasses.dataclass(frozen=True)
class PretrainedBase:
    """A stage I with its weights. The first call with a shape compiles."""

    model: LabelAutoencoder
    variables: PyTree

    def encode(self, labels: Mapping[str, jax.Array], image_BHWC) -> jax.Array:
        """Codes int32 [B, N] of labels: {kind: ids [B,P,X]}, colour's {"color": [B,P,3,X]}."""
        return _encode(self.model, self.variables, dict(labels), image_BHWC)

    def decode(self, codes_BN, image_BHWC) -> dict[str, jax.Array]:
        """Logits {kind: float32 [B,P,C,X]} of codes; NaN where a code is outside the codebook."""
        return _decode(self.model, self.variables, codes_BN, image_BHWC)


@dataclasses.dataclass(frozen=True)
class PretrainedLanguageModel:
    """A stage II with its weights. The first call with a shape compiles."""

    model: CodeLanguageModel
    variables: PyTree

    def logits(self, image_BHWC, codes_BN) -> jax.Array:
        """Logits float32 [B,N,V] of each token, given the true codes before it; code c is c + 1."""
        return _logits(self.model, self.variables, image_BHWC, codes_BN)

    def decode(
        self, image_BHWC, key=None, *, temperature: float = 0.0, allow_begin: bool = False
    ) -> jax.Array:
        """Codes int32 [B, N] that the model writes for images.

        temperature: 0 takes the likeliest; UViM does for depth and panoptic, and 1 for colour. It
            needs a `key` then. allow_begin: see `sampling.autoregressive.decode_codes`.
        """
        if temperature and key is None:
            raise ValueError(f"{temperature=} needs a key.")
        key = jax.random.key(0) if key is None else key
        return _write(self.model, temperature, allow_begin, self.variables, image_BHWC, key)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, labels, image_BHWC):
    return model.apply(variables, labels, image_BHWC, method="encode").indices


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, variables, codes_BN, image_BHWC):
    return model.apply(variables, codes_BN, image_BHWC, method="decode_indices")


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, variables, image_BHWC, codes_BN):
    return model.apply(variables, image_BHWC, codes_BN)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _write(model, temperature, allow_begin, variables, image_BHWC, key):
    return autoregressive.decode_codes(
        *decoding(model, variables["params"], image_BHWC),
        key,
        num_codes=model.num_codes,
        batch=image_BHWC.shape[0],
        temperature=temperature,
        allow_begin=allow_begin,
    )


def load_uvim_base(
    path: str, *, code_side: int = 0, levels: tuple[int, ...] = ()
) -> PretrainedBase:
    """The label autoencoder of a UViM checkpoint, or of one that `fsq_jax.export` wrote.

    Args:
      path: a .npz file of `params/...` and `state/{dictionary,counts}`.
      code_side: codes along a side of the image, which no array tells; 0 for half as many as
        patches, as in all of UViM's.
      levels: FSQ's, where the file has no dictionary: the arrays tell only how many there are.

    Raises:
      ValueError: the file can't be read, or holds something else; says what.
    """
    variables = weights_file.read(path)[0]
    params, state = variables["params"], variables.get("codebook_state")
    model = _base_model(path, params, state, code_side, levels)
    num_patches, image = _input(path, params, model.patch)
    shape = (1, num_patches, *((3,) if model.real else ()), model.patch**2)
    labels = dict.fromkeys(model.kinds, jnp.zeros(shape, jnp.int32))
    parameter_trees.check_shapes(path, model, params, labels, image)
    return PretrainedBase(model, _on_device(variables))


def load_uvim_lm(path: str) -> PretrainedLanguageModel:
    """The language model of a UViM checkpoint, a .npz file of its parameters.

    Raises:
      ValueError: the file can't be read, or holds something else; says what.
    """
    params = weights_file.read(path)[0]["params"]
    model = _lm_model(path, params)
    _, image = _input(path, params, model.patch)
    codes = jnp.zeros((1, model.num_codes), jnp.int32)
    parameter_trees.check_shapes(path, model, params, image, codes)
    return PretrainedLanguageModel(model, _on_device({"params": params}))


@parameter_trees.named_arrays
def _base_model(path, params, state, code_side, levels) -> LabelAutoencoder:
    parameter_trees.expect(path, params, "uvim_base")
    if "bottleneck_downsample" in params:
        raise ValueError(
            f"{path} maps patches to codes by a learned matrix; expected a model that resizes "
            "(bottleneck_resize), as the published ones do."
        )
    heads = {
        name.removeprefix("head_"): np.shape(head["kernel"])
        for name, head in params.items() if name.startswith("head_")
    }
    kinds = {kind: shape[1] for kind, shape in heads.items()}
    pixels = {shape[2] for shape in heads.values()}
    if len(pixels) != 1:
        raise ValueError(f"{path} has heads {sorted(kinds)} for {sorted(pixels)} pixels a patch.")
    num_patches = np.shape(params["pos_embedding_encoder"])[1]
    return LabelAutoencoder(
        quantizer=_quantizer(path, params, state, levels),
        kinds=kinds,
        real=kinds == {"color": 3},  # three real channels; all others are classes
        patch=_square(path, "a head's patch", pixels.pop()),
        encoder_depth=_count(params["encoder"], "encoderblock_"),
        decoder_depth=_count(params["decoder"], "encoderblock_"),
        **_block_sizes(params["encoder"]),
        code_side=code_side or max(1, _square(path, "the image", num_patches) // 2),
        encoder_context="ctx_enc_embedding" in params,
        decoder_context="ctx_dec_embedding" in params,
    )


def _quantizer(path, params, state, levels):
    channels = np.shape(params["encoder_head"]["kernel"])[1]
    if state is None:
        if len(levels) != channels:
            raise ValueError(
                f"{path} has no state/dictionary, so that it is of FSQ: give its {channels} "
                f"levels, which the arrays do not tell (given: {tuple(levels) or 'none'})."
            )
        return quantizers.make("fsq", levels=levels)
    if levels:
        raise ValueError(f"{path} has a dictionary, but {levels=} are for FSQ.")
    dictionary, counts = (np.shape(state["quantizer"][name]) for name in ("dictionary", "counts"))
    if dictionary[1:] != (channels,) or counts != dictionary[:1]:
        raise ValueError(
            f"{path}: a dictionary of shape {dictionary} and counts of {counts} are not of codes "
            f"of {channels} channels."
        )
    return quantizers.make("vq_ema", codebook_size=dictionary[0], channels=channels)


@parameter_trees.named_arrays
def _lm_model(path, params) -> CodeLanguageModel:
    parameter_trees.expect(path, params, "uvim_lm")
    return CodeLanguageModel(
        vocab_size=np.shape(params["decoder"]["EmbedTargets"]["embedding"])[0],
        num_codes=np.shape(params["pos_embedding_decoder"])[1],
        patch=np.shape(params["EmbedPatches"]["kernel"])[0],
        encoder_depth=_count(params["encoder"], "encoderblock_"),
        decoder_depth=_count(params["decoder"], "EncDecBlock"),
        **_block_sizes(params["encoder"]),
    )


def _block_sizes(encoder: Mapping) -> dict[str, int]:
    block = encoder["encoderblock_0"]
    width, num_heads, _ = np.shape(
        block["MultiHeadDotProductAttention_0"]["query"]["kernel"]
    )
    mlp_dim = np.shape(block["MlpBlock_0"]["Dense_0"]["kernel"])[1]
    return {"width": width, "num_heads": num_heads, "mlp_dim": mlp_dim}


def _input(path, params, patch) -> tuple[int, jax.Array]:
    """(patches, an image of so many) that the positions are for; images are square."""
    num_patches = np.shape(params["pos_embedding_encoder"])[1]
    side = patch * _square(path, "the image", num_patches)
    return num_patches, jnp.zeros((1, side, side, 3))


def _square(path, what: str, number: int) -> int:
    side = math.isqrt(number)
    if side * side != number:
        raise ValueError(f"{path}: {what} has {number} parts, which make no square.")
    return side


def _count(tree: Mapping, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in tree)


def _on_device(variables: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
