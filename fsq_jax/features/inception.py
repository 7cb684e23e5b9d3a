"""The Inception network of 2015-12-05, on whose features FID is defined, frozen.

Szegedy et al. 2015 ("Rethinking the Inception Architecture") as in the TensorFlow graph of that
date, whose quirks count: a bilinear resize without half-pixel centres, average pools that do not
count the padding, a max pool in the last block, 1,008 classes. Batch normalisation is folded into
the convolutions. Blocks and branches have the names that torch's port of the weights uses.

    B batch  H W image height, width  C channels  F features  V classes
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

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
        conv = _Conv(compute, precision)
        x = inputs_BHWC.astype(compute)
        x = nn.relu(conv(32, (3, 3), 2, "Conv2d_1a_3x3")(x))
        x = nn.relu(conv(32, (3, 3), 1, "Conv2d_2a_3x3", "VALID")(x))
        x = nn.relu(conv(64, (3, 3), 1, "Conv2d_2b_3x3")(x))
        x = _max_pool(x)
        x = nn.relu(conv(80, (1, 1), 1, "Conv2d_3b_1x1")(x))
        x = nn.relu(conv(192, (3, 3), 1, "Conv2d_4a_3x3", "VALID")(x))
        x = _max_pool(x)
        for name, width in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = _BlockA(conv, width, name=f"Mixed_{name}")(x)
        x = _BlockB(conv, name="Mixed_6a")(x)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x, spatial_BHWC = _BlockC(conv, width, name=f"Mixed_{name}")(x)
            if name == "6d":  # TensorFlow's mixed_6
                spatial_BF = spatial_BHWC[..., :7].reshape(x.shape[0], -1).astype(jnp.float32)
        x = _BlockD(conv, name="Mixed_7a")(x)
        x = _BlockE(conv, "average", name="Mixed_7b")(x)
        x = _BlockE(conv, "max", name="Mixed_7c")(x)
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


class _Weights(nn.Module):
    """Kernel and bias of a convolution that is computed together with others."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


@dataclasses.dataclass(frozen=True)
class _Conv:
    """Makes convolutions that compute in a type, at a precision."""

    dtype: Any
    precision: jax.lax.Precision

    def __call__(self, width, kernel, stride=1, name=None, padding="SAME"):
        return nn.Conv(
            width,
            kernel,
            (stride, stride),
            "VALID" if stride > 1 else padding,
            dtype=self.dtype,
            precision=self.precision,
            name=name,
        )

    def side_by_side(self, x_BHWC, **widths):
        """What 1x1 convolutions of these names and widths make of one input, which is read once.

        In blocks A and C that took 4% off the time of float32 features on an H200, at the same
        distance from float64's to all digits (speed/h200/inception_variants.jsonl among the
        results).
        """
        channels = x_BHWC.shape[-1]
        layers = [_Weights((1, 1, channels, w), name=name)() for name, w in widths.items()]
        kernel, bias = (
            jnp.concatenate(x, -1).astype(self.dtype) for x in zip(*layers, strict=True)
        )
        y_BHWC = jax.lax.conv_general_dilated(
            x_BHWC,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.precision,
        )
        return jnp.split(y_BHWC + bias, np.cumsum([*widths.values()])[:-1], axis=-1)


class _BlockA(nn.Module):
    conv: _Conv
    pool_width: int

    @nn.compact
    def __call__(self, x_BHWC):
        first, five, three, pool = self.conv.side_by_side(
            x_BHWC, branch1x1=64, branch5x5_1=48, branch3x3dbl_1=64, branch_pool=self.pool_width
        )
        return jnp.concatenate(
            [
                nn.relu(first),
                _rest(self.conv, five, "branch5x5", (64, (5, 5))),
                _rest(self.conv, three, "branch3x3dbl", (96, (3, 3)), (96, (3, 3))),
                _pooled(pool),
            ],
            axis=-1,
        )


