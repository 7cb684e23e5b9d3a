"""The inputs that the recorded answers belong to: images and weights out of a seed."""

import numpy as np


def photo_like(count: int, side: int) -> np.ndarray:
    """Returns float32 images [count,side,side,3] in [0, 1]: coloured blocks under some noise."""
    rng = np.random.RandomState(0)
    blocks = rng.rand(count, 8, 8, 3).repeat(side // 8, 1).repeat(side // 8, 2)
    return np.clip(blocks + 0.1 * rng.randn(count, side, side, 3), 0, 1).astype(np.float32)


def resnet_state_dict() -> dict[str, np.ndarray]:
    """Returns the state dict of a ResNet with stages of 1, 2, 1, 1 blocks, width 4, 10 classes."""
    rng = np.random.RandomState(1)
    state = {}

    def conv(name, norm, width_in, width, size):
        scale = np.sqrt(2 / (width_in * size * size))
        state[f"{name}.weight"] = scale * rng.randn(width, width_in, size, size)
        state[f"{norm}.weight"] = 1 + 0.2 * rng.randn(width)
        state[f"{norm}.bias"] = 0.2 * rng.randn(width)
        state[f"{norm}.running_mean"] = 0.2 * rng.randn(width)
        state[f"{norm}.running_var"] = 0.5 + rng.rand(width)
        state[f"{norm}.num_batches_tracked"] = np.int64(5)

    conv("conv1", "bn1", 3, 4, 7)
    width_in = 4
    for stage, blocks in enumerate((1, 2, 1, 1)):
        width = 4 * 2**stage
        for i in range(blocks):
            prefix = f"layer{stage + 1}.{i}."
            conv(prefix + "conv1", prefix + "bn1", width_in, width, 1)
            conv(prefix + "conv2", prefix + "bn2", width, width, 3)
            conv(prefix + "conv3", prefix + "bn3", width, 4 * width, 1)
            if i == 0:
                conv(prefix + "downsample.0", prefix + "downsample.1", width_in, 4 * width, 1)
            width_in = 4 * width
    state["fc.weight"] = 0.1 * rng.randn(10, width_in)
    state["fc.bias"] = 0.1 * rng.randn(10)
    return {
        k: np.asarray(v, np.int64 if "num_batches" in k else np.float32) for k, v in state.items()
    }


def byte_images() -> dict[str, np.ndarray]:
    """Returns uint8 images that grow to 299 px, and one that shrinks to it on one side."""
    rng = np.random.RandomState(2)
    blocks = rng.randint(0, 256, (2, 8, 7, 3)).repeat(4, 1).repeat(5, 2)
    wide = rng.randint(0, 256, (1, 12, 40, 3)).repeat(5, 1).repeat(10, 2)
    return {"small": blocks.astype(np.uint8), "wide": wide.astype(np.uint8)}


def metric_sets() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns two sets of made-up features, {"pool": [N,32], "logits": [N,20]}, float32."""
    rng = np.random.RandomState(3)
    mix = rng.randn(32, 32) / 6
    sets = []
    for count, shift, scale in ((1300, 0.4, 1.0), (1100, 0.5, 1.1)):
        pool = scale * np.abs(rng.randn(count, 32) @ mix + shift)
        logits = 2 * rng.randn(count, 20)
        sets.append({"pool": pool.astype(np.float32), "logits": logits.astype(np.float32)})
    return tuple(sets)
