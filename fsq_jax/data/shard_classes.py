"""The classes of sharded data: how many, what they are called, and the number of each record's.

Names come from a file beside the shards or one folder up (classes.txt, class_names.txt: a name on
each line; classes.json, class_names.json: a list), or else from what the shards say themselves.
Classes by words are numbered in the order of their words.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from fsq_jax.data import shards
from fsq_jax.data.shard_index import Scan, ShardIndex, open_index
from fsq_jax.data.splits import resolve
from fsq_jax.runtime import bounded
from fsq_jax.runtime.user_error import UserError

_FILES = ("classes.txt", "class_names.txt", "classes.json", "class_names.json")


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names in the order of their numbers; `by_word`: the shards have the words themselves."""

    names: tuple[str, ...]
    by_word: bool = False


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of shards: its name and all there are, its index, its classes, its labels [N]."""

    name: str
    all_names: tuple[str, ...]
    index: ShardIndex
    classes: tuple[str, ...]
    labels: np.ndarray


def open_split(kind: str, pattern: str, split: str, endings: Sequence[str], scan: Scan) -> Split:
    """A split of the shards that a pattern names, see `shards.find`, with the classes of train.

    Args:
      kind: "wds" or "parquet", see `open_index`.
      pattern: which shards.
      split: of them.
      endings: of the files of a folder.
      scan: what a shard has, see `open_index`.
    """
    where = f"{kind}:{pattern}"
    found = shards.find(pattern, kind, endings)
    split = resolve(split, tuple(found), where)
    index = open_index(kind, found[split], scan)
    train = index
    if split != "train" and "train" in found:
        train = open_index(kind, found["train"], scan)
    classes = of(train, where)
    return Split(split, tuple(found), index, classes.names, numbers(index, classes, where))


def of(index: ShardIndex, where: str) -> Classes:
    """The classes of the shards of an index (of train, as a rule).

    Raises:
      UserError: where shards say different things, or a file names too few.
    """
    labels = index.rows["label"]
    words = sorted({word for fact in index.facts for word in fact.get("words", ())})
    if words:
        return Classes(_named(index.files[0].parent) or tuple(words), by_word=True)
    if (labels < 0).all():
        return Classes(("image",))
    count, names = int(labels.max()) + 1, _named(index.files[0].parent)
    if names and len(names) < count:
        raise UserError(
            f"{where} has labels up to {count - 1}, and a file that names {len(names)}."
        )
    if names:
        return Classes(names)
    listed = [tuple(fact["list"]) for fact in index.facts if fact.get("list")]
    if listed:
        if len(set(listed)) > 1 or len(listed[0]) < count:
            raise UserError(
                f"The files of {where} name {sorted({len(names) for names in listed})} classes, "
                f"not all the same ones, and their labels go up to {count - 1}."
            )
        return Classes(listed[0])
    found: dict[str, str] = {}
    for fact in index.facts:
        found = {**fact.get("names", {}), **found}
    return Classes(_distinct(found, count))


def _distinct(found: Mapping[str, str], count: int) -> tuple[str, ...]:
    """The names that were found for numbers; a number where there is none, or it isn't its own."""
    names = [found.get(str(number), str(number)) for number in range(count)]
    return tuple(names if len(set(names)) == count else map(str, range(count)))


def numbers(index: ShardIndex, classes: Classes, where: str) -> np.ndarray:
    """The class of each record [N], one of `classes`, -1 where records have none.

    Raises:
      UserError: naming the shard, for a label that is none of the classes.
    """
    labels, of_shard = index.rows["label"], index.rows["shard"]
    if any(fact.get("words") for fact in index.facts) != classes.by_word:
        raise UserError(f"{where} has classes by words in some shards and by numbers in others.")
    if classes.by_word:
        place = {name: number for number, name in enumerate(classes.names)}
        labels = labels.copy()
        for shard, fact in enumerate(index.facts):
            strange = [word for word in fact["words"] if word not in place]
            if strange:
                raise UserError(
                    f"{index.files[shard]} has the class {strange[0]!r}, which is none "
                    f"of the {len(place)} of {where}."
                )
            here = of_shard == shard
            labels[here] = np.array([place[word] for word in fact["words"]])[labels[here]]
        return labels
    unlabelled = labels < 0
    if unlabelled.all():
        return labels
    for wrong, reason in (
        (unlabelled, "no labels, and other shards have"),
        (labels >= len(classes.names), f"labels beyond the {len(classes.names)} classes"),
    ):
        if wrong.any():
            shard = index.files[int(of_shard[int(np.argmax(wrong))])]
            raise UserError(f"{shard} has {reason} of {where}.")
    return labels


def _named(folder: pathlib.Path) -> tuple[str, ...]:
    """The names in a file beside the shards; () where there is none."""
    for path in (place / name for place in (folder, folder.parent) for name in _FILES):
        if not path.is_file():
            continue
        if path.suffix == ".json":
            names = bounded.read_json(path, [str])
        else:
            text = bounded.read_bytes(path, bounded.MAX_JSON).decode(errors="replace")
            names = [line.strip() for line in text.splitlines() if line.strip()]
        if not names:
            raise UserError(f"{path} is empty; expected a list of the classes' names.")
        return tuple(names)
    return ()
