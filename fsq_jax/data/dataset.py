"""What every data set is to the pipeline: a split of records that can be read in any order."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from fsq_jax.data import splits
from fsq_jax.runtime.user_error import UserError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Records start to stop of a split; `source[i]` is record i, a dict.

    `name` is the spec without its splits and `meta` what the data set says of itself: a token
    cache by whom it was made, one with segments which classes are "things". Pickles travel to
    worker processes: files are opened again there, and what was cached stays behind.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    records: Any  # has __getitem__(index) -> dict
    start: int
    stop: int
    splits: tuple[str, ...]  # all that the data set has
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of {self.name} {self.split}: it has {len(self)}.")
        return self.records[self.start + int(index)]

    def cut(self, split: str, endless: bool = False) -> "Dataset":
        """The part of these records that the brackets of a split keep ("train[:10%]")."""
        where = f"{self.name} {self.split}"
        first, last = splits.span(split, len(self), where, endless)
        return dataclasses.replace(self, start=self.start + first, stop=self.start + last)

    def chosen(self, indices: Sequence[int]) -> "Dataset":
        """These records of the data set, in this order."""
        where = tuple(self.start + int(index) for index in indices)
        records = _Chosen(self.records, where)
        return dataclasses.replace(self, records=records, start=0, stop=len(where))

    def file_name(self, index: int) -> str:
        """The name of the file that record `index` was made from, without folders.

        Read without decoding its image. Raises UserError where the records have no such names.
        """
        name = _file_name(self.records, self.start + int(index))
        if not name:
            raise UserError(f"The records of {self.name} {self.split} have no file names.")
        return pathlib.PurePosixPath(name).name

    def cached(self, features: Sequence[str] = ()) -> "Dataset":
        """The same records, kept in memory once read: image, label, tokens and `features`."""
        crowd = ["crowd"] if "segments" in features else []  # says which segments are no matches
        kept = frozenset(("image", "label", "tokens_VL", *features, *crowd))
        return dataclasses.replace(self, records=_Cached(self.records, kept))

    def spread(self, num: int) -> "Dataset":
        """`num` of these records at most, evenly spaced: of a folder, images of all classes."""
        num = min(num, len(self))
        return self.chosen([i * len(self) // num for i in range(num)])

    def mapped(self, function: Callable[[dict[str, Any]], dict[str, Any]]) -> "Dataset":
        """The same records as a function leaves them; it travels to workers with the source."""
        return dataclasses.replace(self, records=_Mapped(self.records, function))


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """Records with a function applied to each when it is read."""

    records: Any
    function: Callable[[dict[str, Any]], dict[str, Any]]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.function(self.records[index])

    def file_name(self, index: int) -> str:
        return _file_name(self.records, index)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Records of which only some are left, in an order of their own."""

    records: Any
    indices: tuple[int, ...]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.records[self.indices[index]]

    def file_name(self, index: int) -> str:
        return _file_name(self.records, self.indices[index])


class _Cached:
    """Records kept in memory once read, with the wanted features only."""

    def __init__(self, records: Any, kept: frozenset[str]):
        self._records, self._kept, self._memory = records, kept, {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": {}}

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._memory:
            record = self._records[index]
            self._memory[index] = {name: record[name] for name in record if name in self._kept}
        return dict(self._memory[index])

    def file_name(self, index: int) -> str:
        return _file_name(self._records, index)


def _file_name(records: Any, index: int) -> str:
    """The name that the records underneath give; "" where they have none."""
    return records.file_name(index) if hasattr(records, "file_name") else ""


def existing_folder(path: str, kind: str) -> pathlib.Path:
    """The folder that a spec names; UserError, with the nearest name, where there is none."""
    try:
        root = pathlib.Path(path).expanduser()
        found = root.is_dir()
        siblings = [] if found or not root.parent.is_dir() else os.listdir(root.parent)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, or ~NOBODY
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{kind}:{path[:200]} is not a folder ({reason}).") from None
    if not found:
        near = difflib.get_close_matches(root.name, siblings, n=1)
        hint = f" Did you mean {str(root.parent / near[0])!r}?" if near else ""
        raise UserError(f"{kind}:{path} is not a folder.{hint}")
    return root


def sub_folders(folder: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones left out."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
