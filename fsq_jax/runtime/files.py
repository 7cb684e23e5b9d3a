"""Files that are there whole or not at all."""

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from typing import IO, Any

import jax

from fsq_jax.runtime.bounded import names_path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """A file that takes its name only once everything is written; its folder is made.

    An exception leaves what stood at `path` before. The file is flushed to the disk before it is
    renamed, so that a machine that loses its power keeps the one or the other. An error of the
    filesystem, such as a full disk, names the path.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.{jax.process_index()}.{os.getpid()}.tmp"
    try:
        with names_path(path), open(partial, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


@contextlib.contextmanager
def alone(path: str | os.PathLike) -> Iterator[None]:
    """Waits until no other process of this machine is inside with the same path.

    For work whose result all of them want: the first does it, the others then find it done. Of a
    run with several processes none waits, since they can only work together.
    """
    if jax.process_count() > 1:
        yield
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(f"{os.fspath(path)}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    with written_whole(path) as file:
        json.dump(value, file, indent=2)


def append_json_line(path: str | os.PathLike, value: Any) -> None:
    """Adds a line to a file of JSON lines, in place of a last one that was only half written."""
    with names_path(path), open(path, "ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(value).encode() + b"\n")


def rename_aside(path: str | os.PathLike) -> str:
    """Gives a damaged file or folder a free name beside it, PATH.damaged, and returns that name."""
    aside = free_name(f"{os.fspath(path)}.damaged")
    with names_path(path):
        os.rename(path, aside)
    return aside


def free_name(path: str) -> str:
    """The path, or the first of PATH2, PATH3, ... that nothing has."""
    numbers = itertools.chain([""], itertools.count(2))
    return next(name for n in numbers if not os.path.lexists(name := f"{path}{n}"))
