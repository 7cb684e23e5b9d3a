"""Where each record of a set of shards lies: found once, kept beside them, checked at every use.

An index is a file ($FSQ_JAX_CACHE, a folder .fsq_jax beside the shards, or ~/.cache/fsq_jax where
that can't be written) of arrays with a row for each record, and of the size and time of change of
every shard. A shard that has another size or time than the index says is scanned again, alone.
Processes hold the index's place, not its arrays, and refuse one that has changed since.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from fsq_jax.data.decode import UnreadError
from fsq_jax.formats import numpy_file
from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.progress import log

_VERSION = 1
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # ValueError: UserError is one

Rows = dict[str, np.ndarray]
Scan = Callable[[pathlib.Path], tuple[Rows, dict[str, Any]]]


@dataclasses.dataclass
class ShardIndex:
    """An index that has been built, by its place; its arrays are read where they are needed.

    Attributes:
      path: of the index.
      files: the shards; row "shard" of the arrays counts them.
      stamps: [size, time of change in ns] of each.
      facts: what was found of each, besides rows.
      digest: of all that the index says of the shards.
    """

    path: pathlib.Path
    files: tuple[pathlib.Path, ...]
    stamps: tuple[tuple[int, int], ...]
    facts: tuple[Mapping[str, Any], ...]
    digest: str

    @functools.cached_property
    def rows(self) -> Rows:
        found = _read(self.path)
        if found is None or found[1] != self.digest:
            raise UnreadError(f"The index {self.path} has changed since this run opened it.")
        return found[0]

    @functools.cached_property
    def checked(self) -> set[int]:
        """Shards that this process has found unchanged."""
        return set()

    def __getstate__(self) -> dict[str, Any]:  # arrays in memory would travel whole
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"facts": ()}

    def shard(self, index: int) -> pathlib.Path:
        """A shard's file, as it was when it was indexed; UnreadError where it has changed."""
        path = self.files[index]
        if index not in self.checked:
            try:
                unchanged = _stamp(path) == self.stamps[index]
            except OSError as error:
                raise UnreadError(f"{path} cannot be read ({error.strerror}).") from None
            if not unchanged:
                raise UnreadError(f"{path} has changed since it was indexed; start again.")
            self.checked.add(index)
        return path


def open_index(kind: str, files: Sequence[pathlib.Path], scan: Scan) -> ShardIndex:
    """The index of some shards, built where there is none or they have changed.

    Args:
      kind: what the rows are, "wds" or "parquet".
      files: the shards, sorted.
      scan: a shard's rows, and facts that JSON can hold; it raises UserError for a damaged one.
    """
    files = tuple(pathlib.Path(os.path.abspath(file)) for file in files)
    stamps = tuple(_stamp(file) for file in files)
    places = _places(kind, files)
    old = next((found for place in places if (found := _read(place, log_damage=True))), None)
    known = {name: i for i, (name, *_) in enumerate(old[2]["files"])} if old else {}
    rows, facts, changed = [], [], []
    for number, file in enumerate(_shown(files, stamps, old, known)):
        place = known.get(str(file), -1)
        if old and place >= 0 and tuple(old[2]["files"][place][1:3]) == stamps[number]:
            of_shard = old[0]["shard"] == place
            found = {name: array[of_shard] for name, array in old[0].items()}
            fact = old[2]["files"][place][3]
        else:
            changed += [file]
            found, fact = scan(file)
        length = len(next(iter(found.values())))
        rows.append(found | {"shard": np.full(length, number, np.int32)})
        facts.append(fact)
    listed = [[str(f), *s, fact] for f, s, fact in zip(files, stamps, facts, strict=True)]
    meta = json.dumps({"version": _VERSION, "kind": kind, "files": listed})
    digest = hashlib.sha256(meta.encode()).hexdigest()
    if old and old[1] == digest:
        return ShardIndex(old[3], files, stamps, tuple(facts), digest)
    if old and changed:
        log(f"{changed[0]} has changed since {old[3]} was written: it is indexed again.")
    arrays = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
    path = _write(places, arrays, meta)
    return ShardIndex(path, files, stamps, tuple(facts), digest)


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def _shown(files, stamps, old, known):
    """The files, with a bar where many are to be scanned."""
    there = [tuple(old[2]["files"][known[str(f)]][1:3]) if str(f) in known else () for f in files]
    fresh = sum(a != b for a, b in zip(there, stamps, strict=True))
    return tqdm.tqdm(
        files, desc="indexing shards", unit="shard", disable=None if fresh > 8 else True
    )


def _places(kind: str, files: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Where an index may be, the first choice first."""
    key = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:16]
    name = f"{kind}_{key}.npz"
    if folder := os.environ.get("FSQ_JAX_CACHE"):
        return [pathlib.Path(folder).expanduser() / name]
    home = pathlib.Path.home() / ".cache" / "fsq_jax"
    return [files[0].parent / ".fsq_jax" / name, home / name]


def _read(path: pathlib.Path, log_damage: bool = False):
    """(rows, digest, meta, path) of an index; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        arrays = numpy_file.read_npz(path)
        text = arrays.pop("meta").tobytes().decode()
        meta = bounded.parse_json(text, str(path), {"version": int, "files": [list]})
        whole = len({len(array) for array in arrays.values()}) == 1 and "shard" in arrays
        if meta["version"] == _VERSION and whole and all(len(f) == 4 for f in meta["files"]):
            return arrays, hashlib.sha256(text.encode()).hexdigest(), meta, path
        reason = "of another version"
    except _UNREADABLE as error:
        reason = str(error)[:80]
    if log_damage:
        log(f"The index {path} can't be read ({reason}): it is made again.")
    return None


def _write(places: Sequence[pathlib.Path], arrays: Rows, meta: str) -> pathlib.Path:
    """Writes an index to the first place that can be written; returns which."""
    for path in places:
        try:
            with written_whole(path, "wb") as file:
                np.savez(file, meta=np.frombuffer(meta.encode(), np.uint8), **arrays)  # pyright: ignore[reportArgumentType]
            return path
        except OSError:
            if path == places[-1]:
                raise
    raise AssertionError("There is always a place.")
