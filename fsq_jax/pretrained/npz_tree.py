"""Trees of arrays in .npz files whose keys are paths, such as "params/encoder/kernel".

What big_vision and the ViT authors publish. Their prefixes and older names are brought to one form.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

PyTree = Any

_PREFIXES = ("opt/target/", "params/")  # left by training code before the parameters' paths
_RENAMED = {"Encoder": "encoder", "Decoder": "decoder"}  # in the oldest of UViM's files
_NUMBERED = re.compile(r"(.+)_(\d+)")


def read(path: str | Path) -> dict[str, PyTree]:
    """Returns {"params": tree}, with "codebook_state" beside it where the file has a "state/".

    Arrays are NumPy's, floats become float32; bfloat16 may be stored as two bytes of no type.
    Numbered names count from 0 within their kind (pre-Linen Flax counted all kinds together).
    Nothing is unpickled.

    Raises:
      ValueError: there is no such file, or it is not one of arrays by path; the message says why.
    """
    path = Path(path)
    trees: dict[str, PyTree] = {"params": {}}
    for name, array in _arrays(path).items():
        if name.startswith("state/"):
            top, name = "codebook_state", name.removeprefix("state/")
        else:
            top = "params"
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
        node = trees.setdefault(top, {})
        *parents, leaf = name.split("/")
        for parent in parents:
            node = node.setdefault(_RENAMED.get(parent, parent), {})
        node[leaf] = array
    return {top: _renumbered(tree) for top, tree in trees.items()}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    expected = "expected a .npz file of arrays by path"
    if not path.is_file():
        raise ValueError(f"There is no file at {path}; {expected}.")
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:2] != b"PK":
        raise ValueError(f"{path} begins with {head!r} and so is no zip archive; {expected}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _floats(file[name]) for name in file.files}
    except Exception as error:  # of zipfile, zlib and NumPy, in many kinds
        damage = f"is truncated or damaged ({path.stat().st_size} bytes; {type(error).__name__})"
        if "pickle" in str(error):
            damage = "holds Python objects, which are never loaded"
        elif isinstance(error, TypeError):
            damage = f"is a zip archive of something else ({error})"
        raise ValueError(f"{path} {damage}; {expected}.") from None


def _floats(array) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise TypeError("it has a file that is no array")
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        array = array.view(ml_dtypes.bfloat16)
    is_float = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return array.astype(np.float32) if is_float else array


def _renumbered(tree: PyTree) -> PyTree:
    if not isinstance(tree, dict):
        return tree
    matches = [m for name in tree if (m := _NUMBERED.fullmatch(name))]
    matches.sort(key=lambda m: int(m[2]))
    counts: dict[str, int] = {}
    names = {name: name for name in tree}
    for match in matches:
        count = counts.setdefault(match[1], 0)
        names[match[0]] = f"{match[1]}_{count}"
        counts[match[1]] += 1
    return {names[name]: _renumbered(child) for name, child in tree.items()}


def flatten(tree: PyTree) -> dict[str, Any]:
    """{path: leaf} of nested dictionaries, with "/" between their keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def expect(path: str | Path, what: str, names: set[str], tree: Mapping) -> None:
    """Raises a ValueError unless all `names` are at the top of a tree; `what` they belong to."""
    if not names <= set(tree):
        found = sorted(tree)
        listed = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise ValueError(
            f"{path} holds {listed or 'nothing'}; expected {what}, with {', '.join(sorted(names))}."
        )


def check_shapes(path: str | Path, what: str, tree: PyTree, expected: PyTree) -> None:
    """Raises a ValueError where names, shapes or types are not those of `expected`, floats all."""
    ours, theirs = flatten(expected), flatten(tree)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            raise ValueError(f"{path} lacks {name} {ours[name].shape}, which {what} has.")
        array = theirs[name]
        if name not in ours:
            raise ValueError(f"{path} has {name} {array.shape}, which {what} lacks.")
        if array.shape != ours[name].shape or array.dtype != np.float32:
            raise ValueError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; expected floats of shape "
                f"{ours[name].shape} in {what}."
            )


def square(path: str | Path, name: str, number: int) -> int:
    """The root of a number of tokens or pixels; a ValueError where it is none of a square."""
    side = math.isqrt(number)
    if side * side != number:
        raise ValueError(f"{path}: {name} has {number} entries; expected a square number.")
    return side
