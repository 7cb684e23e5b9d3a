"""Self-attention of short sequences with dropout of its weights, as one GPU kernel each way.

What `attention` computes with matrix products of its own, without ever writing anything of size
L x L per head: the shared keep mask is read from the cache and multiplied onto the weights while
they are in registers. cuDNN can't do this: its dropout takes no seed that is data. The speed that
the kernels buy is in experiments/results/speed/h100/against_torch.json ("transformer_step").

Queries, keys and values are one array, as one joined projection writes them, and so are their
gradients. A program of the grid works on one head of one example; a tile is 64 tokens, and what
257 tokens have left over is a tile of 16, so that none need be added.

Shapes: B batch  L tokens  H heads  D width of a head  Q K tokens of a tile, as queries and keys
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton as plgpu

from fsq_jax.runtime.user_error import UserError

_LOG2E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the kernels are compiled for. `length`: tokens that are read; the rest is padding."""

    length: int
    scale: float  # of the products of queries and keys
    kept: float  # what a kept weight is multiplied with, 1 / (1 - rate)
    tile: int = 64  # tokens that a program is for
    forward_inner: int = 64  # tokens that it reads at a time
    backward_inner: int = 64
    forward_warps: int = 4
    forward_stages: int = 3
    backward_warps: int = 4
    backward_stages: int = 2
    interpret: bool = False

    def tiles(self, size: int) -> tuple[int, int]:
        """(whole tiles, tokens of one more for the rest: a power of two from 16 up, or 0)."""
        rest = self.length % size
        return self.length // size, max(16, pl.next_power_of_2(rest)) if rest else 0

    @property
    def num_programs(self) -> int:
        """Of each head."""
        whole, rest = self.tiles(self.tile)
        return whole + (rest > 0)

    @property
    def covered(self) -> int:
        """Tokens that the tiles cover, padding included."""
        whole, rest = self.tiles(self.tile)
        return whole * self.tile + rest


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
    return _partitioned(_backward_call, settings, len(masks))(*arrays), None


self_attention.defvjp(_self_attention_fwd, _self_attention_bwd)


def _forward(qkv_BL3HD, keep_LL, settings):
    masks = () if keep_LL is None else _padded_masks(keep_LL, settings)[:1]
    return _partitioned(_forward_call, settings, len(masks))(qkv_BL3HD, *masks)


def _padded_masks(keep_LL, settings):
    """The mask and its transpose, with zeros up to whole tiles: their rows can be read in words."""
    padding = settings.covered - keep_LL.shape[0]
    keep_LL = jnp.pad(keep_LL, ((0, padding), (0, padding)))
    return keep_LL, keep_LL.T


def _partitioned(call, settings, num_masks):
    is_forward = call is _forward_call
    operands = ["b l t h d"] if is_forward else ["b l t h d", "b l h d", "b h l", "b h l"]
    operands = ", ".join(operands + ["q k", "k q"][:num_masks])
    results = "b l h d, b h l" if is_forward else "b l t h d"
    call = functools.partial(call, settings=settings)
    return call if settings.interpret else over_batch(call, f"{operands} -> {results}")


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


