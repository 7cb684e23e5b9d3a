"""What a GPU reads for one token after the other: kernels for one query of each head.

XLA takes several kernels for what is one here, and reads the whole cache of keys and values,
however little of it is written yet. `row_kernels` has the products between the reads.
experiments/results/speed/h100/decode.jsonl was measured without these kernels.

Caches are read without tensor cores: the reading is what takes the time. A memory that all heads
share is read with them, a head being a row.

Shapes: R rows, one token each  K keys  H heads  D their width  S parts of a cache or a memory
P positions of a memory  M its width
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from fsq_jax.models.fused_attention import over_batch

_PROGRAMS = 512  # that a read of all caches is cut into, to keep the whole GPU busy
_PROCESSORS = 128  # of a GPU, nearly: programs of `read_memory`, each of which fills one
_MEMORY_TILE = 32  # positions of a memory that a program reads at a time
_MEMORY_WARPS, _MEMORY_STAGES = 8, 3
_MEMORY_CHUNKS = 4  # in which it holds their width


def read(q_RHD: jax.Array, cache_R2HKD: jax.Array, interpret: bool = False) -> jax.Array:
    """softmax(q k / sqrt(D)) v over all keys of a cache, [R, H, D]."""
    call = functools.partial(_read_call, interpret=interpret)
    split = over_batch(call, "b h d, b t h k d -> b h d")
    return (call if interpret else split)(q_RHD, cache_R2HKD)


def read_memory(
    q_HRM: jax.Array, memory_RPM: jax.Array, scale: float, interpret: bool = False
) -> jax.Array:
    """softmax(scale q memory) memory of all heads, [H, R, M]: the memory is read once for them.

    Queries and what is read are in the memory's own space, keys and values of no head.
    """
    call = functools.partial(_memory_call, scale=scale, interpret=interpret)
    return (call if interpret else over_batch(call, "h b m, b p m -> h b m"))(q_HRM, memory_RPM)


def takes_memory(heads: int, width: int) -> bool:
    """Whether `read_memory` can read a memory of this width for so many heads."""
    powers_of_2 = all(x & (x - 1) == 0 for x in (heads, width))
    # What tensor cores multiply, and what a program has registers for.
    return powers_of_2 and heads >= 16 and width >= 256 and heads * width <= 2**14


def append_and_read(
    qkv_R3HD: jax.Array, cache_R2HKD: jax.Array, position: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(what a token reads of itself and of those before `position`, the cache with it in there).

    qkv_R3HD: query, key and value of the token at `position`. Nothing from there on is read.
    """
    call = functools.partial(_append_call, interpret=interpret)
    position_1 = jnp.reshape(position, (1,)).astype(jnp.int32)
    split = over_batch(call, "b t h d, b s h k d, o -> b h d, b s h k d")
    return (call if interpret else split)(qkv_R3HD, cache_R2HKD, position_1)


