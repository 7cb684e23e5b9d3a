"""The critic of MaskGIT stage I: StyleGAN2-like, with blurred resampling.

B batch  H W image height, width  C width
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.runtime.user_error import UserError


def layer_width(resolution: int, channel_multiplier: float = 1, max_width: int = 512) -> int:
    """Returns the width of a layer at `resolution` pixels: 512 up to 32 px, then halving.

    64 px: 256, 128: 128, 256: 64, 512: 32, 1024: 16, times `channel_multiplier` from 64 px up;
    never more than `max_width`.
    """
    full = 512 if resolution <= 32 else int(16384 * channel_multiplier) // resolution
    return min(max_width, full)


def blur_pool(x_BHWC: jax.Array) -> jax.Array:
    """Halves height and width under a [1,3,3,1] x [1,3,3,1] / 64 filter with zero padding.

    Computed in float32 and returned in the dtype of x. The filter runs along one axis after the
    other as sums of shifted slices, which XLA fuses; a depthwise convolution is slower, and
    slower still when differentiated twice.
    """

    def halve(x, axis):
        even, odd = (jax.lax.slice_in_dim(x, i, None, 2, axis) for i in (0, 1))
        pads = [(0, 0)] * x.ndim
        before = jnp.pad(odd, pads[:axis] + [(1, 0)] + pads[axis + 1 :])
        after = jnp.pad(even, pads[:axis] + [(0, 1)] + pads[axis + 1 :])
        n = even.shape[axis]
        before = jax.lax.slice_in_dim(before, 0, n, axis=axis)
        after = jax.lax.slice_in_dim(after, 1, n + 1, axis=axis)
        return (before + 3 * (even + odd) + after) / 8

    return halve(halve(x_BHWC.astype(jnp.float32), 1), 2).astype(x_BHWC.dtype)


def _leaky_relu(x):
    return nn.leaky_relu(x, 0.2)


class ResBlock(nn.Module):
    """Halves the resolution and gives `width` channels; the two paths are summed over sqrt(2)."""

    width: int
    blur: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC):
        def conv(width, size, use_bias=True):
            init = nn.initializers.xavier_uniform()
            return nn.Conv(
                width, (size, size), use_bias=use_bias, dtype=self.dtype, kernel_init=init
            )

        def pool(x):
            return blur_pool(x) if self.blur else nn.avg_pool(x, (2, 2), (2, 2))

        y = pool(_leaky_relu(conv(x_BHWC.shape[-1], 3)(x_BHWC)))
        y = _leaky_relu(conv(self.width, 3)(y))
        skip = conv(self.width, 1, use_bias=False)(pool(x_BHWC))
        return (skip + y) / math.sqrt(2)


class Discriminator(nn.Module):
    """Logits float32 [B] of images: high for real ones. 23,998,017 parameters at 256 px.

    No normalisation and no statistics across the batch: an example's logit depends on that
    example alone, which R1 relies on.

    Attributes:
      channel_multiplier: scales the widths at 64 px and finer.
      max_width: upper limit of every width, dense layers included; below 512 for small runs.
      blur: pool through the [1,3,3,1] filter, else by the mean of 2x2 pixels.
      dtype: of activations and convolutions; parameters and the last layer are float32.
    """

    channel_multiplier: float = 1
    max_width: int = 512
    blur: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images_BHWC: jax.Array) -> jax.Array:
        """Returns logits float32 [B] of images [B,H,H,C] in [0, 1].

        Raises:
          UserError: the images are not square with a power of two, at least 8, as their side.
        """
        h, w = images_BHWC.shape[1:3]
        if h != w or h < 8 or h & (h - 1):
            raise UserError(
                f"The discriminator needs square images with a side of 8, 16, 32, ... pixels, "
                f"not {h}x{w}."
            )
        init = nn.initializers.xavier_uniform()

        def width(resolution):
            return layer_width(resolution, self.channel_multiplier, self.max_width)

        def conv(resolution):
            return nn.Conv(width(resolution), (3, 3), dtype=self.dtype, kernel_init=init)

        x = _leaky_relu(conv(h)(images_BHWC.astype(self.dtype)))
        while x.shape[1] > 4:
            x = ResBlock(width(x.shape[1] // 2), self.blur, self.dtype)(x)
        x = _leaky_relu(conv(4)(x))
        x = x.reshape(x.shape[0], -1)
        x = _leaky_relu(nn.Dense(width(4), dtype=self.dtype, kernel_init=init)(x))
        return nn.Dense(1, dtype=jnp.float32, kernel_init=init)(x.astype(jnp.float32))[:, 0]
