"""Trees of arrays in flax's msgpack, whose lengths are checked against the bytes that are there.

msgpack sets aside room for as many items as a list says it has, and lists stand inside lists: a
file of a megabyte could ask for gigabytes. So its structure is walked first, over the bytes alone.
"""

import os
from typing import Any

import msgpack
from flax import serialization

from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.user_error import UserError

_MAX_DEPTH = 50
_MAX_ITEMS = 500_000
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax's extension types
_BYTES = {  # first byte: bytes of a length that comes next, and of each number
    0xC4: (1, 1),
    0xC5: (2, 1),
    0xC6: (4, 1),  # bytes
    0xD9: (1, 1),
    0xDA: (2, 1),
    0xDB: (4, 1),  # text
    0xCA: (0, 4),
    0xCB: (0, 8),
    0xCC: (0, 1),
    0xCD: (0, 2),
    0xCE: (0, 4),
    0xCF: (0, 8),
    0xD0: (0, 1),
    0xD1: (0, 2),
    0xD2: (0, 4),
    0xD3: (0, 8),
}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}  # first byte: bytes of the length that comes next
_LISTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # 2: maps, of pairs
# What flax and msgpack raise for a file that has the right structure and the wrong values.
_DAMAGE = (
    msgpack.exceptions.UnpackException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
)


def read(path: str | os.PathLike) -> Any:
    """The tree in a file of `flax.serialization.msgpack_serialize`, arrays of NumPy.

    Raises:
      UserError: the file is damaged, or holds other things than flax writes.
    """
    with bounded.open_regular(path) as file:
        data = file.read(bounded.size(file))
    try:
        _check(data, 0, len(data), _MAX_DEPTH)
        return serialization.msgpack_restore(data)
    except _DAMAGE as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path} is a damaged or truncated msgpack file ({lines[0][:200]})."
        ) from None


def write(path: str | os.PathLike, tree: Any) -> None:
    """Writes a tree of NumPy arrays."""
    with written_whole(path, "wb") as file:
        file.write(serialization.msgpack_serialize(tree))


def _check(data: bytes, position: int, stop: int, max_depth: int) -> None:
    """Raises a ValueError where one value does not fill the bytes from `position` to `stop`."""
    left, pending, count = [1], 1, 0  # values to come: in each open list, in all
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        pending -= 1
        count += 1
        items, size, extension = _head(data, position, stop)
        begin, position = position, position + size
        if position > stop:
            raise ValueError("it ends early")
        if extension is not None:
            if extension not in (_ARRAY, _COMPLEX, _SCALAR) or max_depth <= 3:
                raise ValueError(f"it has an extension of type {extension}, which flax lacks")
            inner = position - _length(data, begin)
            _check(data, inner, position, 3)  # shape, type, bytes
        if items:
            left.append(items)
            pending += items
        # Every value to come has a byte at least.
        if pending > stop - position or len(left) > max_depth or count > _MAX_ITEMS:
            raise ValueError("its lists are longer or deeper than it has bytes for")
    if position != stop:
        raise ValueError(f"{stop - position} bytes follow its end")


def _head(data: bytes, position: int, stop: int) -> tuple[int, int, int | None]:
    """(values that follow inside, bytes of the value itself, type of an extension) of one value."""
    if position >= stop:
        raise ValueError("it ends early")
    first = data[position]
    if first <= 0x7F or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return 0, 1, None
    if first <= 0x9F:
        return (first & 15) * (2 if first <= 0x8F else 1), 1, None
    if first <= 0xBF:
        return 0, 1 + (first & 31), None
    if first in _BYTES:
        width, size = _BYTES[first]
        length = _number(data, position + 1, width, stop) if width else 1
        return 0, 1 + width + size * length, None
    if first in _LISTS:
        width, each = _LISTS[first]
        return each * _number(data, position + 1, width, stop), 1 + width, None
    if first == 0xC1:
        raise ValueError("it has a byte that msgpack never writes")
    width = _EXTENSIONS.get(first, 0)
    kind = int.from_bytes(data[position + 1 + width : position + 2 + width], "big", signed=True)
    return 0, 2 + width + _length(data, position), kind


def _length(data: bytes, position: int) -> int:
    """The bytes inside the extension at a position."""
    width = _EXTENSIONS.get(data[position], 0)
    if width:
        return int.from_bytes(data[position + 1 : position + 1 + width], "big")
    return 1 << (data[position] - 0xD4)  # 1, 2, 4, 8 or 16


def _number(data: bytes, position: int, width: int, stop: int) -> int:
    if position + width > stop:
        raise ValueError("it ends early")
    return int.from_bytes(data[position : position + width], "big")
