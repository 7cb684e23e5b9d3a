"""Decoded records in plain arrays, so that rendering and decoding is paid once.

A folder with a sub-folder for each split, of image.npy uint8 [N,S,S,3], label.npy int32 [N], where
the data set has them depth.npy float32 [N,S,S] and segments.npy int16 [N,S,S,2], and meta.json,
which says at least class_names; `array_columns` says what else is read. Arrays are mapped to
memory: what is read often stays in the system's cache, once for all workers.

Legend: N records, S side of an image in pixels.
"""

import dataclasses
import functools
import json
import multiprocessing
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fsq_jax.data import array_columns, decode
from fsq_jax.data.dataset import Dataset, existing_folder, sub_folders
from fsq_jax.data.splits import resolve
from fsq_jax.data.transforms import Record, Transform
from fsq_jax.runtime import bounded
from fsq_jax.runtime.user_error import UserError

_TYPES = {
    "image": np.uint8,
    "label": np.int32,
    "depth": np.float32,
    "segments": np.int16,
    "crowd": np.int16,
}
_META = {"class_names": [str], "segment_names?": [str], "things?": [int]}
_MAX_CROWDS = 32  # instances that are crowds in one record; the rest of a row is 0
_CHUNK = 16  # records that a worker takes at once


def open_source(path: str, split: str) -> Dataset:
    """PATH/train, PATH/validation as `write` left them, or arrays of one's own, see
    `array_columns`: what they hold is held against what it should be."""
    root, where = existing_folder(path, "arrays"), f"arrays:{path}"
    splits = tuple(name for name in sub_folders(root) if (root / name / "meta.json").is_file())
    if not splits:
        raise UserError(f"{where} holds no arrays: no sub-folder has a meta.json.")
    split = resolve(split, splits, where)
    folder = root / split
    missing = [n for n in ("image", "label") if not (folder / f"{n}.npy").is_file()]
    if missing:
        raise UserError(f"{folder} lacks {' and '.join(f'{n}.npy' for n in missing)}.")
    arrays = _open_arrays(folder)
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{folder} has arrays of different lengths: {lengths}.")
    meta = _read_meta(folder / "meta.json")
    names = tuple(meta["class_names"])
    columns = {
        name: array_columns.column(name, array, folder / f"{name}.npy", len(names))
        for name, array in arrays.items()
    }
    records = _ArrayRecords(folder, columns)
    return Dataset(where, split, names, records, 0, lengths["image"], splits, meta)


def _open_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays that there are, mapped to memory."""
    paths = {name: folder / f"{name}.npy" for name in array_columns.NAMES}
    return {n: array_columns.open_array(p) for n, p in paths.items() if p.is_file()}


def _read_meta(path: pathlib.Path) -> dict[str, Any]:
    """What meta.json says, names and numbers of classes as they should be."""
    meta = bounded.read_json(path, _META)
    if not meta["class_names"]:
        raise UserError(f"{path}: class_names is empty; expected the names of the classes.")
    names, things = meta.get("segment_names", []), meta.get("things", [])
    if names and not all(0 < thing < len(names) for thing in things):
        raise UserError(
            f"{path}: things={things!r} must be a list of numbers of classes, 1 to "
            f"{len(names) - 1} of segment_names."
        )
    return meta


@dataclasses.dataclass
class _ArrayRecords:
    folder: pathlib.Path
    columns: dict[str, array_columns.Column]

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return _open_arrays(self.folder)

    def __getstate__(self) -> dict[str, Any]:  # an array in memory would travel whole
        return {"folder": self.folder, "columns": self.columns}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            name: column(self.arrays[name][index], index) for name, column in self.columns.items()
        }


def write(
    source: Dataset,
    folder: str | pathlib.Path,
    fit: Transform,
    meta: Mapping[str, Any],
    workers: int = 0,
) -> Iterator[int]:
    """Writes a source's records into a new folder, and yields how many more have been written.

    The folder takes its name only when it is whole: until then it is called FOLDER.partial.

    Args:
      source: what is written.
      folder: must not be there yet.
      fit: brings every record to the same size, see `transforms.fit`.
      meta: what meta.json says besides the source's classes.
      workers: processes that read and transform; 0 for this one.

    Raises:
      UserError: where the folder is there already, or a record can't be read or has another
        size or other features than the first one.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{str(folder)!r} is there already; remove it, or name another.")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = _Writer(source, partial, fit)
    for name, value in writer.row(0).items():
        shape = (len(source), *value.shape)
        np.lib.format.open_memmap(partial / f"{name}.npy", "w+", value.dtype, shape).flush()
    chunks = [range(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    if workers:
        context = multiprocessing.get_context("spawn")  # JAX's threads don't survive a fork
        with context.Pool(workers) as pool:
            yield from pool.imap_unordered(writer, chunks)
    else:
        yield from map(writer, chunks)
    meta = {**source.meta, "class_names": source.class_names, "source": source.name, **meta}
    (partial / "meta.json").write_text(json.dumps(meta, indent=2))
    partial.rename(folder)


@dataclasses.dataclass
class _Writer:
    """Writes chunks of records into arrays that are there; it travels to worker processes."""

    source: Dataset
    folder: pathlib.Path
    fit: Transform

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        names = [name for name in _TYPES if (self.folder / f"{name}.npy").is_file()]
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r+") for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "folder": self.folder, "fit": self.fit}

    def __call__(self, indices: range) -> int:
        for index in indices:
            row = self.row(index)
            shapes = {name: value.shape for name, value in row.items()}
            expected = {name: array.shape[1:] for name, array in self.arrays.items()}
            if shapes != expected:
                raise decode.RecordError(
                    f"Record {index} of {self.source.name} is of shapes {shapes}; the first one is "
                    f"of {expected}."
                )
            for name, value in row.items():
                self.arrays[name][index] = value
        return len(indices)

    def row(self, index: int) -> Record:
        """A record at its final size, as the arrays hold it."""
        record = self.fit(self.source[index], None)
        row = {name: np.asarray(record[name]) for name in _TYPES if name in record}
        if "crowd" in row:
            row["crowd"] = np.pad(row["crowd"], (0, max(0, _MAX_CROWDS - len(row["crowd"]))))
        for name, value in row.items():
            kept = value.astype(_TYPES[name])
            if name != "depth" and not np.array_equal(kept, value):
                raise decode.RecordError(
                    f"Record {index} of {self.source.name} has {name} up to {value.max()}, more "
                    f"than {np.dtype(_TYPES[name])} holds."
                )
            row[name] = kept
        return row
