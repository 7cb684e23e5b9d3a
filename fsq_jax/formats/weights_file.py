"""The arrays in a file of weights, its format told by its content. Nothing is unpickled.

Three formats: flax's msgpack (MaskGIT's checkpoints), NumPy's .npz with paths for keys (UViM's),
and safetensors (what `fsq_jax.export` writes). All come out as {"params": tree} and, where there
is state beside parameters, {collection: tree}.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from flax import serialization, traverse_util

from fsq_jax.formats import hub, safetensors_file
from fsq_jax.runtime.user_error import UserError

PyTree = Any

EXPECTED = "a flax msgpack, an .npz or a safetensors file of weights"
_OTHERS = {  # how other files begin
    b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image",
    b"\x93NUMPY": "a single NumPy array", b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "a gzip file",
    b"\x80": "a Python pickle, which is never loaded",
}
# Prefixes that training code left before the parameters' paths, and the names of older files.
_PREFIXES = ("opt/target/", "params/")
_STATE, _OURS = "state/", "codebook_state/quantizer/"
_RENAMED = {"Encoder": "encoder", "Decoder": "decoder"}


def read(path: str) -> tuple[dict[str, PyTree], dict[str, str]]:
    """({"params": tree, collection: tree}, metadata) of a file; arrays are NumPy's.

    Args:
      path: of a file, or of one on the hub, see `hub.local_path`.
    metadata: what a safetensors file says of itself; {} for the other formats.

    Raises:
      UserError: there is no such file, or it is damaged or of another kind; says which.
    """
    path = hub.local_path(path)
    if not os.path.isfile(path):
        kind = "a folder that holds no config.json" if os.path.isdir(path) else "not a file"
        raise UserError(f"{path} is {kind}; expected {EXPECTED}, or the workdir of a run.")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(16)
    others = [name for start, name in _OTHERS.items() if head.startswith(start)]
    metadata = {}
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        arrays, metadata = safetensors_file.read(path)  # a header of that length begins there
        variables = traverse_util.unflatten_dict(arrays, sep="/")
    elif head[:4] == b"PK\x03\x04":
        variables = _read_npz(path)
    elif head and not others and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        variables = _read_msgpack(path)  # these bytes begin a map with entries
    else:
        unknown = f"a file that begins with {head!r}" if head else "empty"
        raise UserError(f"{path} is {others[0] if others else unknown}; expected {EXPECTED}.")
    _check(path, variables)
    return variables, metadata


def write_msgpack(path: str, params: PyTree) -> None:
    """Writes {"params": params} as flax's msgpack, the format of MaskGIT's checkpoints."""
    with open(path, "wb") as file:
        file.write(serialization.msgpack_serialize({"params": _numpy(params)}))


def write_npz(path: str, variables: Mapping[str, PyTree]) -> None:
    """Writes {"params": ..., "codebook_state": ...} with UViM's keys, params/... and state/...."""
    flat = {_moved(name, _OURS, _STATE): array for name, array in flatten(variables).items()}
    with open(path, "wb") as file:
        np.savez(file, **flat)


def flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """{"a/b/c": NumPy array} of nested dicts."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {name: np.asarray(array) for name, array in flat.items()}


def _read_msgpack(path: str) -> dict[str, PyTree]:
    with open(path, "rb") as file:
        data = file.read()
    try:
        tree = serialization.msgpack_restore(data)
    except Exception as error:  # msgpack's own kinds, and NumPy's for arrays that can't be
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is a damaged or truncated msgpack file ({text}).") from None
    if "params" not in tree or not isinstance(tree["params"], dict):
        raise UserError(
            f"{path} is a msgpack file with {_some(tree)} at the top; expected 'params'."
        )
    return {"params": tree["params"]}


def _read_npz(path: str) -> dict[str, PyTree]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        held = "an array of Python objects, which are never loaded"
        held = held if "pickle" in str(error) else "damaged or not NumPy's"
        raise UserError(f"{path} is a zip archive that is {held}; expected {EXPECTED}.") from None
    flat = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path} is a zip archive with {name!r} in it; expected {EXPECTED}.")
        if array.dtype.kind == "V" and array.dtype.itemsize == 2:
            array = array.view(ml_dtypes.bfloat16)  # a type that NumPy's files cannot name
        name = _moved(name, _STATE, _OURS)
        if not name.startswith(_OURS):
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            name = f"params/{name}"
        flat[tuple(_RENAMED.get(part, part) for part in name.split("/"))] = array
    return traverse_util.unflatten_dict(flat)


def _moved(name: str, prefix: str, to: str) -> str:
    return to + name.removeprefix(prefix) if name.startswith(prefix) else name


def _check(path: str, variables: Mapping[str, PyTree]) -> None:
    """Raises a UserError for what is not an array of numbers."""
    for name, leaf in traverse_util.flatten_dict(variables, sep="/").items():
        kind = getattr(leaf, "dtype", None)
        if kind is None or not (kind.kind in "fiub" or kind == ml_dtypes.bfloat16):
            found = type(leaf).__name__ if kind is None else f"an array of {kind}"
            raise UserError(f"{path}: {name!r} is {found}; expected an array of numbers.")


def _numpy(tree: PyTree) -> PyTree:
    return traverse_util.unflatten_dict(flatten(tree), sep="/")


def _some(names) -> str:
    listed = sorted(map(str, names))
    return ", ".join(map(repr, listed[:4])) + (", ..." if len(listed) > 4 else "")
