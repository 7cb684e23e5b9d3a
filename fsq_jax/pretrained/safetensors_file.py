"""Reads and writes safetensors files: named arrays and a little text, nothing to be executed.

The format: 8 bytes, the length N of the header, little-endian; N bytes of JSON, {name: {"dtype",
"shape", "data_offsets": [begin, end)}} and {"__metadata__": {text: text}}; the arrays' bytes, in C
order, without gaps.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def write(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays by name, in the order of their names, and the metadata beside them."""
    header, offset = {"__metadata__": dict(metadata)}, 0
    arrays = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": array.shape,
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` has such a header."""
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= size - 8


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by name, metadata); a ValueError where the bytes don't hold what the header says."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        metadata = header.pop("__metadata__", {})
        return {name: _array(data, start, **entry) for name, entry in header.items()}, metadata
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is a damaged safetensors file ({error}).") from None


def _array(data: bytes, start: int, dtype: str, shape, data_offsets) -> np.ndarray:
    begin, end = data_offsets
    count = math.prod(shape)
    if end - begin != count * np.dtype(DTYPES[dtype]).itemsize:
        raise ValueError(f"{begin} to {end} is not the size of {dtype} {shape}")
    if not 0 <= begin <= end <= len(data) - start:
        raise ValueError(f"it ends {end - (len(data) - start)} bytes early")
    return np.frombuffer(data, DTYPES[dtype], count, start + begin).reshape(shape)
