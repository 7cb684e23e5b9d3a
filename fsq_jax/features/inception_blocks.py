"""The blocks of Inception: branches that read one input, side by side along the channels.

Their names and those of their layers are the ones of torch's port of the weights.

    B batch  H W height, width  C channels
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class _Weights(nn.Module):
    """Kernel and bias of a convolution that is computed together with others."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


@dataclasses.dataclass(frozen=True)
class Conv:
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


class BlockA(nn.Module):
    conv: Conv
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


class BlockB(nn.Module):
    conv: Conv

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
                max_pool(x_BHWC),
            ],
            axis=-1,
        )


class BlockC(nn.Module):
    conv: Conv
    width: int

    @nn.compact
    def __call__(self, x_BHWC):
        c, row, column = self.width, (1, 7), (7, 1)
        first, seven, double, pool = self.conv.side_by_side(
            x_BHWC, branch1x1=192, branch7x7_1=c, branch7x7dbl_1=c, branch_pool=192
        )
        first = nn.relu(first)
        double_layers = (c, column), (c, row), (c, column), (192, row)
        return jnp.concatenate(
            [
                first,
                _rest(self.conv, seven, "branch7x7", (c, row), (192, column)),
                _rest(self.conv, double, "branch7x7dbl", *double_layers),
                _pooled(pool),
            ],
            axis=-1,
        ), first


class BlockD(nn.Module):
    conv: Conv

    @nn.compact
    def __call__(self, x_BHWC):
        three, seven = self.conv.side_by_side(x_BHWC, branch3x3_1=192, branch7x7x3_1=192)
        seven_layers = (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)
        return jnp.concatenate(
            [
                _rest(self.conv, three, "branch3x3", (320, (3, 3), 2)),
                _rest(self.conv, seven, "branch7x7x3", *seven_layers),
                max_pool(x_BHWC),
            ],
            axis=-1,
        )


class BlockE(nn.Module):
    conv: Conv
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
            pool = max_pool(x_BHWC, stride=1)
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
    return nn.relu(average_pool(x_BHWC))


def average_pool(x_BHWC):
    """Means of 3 x 3 pixels, of those that lie inside the image."""
    height, width = x_BHWC.shape[1:3]
    inside = [3 - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in (height, width)]
    sums = jax.lax.reduce_window(
        x_BHWC.astype(jnp.float32), 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    )
    return (sums / np.outer(*inside)[None, :, :, None].astype(np.float32)).astype(x_BHWC.dtype)


def max_pool(x_BHWC, stride=2):
    padding = "VALID" if stride > 1 else "SAME"
    return nn.max_pool(x_BHWC, (3, 3), (stride, stride), padding)
