"""Self-attention of short sequences with dropout of its weights, as one GPU kernel each way.

What `attention` computes with matrix products of its own, without ever writing anything of size
L x L per head: the shared keep mask is read from the cache and multiplied onto the weights while
they are in registers. cuDNN can't do this: its dropout takes no seed that is data. The times of
the kernels, of cuDNN's and of whole steps are in attention_kernels.jsonl of
experiments/results/speed/h100, today's step beside torch's in against_torch.json
("transformer_step").

Queries, keys and values are one array, as one joined projection writes them, and so are their
gradients. A program of the grid works on one head of one example; a tile is 64 tokens, and what
257 tokens have left over is a tile of 16, so that none need be added.

Shapes: B batch  L tokens  H heads  D width of a head  Q K tokens of a tile, as queries and keys
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning

from fsq_jax.models.attention_kernels import Settings, backward, forward
from fsq_jax.runtime.user_error import UserError


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def self_attention(qkv_BL3HD: jax.Array, keep_LL: jax.Array | None, settings: Settings):
    """What every query reads, [B, L, H, D]: (softmax(q k scale) * keep * kept) v.

    keep_LL: int8, 1 where the query (first axis) keeps its weight of the key, else 0; None keeps
    all. Rows from `settings.length` on are zero.
    Raises UserError where there is more padding than the last tile takes.
    """
    if qkv_BL3HD.shape[1] > settings.covered:
        raise UserError(
            f"{qkv_BL3HD.shape[1]} tokens, of which {settings.length} are no padding, are more "
            f"than the {settings.covered} of whole tiles."
        )
    return _forward(qkv_BL3HD, keep_LL, settings)[0]


def _self_attention_fwd(qkv_BL3HD, keep_LL, settings):
    out_BLHD, sums_BHL = _forward(qkv_BL3HD, keep_LL, settings)
    return out_BLHD, (qkv_BL3HD, keep_LL, out_BLHD, sums_BHL)


def _self_attention_bwd(settings, residuals, grad_BLHD):
    qkv_BL3HD, keep_LL, out_BLHD, sums_BHL = residuals
    # What the softmax takes off each row: sum(weights * their gradients) = sum(out * its gradient).
    products_BLHD = out_BLHD.astype(jnp.float32) * grad_BLHD.astype(jnp.float32)
    along_BHL = products_BLHD.sum(-1).swapaxes(1, 2)
    masks = () if keep_LL is None else _padded_masks(keep_LL, settings)
    arrays = (qkv_BL3HD, grad_BLHD, sums_BHL, along_BHL, *masks)
    return _partitioned(backward, settings, len(masks))(*arrays), None


self_attention.defvjp(_self_attention_fwd, _self_attention_bwd)


def _forward(qkv_BL3HD, keep_LL, settings):
    masks = () if keep_LL is None else _padded_masks(keep_LL, settings)[:1]
    return _partitioned(forward, settings, len(masks))(qkv_BL3HD, *masks)


def _padded_masks(keep_LL, settings):
    """The mask and its transpose, with zeros up to whole tiles: their rows can be read in words."""
    padding = settings.covered - keep_LL.shape[0]
    keep_LL = jnp.pad(keep_LL, ((0, padding), (0, padding)))
    return keep_LL, keep_LL.T


@functools.cache  # one function for all layers, which JAX traces and lowers once
def _partitioned(call, settings, num_masks):
    is_forward = call is forward
    operands = ["b l t h d"] if is_forward else ["b l t h d", "b l h d", "b h l", "b h l"]
    operands = ", ".join(operands + ["q k", "k q"][:num_masks])
    results = "b l h d, b h l" if is_forward else "b l t h d"
    call = functools.partial(call, settings=settings)
    return jax.jit(call if settings.interpret else over_batch(call, f"{operands} -> {results}"))


def over_batch(call, rule: str):
    """`call` on each device's part of the batch: XLA can't look into a kernel to split it.

    rule: the axes of its operands and results, "b l, k -> b l k"; b is the batch.
    """
    split = custom_partitioning(lambda *arrays: call(*arrays))

    def partition(mesh, arguments, results):
        shardings = tuple(x.sharding for x in arguments)
        return mesh, call, jax.tree.map(lambda x: x.sharding, results), shardings

    letters = dict.fromkeys(x for x in rule if x.isalpha())  # in order, each once
    whole = tuple(x for x in letters if x != "b")
    split.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)
    return split
