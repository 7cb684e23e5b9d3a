"""ResNet-50 (and its deeper siblings) from a state dict with the names that torchvision gave it.

No package carries the weights: bring resnet50-*.pth, or the same arrays as .npz.
"""

from pathlib import Path

from fsq_jax.features import batch_norm
from fsq_jax.features.resnet import ResNet

EPSILON = 1e-5


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
