"""Products of a few rows with what comes before and after them, one GPU kernel each.

A token that is decoded is a product of one row for each image. Reading the weights is what takes
the time, if all of the GPU reads at once and nothing but the product is started for it: the layer
norm before, and bias, GELU and residual after, are in the kernel. `row_product` multiplies one row
without tensor cores, which for 8 was slower than cuBLAS (13.9 and 21.3 images/s in
experiments/results/speed/h100/decode_kernels.jsonl); `rows_product` multiplies up to `MOST_ROWS`
with them.

Shapes: R rows, one token each  N the rows and padding  I inputs and O outputs of a product
P programs  T outputs of a program  G parts of the inputs  C inputs of a part
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from fsq_jax.models.fused_attention import over_batch

MOST_ROWS = 16
_WEIGHTS = 2**13  # that a program of `row_product` takes
_TILE = 64  # rows of weights, each of a part of an output's, that a program of `rows_product` takes
_PROGRAMS = 128  # no fewer, where the outputs allow it: one for almost every processor of a GPU
_STEPS = 4  # in which the inputs of a part are read where there is no norm


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

    norm: scale and bias of the layer norm. Widths are those that `takes` allows.
    """
    options = {"norm": norm, "bias": bias_O, "residual": residual_1O}
    arrays = {name: x for name, x in options.items() if x is not None}
    outputs, inputs = weight_OI.shape
    tile = _outputs(inputs)
    whole, part = pl.BlockSpec((inputs,), lambda i: (0,)), pl.BlockSpec((tile,), lambda i: (i,))
    row = pl.BlockSpec((None, tile), lambda i: (0, i))
    specs = {"norm": [whole, whole], "bias": [part], "residual": [row]}
    return pl.pallas_call(
        functools.partial(_row_kernel, names=tuple(arrays), gelu=gelu, epsilon=epsilon),
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


def _row_kernel(x_ref, weight_ref, *refs, names, gelu, epsilon):
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


def in_parts(weight_IO: jax.Array) -> jax.Array:
    """Weights as `rows_product` reads them, [P, G T, C]: of each program, G parts of T outputs."""
    inputs, outputs = weight_IO.shape
    few = 16 if outputs >= 16 * _PROGRAMS else 8
    parts = _TILE // few
    weight_PTGC = weight_IO.T.reshape(outputs // few, few, parts, inputs // parts)
    return weight_PTGC.swapaxes(1, 2).reshape(outputs // few, _TILE, inputs // parts)


def rows_product(
    x_RI: jax.Array,
    weight_PGTC: jax.Array,
    bias_O: jax.Array | None = None,
    *,
    norm: bool = False,
    epsilon: float = 0.0,
    gelu: bool = False,
    residual_RO: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """gelu(layer_norm(x) @ weight + bias) + residual, [R, O], R at most `MOST_ROWS`.

    weight_PGTC: of `in_parts`. What isn't asked for is left out. The norm is one without scale and
    shift, which are the weights' and the bias's: `with_norm`. Widths: `takes_rows`.
    """
    options = {"bias": bias_O, "residual": residual_RO}
    arrays = {name: x for name, x in options.items() if x is not None}
    call = _rows_call(tuple(arrays), norm, gelu, epsilon, interpret)
    return call(x_RI, weight_PGTC, *arrays.values())


def with_norm(weight_IO, bias_O, norm):
    """(weights, float32 bias) that give of normed rows what these give of scaled, shifted ones."""
    scale_I, shift_I = (x.astype(jnp.float32) for x in norm)
    weight = weight_IO.astype(jnp.float32)
    shifted_O = jnp.matmul(shift_I, weight, precision="highest")
    bias_O = shifted_O if bias_O is None else shifted_O + bias_O
    return (weight * scale_I[:, None]).astype(weight_IO.dtype), bias_O


def takes_rows(width: int, hidden: int) -> bool:
    """Whether `rows_product` can compute a block's products, of these widths of x and its MLP.

    Those that have a norm are from `width` inputs, which are kept in registers.
    """
    powers_of_2 = all(x & (x - 1) == 0 for x in (width, hidden))
    return powers_of_2 and 256 <= width <= 1024 and 256 <= hidden <= 4096


@functools.cache  # one function for all layers, which JAX traces and lowers once
def _rows_call(names, norm, gelu, epsilon, interpret):
    call = functools.partial(
        _rows_pallas, names=names, norm=norm, gelu=gelu, epsilon=epsilon, interpret=interpret
    )
    axes = {"bias": "o", "residual": "b o"}
    rule = ", ".join(["b i", "p t c", *(axes[name] for name in names)]) + " -> b o"
    return jax.jit(call if interpret else over_batch(call, rule))


def _rows_pallas(x_RI, weight_PGTC, *arrays, interpret, **options):
    rows, inputs = x_RI.shape
    programs, _, width = weight_PGTC.shape
    parts = inputs // width
    tile = _TILE // parts
    some = pl.BlockSpec((rows, tile), lambda p: (0, p))
    specs = {"bias": pl.BlockSpec((tile,), lambda p: (p,)), "residual": some}
    return pl.pallas_call(
        functools.partial(_rows_kernel, rows=rows, **options),
        grid=(programs,),
        in_specs=[
            pl.BlockSpec((rows * parts, width), lambda p: (0, 0)),
            pl.BlockSpec((None, _TILE, width), lambda p: (p, 0, 0)),
            *(specs[name] for name in options["names"]),
        ],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct((rows, programs * tile), x_RI.dtype),
        # For up to 8 rows there is memory for all steps and the one more that tensor cores ask for.
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=_STEPS + (rows <= 8)),
        interpret=interpret,
        name="rows_product",
    )(x_RI.reshape(rows * parts, width), weight_PGTC, *arrays)


def _rows_kernel(x_ref, weight_ref, *refs, rows, names, norm, gelu, epsilon):
    """The product of all parts of rows with all parts of outputs, of which equal ones count.

    So that the warps of a program share the reading of weights. The others cost little: tensor
    cores wait for the weights.
    """
    *refs, out_ref = refs
    refs = dict(zip(names, refs, strict=True))
    width = x_ref.shape[1]
    parts = x_ref.shape[0] // rows
    tile = _TILE // parts
    padded = 8 if rows <= 8 else MOST_ROWS
    inside_N1 = jnp.arange(padded)[:, None] < rows

    def load_rows(ref, first, size, inside):
        ref = ref.at[pl.ds(0, len(inside)), pl.ds(first, size)]
        return plgpu.load(ref) if padded == rows else plgpu.load(ref, mask=inside, other=0.0)

    def load_x(first, size):
        return load_rows(x_ref, first, size, jnp.arange(padded * parts)[:, None] < rows * parts)

    # What comes after the product is on its way early, too.
    bias_T = refs["bias"][...].astype(jnp.float32) if "bias" in names else 0.0
    residual_NT = 0.0
    if "residual" in names:
        residual_NT = load_rows(refs["residual"], 0, tile, inside_N1).astype(jnp.float32)
    if norm:
        weight = weight_ref[...]
        x_NGC = load_x(0, width).astype(jnp.float32).reshape(padded, parts, width)
        x_NGC -= x_NGC.sum(2).sum(1)[:, None, None] / (parts * width)
        variance_N = (x_NGC * x_NGC).sum(2).sum(1) / (parts * width)
        x_NGC *= jax.lax.rsqrt(variance_N + epsilon)[:, None, None]
        x = x_NGC.astype(x_ref.dtype).reshape(padded * parts, width)
        # True of all numbers. Without it the compiler has the norm wait for the weights.
        weight = jnp.where(variance_N.sum() >= 0, weight, 0)
        product = _times(weight, x)
    else:
        step = min(width, max(64, width // _STEPS))

        def body(i, product):
            weight = weight_ref[:, pl.ds(i * step, step)]
            return product + _times(weight, load_x(i * step, step))

        zeros = jnp.zeros((_TILE, padded * parts), jnp.float32)
        product = jax.lax.fori_loop(0, width // step, body, zeros)
    product = product.reshape(parts, tile, padded, parts)
    first = jax.lax.broadcasted_iota(jnp.int32, product.shape, 0)
    last = jax.lax.broadcasted_iota(jnp.int32, product.shape, 3)
    out_NT = jnp.where(first == last, product, 0.0).sum(3).sum(0).T + bias_T
    if gelu:
        out_NT = jax.nn.gelu(out_NT, approximate=True)
    out_NT = (out_NT + residual_NT).astype(out_ref.dtype)
    plgpu.store(out_ref.at[pl.ds(0, padded), :], out_NT, mask=inside_N1)


def _times(a_MC, b_NC):
    return jax.lax.dot_general(
        a_MC, b_NC, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
