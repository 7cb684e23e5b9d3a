"""Labels in patches: into tokens (embedding) and out of them (logits), for UViM's stage I.

What a label embedding multiplies is one-hot: C x X zeros and ones per patch, of which X are ones.
They are never all in memory: forward, rows of the kernel are looked up and added; backward, one-hot
labels are made for a few pixels at a time.

Shapes: B batch  P patches  X pixels of a patch  C channels of a label  D width
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models.layers import float32_affine, float32_product
from fsq_jax.models.parameters import param
from fsq_jax.runtime.placement import whole

_CHUNK = 16  # pixels at a time, so that neither B P X D nor B P X C values ever exist


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def sum_rows(kernel_CXD: jax.Array, ids_BPX: jax.Array, dtype) -> jax.Array:
    """The product of one-hot ids with a float32 kernel over C and X, float32 [B, P, D].

    Ids outside [0, C) are all-zero. `dtype` is that of the summands; sums are float32. The
    gradient is a matrix product with one-hot ids, not for its speed: unlike a scatter it adds in a
    fixed order on a GPU, so that a run can be repeated bit by bit.
    """
    channels, pixels, width = kernel_CXD.shape
    known_BPX = (ids_BPX >= 0) & (ids_BPX < channels)
    row_BPX = jnp.where(known_BPX, ids_BPX * pixels + jnp.arange(pixels), channels * pixels)
    # Under FSDP gathered once: with a part of the width, a device would pick rows of all examples.
    rows = whole(kernel_CXD.reshape(-1, width).astype(dtype))

    def add(total_BPD, row_BPx):
        picked_BPxD = jnp.take(rows, row_BPx, axis=0, mode="fill", fill_value=0)
        return total_BPD + picked_BPxD.sum(axis=2, dtype=jnp.float32), None

    start_BPD = jnp.zeros((*ids_BPX.shape[:2], width), jnp.float32)
    return jax.lax.scan(add, start_BPD, _chunks(row_BPX))[0]


def _chunks(x_BPX):
    """[chunks, B, P, pixels of a chunk]"""
    batch, patches, pixels = x_BPX.shape
    chunked = x_BPX.reshape(batch, patches, -1, math.gcd(pixels, _CHUNK))
    return jnp.moveaxis(chunked, 2, 0)


def _sum_rows_fwd(kernel_CXD, ids_BPX, dtype):
    return sum_rows(kernel_CXD, ids_BPX, dtype), (ids_BPX, kernel_CXD.shape)


def _sum_rows_bwd(dtype, residuals, grad_BPD):
    ids_BPX, (channels, pixels, width) = residuals
    grad_BPD = grad_BPD.astype(dtype)

    def product(ids_BPx):
        one_hot_BPxC = one_hot(ids_BPx, channels, dtype)
        return jnp.einsum(
            "bpxc,bpd->xcd", one_hot_BPxC, grad_BPD, preferred_element_type=jnp.float32
        )

    grad_XCD = jax.lax.map(product, _chunks(ids_BPX)).reshape(pixels, channels, width)
    return grad_XCD.swapaxes(0, 1), None


sum_rows.defvjp(_sum_rows_fwd, _sum_rows_bwd)


def one_hot(ids: jax.Array, channels: int, dtype) -> jax.Array:
    """`jax.nn.one_hot`; of 16 bits in pairs, which a GPU writes faster than one by one.

    Writing them takes 11 of the 942 ms of a step, where it took 21 of 1,088 (kernels.jsonl and
    uvim_base_step.jsonl in experiments/results/speed/h100).
    """
    if jnp.dtype(dtype).itemsize != 2 or channels % 2:
        return jax.nn.one_hot(ids, channels, dtype=dtype)
    one = jax.lax.bitcast_convert_type(jnp.ones((), dtype), jnp.uint16).astype(jnp.uint32)
    word = jnp.where(ids & 1 == 0, one, one << 16)  # the first of a pair is in the lower half
    is_pair = (ids >> 1)[..., None] == jnp.arange(channels // 2)
    words = jax.lax.optimization_barrier(jnp.where(is_pair, word[..., None], 0))
    return jax.lax.bitcast_convert_type(words, dtype).reshape(*ids.shape, channels)


class LabelEmbedding(nn.Module):
    """One token per patch, [B, P, D] of `dtype`, of a label: a dense layer over C and X.

    The label: ids [B, P, X], one-hot in C = `channels`; or with `real` values [B, P, C, X].
    """

    channels: int
    width: int
    real: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, label):
        shape = (self.channels, label.shape[-1], self.width)
        init = nn.initializers.lecun_normal(in_axis=(0, 1))
        kernel_CXD = param(self, "kernel", init, shape, jnp.float32)
        bias_D = param(self, "bias", nn.initializers.zeros, (self.width,), jnp.float32)
        if self.real:
            flat_BPI = label.reshape(*label.shape[:2], -1)
            x_BPD: Any = float32_product(flat_BPI, kernel_CXD.reshape(-1, self.width), self.dtype)
        else:
            x_BPD = sum_rows(kernel_CXD, label, self.dtype)
        return (x_BPD + bias_D).astype(self.dtype)


class LabelHead(nn.Module):
    """float32 logits (or values) of a label, [B, P, C, X], of tokens [B, P, D]; zero at first."""

    channels: int
    pixels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BPD):
        zeros, shape = nn.initializers.zeros, (self.channels, self.pixels)
        kernel_DCX = param(self, "kernel", zeros, (x_BPD.shape[-1], *shape), jnp.float32)
        bias_CX = param(self, "bias", zeros, shape, jnp.float32)
        width, lead = x_BPD.shape[-1], x_BPD.shape[:2]
        if jnp.dtype(self.dtype) == jnp.float32:
            product: Any = float32_product(x_BPD, kernel_DCX.reshape(width, -1), self.dtype)
            return product.reshape(*lead, *shape) + bias_CX
        # Channels last in memory: the loss sums over them.
        kernel_DXC = kernel_DCX.astype(self.dtype).swapaxes(1, 2)
        logits: Any = float32_affine(
            x_BPD, kernel_DXC.reshape(width, -1), bias_CX.T.reshape(-1), self.dtype
        )
        return logits.reshape(*lead, self.pixels, self.channels).swapaxes(2, 3)
