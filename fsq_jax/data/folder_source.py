"""Images in folders: one sub-folder per class."""

import dataclasses
import hashlib
import pathlib
from typing import Any

from fsq_jax.data import decode
from fsq_jax.data.dataset import Dataset, existing_folder, sub_folders
from fsq_jax.data.image_files import list_images
from fsq_jax.data.splits import SPLIT_NAMES, resolve
from fsq_jax.runtime.user_error import UserError

_HELD_OUT = 0.05  # of a folder that has no folder for validation


def open_source(path: str, split: str) -> Dataset:
    """PATH/train and PATH/validation (or val, test) where there is a PATH/train; else PATH, cut in
    two by the names of its files. Images beside the sub-folders of classes are left out."""
    root, where = existing_folder(path, "folder"), f"folder:{path}"
    folders = sub_folders(root)
    split_folders = [name for name in folders if name in SPLIT_NAMES]
    by_folder = "train" in split_folders
    splits = tuple(split_folders) if by_folder else ("train", "validation")
    split = resolve(split, splits, where)
    folder = root / split if by_folder else root
    classes = sub_folders(root / "train") if by_folder else folders
    files = list_images(folder)
    if classes and not (by_folder and split != "train"):
        files = [file for file in files if "/" in file]
    bare = sorted(set(classes) - {file.split("/")[0] for file in files})
    if not by_folder:
        files = _hash_split(files, split)
    if not files:
        raise UserError(
            f"{where} holds no images for the split {split!r} ({' '.join(decode.EXTENSIONS)})."
        )
    if bare and not (by_folder and split != "train"):
        raise UserError(f"{folder / bare[0]} is a class of {where} without an image; remove it.")
    numbers = {name: number for number, name in enumerate(classes)}
    strange = [f for f in files if classes and f.split("/")[0] not in numbers]
    if strange:
        raise UserError(f"{folder / strange[0]} is of no class of {where}/train: {classes}.")
    records = _FolderRecords(folder, files, [numbers.get(f.split("/")[0], 0) for f in files])
    return Dataset(where, split, tuple(classes) or ("image",), records, 0, len(files), splits)


def _hash_split(files: list[str], split: str) -> list[str]:
    """Validation: 5 % of the files, those of the lowest hashes, so that a new file moves no other
    (at least one, of two or more). Train: the rest."""
    hashes = {f: int(hashlib.sha256(f.encode()).hexdigest()[:8], 16) / 2**32 for f in files}
    limit = max(_HELD_OUT, min(hashes.values(), default=0) * (1 + 1e-9)) if len(files) > 1 else 0
    return [f for f in files if (hashes[f] < limit) == (split == "validation")]


@dataclasses.dataclass(frozen=True)
class _FolderRecords:
    folder: pathlib.Path
    files: list[str]
    labels: list[int]

    def file_name(self, index: int) -> str:
        """The file that record `index` is, with its sub-folder."""
        return self.files[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.folder / self.files[index]
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise decode.UnreadError(f"{path} cannot be read ({error.strerror}).") from error
        return {"image": decode.decode_image(encoded, str(path)), "label": self.labels[index]}
