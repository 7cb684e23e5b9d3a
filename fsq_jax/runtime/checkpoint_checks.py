"""What a checkpoint says of itself, checked against its files and the run's own arrays."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fsq_jax.runtime import bounded, files, manifest
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError

# Beyond these bytes arrays that no checksum vouches for take at most 64 for each of their files.
_FREE, _MAX_RATIO = 256 << 20, 64


# What Orbax says of a step beside its arrays, and reads of every step there is.
_DESCRIPTION = "_CHECKPOINT_METADATA"
_NULL = type(None)
_DESCRIBED = {
    "item_handlers?": (dict, str, _NULL), "metrics?": (dict, _NULL),
    "performance_metrics?": (dict, _NULL), "init_timestamp_nsecs?": (int, _NULL),
    "commit_timestamp_nsecs?": (int, _NULL), "custom_metadata?": (dict, _NULL),
}  # fmt: skip


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


def set_descriptions_aside(directory: str) -> None:
    """Renames what Orbax wrote about a step where it can't be read: the step does without."""
    steps = os.listdir(directory) if os.path.isdir(directory) else []
    for step in sorted(name for name in steps if name.isascii() and name.isdigit()):
        path = os.path.join(directory, step, _DESCRIPTION)
        try:
            found = bounded.read_json(path, _DESCRIBED) if os.path.lexists(path) else {}
            times = [v for name, v in found.items() if name.endswith("_nsecs") and v is not None]
            if not all(0 <= nanoseconds < 1 << 63 for nanoseconds in times):
                raise UserError(f"{path} has an impossible time")
        except UserError as error:
            aside = rename_aside(path)
            log(f"{str(error).rstrip('.')}: it is kept as {os.path.basename(aside)}.")


def rename_aside(path: str) -> str:
    """Gives a damaged file or folder another name, once for all processes; returns that name."""
    aside = files.free_name(f"{path}.damaged")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{path} is set aside")
    if jax.process_index() == 0:
        aside = files.rename_aside(path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{path} was set aside")
    return aside
