"""Files that are there whole or not at all."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import IO, Any

import jax


@contextlib.contextmanager
def written_whole(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """A file that takes its name only once everything is written; its folder is made.

    An exception leaves what stood at `path` before. The file is flushed to the disk before it is
    renamed, so that a machine that loses its power keeps the one or the other.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.{jax.process_index()}.{os.getpid()}.tmp"
    try:
        with open(partial, mode) as file:
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
