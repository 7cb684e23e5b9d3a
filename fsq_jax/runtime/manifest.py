"""Checksums of a folder's files, written beside them, so that damage is noticed and named.

FOLDER/manifest.json    {"files": {"state/d/1f": {"bytes": 9, "sha256": "..."}}, ...}
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.user_error import UserError

NAME = "manifest.json"
_THREADS = 4  # hashing lets go of Python's lock
_EXPECTED = {"files": {...: {"bytes": int, "sha256": str}}}
_MAX_FILES = 1_000_000


def write(folder: str, **more: Any) -> None:
    """Writes FOLDER/manifest.json, whole or not at all, of the files in the folder's sub-folders.

    more: what else it says, as JSON.
    """
    files = list_files(folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda name: sha256(os.path.join(folder, name)), files)
    write_json(os.path.join(folder, NAME), {
        "files": {
            name: {"bytes": size, "sha256": digest}
            for (name, size), digest in zip(files.items(), sums, strict=True)
        },
        **more,
    })  # fmt: skip


def read(folder: str) -> dict[str, Any] | None:
    """What manifest.json says; None where there is none, as in folders of older versions.

    Raises:
      UserError: it is damaged.
    """
    path = os.path.join(folder, NAME)
    return bounded.read_json(path, _EXPECTED) if os.path.lexists(path) else None


def check(folder: str, part: int = 0, parts: int = 1) -> bool:
    """Whether there is a manifest, after a check that every file of it is as it was.

    Only files that are found in the folder are opened: a manifest can lead nowhere else.

    Args:
      folder: whose files are checked; that those without a checksum are plain files, too.
      part, parts: reads the part-th of so many parts of the bytes.

    Raises:
      UserError: with the file that is missing, cut or changed.
    """
    files = list_files(folder)
    manifest = read(folder)
    if manifest is None:
        return False
    expected = manifest["files"]
    for name, entry in expected.items():
        if name not in files:
            raise UserError(f"{name[:200]} is missing")
        if files[name] != entry["bytes"]:
            raise UserError(f"{name} has {files[name]} bytes and had {entry['bytes']}")
    mine = sorted(expected)[part::parts]
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda name: sha256(os.path.join(folder, name)), mine)
        for name, digest in zip(mine, sums, strict=True):
            if digest != expected[name]["sha256"]:
                raise UserError(f"{name} is not what was written: its checksum is another one")
    return True


def list_files(folder: str) -> dict[str, int]:
    """{path inside the folder: bytes} of all files in its sub-folders.

    Raises:
      UserError: for a pipe, a socket or a device, which no checkpoint holds.
    """
    files = {}
    for name in _inside(folder):
        status = os.stat(os.path.join(folder, name))
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{name} is no plain file")
        files[name] = status.st_size
        if len(files) > _MAX_FILES:
            raise UserError(f"there are more than {_MAX_FILES} files")
    return files


def _inside(folder: str) -> Iterable[str]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        inside = os.path.relpath(place, folder)
        if inside != ".":
            yield from (os.path.join(inside, name) for name in sorted(names))


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with bounded.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metrics(folder: str) -> Mapping[str, float]:
    """The numbers that a manifest says its step was evaluated with; {} where it says none."""
    try:
        found = (read(folder) or {}).get("metrics")
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}
