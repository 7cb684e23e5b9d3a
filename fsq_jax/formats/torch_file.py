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
from typing import Any, BinaryIO

import numpy as np

from fsq_jax.formats import hub, numpy_file, pickle_reader
from fsq_jax.formats.archive import Archive, damaged
from fsq_jax.formats.pickle_reader import Refused
from fsq_jax.formats.torch_pickle import Pickles, Storage, Tensor
from fsq_jax.runtime import bounded
from fsq_jax.runtime.user_error import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_SHARED = 4  # times that the numbers of a storage may be seen, through tensors that share them


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
        pickles = Pickles()
        loaded = pickles.load(io.BytesIO(archive.read(root + "data.pkl")))

        def array(storage: Storage) -> np.ndarray:
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
            magic = Pickles().load(data)
        except pickle_reader.DAMAGE:
            magic = None
        if type(magic) is not int or magic != _LEGACY_MAGIC:
            raise Refused("it does not begin as a file of torch.save does.")
        protocol, system = (Pickles().load(data) for _ in range(2))
        if type(protocol) is not int or protocol != _LEGACY_PROTOCOL:
            found = str(protocol)[:40] if type(protocol) is int else type(protocol).__name__
            raise Refused(f"its protocol is {found}, not {_LEGACY_PROTOCOL}.")
        little = system["little_endian"]
        if not isinstance(little, bool):
            raise Refused("it does not say its byte order by true or false.")
        pickles = Pickles()
        loaded = pickles.load(data)
        places = {}
        for key in Pickles().load(data):
            storage = pickles.storages[str(key)]
            size = int.from_bytes(data.read(8), "little" if little else "big")
            if size != storage.size or data.tell() + storage.num_bytes > len(data):
                raise ValueError(f"storage {storage.key} ends early")
            places[storage.key] = data.tell()
            data.seek(storage.num_bytes, io.SEEK_CUR)

        def array(storage: Storage) -> np.ndarray:
            data.seek(places[storage.key])

            def fill(buffer):
                buffer[:] = memoryview(data)[data.tell() : data.tell() + len(buffer)]

            return _from_bytes(fill, storage, little)

        return _materialised(_tensors(loaded), array)


def _from_bytes(fill: Callable, storage: Storage, little_endian: bool) -> np.ndarray:
    """The flat array of a storage, whose bytes `fill` puts into a buffer."""
    data = np.empty(storage.num_bytes, np.uint8)
    if data.size:
        fill(memoryview(data))
    if not little_endian:
        data.view(f"u{storage.dtype.itemsize}").byteswap(inplace=True)
    return data.view(storage.dtype)


def _tensors(loaded: Any) -> dict[str, Tensor]:
    """{name: tensor} of what was saved, or of its entry "state_dict"."""
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    entries = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {str(k): v for k, v in entries if isinstance(v, Tensor)}
    if not tensors:
        raise Refused("it holds no tensors by name; save a state_dict.")
    return tensors


def _materialised(tensors: dict[str, Tensor], array: Callable) -> dict[str, np.ndarray]:
    """{name: array}; each storage is read once, and held no longer than its tensors need it."""
    named: dict[Storage, list[str]] = {}
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


def _check_view(name: str, tensor: Tensor) -> None:
    """Raises `Refused` for a tensor that is not inside its storage."""
    available = tensor.storage.size
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    last = tensor.offset + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)
    )
    size = math.prod(tensor.shape)
    if min(numbers) < 0 or size > available or (size and last >= available):
        raise Refused(f"tensor {name} reaches outside its storage of {available} elements.")


def _view(tensor: Tensor, flat: np.ndarray) -> np.ndarray:
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
