"""What a GPU decodes one token after the other with: kernels for one query and for one row.

XLA takes several kernels for what is one here, and reads the whole cache of keys and values,
however little of it is written yet. experiments/results/speed/h100/decode.jsonl was measured
without these kernels, decode_kernels.jsonl with them: 1.87 and 4.60 images/s at batch 1.

No kernel uses tensor cores: reading weights and caches is what takes the time.

Shapes: R rows, one token each  K keys  H heads  D their width  S parts of a cache
I inputs and O outputs of a product
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from fsq_jax.models.fused_attention import over_batch

_PROGRAMS = 512  # that a read of all caches is cut into, to keep the whole GPU busy
_WEIGHTS = 2**13  # that a program of `row_product` takes


def row_product(
    x_1I: jax.Array,
    weight_OI: jax.Array,
    bias_O: jax.Array | None = None,
    *,
    norm: tuple[jax.Array, jax.Array] | None = None,
    epsilon: float = 0.0,
    gelu: bool = False,
    residual_1O: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """gelu(layer_norm(x) @ weight.T + bias) + residual, [1, O]; what isn't asked for is left out.

    norm: scale and bias of the layer norm. Widths are those that `takes` allows. Of several rows
    this was slower than cuBLAS: 13.9 to 21.3 images/s for a batch of 8 (decode_kernels.jsonl).
    """
    options = {"norm": norm, "bias": bias_O, "residual": residual_1O}
    arrays = {name: x for name, x in options.items() if x is not None}
    outputs, inputs = weight_OI.shape
    tile = _outputs(inputs)
    whole, part = pl.BlockSpec((inputs,), lambda i: (0,)), pl.BlockSpec((tile,), lambda i: (i,))
    row = pl.BlockSpec((None, tile), lambda i: (0, i))
    specs = {"norm": [whole, whole], "bias": [part], "residual": [row]}
    return pl.pallas_call(
        functools.partial(_product_kernel, names=tuple(arrays), gelu=gelu, epsilon=epsilon),
        grid=(outputs // tile,),
        in_specs=[
            pl.BlockSpec((None, inputs), lambda i: (0, 0)),
            pl.BlockSpec((tile, inputs), lambda i: (i, 0)),
            *(spec for name in arrays for spec in specs[name]),
        ],
        out_specs=row,
        out_shape=jax.ShapeDtypeStruct((1, outputs), x_1I.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4),
        interpret=interpret,
        name="row_product",
    )(x_1I, weight_OI, *jax.tree.leaves(list(arrays.values())))


def takes(inputs: int, outputs: int) -> bool:
    """Whether `row_product` can compute a product of these widths."""
    return inputs & (inputs - 1) == 0 and outputs % _outputs(inputs) == 0


def _outputs(inputs):
    return max(1, _WEIGHTS // inputs)


def _product_kernel(x_ref, weight_ref, *refs, names, gelu, epsilon):
    *refs, out_ref = refs
    weight_OI, x_I = weight_ref[...].astype(jnp.float32), x_ref[...].astype(jnp.float32)
    values = iter(ref[...].astype(jnp.float32) for ref in refs)
    if "norm" in names:
        scale_I, bias_I = next(values), next(values)
        centred_I = x_I - jnp.sum(x_I) / x_I.size
        variance = jnp.sum(centred_I * centred_I) / x_I.size
        x_I = centred_I * jax.lax.rsqrt(variance + epsilon) * scale_I + bias_I
        x_I = x_I.astype(x_ref.dtype).astype(jnp.float32)
    out_O = jnp.sum(weight_OI * x_I[None], axis=1)
    if "bias" in names:
        out_O += next(values)
    if gelu:
        out_O = jax.nn.gelu(out_O, approximate=True)
    if "residual" in names:
        out_O += next(values)
    out_ref[...] = out_O.astype(out_ref.dtype)


def read(q_RHD: jax.Array, cache_R2HKD: jax.Array, interpret: bool = False) -> jax.Array:
    """softmax(q k / sqrt(D)) v over all keys of a cache, [R, H, D]."""
    call = functools.partial(_read_call, interpret=interpret)
    split = over_batch(call, "b h d, b t h k d -> b h d")
    return (call if interpret else split)(q_RHD, cache_R2HKD)


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
            jax.ShapeDtypeStruct((parts, rows, heads, width), jnp.float32),
            jax.ShapeDtypeStruct((parts, rows, heads), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=warps),
        interpret=interpret,
        name="read_cache",
    )(q_RHD, cache_R2HKD, cache_R2HKD)
    if parts > 1:
        shares_SRH = jax.nn.softmax(sums_SRH, axis=0)
        read_SRHD = (read_SRHD * shares_SRH[..., None]).sum(0, keepdims=True)
    return read_SRHD[0].astype(q_RHD.dtype)


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
    out_ref[...] = out_D / total
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
