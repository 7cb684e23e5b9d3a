"""Small layers of transformers, written so that a GPU moves few bytes for them.

Shapes: B batch  L tokens  D width  V rows of a table
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models.parameters import param
from fsq_jax.runtime import compiler
from fsq_jax.runtime.placement import split_by_example

INIT = nn.initializers.truncated_normal(stddev=0.02)  # cut at two standard deviations


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table_VD: jax.Array, ids_BL: jax.Array, dtype) -> jax.Array:
    """Rows of the float32 table, [B, L, D] of `dtype`.

    The gradient is a matrix product with one-hot ids, not for its speed: unlike a scatter it adds
    in a fixed order on a GPU, so that a run can be repeated bit by bit.
    """
    return table_VD[ids_BL].astype(dtype)


def _lookup_fwd(table_VD, ids_BL, dtype):
    return lookup(table_VD, ids_BL, dtype), (ids_BL, table_VD.shape[0])


def _lookup_bwd(dtype, residuals, grad_BLD):
    ids_BL, vocab_size = residuals
    one_hot_BLV = jax.nn.one_hot(ids_BL, vocab_size, dtype=dtype)
    grad_VD = jnp.einsum("blv,bld->vd", one_hot_BLV, grad_BLD, preferred_element_type=jnp.float32)
    return grad_VD, None


lookup.defvjp(_lookup_fwd, _lookup_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def float32_product(x: jax.Array, kernel: jax.Array, dtype) -> jax.Array:
    """x @ kernel in float32, of operands rounded to `dtype`; so are those of the gradients.

    JAX's own gradients would be products of float32 operands. What this buys alone is not measured.
    """
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _float32_product_fwd(x, kernel, dtype):
    return float32_product(x, kernel, dtype), (x, kernel)


def _float32_product_bwd(dtype, residuals, grad):
    x, kernel = residuals
    grad = grad.astype(dtype)
    grad_x = jnp.matmul(grad, kernel.T.astype(dtype), preferred_element_type=jnp.float32)
    grad_kernel = jnp.einsum(
        "...i,...o->io", x.astype(dtype), grad, preferred_element_type=jnp.float32
    )
    return grad_x.astype(x.dtype), grad_kernel.astype(kernel.dtype)


float32_product.defvjp(_float32_product_fwd, _float32_product_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def float32_affine(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype) -> jax.Array:
    """`float32_product` plus a float32 bias, where that is large and is read a few times.

    The barriers keep XLA from writing the bias out in full for cuBLAS to add, and from summing up
    the bias's gradient while it writes that of the product, which takes longer than both do apart.
    Among the changes from 1,088 to 942 ms a step: uvim_base_step.jsonl in
    experiments/results/speed/h100.
    """
    product = jax.lax.optimization_barrier(float32_product(x, kernel, dtype))
    return product + bias


def _float32_affine_fwd(x, kernel, bias, dtype):
    return float32_affine(x, kernel, bias, dtype), (x, kernel)


def _float32_affine_bwd(dtype, residuals, grad):
    grad = jax.lax.optimization_barrier(grad.astype(dtype))
    grad_bias = grad.sum(range(grad.ndim - 1), dtype=jnp.float32)
    return *_float32_product_bwd(dtype, residuals, grad), grad_bias


float32_affine.defvjp(_float32_affine_fwd, _float32_affine_bwd)


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, computed in float32; the dtype of x.

    The backward pass starts from x alone: the slope is twice the bytes.
    """
    if x.dtype != jnp.float32 and compiler.device().platform == "gpu":
        return _product_gelu(x)
    return jax.checkpoint(_float32_gelu)(x)


def _float32_gelu(x):
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


@jax.custom_vjp
def _product_gelu(x):
    """Written in the dtype of the product that x is, for XLA to see that cuBLAS can do it.

    cuBLAS then computes it in float32 as it writes. The speed of MaskGIT's sampling with it is in
    experiments/results/speed/h100/against_torch.json ("sample_guided").
    """
    return jax.nn.gelu(x, approximate=True)


_product_gelu.defvjp(
    lambda x: (_product_gelu(x), x), lambda x, grad: jax.vjp(_float32_gelu, x)[1](grad)
)


class Table(nn.Module):
    """A float32 matrix of embeddings, [rows, width], returned whole."""

    rows: int
    width: int
    initializer: Callable = INIT

    @nn.compact
    def __call__(self):
        shape = (self.rows, self.width)
        return param(self, "embedding", self.initializer, shape, jnp.float32)


class Bias(nn.Module):
    """A float32 vector, [size], returned whole."""

    size: int

    @nn.compact
    def __call__(self):
        return param(self, "bias", nn.initializers.zeros, (self.size,), jnp.float32)


class Dense(nn.Module):
    """`nn.DenseGeneral` over the last `contracted` axes, as one product of two matrices.

    Parameters, their initial values and the result are those of Flax. A product of matrices is
    what cuBLAS adds the bias to as it writes; of more axes XLA first writes the bias out in full.
    """

    features: int | tuple[int, ...]
    contracted: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        lead, inputs = x.shape[: -self.contracted], x.shape[-self.contracted :]
        outputs = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        kernel_IO, bias_O = _affine(self, inputs, outputs)
        out = x.reshape(-1, kernel_IO.shape[0]).astype(self.dtype) @ kernel_IO
        if self.use_bias:
            out += bias_O
        return split_by_example(out.reshape(*lead, *outputs))


