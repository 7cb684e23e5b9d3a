"""Reads the tensors of a PyTorch .pth file without PyTorch, and without running what is in it.

A .pth file is a pickle, and a pickle may name any Python function to call. This reader admits the
names that tensors, ordered dictionaries and plain containers need and refuses a file with others.
It knows both layouts: the zip archive of torch 1.6 and later, and the row of pickles before it.
"""

import io
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from fsq_jax.formats import hub, numpy_file, pickle_reader
from fsq_jax.formats.archive import Archive, damaged
from fsq_jax.formats.pickle_reader import Refused
from fsq_jax.runtime import bounded
from fsq_jax.runtime.user_error import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_DIMS = 32
_SHARED = 4  # times that the numbers of a storage may be seen, through tensors that share them
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


_StorageType = NamedTuple("_StorageType", [("dtype", Any)])


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int

    @property
    def num_bytes(self) -> int:
        return self.size * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it: a view of a storage whose bytes come later."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
    if not isinstance(storage, _Storage) or len(shape) > _MAX_DIMS:
        raise ValueError("a tensor without a storage, or of too many dimensions")
    shape, strides = tuple(shape), tuple(strides)
    if not all(type(n) is int for n in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise ValueError("a tensor whose shape is not of integers")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, *_) -> _Tensor:
    if not isinstance(tensor, _Tensor):
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


