"""What a checkpoint says of itself, held against its files and the run's own arrays."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fsq_jax.runtime import bounded, manifest
from fsq_jax.runtime.user_error import UserError

# Beyond these bytes arrays that no checksum vouches for take at most 64 for each of their files.
_FREE, _MAX_RATIO = 256 << 20, 64


class Damaged(Exception):
    """A checkpoint that can't be read; says why."""


class OtherModel(Exception):
    """A whole checkpoint of other arrays; says which."""


def check_files(folder: str, part: int = 0, parts: int = 1) -> bool:
    """Whether checksums vouch for a checkpoint's files; raises `Damaged` where one is changed."""
    try:
        vouched = manifest.check(folder, part, parts)
        for name, size in manifest.list_files(folder).items():
            base = os.path.basename(name)
            if base in ("_METADATA", "_sharding") or "array_metadatas" in name:
                bounded.read_json(os.path.join(folder, name))
            elif name.startswith("data") and size > bounded.MAX_JSON:
                raise UserError(f"{name} has {size} bytes")
        return vouched
    except (UserError, OSError) as error:
        raise Damaged(str(error).rstrip(".")) from None


def check_pieces(arrays: Mapping[tuple, Any]) -> None:
    """Raises `Damaged` for an array in pieces that are larger than it: room is made for each."""
    for key, leaf in arrays.items():
        chunk = leaf.storage.chunk_shape if leaf.storage else None
        chunk = tuple(leaf.shape) if chunk is None else tuple(chunk)
        fits = len(chunk) == len(leaf.shape) and min((*leaf.shape, *chunk), default=0) >= 0
        if not fits or any(c > max(n, 1) for n, c in zip(leaf.shape, chunk, strict=True)):
            name = "/".join(key)
            raise Damaged(f"{name} is of shape {tuple(leaf.shape)} in pieces of {chunk}")


def check_size(folder: str, found: Mapping[tuple, Any], vouched: bool) -> None:
    """Raises `Damaged` for arrays that are larger than their files, or the machine, can hold."""
    total = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in found.values())
    there = sum(manifest.list_files(folder).values())
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not vouched:
        limit = min(limit, max(_FREE, _MAX_RATIO * there))
    if total > limit:
        raise Damaged(f"its arrays are of {total} bytes, in files of {there}")


def check_same(
    found: Mapping[tuple, Any], ours: Mapping[tuple, Any], problem: type[Exception]
) -> None:
    """Raises a `problem` where the arrays of a checkpoint are not those of a state."""
    ours = {key: leaf for key, leaf in ours.items() if hasattr(leaf, "shape")}
    for key in sorted(ours.keys() ^ found.keys()):
        where = "lacks" if key in ours else "has"
        raise problem(f"it {where} {'/'.join(key)}")
    for key, leaf in ours.items():
        if tuple(leaf.shape) != tuple(found[key].shape):
            raise problem(
                f"{'/'.join(key)} is of shape {tuple(found[key].shape)} there and "
                f"{tuple(leaf.shape)} here"
            )
