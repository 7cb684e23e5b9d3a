"""The arrays in a file of weights, its format recognised by its content. Nothing is unpickled.

Three formats: flax's msgpack (MaskGIT's checkpoints), NumPy's .npz with paths for keys (UViM's),
and safetensors (what `fsq_jax.export` writes). All come out as {"params": tree} and, where there
is state beside parameters, {collection: tree}.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from fsq_jax.formats import hub, msgpack_file, numpy_file
from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.user_error import UserError

PyTree = Any

EXPECTED = "a flax msgpack, an .npz or a safetensors file of weights"
_OTHERS = {  # how other files begin
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x93NUMPY": "a single NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"\x80": "a Python pickle, which is never loaded",
}
# Prefixes that training code left before the parameters' paths, and the names of older files.
_PREFIXES = ("opt/target/", "params/")
_STATE, _OURS = "state/", "codebook_state/quantizer/"
_MAX_DEPTH = 50  # of names inside each other
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
    if not os.path.exists(path) or os.path.isdir(path):
        kind = "a folder that holds no config.json" if os.path.isdir(path) else "not a file"
        raise UserError(f"{path} is {kind}; expected {EXPECTED}, or the workdir of a run.")
    with bounded.open_regular(path) as file:
        size, head = bounded.size(file), file.read(16)
    others = [name for start, name in _OTHERS.items() if head.startswith(start)]
    metadata = {}
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        arrays, metadata = read_safetensors(path)  # a header of that length begins there
        variables = _unflatten(path, {tuple(n.split("/")): a for n, a in arrays.items()})
    elif head[:4] == b"PK\x03\x04":
        variables = _read_npz(path)
    elif head and not others and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        variables = _read_msgpack(path)  # these bytes begin a map with entries
    else:
        unknown = f"a file that begins with {head!r}" if head else "empty"
        raise UserError(f"{path} is {others[0] if others else unknown}; expected {EXPECTED}.")
    _check(path, variables)
    return variables, metadata


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns ({name: array}, metadata) of a .safetensors file.

    Raises:
      UserError: it is truncated, damaged or of another kind, or of a type that NumPy lacks.
    """
    bounded.open_regular(path).close()  # the package would wait for a pipe's other end
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    # AttributeError: NumPy has no type of that name (float8); ValueError: too many dimensions.
    except (safetensors.SafetensorError, OSError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as .safetensors: it is truncated, damaged or of another kind "
            f"({str(error)[:200]})."
        ) from None


def write_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes arrays by name, and strings about them."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    shaped = {name: array.reshape(np.shape(arrays[name])) for name, array in whole.items()}
    with bounded.names_path(path):
        safetensors.numpy.save_file(shaped, path, metadata)


def write_msgpack(path: str, params: PyTree) -> None:
    """Writes {"params": params} as flax's msgpack, the format of MaskGIT's checkpoints."""
    msgpack_file.write(path, {"params": _numpy(params)})


def write_npz(path: str, variables: Mapping[str, PyTree]) -> None:
    """Writes {"params": ..., "codebook_state": ...} with UViM's keys, params/... and state/...."""
    flat = {_moved(name, _OURS, _STATE): array for name, array in flatten(variables).items()}
    with written_whole(path, "wb") as file:
        np.savez(file, **flat)  # pyright: ignore[reportArgumentType]


def on_device(tree: PyTree) -> PyTree:
    """The arrays as float32 on the device. `jnp.asarray` would compile a program for each shape."""
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x, np.float32), tree))


def flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """{"a/b/c": NumPy array} of nested dicts."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {name: np.asarray(array) for name, array in flat.items()}


def _read_msgpack(path: str) -> dict[str, PyTree]:
    tree = msgpack_file.read(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("params"), dict):
        raise UserError(
            f"{path} is a msgpack file with {_some(tree)} at the top; expected 'params'."
        )
    return {"params": tree["params"]}


def _read_npz(path: str) -> dict[str, PyTree]:
    try:
        arrays = numpy_file.read_npz(path)
    except UserError as error:
        raise UserError(f"{error} Expected {EXPECTED}.") from None
    flat = {}
    for name, array in arrays.items():
        if array.dtype.kind == "V" and array.dtype.itemsize == 2:
            array = array.view(ml_dtypes.bfloat16)  # a type that NumPy's files cannot name
        place = _moved(name, _STATE, _OURS)
        if not place.startswith(_OURS):
            for prefix in _PREFIXES:
                place = place.removeprefix(prefix)
            place = f"params/{place}"
        place = tuple(_RENAMED.get(part, part) for part in place.split("/"))
        if place in flat:
            raise UserError(f"{path} holds {name!r} and another array of the same place.")
        flat[place] = array
    return _unflatten(path, flat)


def _unflatten(path: str, flat: Mapping[tuple[str, ...], np.ndarray]) -> dict[str, PyTree]:
    """The tree of {("a", "b"): array}; a UserError where a name is of an array and of a folder."""
    for parts in flat:
        for end in range(1, len(parts)):
            if parts[:end] in flat:
                raise UserError(
                    f"{path} holds an array {'/'.join(parts[:end])!r} and another one inside it, "
                    f"{'/'.join(parts)!r}."
                )
        if len(parts) > _MAX_DEPTH or not all(parts):
            raise UserError(f"{path} holds an array of the name {'/'.join(parts)[:80]!r}.")
    return traverse_util.unflatten_dict(flat)


def _moved(name: str, prefix: str, to: str) -> str:
    return to + name.removeprefix(prefix) if name.startswith(prefix) else name


def _check(path: str, tree: PyTree, inside: str = "") -> None:
    """Raises a UserError for what is not an array of numbers, or has no plain name."""
    for name, leaf in tree.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise UserError(f"{path} holds {name!r} in {inside or 'it'}; expected a plain name.")
        where = f"{inside}/{name}" if inside else name
        if isinstance(leaf, Mapping):
            _check(path, leaf, where)
            continue
        kind = getattr(leaf, "dtype", None)
        if kind is None or not (kind.kind in "fiub" or kind == ml_dtypes.bfloat16):
            found = type(leaf).__name__ if kind is None else f"an array of {kind}"
            raise UserError(f"{path}: {where!r} is {found}; expected an array of numbers.")


def _numpy(tree: PyTree) -> PyTree:
    return traverse_util.unflatten_dict(flatten(tree), sep="/")


def _some(names) -> str:
    if not isinstance(names, dict):
        return f"a {type(names).__name__}"
    listed = sorted(map(str, names))
    return ", ".join(map(repr, listed[:4])) + (", ..." if len(listed) > 4 else "")
