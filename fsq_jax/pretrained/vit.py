"""A pretrained image transformer (ViT) as the image encoder of UViM's stage II.

UViM starts from ViT-L/16 of AugReg (Steiner et al. 2022), trained on ImageNet-21k, a .npz file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage

from fsq_jax.pretrained import npz_tree

PyTree = Any
_WHAT = "a ViT"


def vit_encoder_params(path: str | Path, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """`params` of a `CodeLanguageModel` with its image encoder from the file.

    Replaced are `encoder`, `EmbedPatches` and `pos_embedding_encoder`, with NumPy arrays; the
    file's class token and head have no place there. Positions are resized to the grid of `params`,
    see `resize_positions`.

    Raises:
      ValueError: the file can't be read, is of another network, or of a ViT of other sizes.
    """
    vit = npz_tree.read(path)["params"]
    npz_tree.expect(path, _WHAT, {"embedding", "Transformer"}, vit)
    npz_tree.expect(path, _WHAT, {"encoder_norm", "encoderblock_0"}, vit["Transformer"])
    encoder = dict(vit["Transformer"])
    positions = encoder.pop("posembed_input", vit).get("pos_embedding")
    if positions is None or positions.ndim != 3:
        raise ValueError(f"{path} has no positions [1, tokens, width]; expected {_WHAT}.")
    num_patches = params["pos_embedding_encoder"].shape[1]
    ours = {
        "encoder": encoder,
        "EmbedPatches": vit["embedding"],
        "pos_embedding_encoder": resize_positions(positions, num_patches),
    }
    npz_tree.check_shapes(path, "the image encoder", ours, {name: params[name] for name in ours})
    return {**params, **ours}


def resize_positions(positions_1LD: np.ndarray, num_patches: int) -> np.ndarray:
    """Positions float32 [1, num_patches, D] of a square grid, without a class token's.

    Linear between the grids, corner on corner (as UViM's `scipy.ndimage.zoom` of order 1). A first
    row that is one too many for a square is the class token's.
    Raises ValueError where the one or the other number is none of a square.
    """
    old = int(positions_1LD.shape[1] ** 0.5)
    grid_LD = positions_1LD[0, positions_1LD.shape[1] - old**2 :]
    new = int(num_patches**0.5)
    if positions_1LD.shape[1] - old**2 > 1 or new**2 != num_patches:
        raise ValueError(
            f"Positions for {positions_1LD.shape[1]} tokens and {num_patches} patches; expected "
            "square grids, the first with a class token or without."
        )
    grid = grid_LD.reshape(old, old, -1)
    if new != old:
        grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    return grid.reshape(1, num_patches, -1).astype(np.float32)
