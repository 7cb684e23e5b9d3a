"""Writes quantizers_scalar.npz: what vector-quantize-pytorch makes of residual FSQ, LFQ and BSQ.

Run in an environment of its own:

    pip install torch==2.13.0 numpy vector-quantize-pytorch==1.32.0
    python record_quantizers_scalar.py

For every case NAME the file holds
    NAME/z          float16 [1, N, d], inputs (a small file's; they were fed as float32)
    NAME/weight     float16 [1, N, d], what the codes were multiplied with, and summed
    NAME/codes      float32 [1, N, d]
    NAME/indices    int32, as the library has them: [1, N, stages], [groups, 1, N, stages], [1, N]
    NAME/gradient   float32 [1, N, d], of that sum
and of LFQ and BSQ, in training,
    NAME/losses     float32 [4]: the auxiliary loss, token entropy, codebook entropy, commitment
    NAME/loss_gradient   float32 [1, N, d], of the auxiliary loss

Where it differs from the papers is said where the test compares.
"""

import pathlib

import numpy as np
import torch
from vector_quantize_pytorch import LFQ, GroupedResidualFSQ, ResidualFSQ

NUM_TOKENS = 64
RESIDUAL = {  # levels, stages
    "residual_5-4-3-8_x2": ([5, 4, 3, 8], 2),
    "residual_3-2-4_x4": ([3, 2, 4], 4),
    "residual_8-5-5-5_x1": ([8, 5, 5, 5], 1),
}
GROUPED = ([5, 4], 2, 3)  # levels, stages, groups
BINARY = {  # bits, inv_temperature, spherical, scale of z
    "lfq_6": (6, 3.0, False, 0.5),
    "lfq_6_sharp": (6, 100.0, False, 0.1),
    "bsq_6": (6, 3.0, True, 1.0),
    "bsq_6_sharp": (6, 100.0, True, 1.0),
}


def inputs(seed: int, channels: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (2, 1, NUM_TOKENS, channels)
    z, weight = (rng.normal(size=shape) * [[[[scale]]], [[[1.0]]]]).astype(np.float16)
    return z, weight


def record(name: str, module, z: np.ndarray, weight: np.ndarray, **options) -> dict:
    """The arrays of one case."""
    at = torch.from_numpy(z.astype(np.float32)).requires_grad_()
    result = module(at, **options)
    losses = {}
    if options:
        result, breakdown = result
        (gradient,) = torch.autograd.grad(result[2], at, retain_graph=True)
        values = [value.item() for value in (result[2], *breakdown)]
        losses = {"losses": np.float32(values), "loss_gradient": gradient.numpy()}
    codes, indices = result[:2]
    total = (codes * torch.from_numpy(weight.astype(np.float32))).sum()
    (gradient,) = torch.autograd.grad(total, at)
    arrays = {
        "z": z,
        "weight": weight,
        "codes": codes.detach().numpy(),
        "indices": indices.numpy().astype(np.int32),
        "gradient": gradient.numpy(),
    }
    return {f"{name}/{key}": array for key, array in (arrays | losses).items()}


def main():
    arrays = {}
    for seed, (name, (levels, stages)) in enumerate(RESIDUAL.items()):
        module = ResidualFSQ(levels=levels, num_quantizers=stages)
        arrays |= record(name, module, *inputs(seed, len(levels), 1.0))
    levels, stages, groups = GROUPED
    channels = groups * len(levels)
    module = GroupedResidualFSQ(dim=channels, groups=groups, levels=levels, num_quantizers=stages)
    arrays |= record("grouped_5-4_x2_g3", module, *inputs(10, channels, 1.0))
    for seed, (name, (bits, inv_temperature, spherical, scale)) in enumerate(BINARY.items()):
        module = LFQ(codebook_size=2**bits, spherical=spherical, commitment_loss_weight=0.25)
        options = dict(inv_temperature=inv_temperature, return_loss_breakdown=True)
        arrays |= record(name, module, *inputs(20 + seed, bits, scale), **options)
    path = pathlib.Path(__file__).with_name("quantizers_scalar.npz")
    np.savez_compressed(path, **arrays)
    print(path.name, path.stat().st_size, "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()
