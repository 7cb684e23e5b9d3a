"""ResNet-50, a frozen ImageNet classifier whose last map gives MaskGIT's perceptual loss.

He et al. 2016, with 1x1, 3x3, 1x1 blocks. Inference only: batch normalisation is folded into the
convolutions. No package carries the weights: bring resnet50-*.pth with the names that torchvision
gave it, or the same arrays as .npz.

    B batch  H W image height, width  h w map height, width  C channels  V classes
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.features import batch_norm
from fsq_jax.runtime.user_error import UserError

SIZE = 224
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
STRIDES_IN = ("3x3", "1x1")
EPSILON = 1e-5


def prepare(images_BHWC: jax.Array) -> jax.Array:
    """Returns the network's input of images in [0, 1]: 224 px, ImageNet mean 0, deviation 1.

    Resized bilinearly by `jax.image.resize`, with a wider filter when shrinking (antialias). The
    normalisation is what the published torch weights were trained with; MaskGIT's own weights
    were never published.
    """
    shape = (images_BHWC.shape[0], SIZE, SIZE, images_BHWC.shape[-1])
    images = jax.image.resize(images_BHWC.astype(jnp.float32), shape, "bilinear", antialias=True)
    return (images - jnp.array(MEAN)) / jnp.array(DEVIATION)


def _conv(width, size, stride=1, name=None):
    # Symmetric padding as in torch: SAME would pad a strided convolution on one side only.
    pad = [(size // 2, size // 2)] * 2
    return nn.Conv(width, (size, size), strides=(stride, stride), padding=pad, name=name)


class Bottleneck(nn.Module):
    """1x1 narrow, 3x3, 1x1 to four times the width, plus a shortcut; then ReLU."""

    width: int
    stride: int
    stride_in: str

    @nn.compact
    def __call__(self, x_BHWC):
        first, second = (1, self.stride) if self.stride_in == "3x3" else (self.stride, 1)
        y = nn.relu(_conv(self.width, 1, first, "conv1")(x_BHWC))
        y = nn.relu(_conv(self.width, 3, second, "conv2")(y))
        y = _conv(4 * self.width, 1, name="conv3")(y)
        if self.stride > 1 or x_BHWC.shape[-1] != 4 * self.width:
            x_BHWC = _conv(4 * self.width, 1, self.stride, "downsample")(x_BHWC)
        return nn.relu(x_BHWC + y)


class ResNet(nn.Module):
    """The last map of features [B,h,w,32*width] and the logits [B,V] of prepared images.

    The defaults are ResNet-50. `stride_in` says which convolution of a block halves the
    resolution: "3x3" as in the torch weights (called v1.5), "1x1" as in the original paper (v1).
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_classes: int = 1000
    stride_in: str = "3x3"

    @nn.compact
    def __call__(self, inputs_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (map before the pooling [B,7,7,2048], logits [B,V]) of [B,224,224,3]."""
        if self.stride_in not in STRIDES_IN:
            raise UserError(f"stride_in={self.stride_in!r} is not one of {STRIDES_IN}.")
        x = nn.relu(_conv(self.width, 7, 2, "conv1")(inputs_BHWC))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                x = Bottleneck(
                    self.width * 2**stage,
                    2 if i == 0 and stage > 0 else 1,
                    self.stride_in,
                    name=f"stage{stage}_block{i}",
                )(x)
        return x, nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))


def convert(state: dict, stride_in: str = "3x3") -> tuple[ResNet, dict]:
    """Returns (module, params) of a state dict, which it empties; sizes are read from it."""
    width = state["conv1.weight"].shape[0]
    params = {"conv1": batch_norm.folded(state, "conv1", "bn1", EPSILON)}
    stage_sizes = []
    for stage in range(4):
        blocks = 0
        while f"layer{stage + 1}.{blocks}.conv1.weight" in state:
            params[f"stage{stage}_block{blocks}"] = _block(state, f"layer{stage + 1}.{blocks}.")
            blocks += 1
        stage_sizes.append(blocks)
    params["classifier"] = batch_norm.dense(state, "fc")
    num_classes = params["classifier"]["bias"].shape[0]
    return ResNet(tuple(stage_sizes), width, num_classes, stride_in), params


def _block(state, prefix):
    layers = {
        f"conv{i}": batch_norm.folded(state, f"{prefix}conv{i}", f"{prefix}bn{i}", EPSILON)
        for i in (1, 2, 3)
    }
    if f"{prefix}downsample.0.weight" in state:
        layers["downsample"] = batch_norm.folded(
            state, f"{prefix}downsample.0", f"{prefix}downsample.1", EPSILON
        )
    return layers


def load(path: str | Path, stride_in: str = "3x3") -> tuple[ResNet, dict, str]:
    """Returns (module, variables, sha256 of the file) of a .pth or .npz state dict.

    `stride_in`: "3x3" for weights of torchvision, "1x1" for those of the original network; the
    file cannot tell which, the shapes are the same.

    Raises:
      UserError: the file cannot be read, or is of another network.
    """
    return batch_norm.load(path, lambda state: convert(state, stride_in))
