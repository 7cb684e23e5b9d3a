"""Reads the tensors of a PyTorch .pth file without PyTorch, and without running what is in it.

A .pth file is a pickle, and a pickle may name any Python function to call. This reader admits the
names that tensors, ordered dictionaries and plain containers need and refuses a file with others.
It knows both layouts: the zip archive of torch 1.6 and later, and the row of pickles before it.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fsq_jax.formats import hub
from fsq_jax.runtime.user_error import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Refused(UserError):
    """An error whose sentence is already fit for the user."""


class _StorageType(NamedTuple):
    dtype: Any


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it: a view of a storage whose bytes come later."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


def _rebuild_tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


_GLOBALS = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
} | {f"torch.{name}": _StorageType(dtype) for name, dtype in _DTYPES.items()}


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and `_Tensor`s, and looks up no name outside `_GLOBALS`."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        full = f"{module}.{name}"
        if full not in _GLOBALS:
            raise _Refused(
                f"it asks for the Python object {full}, and only tensors and plain containers are "
                "read. Save the state_dict alone."
            )
        return _GLOBALS[full]

    def persistent_load(self, pid):
        kind, storage_type, key, _, size = pid[:5]
        if kind != "storage" or (len(pid) > 5 and pid[5] is not None):
            raise _Refused(f"it stores a {kind!r} in a way that torch no longer writes.")
        storage = _Storage(str(key), np.dtype(storage_type.dtype), int(size))
        self.storages[storage.key] = storage
        return storage


def _read_zip(data: bytes):
    """Returns (object, function from a storage to its flat array) of the zip layout."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    names = archive.namelist()
    roots = [n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise _Refused("it is a zip archive without the data.pkl that torch.save writes.")
    root = roots[0]
    order = archive.read(root + "byteorder") if root + "byteorder" in names else b"little"

    def array(storage):
        return _from_bytes(archive.read(f"{root}data/{storage.key}"), storage, order == b"little")

    return _Unpickler(io.BytesIO(archive.read(root + "data.pkl"))).load(), array


def _read_legacy(data: bytes):
    """Returns (object, function from a storage to its flat array) of the layout before 1.6.

    Five pickles in a row: magic number, protocol, byte order, the object, the order of the
    storages. Then, for each storage, its number of elements as int64 and its bytes.
    """
    file = io.BytesIO(data)
    try:
        magic = _Unpickler(file).load()
    except _Refused:
        raise
    except Exception:
        magic = None
    if magic != _LEGACY_MAGIC:
        raise _Refused("it does not begin as a file of torch.save does.")
    protocol, system = (_Unpickler(file).load() for _ in range(2))
    if protocol != _LEGACY_PROTOCOL:
        raise _Refused(f"its protocol is {protocol}, not {_LEGACY_PROTOCOL}.")
    unpickler = _Unpickler(file)
    loaded = unpickler.load()
    keys = _Unpickler(file).load()
    little = bool(system["little_endian"])
    arrays = {}
    for key in keys:
        storage = unpickler.storages[str(key)]
        size = int.from_bytes(file.read(8), "little" if little else "big")
        if size != storage.size:
            raise EOFError
        arrays[storage.key] = _from_bytes(file.read(size * storage.dtype.itemsize), storage, little)
    return loaded, lambda storage: arrays[storage.key]


def _from_bytes(data, storage, little_endian):
    if len(data) != storage.size * storage.dtype.itemsize:
        raise EOFError
    if not little_endian:
        return np.frombuffer(data, f"u{storage.dtype.itemsize}").byteswap().view(storage.dtype)
    return np.frombuffer(data, storage.dtype)


def _materialise(name, tensor, array):
    """Returns the array of a tensor, after a check that its view stays inside its storage."""
    flat = array(tensor.storage)
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    last = tensor.offset + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)
    )
    size = math.prod(tensor.shape)
    if min(numbers) < 0 or size > flat.size or (size and last >= flat.size):
        raise _Refused(f"tensor {name} reaches outside its storage of {flat.size} elements.")
    strides = [s * flat.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {name: array} of the tensors in a state dict saved by torch.save.

    The dictionary may be the file's object itself or its entry "state_dict". Entries that are no
    tensors (an epoch, say) are left out; dtypes stay as stored, bfloat16 as that of ml_dtypes.

    Raises:
      UserError: the file is truncated, is no file of torch.save, holds no tensors by name, or
        names a Python object other than those tensors need; the message says which.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        loaded, array = (_read_zip if data[:4] == b"PK\x03\x04" else _read_legacy)(data)
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            loaded = loaded["state_dict"]
        entries = dict(loaded) if isinstance(loaded, dict) else {}
        tensors = {k: v for k, v in entries.items() if isinstance(v, _Tensor)}
        if not tensors:
            raise _Refused("it holds no tensors by name; save a state_dict.")
        return {str(k): _materialise(k, v, array) for k, v in tensors.items()}
    except _Refused as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except Exception as error:
        raise UserError(
            f"{path} cannot be read: it is truncated or damaged ({len(data)} bytes; "
            f"{type(error).__name__})."
        ) from None


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {name: array} of a .npz file with a state dict's names, or of a torch file.

    Raises:
      UserError: there is no such file, or it cannot be read (see `read`).
    """
    path = Path(hub.local_path(path))
    if not path.is_file():
        raise UserError(f"There is no file of weights at {path}.")
    if path.suffix != ".npz":
        return read(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file}
    except Exception as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from None
