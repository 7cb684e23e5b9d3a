"""Arrays in NumPy's .npy and .npz files, believed only as far as they have bytes.

The header of an array is a Python dictionary as text. It is matched, never evaluated, and says a
type and a shape: both are checked against the file's size before memory is allocated.
"""

import math
import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fsq_jax.formats.archive import Archive, damaged
from fsq_jax.runtime import bounded
from fsq_jax.runtime.user_error import UserError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # bytes, as in NumPy
_MAX_DIMS = 32
_ENTRY = re.compile(
    r"\s*'(descr|fortran_order|shape)'\s*:\s*"
    r"('[^']*'|True|False|\(\s*(?:\d{1,19}L?\s*,\s*)*(?:\d{1,19}L?\s*)?\)|\[)\s*,?"
)
# Booleans, integers, floats, complex numbers, bytes, text, and raw bytes (bfloat16 is two of them).
_TYPE = re.compile(r"[<>|=]?(\?|[biufcSUV]\d{1,9})")


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file, where: str) -> Header:
    """The header at the position of a file (`read(n)`), which is then at the array's data.

    Args:
      file: anything with `read`.
      where: what begins the message of an error, "x.npz: mu".

    Raises:
      UserError: it is no header, or of an array of Python objects or of a structure.
    """
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise UserError(f"{where} is not an array of NumPy: it begins with {bytes(start)!r}.")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > _MAX_HEADER:
        raise UserError(f"{where} has a header of {length} bytes; expected {_MAX_HEADER} at most.")
    text = bytes(file.read(length)).decode("latin-1")
    entries = _entries(text.strip())
    if entries is None or len(text) < length:
        raise UserError(f"{where} is not an array that can be read: its header is {text[:80]!r}.")
    descr, shape = entries["descr"], entries["shape"]
    dims = tuple(int(part.strip(" L")) for part in shape.strip("()").split(",") if part.strip())
    if "O" in descr:
        raise UserError(
            f"{where} is object of shape {dims}: Python objects, which are never loaded."
        )
    if not _TYPE.fullmatch(descr.strip("'")):
        raise UserError(f"{where} is an array of {descr[:40]}; expected numbers or text.")
    # NumPy multiplies the dimensions that are not zero.
    if len(dims) > _MAX_DIMS or math.prod(n for n in dims if n) >= 1 << 48:
        raise UserError(f"{where} says that its shape is {dims}, which no file can hold.")
    try:
        dtype = np.dtype(descr.strip("'"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is an array of {descr[:40]} ({error}).") from None
    return Header(dims, dtype, entries["fortran_order"] == "True")


def _entries(text: str) -> dict[str, str] | None:
    """The three entries of a header, as they are written; None where it is none."""
    found, position = {}, 1
    while match := _ENTRY.match(text, position):
        found[match[1]] = match[2]
        position = match.end()
        if match[2] == "[":  # a structure, which is as far as we read
            return {"shape": "()", "fortran_order": "False"} | found | {"descr": text[1:41]}
    kinds = {"descr": "'", "fortran_order": "TF", "shape": "("}
    fits = found.keys() == kinds.keys() and all(v[0] in kinds[k] for k, v in found.items())
    return found if fits and text[0] == "{" and text[position:].strip() == "}" else None


def read_array(member, where: str) -> np.ndarray:
    """The array in a member of an archive, in the machine's byte order.

    Raises:
      UserError: it is none, or says another size than it has.
    """
    header = read_header(member, where)
    if header.num_bytes != member.remaining:
        raise UserError(
            f"{where} says {header.dtype} of shape {header.shape}, {header.num_bytes} bytes, and "
            f"has {member.remaining} of them."
        )
    return read_data(member, header)


def read_data(member, header: Header) -> np.ndarray:
    """The array whose header was read from a member, which has as many bytes as it says."""
    array = np.empty(math.prod(header.shape), header.dtype)
    if header.num_bytes:
        member.readinto(array.view(np.uint8).reshape(-1).data)
    array = _native(_shaped(array, header))
    if array.dtype.kind == "U" and array.size:
        highest = np.ascontiguousarray(array).reshape(-1).view(np.uint32).max(initial=0)
        if highest > sys.maxunicode:  # of which Python can make no text
            raise UserError(f"{member.path}: {member.name} has {highest:#x} for a letter.")
    return array


def read_npz(path: str | os.PathLike, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """{name: array} of an .npz file, all or those of `names`, which must be there.

    Raises:
      UserError: the file is damaged, holds other things than arrays, or more than its size allows.
    """
    with Archive(path, "an .npz file") as archive:
        wanted = [f"{name}.npy" for name in names] if names is not None else archive.names
        for name in wanted:
            if name not in archive.names:
                raise UserError(f"{archive.path} lacks {name.removesuffix('.npy')}.")
            if not name.endswith(".npy"):
                raise UserError(f"{archive.path} is a zip archive with {name!r} in it.")
        archive.check_sum(wanted)
        arrays = {}
        for name in wanted:
            key = name.removesuffix(".npy")
            with archive.open(name) as member:
                arrays[key] = read_array(member, f"{archive.path}: {key}")
        return arrays


def npz_names(path: str | os.PathLike) -> set[str]:
    """The names of the arrays in an .npz file, of which none is read."""
    with Archive(path, "an .npz file") as archive:
        return {name.removesuffix(".npy") for name in archive.names}


def open_npy(path: str | os.PathLike) -> np.ndarray:
    """The array in an .npy file, mapped to memory: read-only, and read as it is used.

    Raises:
      UserError: it is none, or says more than the file holds.
    """
    where = os.fspath(path)
    with bounded.open_regular(path) as file:
        num_bytes = bounded.size(file)
        if not num_bytes:
            raise damaged(where, "it is empty")
        header = read_header(file, where)
        begin = file.tell()
        if begin + header.num_bytes > num_bytes:
            raise UserError(
                f"{where} says {header.dtype} of shape {header.shape}, {header.num_bytes} bytes, "
                f"and has {num_bytes - begin}."
            )
        order = "F" if header.fortran else "C"
        if not header.num_bytes:  # which can't be mapped
            return np.zeros(header.shape, header.dtype, order)
        return np.memmap(file, header.dtype, "r", begin, header.shape, order)


def _shaped(array: np.ndarray, header: Header) -> np.ndarray:
    if header.fortran:
        return array.reshape(header.shape[::-1]).transpose()
    return array.reshape(header.shape)


def _native(array: np.ndarray) -> np.ndarray:
    swapped = array.dtype.byteorder in "<>" and not array.dtype.isnative
    return array.astype(array.dtype.newbyteorder("=")) if swapped else array
