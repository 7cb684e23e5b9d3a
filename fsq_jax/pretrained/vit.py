"""A pretrained image transformer (ViT) as the image encoder of UViM's stage II.

UViM starts from ViT-L/16 of AugReg (Steiner et al. 2022), trained on ImageNet-21k, a .npz file.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fsq_jax.pretrained import parameter_trees
from fsq_jax.runtime.user_error import UserError

PyTree = Any
_NUMBERED = re.compile(r"(.+)_(\d+)")


def image_encoder(
    path: str, vit: Mapping[str, PyTree], params: Mapping[str, PyTree]
) -> dict[str, PyTree]:
    """The part of a `CodeLanguageModel`'s parameters that a ViT gives: `encoder`, `EmbedPatches`
    and `pos_embedding_encoder`, float32 arrays of NumPy.

    The ViT's class token and head have no place there. Positions are resized to the grid of the
    model, see `resize_positions`.

    Args:
      path: the file, for messages.
      vit: what it holds.
      params: the model's; shapes will do.

    Raises:
      UserError: the model has no image encoder, or the ViT is of other sizes.
    """
    if "pos_embedding_encoder" not in params or "EmbedPatches" not in params:
        raise UserError(f"{path} holds a ViT, from which only UViM's stage II can start.")
    encoder = dict(vit["Transformer"])
    positions = encoder.pop("posembed_input", vit).get("pos_embedding")
    if np.ndim(positions) != 3:
        raise UserError(f"{path} lacks the positions [1, tokens, width] of a ViT.")
    try:
        positions = resize_positions(positions, params["pos_embedding_encoder"].shape[1])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    theirs = {
        "encoder": _renumbered(encoder),
        "EmbedPatches": vit["embedding"],
        "pos_embedding_encoder": positions,
    }
    parameter_trees.check_tree(path, theirs, {name: params[name] for name in theirs})
    return jax.tree.map(lambda x: np.asarray(x, np.float32), theirs)


def resize_positions(positions_1LD: np.ndarray, num_patches: int) -> np.ndarray:
    """Positions float32 [1, num_patches, D] of a square grid, without a class token's.

    Linear between the grids, corner on corner (as UViM's `scipy.ndimage.zoom` of order 1). A first
    row that is one too many for a square is the class token's.
    Raises UserError where the one or the other number is none of a square.
    """
    num_tokens = positions_1LD.shape[1]
    old, new = math.isqrt(num_tokens), math.isqrt(num_patches)
    if num_tokens - old**2 > 1 or new**2 != num_patches:
        raise UserError(
            f"Positions for {num_tokens} tokens and {num_patches} patches; expected square grids, "
            "the first with a class token or without."
        )
    grid = positions_1LD[0, num_tokens - old**2 :].reshape(old, old, -1).astype(np.float32)
    where = np.linspace(0, old - 1, new)
    shares = np.stack([np.interp(where, np.arange(old), column) for column in np.eye(old)], axis=1)
    grid = np.einsum("yi,xj,ijd->yxd", shares, shares, grid, optimize=True)
    return grid.reshape(1, num_patches, -1).astype(np.float32)


def _renumbered(tree: PyTree) -> PyTree:
    """Numbered names count from 0 within their kind: Flax before Linen counted all kinds in one."""
    if not isinstance(tree, Mapping):
        return tree
    counts: dict[str, int] = {}
    names = {}
    for match in sorted(filter(None, map(_NUMBERED.fullmatch, tree)), key=lambda m: int(m[2])):
        counts[match[1]] = counts.get(match[1], -1) + 1
        names[match[0]] = f"{match[1]}_{counts[match[1]]}"
    return {names.get(name, name): _renumbered(child) for name, child in tree.items()}
