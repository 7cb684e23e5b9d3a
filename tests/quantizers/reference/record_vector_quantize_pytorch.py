"""Writes vector_quantize_pytorch.npz: what an independent FSQ answers on all published levels.

Run in an environment of its own:

    pip install torch==2.13.0 numpy vector-quantize-pytorch==1.32.0
    python record_vector_quantize_pytorch.py

For every level set, named like 8-5-5-5, the file holds
    NAME/z         float16 [N, d], inputs (float16 keeps the file small; they were fed as float32)
    NAME/digits    int8 [N, d], its code times floor(L / 2), which is a whole number
    NAME/indices   int32 [N]
and, for the grid that its option preserve_symmetry gives,
    NAME/symmetric_digits    int8 [N, d], (code + 1) (L - 1) / 2
    NAME/symmetric_indices   int32 [N]

Where it differs from the paper: its range is (L - 1) (1 + eps) / 2 where the paper has 1 - eps, so
a bin's edge lies up to 0.2 % nearer to zero. fsq_jax.bound(..., epsilon=-1e-3) is the same
function. The symmetric grid has no eps at all, epsilon=0.
"""

import pathlib

import numpy as np
import torch
from vector_quantize_pytorch import FSQ

LEVELS = [
    [5, 3],
    [8, 8],
    [8, 6, 5],
    [8, 8, 8],
    [8, 5, 5, 5],
    [8, 8, 6, 5],
    [7, 5, 5, 5, 5],
    [8, 8, 8, 6, 5],
    [8, 8, 8, 5, 5, 5],
    [2, 2, 3, 4],  # not published: 2 and 4 levels; on the symmetric grid only
]
NUM_ROWS = 1000


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    for levels in LEVELS:
        name = "-".join(map(str, levels))
        half = np.array(levels) // 2
        scale = rng.choice([0.3, 1.0, 3.0], size=(NUM_ROWS, 1))
        z = (rng.normal(size=(NUM_ROWS, len(levels))) * scale).astype(np.float16)
        arrays[f"{name}/z"] = z
        z = torch.from_numpy(z.astype(np.float32))[None]
        if 2 not in levels:
            codes, indices = FSQ(levels)(z)
            arrays[f"{name}/digits"] = np.rint(codes[0].numpy() * half).astype(np.int8)
            arrays[f"{name}/indices"] = indices[0].numpy().astype(np.int32)
        codes, indices = FSQ(levels, preserve_symmetry=True)(z)
        steps = np.array(levels) - 1
        digits = (codes[0].numpy() + 1) * steps / 2
        arrays[f"{name}/symmetric_digits"] = np.rint(digits).astype(np.int8)
        arrays[f"{name}/symmetric_indices"] = indices[0].numpy().astype(np.int32)
    path = pathlib.Path(__file__).with_name("vector_quantize_pytorch.npz")
    np.savez_compressed(path, **arrays)
    print(path.name, path.stat().st_size, "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()
