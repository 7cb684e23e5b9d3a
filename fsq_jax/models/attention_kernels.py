"""The two kernels of `fused_attention`, and how they are laid out over the GPU.

A program of the grid works on one tile of one head of one example, and goes through the others.

Shapes: B batch  L tokens  H heads  D width of a head  Q K tokens of a tile, as queries and keys
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

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


def forward(qkv_BL3HD, *masks, settings: Settings):
    """(what every query reads [B, L, H, D], log2 of the sums of its weights [B, H, L])."""
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


def backward(qkv_BL3HD, grad_BLHD, sums_BHL, along_BHL, *masks, settings: Settings):
    """The gradient of qkv. masks: the keep mask and its transpose, or none."""
    batch, length, _, heads, width = qkv_BL3HD.shape
    sides = [_head_spec(settings, width, i) for i in range(3)]
    row = _row_spec(settings)
    all_sides = (None, settings.covered, 3, None, _padded(width))
    return pl.pallas_call(
        functools.partial(_backward_kernel, settings=settings, width=width, rows=length),
        grid=(settings.num_programs, heads, batch),
        in_specs=[
            *sides,
            _out_spec(settings, width),
            row,
            row,
            *[_keep_spec(settings)] * len(masks),
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


def _load(ref, first, count, length, width):
    """A tile of a head; zeros where it is padding."""
    mask = _tile_mask(first, count, length, width)
    return plgpu.load(ref.at[pl.ds(first, count), :], mask=mask, other=0.0)


def _forward_kernel(q_ref, k_ref, v_ref, *refs, settings, width, rows):
    *masks, out_ref, sums_ref = refs
    length = settings.length

    def work(start, size):
        load = functools.partial(_load, length=length, width=width)
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
        plgpu.store(out_ref.at[pl.ds(start, size), :], out_QD.astype(out_ref.dtype), mask=mask)
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

    load = functools.partial(_load, length=length, width=width)

    def load_row(ref, first, count, other):
        mask = first + jnp.arange(count) < length
        return plgpu.load(ref.at[pl.ds(first, count)], mask=mask, other=other)

    def store(side, start, size, value):
        value = jnp.where(_tile_mask(start, size, length, width), value, 0.0).astype(dtype)
        tile = out_ref.at[pl.ds(start, size), jnp.int32(side), :]
        plgpu.store(tile, value, mask=_tile_mask(start, size, rows, width))

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
