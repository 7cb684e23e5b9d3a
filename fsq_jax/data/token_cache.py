"""A token cache: the tokens of every record, computed once by a trained stage I.

A folder with tokens.npy [N,V,L] of integers, labels.npy [N] and meta.json, which says at least
codebook_size, num_classes, class_names and the fingerprint of the stage I.

For models that read images beside their tokens, view v of record i is the image as a transform
makes it from a generator of (seed + v, i): made again here, it is the very image that was encoded.

Legend: N records, V views (crops, flips) of an image, L tokens of a view.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from fsq_jax.data import decode, transforms
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
        return open_array(self.folder / "tokens.npy"), open_array(self.folder / "labels.npy")

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


def view(
    augment: transforms.Transform, plain: transforms.Transform, seed: int, number: int, views: int
) -> transforms.Transform:
    """The transform of a cache's view: as in training, or, where it is the only one, as it is."""
    return plain if views == 1 else transforms.reseeded(augment, seed + number)


def paired(images: Dataset, tokens: Dataset) -> Dataset:
    """The records of `images` with "tokens_VL" of the cache, and "record", their position.

    Raises UserError where the two are not of the same length.
    """
    if len(images) != len(tokens):
        raise UserError(
            f"{tokens.name} holds the tokens of {len(tokens)} records, but {images.name} "
            f"{images.split} has {len(images)}."
        )
    return dataclasses.replace(images, records=_Paired(images, tokens), start=0, stop=len(images))


def sample_image_and_tokens(
    augment: transforms.Transform, plain: transforms.Transform, seed: int, views: int
) -> transforms.Transform:
    """A record of `paired` as one of its views, drawn at random: "image" and "tokens" [L]."""
    each = tuple(view(augment, plain, seed, number, views) for number in range(views))
    return functools.partial(_sample_image_and_tokens, each)


def _sample_image_and_tokens(each, record, rng):
    number = int(rng.integers(len(each)))
    tokens_L = record["tokens_VL"][number]
    # The generator that `eval_batches` gave the encoder for this record.
    made = each[number](record, np.random.default_rng(record["record"]))
    return {"image": made["image"], "label": made["label"], "tokens": tokens_L}


@dataclasses.dataclass(frozen=True)
class _Paired:
    images: Dataset
    tokens: Dataset

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.tokens[index]
        return self.images[index] | {"tokens_VL": tokens["tokens_VL"], "record": index}


def sample_token_view(record: transforms.Record, rng: np.random.Generator) -> transforms.Record:
    """A record of a token cache with one of its views, drawn at random, as tokens int32 [L]."""
    view = int(rng.integers(len(record["tokens_VL"])))
    rest = {name: value for name, value in record.items() if name != "tokens_VL"}
    return rest | {"tokens": record["tokens_VL"][view]}
