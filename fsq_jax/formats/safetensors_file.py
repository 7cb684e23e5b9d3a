"""Reads and writes .safetensors files: a JSON header and the arrays behind it, nothing to run.

The layout: 8 bytes with the length of the header (little endian); the header, {name: {"dtype",
"shape", "data_offsets": [begin, end]}} with strings under "__metadata__"; the data.
"""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from fsq_jax.runtime.user_error import UserError

_DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype("<i8"), "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write(path: str | Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes arrays by name, and strings about them."""
    header, offset = {"__metadata__": metadata}, 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns ({name: array}, metadata) of a file.

    Raises UserError for a file that is truncated, damaged or of another kind.
    """
    data = Path(path).read_bytes()
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, entry in header.items():
            dtype, (begin, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
            part = data[start + begin : start + end]
            if begin < 0 or len(part) != math.prod(entry["shape"]) * dtype.itemsize:
                raise EOFError
            arrays[name] = np.frombuffer(part, dtype).reshape(entry["shape"])
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as .safetensors: it is truncated, damaged or of another kind "
            f"({len(data)} bytes; {type(error).__name__})."
        ) from None
    return arrays, metadata