def _read_call(q_RHD, cache_R2HKD, *, interpret):
    (rows, heads, width), keys = q_RHD.shape, cache_R2HKD.shape[3]
    tile, warps = _tile(keys, rows * heads)
    parts = max(1, min(_PROGRAMS // (rows * heads), pl.cdiv(keys, tile)))
    tiles = pl.cdiv(pl.cdiv(keys, tile), parts)  # of a part
    parts = pl.cdiv(pl.cdiv(keys, tile), tiles)  # none without a key
    read_SRHD, sums_SRH = pl.pallas_call(
        functools.partial(_read_kernel, tile=tile, tiles=tiles),
        grid=(parts, heads, rows),
        in_specs=[
            pl.BlockSpec((None, None, width), lambda s, h, r: (r, h, 0)),
            *(_cache_spec(keys, width, side) for side in (0, 1)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, width), lambda s, h, r: (s, r, h, 0)),
            pl.BlockSpec((None, None, 1), lambda s, h, r: (s, r, h)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(
                (parts, rows, heads, width), q_RHD.dtype if parts == 1 else jnp.float32
            ),
            jax.ShapeDtypeStruct((parts, rows, heads), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=warps),
        interpret=interpret,
        name="read_cache",
    )(q_RHD, cache_R2HKD, cache_R2HKD)
    return _joined(read_SRHD, sums_SRH, q_RHD.dtype)


def _joined(read_SXX, sums_SX, dtype):
    """What all parts of a memory or a cache read, of what each read and the sum of its weights."""
    if len(read_SXX) == 1:
        return read_SXX[0].astype(dtype)
    shares_SX = jax.nn.softmax(sums_SX, axis=0)
    return (read_SXX * shares_SX[..., None]).sum(0).astype(dtype)


def _memory_call(q_HRM, memory_RPM, *, scale, interpret):
    heads, rows, width = q_HRM.shape
    positions = memory_RPM.shape[1]
    tiles = pl.cdiv(positions, _MEMORY_TILE)
    parts = max(1, min(_PROCESSORS // rows, tiles))
    tiles_each = pl.cdiv(tiles, parts)
    parts = pl.cdiv(tiles, tiles_each)  # none without a position
    read_SHRM, sums_SHR = pl.pallas_call(
        functools.partial(_memory_kernel, tiles=tiles_each, scale=scale),
        grid=(parts, rows),
        in_specs=[
            pl.BlockSpec((heads, None, width), lambda s, r: (0, r, 0)),
            pl.BlockSpec((None, positions, width), lambda s, r: (r, 0, 0)),
        ],
        out_specs=[
            pl.BlockSpec((None, heads, None, width), lambda s, r: (s, 0, r, 0)),
            pl.BlockSpec((None, heads, None), lambda s, r: (s, 0, r)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((parts, heads, rows, width), q_HRM.dtype),
            jax.ShapeDtypeStruct((parts, heads, rows), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=_MEMORY_WARPS, num_stages=_MEMORY_STAGES),
        interpret=interpret,
        name="read_memory",
    )(q_HRM, memory_RPM)
    return _joined(read_SHRM, sums_SHR, q_HRM.dtype)


def _memory_kernel(q_ref, memory_ref, out_ref, sum_ref, *, tiles, scale):
    heads, width = q_ref.shape
    positions = memory_ref.shape[0]
    size, tile = width // _MEMORY_CHUNKS, _MEMORY_TILE
    chunks = [pl.ds(i * size, size) for i in range(_MEMORY_CHUNKS)]

    def body(index, carry):
        outs, highest_H, total_H = carry
        inside_K = index * tile + jnp.arange(tile) < positions
        tile_at = pl.ds(index * tile, tile)
        memories = [
            plgpu.load(memory_ref.at[tile_at, at], mask=inside_K[:, None], other=0.0)
            for at in chunks
        ]
        # Scaled before they are added: sums of their own, that no product waits for.
        scores_HK = sum(
            scale * _dot(q_ref[:, at], memory.T)
            for at, memory in zip(chunks, memories, strict=True)
        )
        scores_HK = jnp.where(inside_K[None], scores_HK, -jnp.inf)
        above_H = jnp.maximum(highest_H, scores_HK.max(1))
        weights_HK = jnp.exp(scores_HK - above_H[:, None])
        shrink_H = jnp.exp(highest_H - above_H)
        total_H = total_H * shrink_H + weights_HK.sum(1)
        weights_HK = weights_HK.astype(q_ref.dtype)
        outs = [
            out * shrink_H[:, None] + _dot(weights_HK, memory)
            for out, memory in zip(outs, memories, strict=True)
        ]
        return outs, above_H, total_H

    first = pl.program_id(0) * tiles
    last = jnp.minimum(first + tiles, pl.cdiv(positions, tile))
    start = (
        [jnp.zeros((heads, size), jnp.float32) for _ in chunks],
        jnp.full((heads,), -jnp.inf, jnp.float32),
        jnp.zeros((heads,), jnp.float32),
    )
    outs, highest_H, total_H = jax.lax.fori_loop(first, last, body, start)
    for at, out in zip(chunks, outs, strict=True):
        out_ref[:, at] = (out / total_H[:, None]).astype(out_ref.dtype)
    sum_ref[...] = highest_H + jnp.log(total_H)


def _append_call(qkv_R3HD, cache_R2HKD, position_1, *, interpret):
    rows, _, heads, width = qkv_R3HD.shape
    keys = cache_R2HKD.shape[3]
    tile, warps = _tile(keys, rows * heads)
    whole = pl.BlockSpec((None, 2, None, keys, width), lambda h, r: (r, 0, h, 0, 0))
    return pl.pallas_call(
        functools.partial(_append_kernel, tile=tile),
        grid=(heads, rows),
        in_specs=[
            pl.BlockSpec((None, 3, None, width), lambda h, r: (r, 0, h, 0)),
            whole,
            pl.BlockSpec((1,), lambda h, r: (0,)),
        ],
        out_specs=[pl.BlockSpec((None, None, width), lambda h, r: (r, h, 0)), whole],
        out_shape=[
            jax.ShapeDtypeStruct((rows, heads, width), qkv_R3HD.dtype),
            jax.ShapeDtypeStruct(cache_R2HKD.shape, cache_R2HKD.dtype),
        ],
        input_output_aliases={1: 1},
        compiler_params=plgpu.CompilerParams(num_warps=warps),
        interpret=interpret,
        name="append_to_cache",
    )(qkv_R3HD, cache_R2HKD, position_1)


def _dot(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _tile(keys, programs):
    """(keys that a program reads at a time, its warps): more where there are few programs."""
    tile, warps = (64, 4) if programs >= _PROGRAMS else (128, 8)
    return min(tile, pl.next_power_of_2(keys)), warps


def _cache_spec(keys, width, side):
    block = (None, None, None, keys, width)
    return pl.BlockSpec(block, lambda s, h, r: (r, side, h, 0, 0))


def _scaled(q_ref, index=()):
    q_D = q_ref[(*index, slice(None))].astype(jnp.float32)
    return q_D * q_D.shape[-1] ** -0.5


def _attend(q_D, load, tile, tiles, length, start):
    """(weighted values, highest score, sum of weights) of keys before `length` in these tiles."""

    def body(index, carry):
        out_D, highest, total = carry
        inside_K = index * tile + jnp.arange(tile) < length
        k_KD, v_KD = (load(side, index * tile, inside_K[:, None]) for side in (0, 1))
        scores_K = jnp.sum(k_KD.astype(jnp.float32) * q_D[None], axis=1)
        scores_K = jnp.where(inside_K, scores_K, -jnp.inf)
        above = jnp.maximum(highest, jnp.max(scores_K))
        weights_K = jnp.exp(scores_K - above)
        shrink = jnp.exp(highest - above)
        read_D = jnp.sum(weights_K[:, None] * v_KD.astype(jnp.float32), axis=0)
        return out_D * shrink + read_D, above, total * shrink + jnp.sum(weights_K)

    first, end = tiles
    return jax.lax.fori_loop(first, end, body, start)


def _read_kernel(q_ref, k_ref, v_ref, out_ref, sum_ref, *, tile, tiles):
    def load(side, first, mask):
        ref = (k_ref, v_ref)[side]
        return plgpu.load(ref.at[pl.ds(first, tile), :], mask=mask, other=0.0)

    q_D, keys = _scaled(q_ref), k_ref.shape[0]
    start = (jnp.zeros_like(q_D), jnp.float32(-jnp.inf), jnp.float32(0))
    first = pl.program_id(0) * tiles
    last = jnp.minimum(first + tiles, pl.cdiv(keys, tile))
    out_D, highest, total = _attend(q_D, load, tile, (first, last), keys, start)
    out_ref[...] = (out_D / total).astype(out_ref.dtype)
    sum_ref[...] = (highest + jnp.log(total))[None]


def _append_kernel(qkv_ref, cache_ref, position_ref, out_ref, new_cache_ref, *, tile):
    position = position_ref[0]
    zero, one, two = (jnp.int32(i) for i in range(3))
    q_D = _scaled(qkv_ref, (zero,))
    k_D, v_D = qkv_ref[one, :], qkv_ref[two, :]

    def load(side, first, mask):
        tile_KD = cache_ref.at[jnp.int32(side), pl.ds(first, tile), :]
        return plgpu.load(tile_KD, mask=mask, other=0.0)

    # The token itself comes first, from registers: what is written below is not read here.
    score = jnp.sum(q_D * k_D.astype(jnp.float32))
    start = (v_D.astype(jnp.float32), score, jnp.float32(1))
    tiles = (jnp.int32(0), jax.lax.div(position + tile - 1, tile))
    out_D, _, total = _attend(q_D, load, tile, tiles, position, start)
    out_ref[...] = (out_D / total).astype(out_ref.dtype)
    new_cache_ref[zero, position, :] = k_D
    new_cache_ref[one, position, :] = v_D
