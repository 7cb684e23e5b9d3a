"""Small layers of transformers, written so that a GPU moves few bytes for them.

Shapes: B batch  L tokens  D width  V rows of a table
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

INIT = nn.initializers.truncated_normal(stddev=0.02)  # cut at two standard deviations


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table_VD: jax.Array, ids_BL: jax.Array, dtype) -> jax.Array:
    """Rows of the float32 table, [B, L, D] of `dtype`.

    The gradient is a matrix product with one-hot ids: unlike a scatter it adds in a fixed order
    on a GPU, so that a run can be repeated bit by bit.
    """
    return table_VD[ids_BL].astype(dtype)


def _lookup_fwd(table_VD, ids_BL, dtype):
    return lookup(table_VD, ids_BL, dtype), (ids_BL, table_VD.shape[0])


def _lookup_bwd(dtype, residuals, grad_BLD):
    ids_BL, vocab_size = residuals
    one_hot_BLV = jax.nn.one_hot(ids_BL, vocab_size, dtype=dtype)
    grad_VD = jnp.einsum(
        "blv,bld->vd", one_hot_BLV, grad_BLD, preferred_element_type=jnp.float32
    )
    return grad_VD, None


lookup.defvjp(_lookup_fwd, _lookup_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def float32_product(x: jax.Array, kernel: jax.Array, dtype) -> jax.Array:
    """x @ kernel in float32, of operands rounded to `dtype`; so are those of the gradients."""
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


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, computed in float32; the dtype of x."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


class Table(nn.Module):
    """A float32 matrix of embeddings, [rows, width], returned whole."""

    rows: int
    width: int
    initializer: Callable = INIT

    @nn.compact
    def __call__(self):
        shape = (self.rows, self.width)
        return self.param("embedding", self.initializer, shape, jnp.float32)


class Bias(nn.Module):
    """A float32 vector, [size], returned whole."""

    size: int

    @nn.compact
    def __call__(self):
        return self.param("bias", nn.initializers.zeros, (self.size,), jnp.float32)


class LayerNorm(nn.Module):
    """Layer norm with float32 statistics, in the dtype of x; `epsilon` as in BERT by default.

    The backward pass starts from x again: without that XLA keeps the centred float32 activation
    of every norm, twice the bytes of x.
    """

    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, x_BLD):
        width = x_BLD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        norm = functools.partial(_layer_norm, epsilon=self.epsilon)
        return jax.checkpoint(norm)(x_BLD, scale_D, bias_D)


def _layer_norm(x_BLD, scale_D, bias_D, *, epsilon):
    x32_BLD = x_BLD.astype(jnp.float32)
    mean_BL1 = x32_BLD.mean(-1, keepdims=True)
    # Two passes over a row that is in registers: no cancellation, as E[x^2] - E[x]^2 would have.
    variance_BL1 = jnp.square(x32_BLD - mean_BL1).mean(-1, keepdims=True)
    normed_BLD = (x32_BLD - mean_BL1) * jax.lax.rsqrt(variance_BL1 + epsilon)
    return (normed_BLD * scale_D + bias_D).astype(x_BLD.dtype)
