"""How close a reconstruction is to its image: PSNR and SSIM, one value per image.

Legend: B images  H height  W width  C channels. Images are float, in [0, 1]; a reconstruction that
leaves this range is not clipped here, since what is shown to a viewer is the caller's choice.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.runtime.user_error import UserError

_WINDOW = 11
_SIGMA = 1.5


def psnr(images_BHWC: jax.Array, reconstruction_BHWC: jax.Array) -> jax.Array:
    """Returns the peak signal-to-noise ratio in dB, [B], for a data range of 1.

    At most 100 dB, which identical images get: it is well beyond 8 bits (rounding to them alone
    gives 59 dB), and infinity would spoil every mean.
    """
    x, y = _as_pair(images_BHWC, reconstruction_BHWC)
    mse_B = jnp.mean((x - y) ** 2, axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(mse_B, 1e-10))


def ssim(images_BHWC: jax.Array, reconstruction_BHWC: jax.Array) -> jax.Array:
    """Returns the structural similarity, [B], at most 1, for a data range of 1.

    Wang et al. 2004: Gaussian windows of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, population
    variances; the mean over all windows that lie inside the image, and over channels.
    Raises UserError for images smaller than a window; pad or enlarge them first.
    """
    height, width = images_BHWC.shape[1:3]
    if min(height, width) < _WINDOW:
        raise UserError(
            f"SSIM needs images of at least {_WINDOW} x {_WINDOW} pixels, not {height} x {width}."
        )
    x, y = _as_pair(images_BHWC, reconstruction_BHWC)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = map(_blur, (x, y, x * x, y * y, x * y))
    variance_x, variance_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _as_pair(images_BHWC: jax.Array, other_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    if images_BHWC.shape != other_BHWC.shape:
        raise UserError(f"Images of shapes {images_BHWC.shape} and {other_BHWC.shape} differ.")
    for array in (images_BHWC, other_BHWC):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"Images must be float in [0, 1], not {array.dtype}.")
    return images_BHWC.astype(jnp.float32), other_BHWC.astype(jnp.float32)


def _blur(x_BHWC: jax.Array) -> jax.Array:
    """Returns the Gaussian mean of every window inside the image, [B, H - 10, W - 10, C]."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).astype(np.float32)
    # A sum of shifted images: exact float32 on every device, where a convolution may not be.
    for axis in (1, 2):
        size = x_BHWC.shape[axis] - _WINDOW + 1
        shifted = [
            weight * jax.lax.slice_in_dim(x_BHWC, i, i + size, axis=axis)
            for i, weight in enumerate(weights)
        ]
        x_BHWC = functools.reduce(operator.add, shifted)
    return x_BHWC