class _BlockB(nn.Module):
    conv: _Conv

    @nn.compact
    def __call__(self, x_BHWC):
        return jnp.concatenate(
            [
                nn.relu(self.conv(384, (3, 3), 2, "branch3x3")(x_BHWC)),
                _rest(
                    self.conv,
                    self.conv(64, (1, 1), name="branch3x3dbl_1")(x_BHWC),
                    "branch3x3dbl",
                    (96, (3, 3)),
                    (96, (3, 3), 2),
                ),
                _max_pool(x_BHWC),
            ],
            axis=-1,
        )


class _BlockC(nn.Module):
    conv: _Conv
    width: int

    @nn.compact
    def __call__(self, x_BHWC):
        c, row, column = self.width, (1, 7), (7, 1)
        first, seven, double, pool = self.conv.side_by_side(
            x_BHWC, branch1x1=192, branch7x7_1=c, branch7x7dbl_1=c, branch_pool=192
        )
        double_layers = (c, column), (c, row), (c, column), (192, row)
        return jnp.concatenate(
            [
                nn.relu(first),
                _rest(self.conv, seven, "branch7x7", (c, row), (192, column)),
                _rest(self.conv, double, "branch7x7dbl", *double_layers),
                _pooled(pool),
            ],
            axis=-1,
        ), nn.relu(first)


class _BlockD(nn.Module):
    conv: _Conv

    @nn.compact
    def __call__(self, x_BHWC):
        three, seven = self.conv.side_by_side(x_BHWC, branch3x3_1=192, branch7x7x3_1=192)
        seven_layers = (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)
        return jnp.concatenate(
            [
                _rest(self.conv, three, "branch3x3", (320, (3, 3), 2)),
                _rest(self.conv, seven, "branch7x7x3", *seven_layers),
                _max_pool(x_BHWC),
            ],
            axis=-1,
        )


class _BlockE(nn.Module):
    conv: _Conv
    pool: str

    @nn.compact
    def __call__(self, x_BHWC):
        split = {"a": (1, 3), "b": (3, 1)}
        widths = dict(branch1x1=320, branch3x3_1=384, branch3x3dbl_1=448)
        if self.pool == "average":
            first, single, double, pool = self.conv.side_by_side(x_BHWC, **widths, branch_pool=192)
            pool = _pooled(pool)
        else:
            first, single, double = self.conv.side_by_side(x_BHWC, **widths)
            pool = _max_pool(x_BHWC, stride=1)
            pool = nn.relu(self.conv(192, (1, 1), name="branch_pool")(pool))
        single, double = nn.relu(single), _rest(self.conv, double, "branch3x3dbl", (384, (3, 3)))
        return jnp.concatenate(
            [
                nn.relu(first),
                *(
                    nn.relu(self.conv(384, k, name=f"branch3x3_2{s}")(single))
                    for s, k in split.items()
                ),
                *(
                    nn.relu(self.conv(384, k, name=f"branch3x3dbl_3{s}")(double))
                    for s, k in split.items()
                ),
                pool,
            ],
            axis=-1,
        )


def _rest(conv, x_BHWC, name, *layers):
    """What follows on a chain's first convolution: ReLU, and those called name_2, name_3 and so
    on, each with one."""
    x_BHWC = nn.relu(x_BHWC)
    for i, (width, *shape) in enumerate(layers, 2):
        x_BHWC = nn.relu(conv(width, *shape, name=f"{name}_{i}")(x_BHWC))
    return x_BHWC


def _pooled(x_BHWC):
    """Average pool and ReLU of a 1x1 convolution's output; the graph has the pool before it.

    An average over what lies inside the image commutes with a product by a matrix, and leaves a
    bias as it is; convolved first, there is less to pool.
    """
    return nn.relu(_average_pool(x_BHWC))


def _average_pool(x_BHWC):
    """Means of 3 x 3 pixels, of those that lie inside the image."""
    height, width = x_BHWC.shape[1:3]
    inside = [3 - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in (height, width)]
    sums = jax.lax.reduce_window(
        x_BHWC.astype(jnp.float32), 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    )
    return (sums / np.outer(*inside)[None, :, :, None].astype(np.float32)).astype(x_BHWC.dtype)


def _max_pool(x_BHWC, stride=2):
    padding = "VALID" if stride > 1 else "SAME"
    return nn.max_pool(x_BHWC, (3, 3), (stride, stride), padding)
