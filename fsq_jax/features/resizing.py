"""Resizes of images as the tools that compute FID do them, as two products with small matrices.

A resize that treats rows and columns alike is a matrix of weights on each side of the image. The
weights are made by NumPy for the sizes at hand, so that under jit they are constants.

    "tf1"          TensorFlow 1's bilinear, as in the graph of 2015: align_corners off, no
                   half-pixel centres, no antialias (ADM, torch-fidelity)
    "bilinear"     bilinear with half-pixel centres, no antialias, as torch has it (pytorch-fid)
    "bicubic-pil"  PIL's bicubic (a = -1/2) of each channel as floats, with antialias, the result
                   clipped to [0, 255] (clean-fid)
    "none"         the image as it is

Legend: B images  H W height, width  C channels  N size before  M size after.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.runtime.user_error import UserError

METHODS = ("tf1", "bilinear", "bicubic-pil", "none")


def resize(images_BHWC: jax.Array, size: int, method: str) -> jax.Array:
    """Returns the images at size x size pixels, float32 in the units that they came in.

    images_BHWC: uint8 or float, 0 to 255. Computed in float32 on any device: TF32 would cost FID a
    digit.
    Raises UserError for a method that is not one of `METHODS`.
    """
    if method not in METHODS:
        raise UserError(f"There is no resize {method!r}; choose one of {METHODS}.")
    images_BHWC = images_BHWC.astype(jnp.float32)
    if method == "none":
        return images_BHWC
    rows, columns = (weights(n, size, method) for n in images_BHWC.shape[1:3])
    exact = jax.lax.Precision.HIGHEST
    # PIL's order: first along the rows of pixels, then along the columns.
    images_BHMC = jnp.einsum("bhwc,mw->bhmc", images_BHWC, columns, precision=exact)
    images_BMMC = jnp.einsum("bhwc,mh->bmwc", images_BHMC, rows, precision=exact)
    return images_BMMC.clip(0, 255) if method == "bicubic-pil" else images_BMMC


def weights(before: int, after: int, method: str) -> np.ndarray:
    """Returns the matrix that resizes one axis: float32 [M, N], rows of sum 1."""
    if method == "bicubic-pil":
        return _antialiased_cubic(before, after).astype(np.float32)
    # In float32, as TensorFlow and torch compute where a pixel comes from.
    scale = np.float32(before / after)
    where_M = np.arange(after, dtype=np.float32)
    if method == "bilinear":
        where_M = np.maximum((where_M + np.float32(0.5)) * scale - np.float32(0.5), 0)
    else:
        where_M = where_M * scale
    low_M = where_M.astype(int).clip(0, before - 1)
    high_M = (low_M + 1).clip(0, before - 1)
    share_M = where_M - low_M.astype(np.float32)
    matrix_MN = np.zeros((after, before), np.float32)
    np.add.at(matrix_MN, (np.arange(after), low_M), 1 - share_M)
    np.add.at(matrix_MN, (np.arange(after), high_M), share_M)
    return matrix_MN


def _antialiased_cubic(before: int, after: int) -> np.ndarray:
    """PIL's bicubic: the kernel widened when shrinking, cut at the borders, normalised."""
    scale = before / after
    wide = max(scale, 1.0)
    centre_M1 = (np.arange(after)[:, None] + 0.5) * scale
    pixel_N = np.arange(before)
    first_M1 = np.floor(centre_M1 - 2 * wide + 0.5)
    last_M1 = np.floor(centre_M1 + 2 * wide + 0.5)
    distance_MN = np.abs(pixel_N + 0.5 - centre_M1) / wide
    near_MN = (1.5 * distance_MN - 2.5) * distance_MN**2 + 1
    far_MN = ((-0.5 * distance_MN + 2.5) * distance_MN - 4) * distance_MN + 2
    matrix_MN = np.where(distance_MN < 1, near_MN, np.where(distance_MN < 2, far_MN, 0))
    matrix_MN = np.where((pixel_N >= first_M1) & (pixel_N < last_M1), matrix_MN, 0)
    return matrix_MN / matrix_MN.sum(axis=1, keepdims=True)
