"""UViM's checkpoints as the models that are trained here; every size is read from the shapes.

    base = load_uvim_base("depth_stageI_params.npz")
    lm = load_uvim_lm("depth_stageII_params.npz")
    indices_BN = base.encode({"depth": bins_BPX}, image_BHWC)
    logits = base.decode(indices_BN, image_BHWC)
    logits_BNV = lm.logits(image_BHWC, indices_BN)
    indices_BN = lm.decode(image_BHWC)

Images are in [-1, 1] and of the size that the positions in the file are for.

    B batch  H W pixels  P patches  X pixels of a patch  C channels  N tokens  V vocabulary
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from fsq_jax import quantizers, tasks
from fsq_jax.formats import weights_file
from fsq_jax.models.uvim_base import LabelAutoencoder
from fsq_jax.models.uvim_decode import decoding
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.pretrained import parameter_trees
from fsq_jax.runtime.user_error import UserError
from fsq_jax.sampling import autoregressive

PyTree = Any


@dataclasses.dataclass(frozen=True)
class PretrainedBase:
    """A stage I with its weights. The first call with a shape compiles."""

    model: LabelAutoencoder
    variables: PyTree

    def encode(self, labels: Mapping[str, jax.Array], image_BHWC) -> jax.Array:
        """Indices int32 [B, N] of labels: {kind: ids [B,P,X]}, colour's {"color": [B,P,3,X]}."""
        return _encode(self.model, self.variables, dict(labels), image_BHWC)

    def decode(self, indices_BN, image_BHWC) -> dict[str, jax.Array]:
        """Logits {kind: float32 [B,P,C,X]} of indices; NaN outside the codebook."""
        return _decode(self.model, self.variables, indices_BN, image_BHWC)


