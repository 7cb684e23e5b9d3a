"""Writing with UViM's stage II model: one token after the other, with a cache.

The decoder of `uvim_lm` once more, as plain functions of one token: its weights are rounded and
joined before the first token rather than at each, and on a GPU attention reads its caches in
kernels made for one query. A token costs little but reading weights and caches.

Shapes: B images  P patches  N tokens  V vocabulary  D width  H heads
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fsq_jax.models import attention as attention_lib
from fsq_jax.models.layers import gelu, layer_norm
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.models.vit import LN_EPSILON

Cache = dict[str, Any]


def decoding(model: CodeLanguageModel, params: Any, context_BHWC: jax.Array):
    """(step, cache before the first token), as `sampling.autoregressive` takes them.

    step: (cache, tokens_B, position) -> (float32 logits [B, V] of the token after `position`
    others, cache with one more). tokens_B: the token before it, 0 at position 0. Positions come in
    turn, from 0.
    """
    heads = (model.num_heads, model.width // model.num_heads)
    kernels = attention_lib.resolve("auto", model.dtype, heads[1], joined=True) == "fused"
    weights = _weights(params, model.decoder_depth, model.dtype)
    memory_BPD: Any = model.apply({"params": params}, context_BHWC, method="encode")
    batch = memory_BPD.shape[0]
    empty_B2HND = jnp.zeros((batch, 2, heads[0], model.num_tokens, heads[1]), model.dtype)
    image = [memory_BPD @ layer.pop("image") for layer in weights["layers"]]
    cache = {
        "own": [empty_B2HND for _ in weights["layers"]],
        # A head's keys side by side: they are read whole, at every token.
        "image": [
            x.reshape(*memory_BPD.shape[:2], 2, *heads).transpose(0, 2, 3, 1, 4) for x in image
        ],
    }
    product = _product
    if kernels and batch == 1 and _widths_fit(model.width, model.mlp_dim):
        product = _row_product
        weights["layers"] = jax.tree.map(  # matrices are read row by row there
            lambda x: x.T if x.ndim == 2 else x, weights["layers"]
        )
    return functools.partial(_step, weights, heads, kernels, product), cache


def _widths_fit(*widths):
    from fsq_jax.models import decode_kernels  # imports Triton, which is not everywhere

    return all(decode_kernels.takes(inputs, outputs) for inputs in widths for outputs in widths)


def _weights(params, depth: int, dtype) -> dict[str, Any]:
    """The decoder's, those of products as matrices of `dtype`; what is read together is joined."""
    params = jax.tree.map(jnp.asarray, params)
    decoder = params["decoder"]

    def out(attention):
        kernel = attention["out"]["kernel"].astype(dtype)
        return kernel.reshape(-1, kernel.shape[-1])

    def norm(module):
        return module["scale"], module["bias"]

    def joined(attention, *names):
        kernels = [attention[name]["kernel"].astype(dtype) for name in names]
        return jnp.concatenate([x.reshape(x.shape[0], -1) for x in kernels], axis=1)

    def dense(module):
        return module["kernel"].astype(dtype), module["bias"].astype(dtype)

    def layer(block):
        mlp = block["MLP"]
        return {
            "norms": [norm(block[f"LayerNorm{i}"]) for i in (1, 2, 3)],
            "own": joined(block["SelfAttn"], "query", "key", "value"),
            "own_out": out(block["SelfAttn"]),
            "query": joined(block["CrossAttn"], "query"),
            "image": joined(block["CrossAttn"], "key", "value"),
            "image_out": out(block["CrossAttn"]),
            "mlp": [dense(mlp[f"Dense_{i}"]) for i in (0, 1)],
        }

    logits = decoder["LogitsDense"]
    return {
        "words": decoder["EmbedTargets"]["embedding"].astype(dtype),
        "positions": params["pos_embedding_decoder"][0].astype(dtype),
        "layers": [layer(decoder[f"EncDecBlock{i}"]) for i in range(depth)],
        "norm": norm(decoder["LayerNorm"]),
        "logits": (logits["kernel"].astype(dtype), logits["bias"]),
    }


def _step(weights, heads, kernels, product, cache: Cache, tokens_B, position):
    batch = tokens_B.shape[0]
    x_BD = weights["words"][tokens_B] + weights["positions"][position]
    own = []
    for layer, past, image in zip(weights["layers"], cache["own"], cache["image"], strict=True):
        norm_1, norm_2, norm_3 = layer["norms"]
        qkv_B3HD = product(x_BD, layer["own"], norm=norm_1).reshape(batch, 3, *heads)
        read_BHD, now = _append_and_read(qkv_B3HD, past, position, kernels)
        x_BD = product(read_BHD.reshape(batch, -1), layer["own_out"], residual=x_BD)
        query_BHD = product(x_BD, layer["query"], norm=norm_2).reshape(batch, *heads)
        read_BHD = _read(query_BHD, image, kernels)
        x_BD = product(read_BHD.reshape(batch, -1), layer["image_out"], residual=x_BD)
        hidden_BF = product(x_BD, *layer["mlp"][0], norm=norm_3, activate=True)
        x_BD = product(hidden_BF, *layer["mlp"][1], residual=x_BD)
        own.append(now)
    kernel, bias = weights["logits"]
    x_BD: Any = layer_norm(x_BD, *weights["norm"], LN_EPSILON)
    logits_BV = jnp.matmul(x_BD, kernel, preferred_element_type=jnp.float32) + bias
    return logits_BV, cache | {"own": own}


def _product(x, matrix, bias=None, *, norm=None, activate=False, residual=None):
    """gelu(layer_norm(x) @ matrix + bias) + residual; what is not given is left out."""
    out = (x if norm is None else layer_norm(x, *norm, LN_EPSILON)) @ matrix
    if bias is not None:
        out += bias
    if activate:
        out = gelu(out)
    return out if residual is None else residual + out


def _row_product(x_1D, transposed, bias=None, *, norm=None, activate=False, residual=None):
    from fsq_jax.models import decode_kernels

    return decode_kernels.row_product(
        x_1D, transposed, bias, norm=norm, epsilon=LN_EPSILON, gelu=activate, residual_1O=residual
    )


def _append_and_read(qkv_B3HD, cache_B2HND, position, kernels):
    """(what the token at `position` reads of itself and those before, the cache with it)."""
    if kernels:
        from fsq_jax.models import decode_kernels

        return decode_kernels.append_and_read(qkv_B3HD, cache_B2HND, position)
    cache_B2HND = jax.lax.dynamic_update_slice_in_dim(
        cache_B2HND, qkv_B3HD[:, 1:, :, None], position, axis=3
    )
    keys_BNHD, values_BNHD = (cache_B2HND[:, i].swapaxes(1, 2) for i in (0, 1))
    read_B1HD = attention_lib.attention(
        qkv_B3HD[:, :1], keys_BNHD, values_BNHD, length=position + 1
    )
    return read_B1HD[:, 0], cache_B2HND


def _read(query_BHD, cache_B2HPD, kernels):
    if kernels:
        from fsq_jax.models import decode_kernels

        return decode_kernels.read(query_BHD, cache_B2HPD)
    keys_BPHD, values_BPHD = (cache_B2HPD[:, i].swapaxes(1, 2) for i in (0, 1))
    return attention_lib.attention(query_BHD[:, None], keys_BPHD, values_BPHD)[:, 0]