def _forward_call(qkv_BL3HD, *masks, settings):
    batch, length, _, heads, width = qkv_BL3HD.shape
    sides = [_head_spec(settings, width, i) for i in range(3)]
    return pl.pallas_call(
        functools.partial(_forward_kernel, settings=settings, width=width, rows=length),
        grid=(settings.num_programs, heads, batch),
        in_specs=[*sides, *[_keep_spec(settings)] * len(masks)],
        out_specs=[_out_spec(settings, width), _row_spec(settings)],
        out_shape=[
            jax.ShapeDtypeStruct((batch, length, heads, width), qkv_BL3HD.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(
            num_warps=settings.forward_warps, num_stages=settings.forward_stages
        ),
        interpret=settings.interpret,
        name="self_attention",
    )(qkv_BL3HD, qkv_BL3HD, qkv_BL3HD, *masks)


def _backward_call(qkv_BL3HD, grad_BLHD, sums_BHL, along_BHL, *masks, settings):
    batch, length, _, heads, width = qkv_BL3HD.shape
    sides = [_head_spec(settings, width, i) for i in range(3)]
    row = _row_spec(settings)
    all_sides = (None, settings.covered, 3, None, _padded(width))
    return pl.pallas_call(
        functools.partial(_backward_kernel, settings=settings, width=width, rows=length),
        grid=(settings.num_programs, heads, batch),
        in_specs=[
            *sides, _out_spec(settings, width), row, row, *[_keep_spec(settings)] * len(masks)
        ],
        out_specs=[pl.BlockSpec(all_sides, lambda i, h, b: (b, 0, 0, h, 0))],
        out_shape=[jax.ShapeDtypeStruct(qkv_BL3HD.shape, qkv_BL3HD.dtype)],
        compiler_params=plgpu.CompilerParams(
            num_warps=settings.backward_warps, num_stages=settings.backward_stages
        ),
        interpret=settings.interpret,
        name="self_attention_gradients",
    )(qkv_BL3HD, qkv_BL3HD, qkv_BL3HD, grad_BLHD, sums_BHL, along_BHL, *masks)[0]


def _padded(width):
    return pl.next_power_of_2(width)


# Blocks are whole heads, of which a program reads tiles; what is past their end is masked.


def _head_spec(settings, width, side):
    block = (None, settings.covered, None, None, _padded(width))
    return pl.BlockSpec(block, lambda i, h, b: (b, 0, side, h, 0))


def _out_spec(settings, width):
    block = (None, settings.covered, None, _padded(width))
    return pl.BlockSpec(block, lambda i, h, b: (b, 0, h, 0))


def _row_spec(settings):
    return pl.BlockSpec((None, None, settings.covered), lambda i, h, b: (b, h, 0))


def _keep_spec(settings):
    return pl.BlockSpec((settings.covered, settings.covered), lambda i, h, b: (0, 0))


def _over_tiles(settings, size, body, carry):
    """body(first token, tokens of the tile, carry) over all tiles of a size."""
    whole, rest = settings.tiles(size)
    carry = jax.lax.fori_loop(0, whole, lambda j, c: body(j * size, size, c), carry)
    return body(whole * size, rest, carry) if rest else carry


def _own_tile(settings, work):
    """work(first token, tokens) of this program's tile."""
    index, size = pl.program_id(0), settings.tile
    whole, rest = settings.tiles(size)
    pl.when(index < whole)(lambda: work(index * size, size))
    if rest:
        pl.when(index == whole)(lambda: work(whole * size, rest))


def _tile_mask(start, size, limit, width):
    rows = (start + jnp.arange(size) < limit)[:, None]
    return rows & (jnp.arange(_padded(width)) < width)[None]


def _forward_kernel(q_ref, k_ref, v_ref, *refs, settings, width, rows):
    *masks, out_ref, sums_ref = refs
    length = settings.length

    def work(start, size):
        def load(ref, first, count):
            mask = _tile_mask(first, count, length, width)
            return plgpu.load(ref.at[pl.ds(first, count), :], mask=mask, other=0.0)

        q_QD = load(q_ref, start, size)

        def body(first, count, carry):
            out_QD, highest_Q, sum_Q = carry
            scores_QK = plgpu.dot(q_QD, load(k_ref, first, count).T) * (settings.scale * _LOG2E)
            keys_K = first + jnp.arange(count)
            if isinstance(first, int):  # the last tile, part of which is padding
                scores_QK = jnp.where((keys_K < length)[None], scores_QK, -jnp.inf)
            above_Q = jnp.maximum(highest_Q, scores_QK.max(1))
            weights_QK = jnp.exp2(scores_QK - above_Q[:, None])
            shrink_Q = jnp.exp2(highest_Q - above_Q)
            sum_Q = sum_Q * shrink_Q + weights_QK.sum(1)
            kept_QK = weights_QK
            if masks:
                kept_QK = _drop(weights_QK, masks[0], start, first)
            kept_QK = kept_QK.astype(q_ref.dtype)
            out_QD = out_QD * shrink_Q[:, None] + plgpu.dot(kept_QK, load(v_ref, first, count))
            return out_QD, above_Q, sum_Q

        zeros_QD = jnp.zeros((size, _padded(width)), jnp.float32)
        lowest_Q = jnp.full((size,), -jnp.inf, jnp.float32)
        carry = (zeros_QD, lowest_Q, jnp.zeros((size,), jnp.float32))
        out_QD, highest_Q, sum_Q = _over_tiles(settings, settings.forward_inner, body, carry)
        out_QD = out_QD * (settings.kept / sum_Q)[:, None]
        mask = _tile_mask(start, size, rows, width)
        out_QD = jnp.where(_tile_mask(start, size, length, width), out_QD, 0.0)
        plgpu.store(
            out_ref.at[pl.ds(start, size), :], out_QD.astype(out_ref.dtype), mask=mask
        )
        token_Q = start + jnp.arange(size)
        # In base two, as the backward pass takes it.
        plgpu.store(
            sums_ref.at[pl.ds(start, size)], highest_Q + jnp.log2(sum_Q), mask=token_Q < rows
        )

    _own_tile(settings, work)


def _drop(x, keep_ref, start, first):
    """x, the tile whose first row and column are those, with zeros where it isn't kept."""
    tile = keep_ref.at[pl.ds(start, x.shape[0]), pl.ds(first, x.shape[1])]
    return jnp.where(plgpu.load(tile) != 0, x, 0.0)


def _backward_kernel(
    q_ref, k_ref, v_ref, grad_ref, sums_ref, along_ref, *refs, settings, width, rows
):
    *masks, out_ref = refs
    length, dtype = settings.length, q_ref.dtype
    exponent, inner = settings.scale * _LOG2E, settings.backward_inner

    def load(ref, first, count):
        mask = _tile_mask(first, count, length, width)
        return plgpu.load(ref.at[pl.ds(first, count), :], mask=mask, other=0.0)

    def load_row(ref, first, count, other):
        mask = first + jnp.arange(count) < length
        return plgpu.load(ref.at[pl.ds(first, count)], mask=mask, other=other)

    def store(side, start, size, value):
        value = jnp.where(_tile_mask(start, size, length, width), value, 0.0)
        mask = _tile_mask(start, size, rows, width)
        plgpu.store(out_ref.at[pl.ds(start, size), jnp.int32(side), :], value.astype(dtype), mask=mask)

    def keys_and_values(start, size):
        """Gradients of this program's keys and values, transposed: no tile is turned around."""
        k_KD, v_KD = load(k_ref, start, size), load(v_ref, start, size)

        def body(first, count, carry):
            grad_k_KD, grad_v_KD = carry
            q_QD, grad_QD = load(q_ref, first, count), load(grad_ref, first, count)
            sums_Q = load_row(sums_ref, first, count, float("inf"))
            along_Q = load_row(along_ref, first, count, 0.0)
            weights_KQ = jnp.exp2(plgpu.dot(k_KD, q_QD.T) * exponent - sums_Q[None])
            kept_KQ, slope_KQ = weights_KQ, plgpu.dot(v_KD, grad_QD.T)
            if masks:
                kept_KQ = _drop(kept_KQ * settings.kept, masks[1], start, first)
                slope_KQ = _drop(slope_KQ * settings.kept, masks[1], start, first)
            grad_v_KD += plgpu.dot(kept_KQ.astype(dtype), grad_QD)
            slope_KQ = (weights_KQ * (slope_KQ - along_Q[None])).astype(dtype)
            return grad_k_KD + plgpu.dot(slope_KQ, q_QD), grad_v_KD

        zeros_KD = jnp.zeros((size, _padded(width)), jnp.float32)
        grad_k_KD, grad_v_KD = _over_tiles(settings, inner, body, (zeros_KD, zeros_KD))
        store(1, start, size, grad_k_KD * settings.scale)
        store(2, start, size, grad_v_KD)

    def queries(start, size):
        q_QD, grad_QD = load(q_ref, start, size), load(grad_ref, start, size)
        sums_Q = load_row(sums_ref, start, size, float("inf"))
        along_Q = load_row(along_ref, start, size, 0.0)

        def body(first, count, grad_q_QD):
            k_KD, v_KD = load(k_ref, first, count), load(v_ref, first, count)
            weights_QK = jnp.exp2(plgpu.dot(q_QD, k_KD.T) * exponent - sums_Q[:, None])
            slope_QK = plgpu.dot(grad_QD, v_KD.T)
            if masks:
                slope_QK = _drop(slope_QK * settings.kept, masks[0], start, first)
            slope_QK = (weights_QK * (slope_QK - along_Q[:, None])).astype(dtype)
            return grad_q_QD + plgpu.dot(slope_QK, k_KD)

        zeros_QD = jnp.zeros((size, _padded(width)), jnp.float32)
        store(0, start, size, _over_tiles(settings, inner, body, zeros_QD) * settings.scale)

    _own_tile(settings, keys_and_values)
    _own_tile(settings, queries)
