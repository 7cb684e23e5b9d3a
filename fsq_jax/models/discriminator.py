"""The critic of MaskGIT stage I: StyleGAN2-like, with blurred resampling.

B batch  H W image height, width  C width
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.metrics import losses
from fsq_jax.models.parameters import param
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


def _leaky_relu(values):
    """Of a network's values, and of those of the linear network that it is around them."""
    return tuple(jnp.where(values[0] >= 0, x, 0.2 * x) for x in values)


def _convolution(x_BHWC, kernel):
    return jax.lax.conv_general_dilated(
        x_BHWC, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Affine(nn.Module):
    """`product` with a kernel, plus a bias: of values and, where a second is given, of it too.

    The second's bias is scaled for each example, see `Discriminator`.
    """

    product: Callable
    kernel_shape: tuple[int, ...]
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, values, scale_B=None):
        init = nn.initializers.xavier_uniform()
        kernel = param(self, "kernel", init, self.kernel_shape, jnp.float32).astype(self.dtype)
        out = [self.product(x.astype(self.dtype), kernel) for x in values]
        if self.use_bias:
            width = self.kernel_shape[-1]
            bias_C = param(self, "bias", nn.initializers.zeros, (width,), jnp.float32)
            scales = (None, scale_B)
            out = [add_bias(x, bias_C, s) for x, s in zip(out, scales, strict=False)]
        return tuple(out)


@jax.custom_vjp
def add_bias(x: jax.Array, bias_C: jax.Array, scale_B: jax.Array | None) -> jax.Array:
    """x [B,...,C] plus a bias, which is scaled for each example where `scale_B` is given.

    The barriers keep XLA from writing scaled biases out for cuDNN to add, and from summing up the
    bias's gradient while it writes that of x, which takes longer than both do apart.
    Among the changes that `logits_and_slopes` names.
    """
    bias_C = bias_C.astype(x.dtype)
    if scale_B is None:
        return x + bias_C
    return jax.lax.optimization_barrier(x) + _per_example(scale_B, x) * bias_C


def _per_example(scale_B, x):
    return scale_B.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _add_bias_fwd(x, bias_C, scale_B):
    return add_bias(x, bias_C, scale_B), (bias_C, scale_B)


def _add_bias_bwd(residuals, grad):
    bias_C, scale_B = residuals
    grad = jax.lax.optimization_barrier(grad)
    sums_BC = grad.reshape(len(grad), -1, bias_C.size).sum(1, dtype=jnp.float32)
    if scale_B is None:
        return grad, sums_BC.sum(0), None
    return grad, scale_B @ sums_BC, jnp.zeros_like(scale_B)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)