class _Pickles:
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

    def _storage(self, pid) -> _Storage:
        kind, storage_type, key, _, size = pid[:5]
        if kind != "storage" or (len(pid) > 5 and pid[5] is not None):
            kind = repr(kind)[:40] if isinstance(kind, str) else type(kind).__name__
            raise Refused(f"it stores a {kind} in a way that torch no longer writes.")
        if type(key) not in (str, int) or type(size) is not int or size < 0:
            raise ValueError("a storage without a name or a size")
        storage = _Storage(str(key), storage_type.dtype, size)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("two storages of one name")
        return storage


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with Archive(path) as archive:
        names = archive.names
        roots = [n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Refused("it is a zip archive without the data.pkl that torch.save writes.")
        root = roots[0]
        order = archive.read(root + "byteorder") if root + "byteorder" in names else b"little"
        if order not in (b"little", b"big"):
            raise Refused(f"its byte order is {order[:20]!r}; expected 'little' or 'big'.")
        pickles = _Pickles()
        loaded = pickles.load(io.BytesIO(archive.read(root + "data.pkl")))

        def array(storage: _Storage) -> np.ndarray:
            name = f"{root}data/{storage.key}"
            if archive.size(name) != storage.num_bytes:
                raise ValueError(
                    f"storage {storage.key} has {archive.size(name)} bytes, not {storage.num_bytes}"
                )
            with archive.open(name) as member:
                return _from_bytes(member.readinto, storage, order == b"little")

        tensors = _tensors(loaded)
        archive.check_sum({f"{root}data/{t.storage.key}" for t in tensors.values()} & set(names))
        return _materialised(tensors, array)


def _read_legacy(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """The layout before torch 1.6.

    Five pickles in a row: magic number, protocol, byte order, the object, the order of the
    storages. Then, for each storage, its number of elements as int64 and its bytes.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            magic = _Pickles().load(data)
        except pickle_reader.DAMAGE:
            magic = None
        if type(magic) is not int or magic != _LEGACY_MAGIC:
            raise Refused("it does not begin as a file of torch.save does.")
        protocol, system = (_Pickles().load(data) for _ in range(2))
        if type(protocol) is not int or protocol != _LEGACY_PROTOCOL:
            found = str(protocol)[:40] if type(protocol) is int else type(protocol).__name__
            raise Refused(f"its protocol is {found}, not {_LEGACY_PROTOCOL}.")
        little = system["little_endian"]
        if not isinstance(little, bool):
            raise Refused("it does not say its byte order by true or false.")
        pickles = _Pickles()
        loaded = pickles.load(data)
        places = {}
        for key in _Pickles().load(data):
            storage = pickles.storages[str(key)]
            size = int.from_bytes(data.read(8), "little" if little else "big")
            if size != storage.size or data.tell() + storage.num_bytes > len(data):
                raise ValueError(f"storage {storage.key} ends early")
            places[storage.key] = data.tell()
            data.seek(storage.num_bytes, io.SEEK_CUR)

        def array(storage: _Storage) -> np.ndarray:
            data.seek(places[storage.key])

            def fill(buffer):
                buffer[:] = memoryview(data)[data.tell() : data.tell() + len(buffer)]

            return _from_bytes(fill, storage, little)

        return _materialised(_tensors(loaded), array)


def _from_bytes(fill: Callable, storage: _Storage, little_endian: bool) -> np.ndarray:
    """The flat array of a storage, whose bytes `fill` puts into a buffer."""
    data = np.empty(storage.num_bytes, np.uint8)
    if data.size:
        fill(memoryview(data))
    if not little_endian:
        data.view(f"u{storage.dtype.itemsize}").byteswap(inplace=True)
    return data.view(storage.dtype)


def _tensors(loaded: Any) -> dict[str, _Tensor]:
    """{name: tensor} of what was saved, or of its entry "state_dict"."""
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    entries = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {str(k): v for k, v in entries if isinstance(v, _Tensor)}
    if not tensors:
        raise Refused("it holds no tensors by name; save a state_dict.")
    return tensors


def _materialised(tensors: dict[str, _Tensor], array: Callable) -> dict[str, np.ndarray]:
    """{name: array}; each storage is read once, and held no longer than its tensors need it."""
    named: dict[_Storage, list[str]] = {}
    for name, tensor in tensors.items():
        named.setdefault(tensor.storage, []).append(name)
    total = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors.values())
    held = sum(storage.num_bytes for storage in named)
    if total > max(_SHARED * held, 1 << 20):
        for name, tensor in tensors.items():
            _check_view(name, tensor)  # the likelier reason, and the better sentence
        raise Refused(f"its tensors come to {total} bytes, and share {held}.")
    arrays = {}
    for storage, names in named.items():
        for name in names:
            _check_view(name, tensors[name])
        flat = array(storage)
        for name in names:
            arrays[name] = _view(tensors[name], flat)
    return {name: arrays[name] for name in tensors}


def _check_view(name: str, tensor: _Tensor) -> None:
    """Raises `Refused` for a tensor that is not inside its storage."""
    available = tensor.storage.size
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    last = tensor.offset + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)
    )
    size = math.prod(tensor.shape)
    if min(numbers) < 0 or size > available or (size and last >= available):
        raise Refused(f"tensor {name} reaches outside its storage of {available} elements.")


def _view(tensor: _Tensor, flat: np.ndarray) -> np.ndarray:
    """The array of a tensor: all of its storage as it is, where it is so, or a copy."""
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, flat.dtype)
    strides = [s * flat.itemsize for s in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
    return view if view.flags.c_contiguous and view.size == flat.size else view.copy()


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {name: array} of the tensors in a state dict saved by torch.save.

    The dictionary may be the file's object itself or its entry "state_dict". Entries that are no
    tensors (an epoch, say) are left out; dtypes stay as stored, bfloat16 as that of ml_dtypes.

    Raises:
      UserError: the file is truncated, is no file of torch.save, holds no tensors by name, or
        names a Python object other than those tensors need; the message says which.
    """
    path = Path(path)
    with bounded.open_regular(path) as file:
        num_bytes = bounded.size(file)
        try:
            if file.read(4) == b"PK\x03\x04":
                return _read_zip(path)
            if not num_bytes:
                raise Refused("it is empty.")
            return _read_legacy(path, file)
        except (Refused, UserError) as error:
            reason = f"{error}".replace(f"{path} ", "it ", 1)
            raise UserError(f"{path} cannot be read: {reason}") from None
        except pickle_reader.DAMAGE as error:
            reason = f"{num_bytes} bytes; {str(error)[:100] or type(error).__name__}"
            raise damaged(f"{path} cannot be read: it", reason) from None


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {name: array} of a .npz file with a state dict's names, or of a torch file.

    Raises:
      UserError: there is no such file, or it cannot be read (see `read`).
    """
    path = Path(hub.local_path(path))
    if not path.exists():
        raise UserError(f"There is no file of weights at {path}.")
    if path.suffix != ".npz":
        return read(path)
    try:
        return numpy_file.read_npz(path)
    except UserError as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from None