class _Affine(nn.Module):
    """The parameters of a `Dense`, as a matrix and a vector (or None) of `dtype`."""

    features: tuple[int, ...]
    use_bias: bool
    kernel_init: Callable
    bias_init: Callable
    dtype: Any

    @nn.compact
    def __call__(self, inputs):
        return _affine(self, inputs, self.features)


def _affine(module, inputs, outputs):
    flat = (math.prod(inputs), math.prod(outputs))

    def kernel_init(key, shape, dtype):
        return module.kernel_init(key, flat, dtype).reshape(shape)

    kernel = param(module, "kernel", kernel_init, (*inputs, *outputs), jnp.float32)
    bias_O = None
    if module.use_bias:
        bias = param(module, "bias", module.bias_init, outputs, jnp.float32)
        bias_O = bias.reshape(-1).astype(module.dtype)
    return kernel.reshape(flat).astype(module.dtype), bias_O


def joined_dense(
    x: jax.Array,
    names: tuple[str, ...],
    features: tuple[int, ...],
    kernel_init: Callable,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Several `Dense` layers of one input, called `names`, as one product: [..., names, *features].

    The parameters are theirs; the input is read once, forwards and backwards. To be called in a
    module, whose the layers then are.
    """
    options = (features, True, kernel_init, nn.initializers.zeros, dtype)
    parts = [_Affine(*options, name=name)(x.shape[-1:]) for name in names]
    kernels, biases = zip(*parts, strict=True)
    out = x.reshape(-1, x.shape[-1]).astype(dtype) @ jnp.concatenate(kernels, axis=1)
    out += jnp.concatenate(biases)
    return split_by_example(out.reshape(*x.shape[:-1], len(names), *features))


class LayerNorm(nn.Module):
    """Layer norm with float32 statistics, in the dtype of x; `epsilon` as in BERT by default."""

    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        scale_D = param(self, "scale", nn.initializers.ones, (width,), jnp.float32)
        bias_D = param(self, "bias", nn.initializers.zeros, (width,), jnp.float32)
        # As a matrix: XLA gives three axes layouts that it then has to transpose.
        normed: Any = layer_norm(x.reshape(-1, width), scale_D, bias_D, self.epsilon)
        return normed.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x_RD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias of each row, in the dtype of x.

    The backward pass starts from x again, rather than from a normed float32 copy of it, and reads
    x and the gradient twice: once for the sums of a row, once for what is written. It is one of
    the changes between experiments/results/speed/h100/before/uvim_lm_step.jsonl (991 ms a step)
    and uvim_lm_step.jsonl beside that folder (971 ms).
    """
    x32_RD = x_RD.astype(jnp.float32)
    mean_R1 = x32_RD.mean(-1, keepdims=True)
    # Two passes over a row that is in registers: no cancellation, as E[x^2] - E[x]^2 would have.
    variance_R1 = jnp.square(x32_RD - mean_R1).mean(-1, keepdims=True)
    normed_RD = (x32_RD - mean_R1) * jax.lax.rsqrt(variance_R1 + epsilon)
    return (normed_RD * scale_D + bias_D).astype(x_RD.dtype)


def _layer_norm_fwd(x_RD, scale_D, bias_D, epsilon):
    return layer_norm(x_RD, scale_D, bias_D, epsilon), (x_RD, scale_D)


def _layer_norm_bwd(epsilon, residuals, grad_RD):
    x_RD, scale_D = residuals
    # All sums of a row in one pass, measured from one of its values: the variance is then at least
    # 1 / D of what it is the difference of, however large the mean.
    shifted_RD = x_RD.astype(jnp.float32) - x_RD[:, :1].astype(jnp.float32)
    grad32_RD = grad_RD.astype(jnp.float32)
    scaled_RD = grad32_RD * scale_D
    sums_R1 = [
        v.mean(-1, keepdims=True)
        for v in (shifted_RD, jnp.square(shifted_RD), scaled_RD, scaled_RD * shifted_RD)
    ]
    mean_R1, square_R1, slope_R1, product_R1 = jax.lax.optimization_barrier(sums_R1)
    inverse_R1 = jax.lax.rsqrt(square_R1 - jnp.square(mean_R1) + epsilon)
    normed_RD = (shifted_RD - mean_R1) * inverse_R1
    along_R1 = inverse_R1 * (product_R1 - mean_R1 * slope_R1)
    grad_x_RD = inverse_R1 * (scaled_RD - slope_R1 - normed_RD * along_R1)
    grad_scale_D = (grad32_RD * normed_RD).sum(0)
    return grad_x_RD.astype(x_RD.dtype), grad_scale_D, grad32_RD.sum(0)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


class DenseLayers(nn.Module):
    """Layers of one width, each followed by swish, applied to every position [...,C]."""

    layers: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            x = nn.swish(nn.Dense(self.width, dtype=self.dtype)(x))
        return x
