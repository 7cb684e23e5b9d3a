"""Parquet files of encoded images, as the Hugging Face hub has them: an image (a struct with its
bytes, or the bytes themselves) and a label in each row.

Names of classes are in the files' own metadata. An image that its file holds as it is (a column
that isn't compressed) is read from its place; of a compressed column, the row group that it is in
is read and kept for its neighbours, a hundred images as a rule: fast in the order of the rows, slow
in any other, so that shuffled training wants `fsq_jax.prepare` or hf: first.
"""

import collections
import dataclasses
import json
import mmap
import pathlib
import threading
from typing import Any

import numpy as np

from fsq_jax.data import decode, shard_classes, shard_index
from fsq_jax.data.dataset import Dataset
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError

_IMAGES = ("image", "img", "jpg", "png", "webp")
_LABELS = ("label", "labels", "fine_label", "cls", "class")
_KEPT = 4  # row groups in the memory of a process
_kept: collections.OrderedDict[tuple, Any] = collections.OrderedDict()
_lock = threading.Lock()


def open_source(pattern: str, split: str) -> Dataset:
    """A split of the files that a pattern names, see `shards.find`."""
    where = f"parquet:{pattern}"
    _parquet()
    found = shard_classes.open_split("parquet", pattern, split, (".parquet",), scan)
    compressed = float((found.index.rows["offset"] < 0).mean())
    if compressed > 0.5 and found.name == "train":
        log(f"{where} is compressed: shuffled, each image costs the reading of its row group.")
    columns = tuple(fact["image"] for fact in found.index.facts)
    records = _ParquetRecords(found.index, columns)
    return Dataset(where, found.name, found.classes, records, 0, len(found.labels), found.all_names)


def _parquet():
    """pyarrow.parquet, or a UserError that says what to install."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet: needs pyarrow; pip install 'fsq_jax[parquet]'.") from None
    return pyarrow.parquet


def scan(path: pathlib.Path) -> tuple[shard_index.Rows, dict[str, Any]]:
    """A file's rows (row group and place in it, label, and the image's offset and size in the file,
    offset -1 where the file doesn't hold it as it is), and its image's column and classes.

    Raises:
      UserError: where it can't be read, or lacks an image or a label.
    """
    import pyarrow as pa

    try:
        with _parquet().ParquetFile(path) as file:
            image, label, names = _columns(path, file.schema_arrow)
            rows = {name: [] for name in ("group", "row", "label", "offset", "size")}
            for group in range(file.num_row_groups):
                found = _scan_group(path, file, group, image, label)
                for name, values in found.items():
                    rows[name].append(values)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as parquet ({str(error)[:100]}).") from None
    rows = {
        name: np.concatenate(values) if values else np.empty(0) for name, values in rows.items()
    }
    if not len(rows["row"]):
        raise UserError(f"{path} holds no row.")
    return rows, {"image": image, "list": names}


def _columns(path: pathlib.Path, schema) -> tuple[str, str, list[str]]:
    """(column of the images, of the labels or "", names of the classes) of a file."""
    features = {}
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(text).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        pass  # not what the hub writes: the columns' own types and names must do
    kinds = {n: f.get("_type") for n, f in features.items() if isinstance(f, dict)}
    images = [name for name in schema.names if kinds.get(name) == "Image"]
    images = images or [name for name in _IMAGES if name in schema.names]
    labels = [name for name in _LABELS if name in schema.names]
    labels = labels or [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    if not images or len(labels) > 1 and labels[0] not in _LABELS:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}; expected an image (one of "
            f"{', '.join(_IMAGES)}) and one label ({', '.join(_LABELS)})."
        )
    label = labels[0] if labels else ""
    names = features.get(label, {}).get("names") if kinds.get(label) == "ClassLabel" else []
    whole = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return images[0], label, names if whole else []


def _scan_group(path, file, group: int, image: str, label: str) -> shard_index.Rows:
    images = _images(path, file, group, image)
    labels = np.full(len(images), -1, np.int64)
    if label:
        column = file.read_row_group(group, columns=[label]).column(label)
        if column.null_count or "int" not in str(column.type):
            found = f"{column.null_count} empty ones of" if column.null_count else "values of"
            raise UserError(
                f"Row group {group} of {path} has in its column {label!r} {found} type "
                f"{column.type}; expected an integer in each row."
            )
        labels = column.to_numpy().astype(np.int64)
        if labels.min(initial=0) < 0:
            raise UserError(f"Row group {group} of {path} has labels down to {labels.min()}.")
    return {
        "group": np.full(len(images), group, np.int32),
        "row": np.arange(len(images), dtype=np.int32),
        "label": labels,
        **_places(path, file.metadata.row_group(group), images, image),
    }


def _images(path, file, group: int, image: str):
    """The encoded images of a row group, an arrow array of binaries."""
    column = file.read_row_group(group, columns=[image]).column(image).combine_chunks()
    if str(column.type).startswith("struct"):
        names = [field.name for field in column.type]
        if "bytes" not in names:
            raise UserError(f"{path} has in its column {image!r} {names}; expected bytes.")
        column = column.field("bytes") if not column.null_count else column
    if column.null_count or "binary" not in str(column.type):
        raise UserError(
            f"Row group {group} of {path} has {column.null_count} rows without an image's bytes in "
            f"its column {image!r}, of type {column.type}."
        )
    return column


def _places(path, metadata, images, image: str) -> shard_index.Rows:
    """Offset and size of each image where the file holds its bytes as they are; -1 elsewhere."""
    offsets = np.full(len(images), -1, np.int64)
    sizes = np.zeros(len(images), np.int64)
    leaves = [metadata.column(i) for i in range(metadata.num_columns)]
    chunk = next(c for c in leaves if c.path_in_schema in (image, f"{image}.bytes"))
    if chunk.compression != "UNCOMPRESSED":
        return {"offset": offsets, "size": sizes}
    starts = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
    start, end = min(starts), min(starts) + chunk.total_compressed_size
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        cursor = start
        for number, encoded in enumerate(images):
            encoded = encoded.as_py()
            place = mapped.find(encoded, cursor, end)
            if place < 0:  # the same as one before, which a dictionary holds once
                place = mapped.find(encoded, start, end)
            offsets[number], sizes[number] = place, len(encoded)
            cursor = max(cursor, place + len(encoded))
    return {"offset": offsets, "size": sizes}


@dataclasses.dataclass(frozen=True)
class _ParquetRecords:
    index: shard_index.ShardIndex
    columns: tuple[str, ...]  # of the images, for each file

    def __getitem__(self, position: int) -> dict[str, Any]:
        rows = {name: int(array[position]) for name, array in self.index.rows.items()}
        path = self.index.shard(rows["shard"])
        where = f"Row {rows['row']} of row group {rows['group']} of {path}"
        try:
            if rows["offset"] >= 0:
                with open(path, "rb") as file:
                    file.seek(rows["offset"])
                    encoded = file.read(rows["size"])
            else:
                group = _row_group(path, rows["group"], self.columns[rows["shard"]])
                encoded = group[rows["row"]].as_py()
        except OSError as error:  # as pyarrow's errors are, which have no number
            kind = decode.UnreadError if error.errno else decode.RecordError
            raise kind(f"{where} cannot be read ({error}).") from error
        return {"image": decode.decode_image(encoded, where), "label": max(0, rows["label"])}


def _row_group(path: pathlib.Path, group: int, column: str):
    """A row group's images, from this process's memory where it was one of the last ones read."""
    key = (path, group)
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    with _parquet().ParquetFile(path) as file:
        images = _images(path, file, group, column)
    with _lock:
        _kept[key] = images
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return images
