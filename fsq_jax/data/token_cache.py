"""A token cache: the tokens of every image, computed once by a trained tokenizer.

A folder with tokens.npy [N,V,L] of integers, labels.npy [N] and meta.json, which says at least
codebook_size, num_classes, class_names and the fingerprint of the tokenizer.

Legend: N records, V views (crops, flips) of an image, L tokens of a view.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from fsq_jax.data import decode
from fsq_jax.data.array_columns import open_array
from fsq_jax.data.dataset import Dataset, existing_folder, sub_folders
from fsq_jax.data.splits import resolve
from fsq_jax.runtime import bounded
from fsq_jax.runtime.user_error import UserError

_META = {
    "codebook_size": int, "num_classes": int, "class_names": [str], "fingerprint": str,
    "split?": str, "views?": int, "seed?": int,
}  # fmt: skip
_FILES = ("tokens.npy", "labels.npy", "meta.json")


def open_source(path: str, split: str) -> Dataset:
    """PATH/train, PATH/validation with the files of a cache each; or these files in PATH itself,
    which is then the split that its meta.json names, "train" if none."""
    root, where = existing_folder(path, "tokens"), f"tokens:{path}"
    flat = any((root / name).is_file() for name in _FILES)
    splits = () if flat else tuple(sub_folders(root))
    if splits:
        split = resolve(split, splits, where)
        root = root / split
    meta = _read_meta(root)
    if not splits:
        splits = (meta.get("split", "train"),)
        split = resolve(split, splits, where)
    records = _TokenRecords(root, meta["codebook_size"])
    tokens, labels = records.arrays
    if tokens.ndim != 3 or 0 in tokens.shape or labels.shape != tokens.shape[:1]:
        raise UserError(
            f"{root} holds tokens of shape {tokens.shape} and labels of shape {labels.shape}; "
            "expected [records, views, length] and [records]."
        )
    names = tuple(meta["class_names"])
    for name, array in (("tokens", tokens), ("labels", labels)):
        if array.dtype.kind not in "iu":
            raise UserError(f"{root / name}.npy is of {array.dtype}; expected integers.")
    if not labels.size or labels.min() < 0 or labels.max() >= len(names):
        found = f"from {labels.min()} to {labels.max()}" if labels.size else "of no record"
        raise UserError(f"{root} has labels {found}; expected 0 to {len(names) - 1}.")
    return Dataset(where, split, names, records, 0, len(tokens), splits, meta)


def _read_meta(root: pathlib.Path) -> dict[str, Any]:
    missing = [name for name in _FILES if not (root / name).is_file()]
    if missing:
        raise UserError(f"{root} is no token cache: it lacks {', '.join(missing)}.")
    return bounded.read_json(root / "meta.json", _META)


@dataclasses.dataclass
class _TokenRecords:
    folder: pathlib.Path
    codebook_size: int

    @functools.cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [N,V,L] and labels [N], mapped to memory."""
        return tuple(open_array(self.folder / f"{name}.npy") for name in ("tokens", "labels"))

    def __getstate__(self) -> dict[str, Any]:  # an array in memory would travel whole
        return {"folder": self.folder, "codebook_size": self.codebook_size}

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens, labels = self.arrays
        views = np.array(tokens[index])
        if views.min() < 0 or views.max() >= self.codebook_size:
            raise decode.RecordError(
                f"Record {index} of {self.folder} has tokens from {views.min()} to {views.max()}; "
                f"its codebook holds 0 to {self.codebook_size - 1}."
            )
        return {"tokens_VL": views.astype(np.int32), "label": int(labels[index])}
