"""Writing with UViM's stage II model: one token after the other, with a cache.

The decoder of `uvim_lm` once more, as plain functions of one token: its weights are rounded and
joined before the first token rather than at each, and on a GPU attention reads its caches in
kernels made for one query. A token costs little but reading weights and caches.

Shapes: B images  P patches  N tokens  V vocabulary  D width  H heads
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from fsq_jax.models import attention as attention_lib
from fsq_jax.models.layers import gelu, layer_norm
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.models.vit import LN_EPSILON

Cache = dict[str, Any]
_NORMED = ("own", "query", "hidden")  # products of a layer that have its norms before them
_PRODUCTS = (*_NORMED, "own_out", "image_out", "hidden_out")


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
    reader = functools.partial(_reads_cache, kernels=kernels)
    if kernels and _absorbs(batch, heads):
        reader = _reads_memory
    for layer in weights["layers"]:
        layer["read"] = reader(layer.pop("image"), memory_BPD, heads)
    product = _product
    if kernels:
        product = _kernel_product(batch, model, weights["layers"])
    empty_B2HND = jnp.zeros((batch, 2, heads[0], model.num_tokens, heads[1]), model.dtype)
    cache = {"own": [empty_B2HND for _ in weights["layers"]]}
    return functools.partial(_step, weights, heads, kernels, product), cache


def _absorbs(batch, heads):
    """Whether to read an image's memory itself, once for all heads, rather than keys and values.

    Which makes two products of each, and so pays where reading takes longer than a product.
    """
    from fsq_jax.models import decode_kernels, row_kernels  # Triton, which is not everywhere

    return batch > row_kernels.MOST_ROWS and decode_kernels.takes_memory(heads[0], math.prod(heads))


def _kernel_product(batch, model, layers):
    """What multiplies a few rows on a GPU, or `_product`; lays the layers' weights out for it."""
    from fsq_jax.models import row_kernels

    if batch == 1 and _widths_fit(model.width, model.mlp_dim):
        for layer in layers:
            for name in _PRODUCTS:  # matrices are read row by row there
                layer[name][0] = layer[name][0].T
        return _row_product
    if batch <= row_kernels.MOST_ROWS and row_kernels.takes_rows(model.width, model.mlp_dim):
        for layer in layers:
            for name, norm in zip(_NORMED, layer["norms"], strict=True):
                matrix, bias = layer[name]
                layer[name] = row_kernels.with_norm(matrix, bias, norm)
            for name in _PRODUCTS:
                matrix, *others = layer[name]
                layer[name] = row_kernels.in_parts(matrix), *others
        return _rows_product
    return _product


def _widths_fit(*widths):
    from fsq_jax.models import row_kernels

    return all(row_kernels.takes(inputs, outputs) for inputs in widths for outputs in widths)


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
        return [module["kernel"].astype(dtype), module["bias"].astype(dtype)]

    def layer(block):
        mlp = block["MLP"]
        return {
            "norms": [norm(block[f"LayerNorm{i}"]) for i in (1, 2, 3)],
            "own": [joined(block["SelfAttn"], "query", "key", "value"), None],
            "own_out": [out(block["SelfAttn"]), None],
            "query": [joined(block["CrossAttn"], "query"), None],
            "image": joined(block["CrossAttn"], "key", "value"),
            "image_out": [out(block["CrossAttn"]), None],
            "hidden": dense(mlp["Dense_0"]),
            "hidden_out": dense(mlp["Dense_1"]),
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
    for layer, past in zip(weights["layers"], cache["own"], strict=True):
        norm_1, norm_2, norm_3 = layer["norms"]
        qkv_B3HD = product(x_BD, *layer["own"], norm=norm_1).reshape(batch, 3, *heads)
        read_BHD, now = _append_and_read(qkv_B3HD, past, position, kernels)
        x_BD = product(read_BHD.reshape(batch, -1), *layer["own_out"], residual=x_BD)
        query_BHD = product(x_BD, *layer["query"], norm=norm_2).reshape(batch, *heads)
        read_BHD = layer["read"](query_BHD)
        x_BD = product(read_BHD.reshape(batch, -1), *layer["image_out"], residual=x_BD)
        hidden_BF = product(x_BD, *layer["hidden"], norm=norm_3, activate=True)
        x_BD = product(hidden_BF, *layer["hidden_out"], residual=x_BD)
        own.append(now)
    kernel, bias = weights["logits"]
    x_BD: Any = layer_norm(x_BD, *weights["norm"], LN_EPSILON)
    logits_BV = jnp.matmul(x_BD, kernel, preferred_element_type=jnp.float32) + bias
    return logits_BV, {"own": own}


def _product(x, matrix, bias, *, norm=None, activate=False, residual=None):
    """gelu(layer_norm(x) @ matrix + bias) + residual; what is not given is left out."""
    out = (x if norm is None else layer_norm(x, *norm, LN_EPSILON)) @ matrix
    if bias is not None:
        out += bias
    if activate:
        out = gelu(out)
    return out if residual is None else residual + out


def _row_product(x_1D, transposed, bias, *, norm=None, activate=False, residual=None):
    from fsq_jax.models import row_kernels

    return row_kernels.row_product(
        x_1D, transposed, bias, norm=norm, epsilon=LN_EPSILON, gelu=activate, residual_1O=residual
    )


def _rows_product(x_BD, parts, bias, sums=None, *, norm=None, activate=False, residual=None):
    from fsq_jax.models import row_kernels

    del norm  # is in the weights, the bias and the sums
    return row_kernels.rows_product(
        x_BD, parts, bias, sums_O=sums, epsilon=LN_EPSILON, gelu=activate, residual_RO=residual
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


def _reads_cache(image, memory_BPD, heads, kernels):
    """What attention to an image reads for a query [B, H, D], of its keys and values."""
    # A head's keys side by side: they are read whole, at every token.
    both_BP2HD = (memory_BPD @ image).reshape(*memory_BPD.shape[:2], 2, *heads)
    cache_B2HPD = both_BP2HD.transpose(0, 2, 3, 1, 4)
    if kernels:
        from fsq_jax.models import decode_kernels

        return lambda query_BHD: decode_kernels.read(query_BHD, cache_B2HPD)
    keys_BPHD, values_BPHD = (cache_B2HPD[:, i].swapaxes(1, 2) for i in (0, 1))

    def read(query_BHD):
        return attention_lib.attention(query_BHD[:, None], keys_BPHD, values_BPHD)[:, 0]

    return read


def _reads_memory(image, memory_BPD, heads):
    """The same of what its keys and values are products of, which all heads and layers share.

    q (m Wk) = (q Wk) m, and sum(w (m Wv)) = sum(w m) Wv. M: the width of the memory.
    """
    from fsq_jax.models import decode_kernels

    both_M2HD = image.reshape(-1, 2, *heads)
    keys_HDM = both_M2HD[:, 0].transpose(1, 2, 0)
    values_HMD = both_M2HD[:, 1].swapaxes(0, 1)

    def read(query_BHD):
        query_HBM = jnp.einsum("bhd,hdm->hbm", query_BHD, keys_HDM)
        read_HBM = decode_kernels.read_memory(query_HBM, memory_BPD, heads[1] ** -0.5)
        return jnp.einsum("hbm,hmd->bhd", read_HBM, values_HMD)

    return read
