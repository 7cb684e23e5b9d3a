"""The Inception network of 2015-12-05, on whose features FID is defined, frozen.

Szegedy et al. 2015 ("Rethinking the Inception Architecture") as in the TensorFlow graph of that
date, whose quirks count: a bilinear resize without half-pixel centres, average pools that do not
count the padding, a max pool in the last block, 1,008 classes. Batch normalisation is folded into
the convolutions. Blocks and branches have the names that torch's port of the weights uses.

    B batch  H W image height, width  C channels  F features  V classes
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.features import inception_blocks as blocks
from fsq_jax.features.resizing import resize
from fsq_jax.runtime.user_error import UserError

SIZE = 299
NUM_CLASSES = 1008
POOL_FEATURES = 2048
SPATIAL_FEATURES = 17 * 17 * 7
SCALINGS = ("128", "127.5")
DTYPES = ("float32", "tf32", "bfloat16")


class Features(NamedTuple):
    """What the metrics read, all float32; under jit only what is used is computed.

    pool_BF: [B,2048], `pool_3`: FID, KID, precision and recall.
    spatial_BF: [B,2023], the first 7 channels of `mixed_6/conv` (17 x 17): sFID.
    logits_BV: [B,1008] without the bias, as Inception Scores take them.
    biased_logits_BV: [B,1008] with it.
    """

    pool_BF: jax.Array
    spatial_BF: jax.Array
    logits_BV: jax.Array
    biased_logits_BV: jax.Array


def prepare(images_BHWC: jax.Array, method: str = "tf1", scaling: str = "128") -> jax.Array:
    """Returns the network's input of images 0 to 255 (uint8 or float): float32, 299 px.

    method: one of `resizing.METHODS`; with "none" the images keep their size.
    scaling: "128" for (x - 128) / 128, as the graph has it; "127.5" for x / 127.5 - 1, as
        pytorch-fid and jax-fid have it.
    Raises UserError for images that have not 3 channels, and for names that do not exist.
    """
    if images_BHWC.ndim != 4 or images_BHWC.shape[-1] != 3:
        raise UserError(
            f"Inception takes RGB images [B,H,W,3], not {images_BHWC.shape}; "
            "repeat the channel of grey ones."
        )
    if scaling not in SCALINGS:
        raise UserError(f"There is no scaling {scaling!r}; choose one of {SCALINGS}.")
    x_BHWC = resize(images_BHWC, SIZE, method)
    return (x_BHWC - 128) / 128 if scaling == "128" else x_BHWC / 127.5 - 1


def to_uint8(images_BHWC: jax.Array) -> jax.Array:
    """Returns uint8 images of floats in [0, 1], which are clipped to it and rounded to nearest."""
    return (images_BHWC.clip(0, 1) * 255 + 0.5).astype(jnp.uint8)


class Inception(nn.Module):
    """`Features` of prepared images.

    dtype: "float32" at full precision on any device; "tf32" lets a GPU round the factors of
        products to 10 bits; "bfloat16" for weights and activations (pooling and logits float32).
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, inputs_BHWC: jax.Array) -> Features:
        """Returns `Features` of [B,H,W,3]; with H = W = 299 the sizes are those stated there."""
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype!r} is not one of {DTYPES}.")
        precision = jax.lax.Precision("default" if self.dtype == "tf32" else "highest")
        compute = jnp.bfloat16 if self.dtype == "bfloat16" else jnp.float32
        conv = blocks.Conv(compute, precision)
        x = inputs_BHWC.astype(compute)
        x = nn.relu(conv(32, (3, 3), 2, "Conv2d_1a_3x3")(x))
        x = nn.relu(conv(32, (3, 3), 1, "Conv2d_2a_3x3", "VALID")(x))
        x = nn.relu(conv(64, (3, 3), 1, "Conv2d_2b_3x3")(x))
        x = blocks.max_pool(x)
        x = nn.relu(conv(80, (1, 1), 1, "Conv2d_3b_1x1")(x))
        x = nn.relu(conv(192, (3, 3), 1, "Conv2d_4a_3x3", "VALID")(x))
        x = blocks.max_pool(x)
        for name, width in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = blocks.BlockA(conv, width, name=f"Mixed_{name}")(x)
        x = blocks.BlockB(conv, name="Mixed_6a")(x)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x, spatial_BHWC = blocks.BlockC(conv, width, name=f"Mixed_{name}")(x)
            if name == "6d":  # TensorFlow's mixed_6
                spatial_BF = spatial_BHWC[..., :7].reshape(x.shape[0], -1).astype(jnp.float32)
        x = blocks.BlockD(conv, name="Mixed_7a")(x)
        x = blocks.BlockE(conv, "average", name="Mixed_7b")(x)
        x = blocks.BlockE(conv, "max", name="Mixed_7c")(x)
        pool_BF = x.mean((1, 2), dtype=jnp.float32)
        logits_BV, bias_V = _Classifier(NUM_CLASSES, precision, name="fc")(pool_BF)
        return Features(pool_BF, spatial_BF, logits_BV, logits_BV + bias_V)


class _Classifier(nn.Module):
    """Logits without the bias, and the bias."""

    width: int
    precision: jax.lax.Precision

    @nn.compact
    def __call__(self, x_BF):
        shape = (x_BF.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias_V = self.param("bias", nn.initializers.zeros, shape[1:])
        return jnp.dot(x_BF, kernel, precision=self.precision), bias_V
