"""WebDataset shards: tar files in which the members of one name are a sample.

    n01440764_10026.jpg   the image, encoded (jpg, jpeg, png, webp, ...)
    n01440764_10026.cls   its class, a number or a word
    n01440764_10026.json  or here: "label", and "filename" whose folder names the class

Other members are left alone. A sample is read from its place in the shard, see `shard_index`.
"""

import dataclasses
import json
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from fsq_jax.data import decode, shard_classes, shard_index
from fsq_jax.data.dataset import Dataset
from fsq_jax.runtime.user_error import UserError

_BLOCK = 512  # bytes: of a header, and what data is filled up to
_SLACK = 2**20  # bytes that a tar may have behind its end mark
_NAME_KEYS = ("class_name", "class", "synset", "wnid")  # of a sample's JSON


def open_source(pattern: str, split: str) -> Dataset:
    """A split of the shards that a pattern names, see `shards.find`; class names come from a file
    beside the shards, or from the samples, see `shard_classes`."""
    found = shard_classes.open_split("wds", pattern, split, (".tar",), scan)
    own = np.array_equal(found.labels, found.index.rows["label"])
    records = _WdsRecords(found.index, None if own else found.labels)
    return Dataset(
        f"wds:{pattern}", found.name, found.classes, records, 0, len(found.labels), found.all_names
    )


def scan(path: pathlib.Path) -> tuple[shard_index.Rows, dict[str, Any]]:
    """A shard's rows (offset, size and label of each image; label -1 where there is none), and the
    words or names of its classes.

    Raises:
      UserError: where it is no whole tar, or a sample lacks its image or its label.
    """
    rows, words, names = [], {}, {}
    for key, members in _samples(path):
        where = f"{key!r} in {path}"
        images = [ext for ext in members if f".{ext.rsplit('.')[-1]}" in decode.EXTENSIONS]
        if len(images) != 1:
            found = ", ".join(images) or f"only {', '.join(members)}"
            raise UserError(f"Sample {where} must have one image; it has {found}.")
        offset, size, _ = members[images[0]]
        label, name = _label(members, where)
        if isinstance(label, str):
            label = words.setdefault(label, len(words))
        elif name:
            names.setdefault(str(label), name)
        rows.append((offset, size, label))
    if not rows:
        raise UserError(f"{path} holds no sample.")
    offset, size, label = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    unlabelled = label < 0
    if unlabelled.any() and not unlabelled.all():
        first = _name_before(path, offset[int(np.argmax(unlabelled))])
        raise UserError(f"{first} in {path} has no label (.cls or .json), and other samples have.")
    if words and names:
        raise UserError(f"{path} has classes by words and by numbers: {list(words)[:3]}.")
    facts = {"words": list(words)} if words else {"names": names}
    return {"offset": offset, "size": size, "label": label}, facts


def _samples(path: pathlib.Path) -> Iterator[tuple[str, dict[str, tuple[int, int, bytes]]]]:
    """(name, {extension: (offset, size, content of labels)}) of the neighbours of one name."""
    current, members = "", {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # which tarfile would keep  # pyright: ignore
                folder, _, base = member.name.rpartition("/")
                if not member.isfile() or base.startswith("."):
                    continue
                stem, _, extension = base.partition(".")
                key, extension = f"{folder}/{stem}".lstrip("/"), extension.lower()
                if key != current:
                    if members:
                        yield current, members
                    current, members = key, {}
                is_label = extension in ("cls", "json")
                file_of_label = archive.extractfile(member) if is_label else None
                content = file_of_label.read() if file_of_label else b""
                members[extension] = (member.offset_data, member.size, content)
            _check_end(path, file, archive.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} is not a whole tar file ({error}).") from None
    if members:
        yield current, members


def _check_end(path: pathlib.Path, file, end: int) -> None:
    """A tar that was cut off between two members reads like a whole one, but for its end mark."""
    file.seek(0, 2)
    size = file.tell()
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise UserError(f"{path} is cut off after {size} bytes: it has no end mark.")
    if size - end > _SLACK:
        raise UserError(f"{path} has {size - end} bytes behind its end mark.")


def _label(members: dict, where: str) -> tuple[int | str, str]:
    """(class, its name or ""); -1 where a sample has none."""
    facts: Any = {}
    if "json" in members:
        try:
            facts = json.loads(members["json"][2])
        except (ValueError, RecursionError) as error:
            raise UserError(f"The .json of sample {where} can't be read ({error}).") from None
    facts = facts if isinstance(facts, dict) else {}
    label = facts.get("label", -1)
    if "cls" in members:
        label = members["cls"][2].decode(errors="replace").strip()
        label = int(label) if label.lstrip("-").isdecimal() else label
    is_class = isinstance(label, str) and label or (type(label) is int and -1 <= label < 2**31)
    if not is_class or ("cls" in members and label == -1):
        raise UserError(f"Sample {where} has label {label!r}; expected a number or a word.")
    name = next((facts[key] for key in _NAME_KEYS if isinstance(facts.get(key), str)), "")
    if not name and isinstance(facts.get("filename"), str):
        name = pathlib.PurePosixPath(facts["filename"]).parent.name
    return label, name


def _name_before(path: pathlib.Path, offset: int) -> str:
    """The name in the header before a member's data."""
    with open(path, "rb") as file:
        file.seek(int(offset) - _BLOCK)
        return file.read(100).rstrip(b"\0").decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class _WdsRecords:
    index: shard_index.ShardIndex
    labels: np.ndarray | None  # where they aren't the index's own

    def __getitem__(self, position: int) -> dict[str, Any]:
        rows = self.index.rows
        offset, size = int(rows["offset"][position]), int(rows["size"][position])
        path = self.index.shard(int(rows["shard"][position]))
        try:
            with open(path, "rb") as file:
                file.seek(offset - _BLOCK)
                block = file.read(_BLOCK + size)
        except OSError as error:
            raise decode.UnreadError(f"{path} cannot be read ({error.strerror}).") from error
        name = block[:100].rstrip(b"\0").decode(errors="replace")
        labels = rows["label"] if self.labels is None else self.labels
        image = decode.decode_image(block[_BLOCK:], f"{name} in {path}")
        return {"image": image, "label": max(0, int(labels[position]))}
