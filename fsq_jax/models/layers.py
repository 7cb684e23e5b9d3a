"""Small layers of BERT-like transformers, written so that a GPU moves few bytes for them.

Shapes: B batch  L tokens  D width  V rows of a table
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

INIT = nn.initializers.truncated_normal(stddev=0.02)  # cut at two standard deviations
_LN_EPSILON = 1e-12


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


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, computed in float32; the dtype of x."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


class Table(nn.Module):
    """A float32 matrix of embeddings, [rows, width], returned whole."""

    rows: int
    width: int

    @nn.compact
    def __call__(self):
        return self.param("embedding", INIT, (self.rows, self.width), jnp.float32)


class Bias(nn.Module):
    """A float32 vector, [size], returned whole."""

    size: int

    @nn.compact
    def __call__(self):
        return self.param("bias", nn.initializers.zeros, (self.size,), jnp.float32)


class LayerNorm(nn.Module):
    """Layer norm with float32 statistics, in the dtype of x.

    The backward pass starts from x again: without that XLA keeps the centred float32 activation
    of every norm, twice the bytes of x.
    """

    @nn.compact
    def __call__(self, x_BLD):
        width = x_BLD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        return jax.checkpoint(_layer_norm)(x_BLD, scale_D, bias_D)


def _layer_norm(x_BLD, scale_D, bias_D):
    x32_BLD = x_BLD.astype(jnp.float32)
    mean_BL1 = x32_BLD.mean(-1, keepdims=True)
    # Two passes over a row that is in registers: no cancellation, as E[x^2] - E[x]^2 would have.
    variance_BL1 = jnp.square(x32_BLD - mean_BL1).mean(-1, keepdims=True)
    normed_BLD = (x32_BLD - mean_BL1) * jax.lax.rsqrt(variance_BL1 + _LN_EPSILON)
    return (normed_BLD * scale_D + bias_D).astype(x_BLD.dtype)
