"""The image files under a folder, links followed: each found once, and none beyond its place."""

import os
import pathlib
from collections.abc import Iterator

from fsq_jax.data.decode import EXTENSIONS
from fsq_jax.runtime.user_error import UserError


def list_images(folder: str | os.PathLike) -> list[str]:
    """Relative paths ("cat/1.png") of the images under a folder, sorted; hidden ones left out.

    Folders that are links are walked like any other.

    Raises:
      UserError: for a link that leads to a folder which holds it, for a folder that is reached
        twice (its images would count twice, under two classes perhaps), for an image that is a
        link to nothing or no file, and for what can't be listed.
    """
    root = os.fspath(folder)
    return sorted(path.as_posix() for path in _walk(root, pathlib.PurePath(), {}, ()))


def _walk(
    root: str, inside: pathlib.PurePath, seen: dict[tuple, str], above: tuple
) -> Iterator[pathlib.PurePath]:
    folder = os.path.join(root, inside)
    try:
        status = os.stat(folder)
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}).") from None
    key = (status.st_dev, status.st_ino)
    if key in above:
        raise UserError(f"{folder} is a link to a folder that holds it, {seen[key]}.")
    if key in seen:
        raise UserError(
            f"{folder} and {seen[key]} are the same folder; its images would count twice."
        )
    seen[key] = folder
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):
            yield from _walk(root, inside / entry.name, seen, (*above, key))
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            if not os.path.isfile(entry.path):
                what = "a link to nothing" if entry.is_symlink() else "not a file"
                raise UserError(f"{entry.path} is {what}; remove it, or put the image there.")
            yield inside / entry.name
