"""Products of a few rows with what comes before and after them, one GPU kernel each.

A token that is decoded is a product of one row for each image. Reading the weights is what takes
the time, if all of the GPU reads at once and nothing but the product is started for it: the layer
norm before, and bias, GELU and residual after, are in the kernel. `row_product` multiplies one row
without tensor cores, which for 8 was slower than cuBLAS (13.9 and 21.3 images/s in
experiments/results/speed/h100/decode_kernels.jsonl); `rows_product` multiplies up to `MOST_ROWS`
with them.

In kernels.jsonl of that folder 8 images decode at 27.5/s, which was 24.8 before the norm was taken
out of the product (`with_norm`). A program had 16 of 4096 outputs then; with 32, two products took
13.1 and 12.7 us rather than 13.9 (rows_product.jsonl, where a repeated one differs by up to 1.6).
Nothing else that was tried there, of outputs, parts, warps and steps, was clearly faster.

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
_PROGRAMS = 128  # of `rows_product`, if outputs allow it: one for almost every processor of a GPU
_TILE = 64  # outputs times parts of one of these, rows of what its tensor cores multiply
_STEPS = 4  # in which its inputs are read


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
    few = max(x for x in (8, 16, 32) if x == 8 or x * _PROGRAMS <= outputs)
    parts = _TILE // few
    weight_PTGC = weight_IO.T.reshape(outputs // few, few, parts, inputs // parts)
    return weight_PTGC.swapaxes(1, 2).reshape(outputs // few, _TILE, inputs // parts)


def rows_product(
    x_RI: jax.Array,
    weight_PGTC: jax.Array,
    bias_O: jax.Array | None = None,
    *,
    sums_O: jax.Array | None = None,
    epsilon: float = 0.0,
    gelu: bool = False,
    residual_RO: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """gelu(layer_norm(x) @ weight + bias) + residual, [R, O], R at most `MOST_ROWS`.

    weight_PGTC: of `in_parts`. What isn't asked for is left out. There is a norm where there are
    `sums_O`; weights, bias and these are of `with_norm` then. Widths: `takes_rows`.
    """
    options = {"sums": sums_O, "bias": bias_O, "residual": residual_RO}
    arrays = {name: x for name, x in options.items() if x is not None}
    call = _rows_call(tuple(arrays), gelu, epsilon, interpret)
    return call(x_RI, weight_PGTC, *arrays.values())


def with_norm(weight_IO, bias_O, norm):
    """(weights, bias, sums of weights) with which rows are multiplied before their norm is known.

    layer_norm(x) @ weight + bias = (x @ W - mean sums) / deviation + B. Bias and sums are float32.
    The product of an x that isn't rounded once more is as exact as that of a normed one, if the
    sums are those of the rounded weights, so that what all of x have in common cancels.
    """
    scale_I, shift_I = (x.astype(jnp.float32) for x in norm)
    weight = weight_IO.astype(jnp.float32)
    shifted_O = jnp.matmul(shift_I, weight, precision="highest")
    bias_O = shifted_O if bias_O is None else shifted_O + bias_O
    kept = jnp.finfo(weight_IO.dtype)
    # Not by `astype`, which XLA leaves out on a GPU where float32 comes before and after it.
    weight = jax.lax.reduce_precision(weight * scale_I[:, None], kept.nexp, kept.nmant)
    return weight.astype(weight_IO.dtype), bias_O, weight.sum(0)


def takes_rows(width: int, hidden: int) -> bool:
    """Whether `rows_product` can compute a block's products, of these widths of x and its MLP."""
    powers_of_2 = all(x & (x - 1) == 0 for x in (width, hidden))
    return powers_of_2 and 256 <= width <= 1024 and 256 <= hidden <= 4096


@functools.cache  # one function for all layers, which JAX traces and lowers once
def _rows_call(names, gelu, epsilon, interpret):
    call = functools.partial(
        _rows_pallas, names=names, gelu=gelu, epsilon=epsilon, interpret=interpret
    )
    axes = {"sums": "o", "bias": "o", "residual": "b o"}
    rule = ", ".join(["b i", "p t c", *(axes[name] for name in names)]) + " -> b o"
    return jax.jit(call if interpret else over_batch(call, rule))


