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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax import quantizers
from fsq_jax.models.uvim_base import LabelAutoencoder
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.pretrained import npz_tree
from fsq_jax.sampling import autoregressive

PyTree = Any
_BASE = "a UViM stage I"
_LM = "a UViM stage II"


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
        functools.partial(model.apply, variables, method="step"),
        model.apply(variables, image_BHWC, method="start"),
        key,
        num_codes=model.num_codes,
        batch=image_BHWC.shape[0],
        temperature=temperature,
        allow_begin=allow_begin,
    )


def load_uvim_base(
    path: str | Path, *, code_side: int = 0, levels: tuple[int, ...] = ()
) -> PretrainedBase:
    """The label autoencoder of a UViM checkpoint.

    Args:
      path: a .npz file of `params/...` and `state/{dictionary,counts}`.
      code_side: codes along a side of the image, which no array tells; 0 for half as many as
        patches, as in all of UViM's.
      levels: FSQ's, where the file has no dictionary: the arrays tell only how many there are.

    Raises:
      ValueError: the file can't be read, or holds something else; says what.
    """
    tree = npz_tree.read(path)
    model = _base_model(path, tree, code_side, levels)
    variables = {"params": tree["params"]}
    if not levels:
        variables["codebook_state"] = {"quantizer": _state(tree)}
    num_patches = tree["params"]["pos_embedding_encoder"].shape[1]
    side = npz_tree.square(path, "pos_embedding_encoder", num_patches) * model.patch
    label_shapes = {
        kind: (1, num_patches, *((channels,) if model.real else ()), model.patch**2)
        for kind, channels in model.kinds.items()
    }
    labels = {
        kind: jnp.zeros(shape, jnp.float32 if model.real else jnp.int32)
        for kind, shape in label_shapes.items()
    }
    init = functools.partial(jax.eval_shape, model.init, jax.random.key(0))
    npz_tree.check_shapes(path, _BASE, variables, init(labels, jnp.zeros((1, side, side, 3))))
    return PretrainedBase(model, jax.tree.map(jnp.asarray, variables))


def load_uvim_lm(path: str | Path) -> PretrainedLanguageModel:
    """The language model of a UViM checkpoint, a .npz file of its parameters.

    Raises:
      ValueError: the file can't be read, or holds something else; says what.
    """
    variables = {"params": npz_tree.read(path)["params"]}
    model = _lm_model(path, variables["params"])
    num_patches = variables["params"]["pos_embedding_encoder"].shape[1]
    side = npz_tree.square(path, "pos_embedding_encoder", num_patches) * model.patch
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, side, side, 3)),
        jnp.zeros((1, model.num_codes), jnp.int32),
    )
    npz_tree.check_shapes(path, _LM, variables, shapes)
    return PretrainedLanguageModel(model, jax.tree.map(jnp.asarray, variables))


def _state(tree: Mapping) -> PyTree:
    state = tree["codebook_state"]
    return state.get("quantizer", state)  # ours names the module, UViM's does not


def _named(function):
    """Makes a missing name, or an array of another rank, a sentence about the file."""

    @functools.wraps(function)
    def wrapped(path, *arguments):
        try:
            return function(path, *arguments)
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}, which this network has.") from None
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(f"{path} holds other arrays than this network ({error}).") from None

    return wrapped


@_named
def _base_model(path, tree, code_side, levels) -> LabelAutoencoder:
    params = tree["params"]
    npz_tree.expect(path, _BASE, {"encoder_head", "decoder_stem"}, params)
    if "bottleneck_downsample" in params:
        raise ValueError(
            f"{path} maps patches to codes by a learned matrix; expected {_BASE} that resizes "
            "(bottleneck_resize), as the published ones do."
        )
    heads = {k.removeprefix("head_"): v for k, v in params.items() if k.startswith("head_")}
    kinds = {kind: head["kernel"].shape[1] for kind, head in heads.items()}
    pixels = {head["kernel"].shape[2] for head in heads.values()}
    if not kinds or len(pixels) > 1:
        raise ValueError(f"{path} has heads {sorted(kinds)} for {sorted(pixels)} pixels a patch.")
    side = npz_tree.square(
        path, "pos_embedding_encoder", params["pos_embedding_encoder"].shape[1]
    )
    return LabelAutoencoder(
        quantizer=_quantizer(path, tree, levels),
        kinds=kinds,
        real=kinds == {"color": 3},  # three real channels; all others are classes
        patch=npz_tree.square(path, "a head", pixels.pop()),
        encoder_depth=_count(params["encoder"], "encoderblock_"),
        decoder_depth=_count(params["decoder"], "encoderblock_"),
        **_block_sizes(params["encoder"]),
        code_side=code_side or max(1, side // 2),
        encoder_context="ctx_enc_embedding" in params,
        decoder_context="ctx_dec_embedding" in params,
    )


def _quantizer(path, tree, levels):
    channels = tree["params"]["encoder_head"]["kernel"].shape[1]
    if "codebook_state" in tree:
        if levels:
            raise ValueError(f"{path} has a dictionary, but {levels=} are for FSQ.")
        size = _state(tree)["dictionary"].shape[0]
        return quantizers.make("vq_ema", codebook_size=size, channels=channels)
    if len(levels) != channels:
        raise ValueError(
            f"{path} has no state/dictionary, so that it is of FSQ: give its {channels} levels, "
            f"which the arrays do not tell (given: {tuple(levels) or 'none'})."
        )
    return quantizers.make("fsq", levels=levels)


@_named
def _lm_model(path, params) -> CodeLanguageModel:
    npz_tree.expect(path, _LM, {"EmbedPatches", "decoder", "pos_embedding_decoder"}, params)
    return CodeLanguageModel(
        vocab_size=params["decoder"]["EmbedTargets"]["embedding"].shape[0],
        num_codes=params["pos_embedding_decoder"].shape[1],
        patch=params["EmbedPatches"]["kernel"].shape[0],
        encoder_depth=_count(params["encoder"], "encoderblock_"),
        decoder_depth=_count(params["decoder"], "EncDecBlock"),
        **_block_sizes(params["encoder"]),
    )


def _block_sizes(encoder: Mapping) -> dict[str, int]:
    block = encoder["encoderblock_0"]
    query = block["MultiHeadDotProductAttention_0"]["query"]["kernel"]
    return {
        "width": np.shape(query)[0],
        "num_heads": np.shape(query)[1],
        "mlp_dim": block["MlpBlock_0"]["Dense_0"]["kernel"].shape[1],
    }


def _count(tree: Mapping, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in tree)
