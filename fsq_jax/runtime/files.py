"""Files that are there whole or not at all."""

import contextlib
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


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    with written_whole(path) as file:
        json.dump(value, file, indent=2)