@dataclasses.dataclass(frozen=True)
class PretrainedLanguageModel:
    """A stage II with its weights. The first call with a shape compiles."""

    model: CodeLanguageModel
    variables: PyTree

    def logits(self, image_BHWC, indices_BN) -> jax.Array:
        """Logits float32 [B,N,V] of each token, given the true indices before it; index i is
        token i + 1."""
        return _logits(self.model, self.variables, image_BHWC, indices_BN)

    def decode(
        self, image_BHWC, key=None, *, temperature: float = 0.0, allow_begin: bool = False
    ) -> jax.Array:
        """Indices int32 [B, N] that the model writes for images.

        temperature: 0 takes the likeliest; UViM does for depth and panoptic, and 1 for colour. It
            needs a `key` then. allow_begin: see `sampling.autoregressive.sample_indices`.
        """
        if temperature and key is None:
            raise UserError(f"{temperature=} needs a key.")
        key = jax.random.key(0) if key is None else key
        return _write(self.model, temperature, allow_begin, self.variables, image_BHWC, key)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, labels, image_BHWC):
    return model.apply(variables, labels, image_BHWC, method="encode").indices


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, variables, indices_BN, image_BHWC):
    return model.apply(variables, indices_BN, image_BHWC, method="decode_indices")


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, variables, image_BHWC, indices_BN):
    return model.apply(variables, image_BHWC, indices_BN)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _write(model, temperature, allow_begin, variables, image_BHWC, key):
    return autoregressive.sample_indices(
        *decoding(model, variables["params"], image_BHWC),
        key,
        num_tokens=model.num_tokens,
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
      UserError: the file can't be read, or holds something else; says what.
    """
    variables = weights_file.read(path)[0]
    params, state = variables["params"], variables.get("codebook_state")
    config = base_config(path, params, state, code_side, levels)
    return PretrainedBase(_base_model(config), weights_file.on_device(variables))


def load_uvim_lm(path: str) -> PretrainedLanguageModel:
    """The language model of a UViM checkpoint, a .npz file of its parameters.

    Raises:
      UserError: the file can't be read, or holds something else; says what.
    """
    params = weights_file.read(path)[0]["params"]
    config = lm_config(path, params)
    return PretrainedLanguageModel(_lm_model(config), weights_file.on_device({"params": params}))


@parameter_trees.named_arrays
def base_config(
    path: str,
    params: Mapping,
    state: Mapping | None = None,
    code_side: int = 0,
    levels: tuple[int, ...] = (),
) -> ml_collections.ConfigDict:
    """The stage, task, model, quantizer and image size of a label autoencoder's config.

    Args:
      path: for messages.
      params, state: its arrays; state of a VQ, {"quantizer": {"dictionary", "counts"}}.
      code_side, levels: as for `load_uvim_base`.

    Raises:
      UserError: the arrays are of another network, or don't add up.
    """
    parameter_trees.expect(path, params, "uvim_base")
    if "bottleneck_downsample" in params:
        raise UserError(
            f"{path} maps patches to tokens by a learned matrix; expected a model that resizes "
            "(bottleneck_resize), as the published ones do."
        )
    kinds, patch = _kinds_and_patch(path, params)
    num_patches = np.shape(params["pos_embedding_encoder"])[1]
    side = _square(path, "the image", num_patches)
    config = ml_collections.ConfigDict(
        {
            "stage": "uvim_base",
            "task": _task(path, kinds),
            "model": {
                "patch": patch,
                "encoder_depth": _count(params["encoder"], "encoderblock_"),
                "decoder_depth": _count(params["decoder"], "encoderblock_"),
                **_block_sizes(params["encoder"]),
                "code_side": code_side or max(1, side // 2),
                "encoder_context": "ctx_enc_embedding" in params,
                "decoder_context": "ctx_dec_embedding" in params,
            },
            "quantizer": _quantizer(path, params, state, levels),
            "data": {"size": side * patch},
        }
    )
    model = _base_model(config)
    shape = (1, num_patches, *((3,) if model.real else ()), patch**2)
    labels = dict.fromkeys(model.kinds, np.zeros(shape, np.int32))
    parameter_trees.check_shapes(path, model, params, labels, _image(config))
    return config


@parameter_trees.named_arrays
def lm_config(path: str, params: Mapping) -> ml_collections.ConfigDict:
    """The stage, model and image size of a language model's config, and the sizes of its tokens.

    Beside what a run's config has there are `vocab_size` and `num_tokens`. Errors as `base_config`.
    """
    parameter_trees.expect(path, params, "uvim_lm")
    patch = np.shape(params["EmbedPatches"]["kernel"])[0]
    num_patches = np.shape(params["pos_embedding_encoder"])[1]
    config = ml_collections.ConfigDict(
        {
            "stage": "uvim_lm",
            "model": {
                "patch": patch,
                "encoder_depth": _count(params["encoder"], "encoderblock_"),
                "decoder_depth": _count(params["decoder"], "EncDecBlock"),
                **_block_sizes(params["encoder"]),
            },
            "vocab_size": np.shape(params["decoder"]["EmbedTargets"]["embedding"])[0],
            "num_tokens": np.shape(params["pos_embedding_decoder"])[1],
            "data": {"size": patch * _square(path, "the image", num_patches)},
        }
    )
    indices = np.zeros((1, config.num_tokens), np.int32)
    parameter_trees.check_shapes(path, _lm_model(config), params, _image(config), indices)
    return config


def _base_model(config) -> LabelAutoencoder:
    task = tasks.make(**config.task)
    quantizer = quantizers.make(**config.quantizer)
    return LabelAutoencoder(quantizer, task.kinds, task.real, **config.model)


def _lm_model(config) -> CodeLanguageModel:
    return CodeLanguageModel(config.vocab_size, config.num_tokens, **config.model)


def _image(config) -> np.ndarray:
    return np.zeros((1, config.data.size, config.data.size, 3), np.float32)


def _kinds_and_patch(path, params) -> tuple[dict[str, int], int]:
    """({label kind: channels}, pixels along the side of a patch), from the heads."""
    heads = {
        name.removeprefix("head_"): np.shape(head["kernel"])
        for name, head in params.items()
        if name.startswith("head_")
    }
    pixels = {shape[2] for shape in heads.values()}
    if len(pixels) != 1:
        raise UserError(f"{path} has heads {sorted(heads)} for {sorted(pixels)} pixels per patch.")
    patch = _square(path, "a head's patch", pixels.pop())
    return {kind: shape[1] for kind, shape in heads.items()}, patch


def _task(path: str, kinds: Mapping[str, int]) -> dict:
    """The task whose labels are of these kinds."""
    if set(kinds) == {"depth"}:
        return {"name": "depth", "num_bins": kinds["depth"], "min_depth": 0.001, "max_depth": 10.0}
    if kinds == {"color": 3}:
        return {"name": "colorization"}
    if set(kinds) == {"semantics", "instances"}:
        return {
            "name": "panoptic",
            "num_semantics": kinds["semantics"],
            "num_instances": kinds["instances"],
            "min_fraction": 0.0,
        }
    raise UserError(f"{path} encodes labels {sorted(kinds)}, which no task here has.")


def _quantizer(path, params, state, levels) -> dict:
    channels = np.shape(params["encoder_head"]["kernel"])[1]
    if state is None:
        if len(levels) != channels:
            raise UserError(
                f"{path} has no state/dictionary, so that it is of FSQ (a safetensors file tells): "
                f"give its {channels} levels, which arrays don't (got: {tuple(levels) or 'none'})."
            )
        return {"name": "fsq", "levels": tuple(levels)}
    if levels:
        raise UserError(f"{path} has a dictionary, but {levels=} are for FSQ.")
    dictionary, counts = (np.shape(state["quantizer"][name]) for name in ("dictionary", "counts"))
    if dictionary[1:] != (channels,) or counts != dictionary[:1]:
        raise UserError(
            f"{path}: a dictionary of shape {dictionary} and counts of {counts} are not of codes "
            f"of {channels} channels."
        )
    return {"name": "vq_ema", "codebook_size": dictionary[0], "channels": channels}


def _block_sizes(encoder: Mapping) -> dict[str, int]:
    block = encoder["encoderblock_0"]
    width, num_heads, _ = np.shape(block["MultiHeadDotProductAttention_0"]["query"]["kernel"])
    mlp_dim = np.shape(block["MlpBlock_0"]["Dense_0"]["kernel"])[1]
    return {"width": width, "num_heads": num_heads, "mlp_dim": mlp_dim}


def _square(path, what: str, number: int) -> int:
    side = math.isqrt(number)
    if side * side != number:
        raise UserError(f"{path}: {what} has {number} parts, which make no square.")
    return side


def _count(tree: Mapping, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in tree)
