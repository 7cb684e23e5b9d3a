"""Shards: which files a pattern means, and which split each is of.

PATH                               a folder: all of its files of the kind, at any depth
PATH/shard-{000000..001023}.tar    braces: numbers from, to; or words, {train,val}
PATH/train-*.parquet               what a shell's * ? [] match
"""

import glob
import os
import pathlib
import re
from collections.abc import Sequence

from fsq_jax.runtime.user_error import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SPLIT_WORD = re.compile(r"(?<![a-z])(training|train|validation|valid|val|testing|test)(?![a-z])")
_SPLITS = {"tra": "train", "val": "validation", "tes": "test"}
_MOST = 1_000_000  # files that a pattern may name


def find(pattern: str, kind: str, endings: Sequence[str]) -> dict[str, list[pathlib.Path]]:
    """{split: its files, sorted} of a pattern.

    A file is of the split that its name has in it ("imagenet1k-train-0000.tar"), or else of that
    which a folder is called that it is in. Where no file says one, all are of "train".

    Args:
      pattern: a folder, or a path with braces, stars or neither.
      kind: of the spec, for messages: "wds".
      endings: of the files of a folder: (".tar",).

    Raises:
      UserError: where there is no such file, one of those that braces name isn't there, or some
        files are of a split and others of none.
    """
    where, root = f"{kind}:{pattern}", pathlib.Path(pattern).expanduser()
    if root.is_dir():
        files = [f for f in root.rglob("*") if f.suffix in endings and f.is_file()]
        files = [f for f in files if not any(p[0] == "." for p in f.relative_to(root).parts)]
        if not files:
            raise UserError(f"{where} has no files that end in {' or '.join(endings)}.")
        named = {file: _split_of(file.relative_to(root)) for file in files}
    else:
        files = _matched(str(root), where)
        named = {file: _split_of(pathlib.PurePath(*file.parts[-2:])) for file in files}
    if not any(named.values()):
        return {"train": sorted(files)}
    if nameless := [file for file, split in named.items() if not split]:
        raise UserError(
            f"{nameless[0]} says no split in its name and other files of {where} do; name the "
            "files that are meant, as in PATH/train-*."
        )
    order = [split for split in _SPLITS.values() if split in named.values()]
    return {split: sorted(f for f, name in named.items() if name == split) for split in order}


def _matched(pattern: str, where: str) -> list[pathlib.Path]:
    files, missing = set(), []
    for path in expand_braces(pattern):
        found = glob.glob(path) if glob.has_magic(path) else [path] * os.path.isfile(path)
        files |= {pathlib.Path(file) for file in found if os.path.isfile(file)}
        missing += [] if found or glob.has_magic(path) else [path]
    if missing:
        rest = f" and {len(missing) - 1} others aren't" if len(missing) > 1 else " isn't"
        raise UserError(f"{missing[0]}{rest} there, of the files of {where}.")
    if not files:
        raise UserError(f"{where} matches no file.")
    return sorted(files)


def _split_of(path: pathlib.PurePath) -> str:
    words = _SPLIT_WORD.findall(path.name.lower())
    for folder in reversed(path.parts[:-1]):
        match = _SPLIT_WORD.fullmatch(folder.lower())
        words = words or ([match[0]] if match else [])
    return _SPLITS[words[-1][:3]] if words else ""


def expand_braces(pattern: str) -> list[str]:
    """All that a pattern with braces stands for: "{08..10}" is "08", "09", "10", "{a,b}" both.

    Raises:
      UserError: for braces that can't be read, or stand for nothing or for over a million files.
    """
    if not (match := _BRACES.search(pattern)):
        return [pattern]
    inside, numbers = match[1], _RANGE.fullmatch(match[1])
    if numbers:
        first, last = numbers.groups()
        count = int(last) - int(first) + 1
        if not 0 < count <= _MOST:
            raise UserError(f"{{{inside}}} in {pattern!r} stands for {max(count, 0)} files.")
        words = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    elif "," in inside:
        words = inside.split(",")
    else:
        raise UserError(
            f"{{{inside}}} in {pattern!r} can't be read; write {{000..123}} or {{a,b}}."
        )
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [path for word in words for path in expand_braces(head + word + tail)]
