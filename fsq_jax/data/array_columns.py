"""What anyone's .npy arrays mean: how a row of each becomes what a record holds, or why it can't.

    image     uint8 [H,W,3]; read from grey, RGB or RGBA, channels last or first, of uint8, of
              floats in [0, 1], of uint16 up to 65535, or of other types with whole numbers to 255
    label     int, a class of meta.json's class_names
    depth     float32 [H,W] in metres, 0 where it is not known (NaN and infinity are not)
    segments  int32 [H,W,2], class and instance, channels last or first
    crowd     int32 [n]

How an array is read is decided once, from rows spread over it, and every row is checked against
that. Any memory layout and byte order is read.

Legend: N records, H, W height and width, C channels.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from fsq_jax.data import decode
from fsq_jax.formats import numpy_file
from fsq_jax.runtime.user_error import UserError

NAMES = ("image", "label", "depth", "segments", "crowd")
_SAMPLE = 32  # rows that an array is judged by
_LARGEST_COLUMNWISE = 2**30  # bytes: a row of an array in Fortran's order touches all of its file
_WIDE = 2**14  # see `decode.to_8_bits`
_INT32 = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Column:
    """How a row of an array is read.

    Attributes:
      path: of the file, for messages.
      name: of the feature.
      axes: the row's axes in the order that a record has them; () for as they are.
      scale: what pixels are multiplied by to come to 0 to 255.
      largest: what a row may hold at most, before it is scaled.
    """

    path: str
    name: str
    axes: tuple[int, ...] = ()
    scale: float = 1.0
    largest: float = np.inf

    def __call__(self, row: np.ndarray, index: int) -> Any:
        """The row as a record holds it; RecordError where it is not like the rest."""
        if self.name == "label":
            return int(row.reshape(()))
        row = np.array(np.transpose(row, self.axes) if self.axes else row)
        if self.name == "crowd":
            return row[row > 0].astype(np.int32)
        if self.name == "depth":
            depth = row.reshape(row.shape[:2]).astype(np.float32)
            return np.where(np.isfinite(depth), depth, np.float32(0))
        if row.dtype == np.uint8 and self.name == "image":
            return decode.to_rgb(row, self.path)
        low, high = row.min(), row.max()
        if not (low >= 0 and high <= self.largest):  # which NaN is not, either
            raise decode.RecordError(
                f"Record {index} of {self.path} has values from {low} to {high}; expected 0 to "
                f"{self.largest:.10g}."
            )
        if self.name == "segments":
            return row.astype(np.int32)
        return decode.to_rgb(np.rint(row * np.float64(self.scale)).astype(np.uint8), self.path)


def open_array(path: pathlib.Path) -> np.ndarray:
    """The array of an .npy file, mapped to memory; UserError where it can't be."""
    try:
        array = numpy_file.open_npy(path)
    except UserError as error:
        reason = str(error).replace(f"{path} ", "it ", 1).rstrip(".")
        raise UserError(f"{path} can't be read as an array ({reason}).") from None
    by_column = array.flags.f_contiguous and not array.flags.c_contiguous
    if by_column and array.nbytes > _LARGEST_COLUMNWISE:
        raise UserError(
            f"{path} is in Fortran's order, in which every record is spread over all of its "
            f"{array.nbytes / 2**30:.0f} GiB; save np.ascontiguousarray of it."
        )
    return array


def column(name: str, array: np.ndarray, path: pathlib.Path, num_classes: int) -> Column:
    """How the rows of an array [N,...] are read as a feature.

    Raises:
      UserError: where its type, shape or values are not of the feature, with what was found.
    """
    if array.ndim < 1 or not array.size:
        raise UserError(f"{path} is of shape {array.shape}, and holds no record.")
    judge = {
        "image": _image,
        "label": _label,
        "depth": _depth,
        "segments": _segments,
        "crowd": _crowd,
    }[name]
    return judge(array, str(path), num_classes)


def spread(length: int, number: int = _SAMPLE) -> list[int]:
    """At most `number` positions, the first and the last among them, spread evenly."""
    return sorted(set(np.linspace(0, length - 1, min(number, length)).round().astype(int).tolist()))


def _found(array: np.ndarray, path: str, expected: str, values: np.ndarray | None = None):
    """The error of an array that is not what is expected."""
    found = f"{path} is {array.dtype} of shape {array.shape}"
    if values is not None:
        found += f" with values from {values.min():.6g} to {values.max():.6g}"
    return UserError(f"{found}; expected {expected}.")


def _image(array: np.ndarray, path: str, num_classes: int) -> Column:
    del num_classes
    expected = "uint8 [N,H,W,3], or floats in [0, 1], or uint16 up to 65535"
    axes = ()
    if array.ndim == 4 and array.shape[3] > 4 and array.shape[1] <= 4:
        axes = (1, 2, 0)
    elif array.ndim != 3 and (array.ndim != 4 or array.shape[3] > 4):
        raise _found(array, path, expected)
    if array.dtype == np.uint8:
        return Column(path, "image", axes, 1.0, 255)
    if array.dtype == np.bool_:
        return Column(path, "image", axes, 255.0, 1)
    if array.dtype.kind not in "iuf":
        raise _found(array, path, expected)
    sample = array[spread(len(array))]
    low, high = sample.min(), sample.max()
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return Column(path, "image", axes, 255.0, 1)
    if low >= 0 and high <= 255 and (sample == np.rint(sample)).all():
        return Column(path, "image", axes, 1.0, 255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2 and high >= _WIDE:
        return Column(path, "image", axes, 1 / 257, 65535)
    raise _found(array, path, expected, sample)


def _label(array: np.ndarray, path: str, num_classes: int) -> Column:
    if array.dtype.kind not in "iu" or array.size != len(array):
        raise _found(array, path, "integers [N], one class for each record")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_classes:
        hint = " (they count from 1: subtract 1)" if (low, high) == (1, num_classes) else ""
        raise UserError(
            f"{path} has labels from {low} to {high}{hint}; expected 0 to {num_classes - 1}, since "
            f"meta.json names {num_classes} class{'es' * (num_classes > 1)}."
        )
    return Column(path, "label")


def _depth(array: np.ndarray, path: str, num_classes: int) -> Column:
    del num_classes
    expected = "floats [N,H,W] in metres"
    if array.dtype.kind in "iu":
        expected += " (integers are often millimetres: divide by 1000)"
        raise _found(array, path, expected, array[spread(len(array))])
    one_channel = array.ndim == 4 and 1 in (array.shape[1], array.shape[3])
    if array.dtype.kind != "f" or (array.ndim != 3 and not one_channel):
        raise _found(array, path, expected)
    first = one_channel and array.shape[3] != 1
    return Column(path, "depth", (1, 2, 0) if first else ())


def _segments(array: np.ndarray, path: str, num_classes: int) -> Column:
    del num_classes
    first = array.ndim == 4 and array.shape[3] != 2 and array.shape[1] == 2
    if array.dtype.kind not in "iu" or array.ndim != 4 or not (first or array.shape[3] == 2):
        raise _found(array, path, "integers [N,H,W,2], a class and an instance for each pixel")
    return Column(path, "segments", (1, 2, 0) if first else (), 1.0, _INT32)


def _crowd(array: np.ndarray, path: str, num_classes: int) -> Column:
    del num_classes
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise _found(
            array, path, "integers [N,n], instances that are crowds, 0 where there are none"
        )
    return Column(path, "crowd")