def _rows_pallas(x_RI, weight_PGTC, *arrays, interpret, **options):
    rows, inputs = x_RI.shape
    programs, _, width = weight_PGTC.shape
    parts = inputs // width
    tile, steps = _TILE // parts, min(_STEPS, max(1, width // 64))
    some = pl.BlockSpec((rows, tile), lambda i: (0, i))
    each = pl.BlockSpec((tile,), lambda i: (i,))
    specs = {"sums": each, "bias": each, "residual": some}
    return pl.pallas_call(
        functools.partial(_rows_kernel, rows=rows, steps=steps, **options),
        grid=(programs,),
        in_specs=[
            pl.BlockSpec((rows * parts, width), lambda i: (0, 0)),
            pl.BlockSpec((None, _TILE, width), lambda i: (i, 0, 0)),
            *(specs[name] for name in options["names"]),
        ],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct((rows, programs * tile), x_RI.dtype),
        # For up to 8 rows there is memory for all steps and the one more that tensor cores ask for.
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=steps + (rows <= 8)),
        interpret=interpret,
        name="rows_product",
    )(x_RI.reshape(rows * parts, width), weight_PGTC, *arrays)


def _rows_kernel(x_ref, weight_ref, *refs, rows, steps, names, gelu, epsilon):
    """The product of all parts of rows with all parts of outputs, of which equal ones count.

    So that the warps of a program share the reading of weights. The others cost little: tensor
    cores wait for the weights. Nothing comes before the first of these, the norm's sums neither.
    """
    *refs, out_ref = refs
    refs = dict(zip(names, refs, strict=True))
    width, parts = x_ref.shape[1], x_ref.shape[0] // rows
    tile, step = _TILE // parts, width // steps
    padded = 8 if rows <= 8 else MOST_ROWS
    inside_N1 = jnp.arange(padded)[:, None] < rows

    def load(ref, mask):
        return plgpu.load(ref) if padded == rows else plgpu.load(ref, mask=mask, other=0.0)

    # The parts of x, [G N, C]: rows are next to each other, so that a thread has all parts of one.
    part, row = jnp.arange(parts * padded) // padded, jnp.arange(parts * padded) % padded
    x_at, x_inside = (row * parts + part)[:, None], (row < rows)[:, None]

    # What comes after the product is on its way early, too.
    vectors = {name: refs[name][...].astype(jnp.float32) for name in names if name != "residual"}
    residual_NT = 0.0
    # Rows past the last are masked. JAX refuses to slice them where it knows that it would.
    all_rows = pl.ds(0 * pl.program_id(0), padded)
    if "residual" in names:
        residual_NT = load(refs["residual"].at[all_rows, :], inside_N1)
        residual_NT = residual_NT.astype(jnp.float32)

    def body(i, carry):
        product, sums = carry
        weight = weight_ref[:, pl.ds(i * step, step)]
        x = load(x_ref.at[x_at, (i * step + jnp.arange(step))[None]], x_inside)
        if "sums" in names:
            values = x.astype(jnp.float32)
            sums = [a + b for a, b in zip(sums, (values, values * values), strict=True)]
        return product + _times(weight, x), sums

    # Added over threads after the last step.
    sums = [jnp.zeros((padded * parts, step), jnp.float32) for _ in range(2 * ("sums" in names))]
    zeros = jnp.zeros((_TILE, padded * parts), jnp.float32)
    product, sums = jax.lax.fori_loop(0, steps, body, (zeros, sums))
    product = product.reshape(parts, tile, parts, padded)
    of_weight, of_x = (jax.lax.broadcasted_iota(jnp.int32, product.shape, i) for i in (0, 2))
    out_NT = jnp.where(of_weight == of_x, product, 0.0).sum(2).sum(0).T
    if "sums" in names:
        means = [x.sum(1).reshape(parts, padded).sum(0) / (parts * width) for x in sums]
        mean_N1, square_N1 = (x[:, None] for x in means)
        rate_N1 = jax.lax.rsqrt(jnp.maximum(square_N1 - mean_N1 * mean_N1, 0.0) + epsilon)
        out_NT = (out_NT - mean_N1 * vectors["sums"]) * rate_N1
    if "bias" in names:
        out_NT += vectors["bias"]
    if gelu:
        out_NT = jax.nn.gelu(out_NT, approximate=True)
    out_NT = (out_NT + residual_NT).astype(out_ref.dtype)
    plgpu.store(out_ref.at[all_rows, :], out_NT, mask=inside_N1)


def _times(a_MC, b_NC):
    return jax.lax.dot_general(
        a_MC, b_NC, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
