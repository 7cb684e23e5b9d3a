"""What the pickle of a .pth file describes: tensors as views of storages whose bytes come later."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fsq_jax.formats import pickle_reader
from fsq_jax.formats.pickle_reader import Refused

_MAX_DIMS = 32
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


class _StorageType(NamedTuple):
    dtype: Any


class Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int

    @property
    def num_bytes(self) -> int:
        return self.size * self.dtype.itemsize


class Tensor(NamedTuple):
    """A tensor as the pickle describes it: a view of a storage whose bytes come later."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *_) -> Tensor:
    if not isinstance(storage, Storage) or len(shape) > _MAX_DIMS:
        raise ValueError("a tensor without a storage, or of too many dimensions")
    shape, strides = tuple(shape), tuple(strides)
    if not all(type(n) is int for n in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise ValueError("a tensor whose shape is not of integers")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, *_) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter that is no tensor")
    return tensor


def _ordered_dict(pairs=()) -> dict:
    """What collections.OrderedDict makes; Python 2 wrote the pairs as its argument."""
    items = {}
    for pair in pairs:
        pickle_reader.set_items(items, list(pair))
    if isinstance(pairs, list):
        pairs.clear()  # a list that is used 100,000 times would be copied as often
    return items


_GLOBALS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
} | {f"torch.{name}": _StorageType(np.dtype(dtype)) for name, dtype in _DTYPES.items()}


class Pickles:
    """Reads the pickles of a file, and keeps the storages that they mention."""

    def __init__(self):
        self.storages = {}

    def load(self, file) -> Any:
        return pickle_reader.Machine(self._find, self._storage).run(file)

    def _find(self, name: str) -> Any:
        if name not in _GLOBALS:
            raise Refused(
                f"it asks for the Python object {name}, and only tensors and plain containers are "
                "read. Save the state_dict alone."
            )
        return _GLOBALS[name]

    def _storage(self, pid) -> Storage:
        kind, storage_type, key, _, size = pid[:5]
        if kind != "storage" or (len(pid) > 5 and pid[5] is not None):
            kind = repr(kind)[:40] if isinstance(kind, str) else type(kind).__name__
            raise Refused(f"it stores a {kind} in a way that torch no longer writes.")
        if type(key) not in (str, int) or type(size) is not int or size < 0:
            raise ValueError("a storage without a name or a size")
        storage = Storage(str(key), storage_type.dtype, size)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("two storages of one name")
        return storage