class ResBlock(nn.Module):
    """Halves the resolution and gives `width` channels; the two paths are summed over sqrt(2)."""

    width: int
    blur: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, values, scale_B=None):
        width_in = values[0].shape[-1]

        def conv(name, size, width, use_bias=True):
            shape = (size, size, width_in, width)
            return Affine(_convolution, shape, use_bias, self.dtype, name=name)

        def pool(values):
            return tuple(
                blur_pool(x) if self.blur else nn.avg_pool(x, (2, 2), (2, 2)) for x in values
            )

        y = pool(_leaky_relu(conv("Conv_0", 3, width_in)(values, scale_B)))
        y = _leaky_relu(conv("Conv_1", 3, self.width)(y, scale_B))
        skip = conv("Conv_2", 1, self.width, use_bias=False)(pool(values))
        return tuple((a + b) / math.sqrt(2) for a, b in zip(skip, y, strict=True))


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

    def __call__(self, images_BHWC: jax.Array) -> jax.Array:
        """Returns logits float32 [B] of images [B,H,H,C] in [0, 1].

        Raises:
          UserError: the images are not square with a power of two, at least 8, as their side.
        """
        return self._logits((images_BHWC,))[0]

    def linear(self, images_BHWC: jax.Array, x_BHWC: jax.Array, scale_B: jax.Array) -> jax.Array:
        """Returns [B] of x what the images' logits would be of `scale_B` times the images.

        Around each image the network is linear but for its biases: which side of its kink each
        leaky ReLU is on is the image's. Of x = scale_B images this gives scale_B logits.
        """
        return self._logits((images_BHWC, x_BHWC), scale_B)[1]

    @nn.compact
    def _logits(self, values, scale_B=None):
        h, w = values[0].shape[1:3]
        if h != w or h < 8 or h & (h - 1):
            raise UserError(
                f"The discriminator needs square images with a side of 8, 16, 32, ... pixels, "
                f"not {h}x{w}."
            )

        def width(resolution):
            return layer_width(resolution, self.channel_multiplier, self.max_width)

        def conv(name, values):
            width_in, resolution = values[0].shape[-1], values[0].shape[1]
            shape = (3, 3, width_in, width(resolution))
            return _leaky_relu(
                Affine(_convolution, shape, True, self.dtype, name=name)(values, scale_B)
            )

        values = conv("Conv_0", values)
        for block in range(int(math.log2(h)) - 2):
            values = ResBlock(
                width(h >> block + 1), self.blur, self.dtype, name=f"ResBlock_{block}"
            )(values, scale_B)
        values = tuple(x.reshape(x.shape[0], -1) for x in conv("Conv_1", values))
        shape = (values[0].shape[-1], width(4))
        values = Affine(jnp.matmul, shape, True, self.dtype, name="Dense_0")(values, scale_B)
        values = _leaky_relu(values)
        values = Affine(jnp.matmul, (width(4), 1), name="Dense_1")(values, scale_B)
        return tuple(x[:, 0] for x in values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def logits_and_slopes(
    model: Discriminator, params: Any, images_BHWC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(logits [B] of images, `losses.r1_penalty` [B] of their slopes by the images).

    Both have gradients by `params` alone, which one backward pass finds: what it is for slopes s
    is there already, and l logits + c |s|^2 of an image x have the gradient that `linear` has of
    l x + 2 c s. Among the changes from 1,991 to 1,770 ms a step: tokenizer_step.jsonl in
    experiments/results/speed/h100.
    """
    values: Any = _logits_and_slopes_fwd(model, params, images_BHWC)[0]
    return values


def _logits_and_slopes_fwd(model, params, images_BHWC):
    images = images_BHWC.astype(jnp.float32)
    logits_B, pull = jax.vjp(lambda x: model.apply({"params": params}, x), images)
    (slope_BHWC,) = pull(jnp.ones_like(logits_B))
    return (logits_B, losses.r1_penalty(slope_BHWC)), (params, images_BHWC, slope_BHWC)


def _logits_and_slopes_bwd(model, residuals, grads):
    params, images_BHWC, slope_BHWC = residuals
    grad_logits_B, grad_squared_B = (g[:, None, None, None] for g in grads)
    x_BHWC = grad_logits_B * images_BHWC + 2 * grad_squared_B * slope_BHWC

    def value(params):
        variables = {"params": params}
        value_B: Any = model.apply(variables, images_BHWC, x_BHWC, grads[0], method="linear")
        return value_B.sum()

    return jax.grad(value)(params), jnp.zeros_like(images_BHWC)


logits_and_slopes.defvjp(_logits_and_slopes_fwd, _logits_and_slopes_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def logits_twice(
    model: Discriminator, params: Any, images_BHWC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The logits [B] of images, as a function of the parameters alone and of the images alone.

    One backward pass serves both: an example's two gradients by its image differ by a factor.
    """
    logits_B: Any = model.apply({"params": params}, images_BHWC)
    return logits_B, logits_B


def _logits_twice_fwd(model, params, images_BHWC):
    logits_B, pull = jax.vjp(lambda p, x: model.apply({"params": p}, x), params, images_BHWC)
    return (logits_B, logits_B), pull


def _logits_twice_bwd(model, pull, grads):
    del model  # `pull` knows it
    of_params_B, of_images_B = grads
    # Something to divide by, too small to be seen in a sum over examples.
    tiny = jnp.where(of_params_B < 0, -1e-20, 1e-20)
    of_params_B = jnp.where(jnp.abs(of_params_B) < 1e-20, tiny, of_params_B)
    grad_params, grad_images = pull(of_params_B)
    return grad_params, grad_images * (of_images_B / of_params_B)[:, None, None, None]


logits_twice.defvjp(_logits_twice_fwd, _logits_twice_bwd)
