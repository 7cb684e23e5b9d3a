"""Group normalisation and swish of MaskGIT's autoencoder, as one function of little traffic.

B batch  H W image height, width  C width  G groups
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models.parameters import param
from fsq_jax.runtime.placement import split_by_example


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm_swish(
    x_BHWC: jax.Array, scale_C: jax.Array, bias_C: jax.Array, groups: int, epsilon: float
) -> jax.Array:
    """swish(norm(x) * scale + bias), in the dtype of x; statistics of each group of channels.

    Float32 sums of x and x^2 in one pass over x make one multiply-add of the normalisation. The
    backward pass keeps x alone, and reads it and the gradient twice. Among the changes from 2013 to
    1770 ms a step: tokenizer_step.jsonl in experiments/results/speed/h100 and its before/.
    """
    return _group_norm_swish_fwd(x_BHWC, scale_C, bias_C, groups, epsilon)[0]


def _group_means(sums_BC, pixels, groups):
    """Mean over the pixels and channels of each channel's group, of sums over pixels: [B, C]."""
    batch, channels = sums_BC.shape
    means_BG = sums_BC.reshape(batch, groups, -1).mean(-1) / pixels
    return jnp.repeat(means_BG, channels // groups, axis=-1)


def _over_pixels(values_BC):
    return values_BC[:, None, None]


def _group_norm_swish_fwd(x_BHWC, scale_C, bias_C, groups, epsilon):
    x32_BHWC, pixels = x_BHWC.astype(jnp.float32), x_BHWC.shape[1] * x_BHWC.shape[2]
    mean_BC = _group_means(x32_BHWC.sum((1, 2)), pixels, groups)
    square_BC = _group_means(jnp.square(x32_BHWC).sum((1, 2)), pixels, groups)
    inverse_BC = jax.lax.rsqrt(jnp.maximum(square_BC - jnp.square(mean_BC), 0.0) + epsilon)
    mul_BC = inverse_BC * scale_C
    y_BHWC = x32_BHWC * _over_pixels(mul_BC) + _over_pixels(bias_C - mean_BC * mul_BC)
    return nn.swish(y_BHWC).astype(x_BHWC.dtype), (x_BHWC, scale_C, bias_C, mean_BC, inverse_BC)


def _group_norm_swish_bwd(groups, epsilon, residuals, grad_BHWC):
    x_BHWC, scale_C, bias_C, mean_BC, inverse_BC = residuals
    if x_BHWC.dtype != jnp.float32:
        return _half_bwd(groups, residuals, grad_BHWC)
    normed_BHWC = (x_BHWC - _over_pixels(mean_BC)) * _over_pixels(inverse_BC)
    slope_BHWC = _swish_bwd(normed_BHWC * scale_C + bias_C, grad_BHWC)
    sum_BC, product_BC = slope_BHWC.sum((1, 2)), (slope_BHWC * normed_BHWC).sum((1, 2))
    pixels = x_BHWC.shape[1] * x_BHWC.shape[2]
    mean_slope_BC = _group_means(sum_BC * scale_C, pixels, groups)
    along_BC = _group_means(product_BC * scale_C, pixels, groups)
    grad_x_BHWC = slope_BHWC * scale_C - normed_BHWC * _over_pixels(along_BC)
    grad_x_BHWC = (grad_x_BHWC - _over_pixels(mean_slope_BC)) * _over_pixels(inverse_BC)
    return grad_x_BHWC, product_BC.sum(0), sum_BC.sum(0)


def _swish_bwd(y_BHWC, grad_BHWC):
    gate_BHWC = jax.nn.sigmoid(y_BHWC)
    return grad_BHWC * (gate_BHWC * (1 + y_BHWC * (1 - gate_BHWC)))


def _half_bwd(groups, residuals, grad_BHWC):
    """The same for a GPU: few operations and registers for a value, few sums for many values."""
    x_BHWC, scale_C, bias_C, mean_BC, inverse_BC = residuals
    mul_BC = inverse_BC * scale_C
    add_BC = bias_C - mean_BC * mul_BC

    def slopes(x_BHWC, grad_BHWC):
        x_BHWC = x_BHWC.astype(jnp.float32)
        y_BHWC = x_BHWC * _over_pixels(mul_BC) + _over_pixels(add_BC)
        return _swish_bwd(y_BHWC, grad_BHWC.astype(jnp.float32)), x_BHWC

    def partial_sums(v_BHWC):
        """Of 16 rows each: XLA itself would take one row, and start on the next ones too often."""
        batch, height, _, channels = v_BHWC.shape
        return v_BHWC.reshape(batch, height // math.gcd(height, 16), -1, channels).sum(2)

    slope_BHWC, x32_BHWC = slopes(x_BHWC, grad_BHWC)
    sums = partial_sums(slope_BHWC), partial_sums(slope_BHWC * x32_BHWC)
    # Behind the barrier the slope is computed again rather than written out in float32, which is
    # twice the bytes of x, and the partial sums stay what they are.
    sums, x_BHWC, grad_BHWC = jax.lax.optimization_barrier((sums, x_BHWC, grad_BHWC))
    sum_BC, raw_BC = (partial.sum(1) for partial in sums)
    product_BC = inverse_BC * (raw_BC - mean_BC * sum_BC)
    pixels = x_BHWC.shape[1] * x_BHWC.shape[2]
    mean_slope_BC = _group_means(sum_BC * scale_C, pixels, groups)
    along_BC = inverse_BC * _group_means(product_BC * scale_C, pixels, groups)
    slope_BHWC, x32_BHWC = slopes(x_BHWC, grad_BHWC)
    grad_x_BHWC = slope_BHWC * _over_pixels(mul_BC) - x32_BHWC * _over_pixels(inverse_BC * along_BC)
    grad_x_BHWC += _over_pixels(inverse_BC * (mean_BC * along_BC - mean_slope_BC))
    return grad_x_BHWC.astype(x_BHWC.dtype), product_BC.sum(0), sum_BC.sum(0)


group_norm_swish.defvjp(_group_norm_swish_fwd, _group_norm_swish_bwd)


class GroupNorm(nn.Module):
    """Group normalisation followed by swish, see `group_norm_swish`.

    `num_groups` is lowered to the largest number that divides it and the channels.
    """

    num_groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x_BHWC):
        scale_C = param(self, "scale", nn.initializers.ones, x_BHWC.shape[-1:], jnp.float32)
        bias_C = param(self, "bias", nn.initializers.zeros, x_BHWC.shape[-1:], jnp.float32)
        groups = math.gcd(self.num_groups, x_BHWC.shape[-1])
        x_BHWC = split_by_example(x_BHWC)  # lest it is cut as FSDP cuts the kernels around it
        return split_by_example(group_norm_swish(x_BHWC, scale_C, bias_C, groups, self.epsilon))
