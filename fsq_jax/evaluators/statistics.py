"""What is kept of a set of images: moments of features, and the features that metrics need one by
one.

Legend: B rows of a batch, N rows in all, F features, H W image height, width.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from fsq_jax import sharding
from fsq_jax.data import image_sets
from fsq_jax.metrics.frechet import Moments
from fsq_jax.protocols import Reference

_BLOCK = 2_048  # rows that are taken into the moments at once, rather than batch by batch
_SUFFIX = {"pool": "", "spatial": "_s"}  # of mu and sigma in files, as ADM's have them


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of images seen so far; `add` returns new ones.

    Attributes:
      moments: of "pool" features, and of "spatial" ones where sFID is measured.
      keep: {"pool" or "logits": how many rows are kept as they are, 0 for all}.
      kept: those rows, in blocks [B,F].
      pending: (outputs, mask) of batches that are not in the moments yet, and may be on their way
        on a device: they are waited for a block at a time, while it works on the next.
      origin: which images they are of.
    """

    moments: Mapping[str, Moments]
    keep: Mapping[str, int]
    kept: Mapping[str, tuple[np.ndarray, ...]]
    pending: tuple[tuple[Mapping[str, Any], Any], ...] = ()
    origin: Reference = Reference()

    @classmethod
    def empty(cls, widths: Mapping[str, int], keep: Mapping[str, int]) -> "Statistics":
        """Of no images; `widths`: {"pool" or "spatial": number of features}."""
        moments = {name: Moments.empty(width) for name, width in widths.items()}
        return cls(moments, dict(keep), {name: () for name in keep})

    @property
    def count(self) -> int:
        return self.settled().moments["pool"].count

    def add(self, outputs: Mapping[str, Any], mask_B: Any) -> "Statistics":
        """With a batch of a network's outputs [B,F] added, but for the rows masked out."""
        more = dataclasses.replace(self, pending=(*self.pending, (dict(outputs), mask_B)))
        waiting = sum(len(mask_B) for _, mask_B in more.pending)
        return more.settled(len(more.pending) // 2) if waiting >= 2 * _BLOCK else more

    def settled(self, leave: int = 0) -> "Statistics":
        """The same with nothing pending, but for the last `leave` batches."""
        if len(self.pending) <= leave:
            return self
        end = len(self.pending) - leave
        batches = [
            {name: np.asarray(values)[mask_B] for name, values in outputs.items()}
            for outputs, mask_B in sharding.to_host(self.pending[:end])
        ]
        rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        moments = {name: seen.update(rows[name]) for name, seen in self.moments.items()}
        kept = {}
        for name, limit in self.keep.items():
            room = limit - sum(map(len, self.kept[name])) if limit else len(rows[name])
            kept[name] = self.kept[name] + ((rows[name][:room],) if room > 0 else ())
        return dataclasses.replace(self, moments=moments, kept=kept, pending=self.pending[end:])

    def described(self, name: str, **more) -> "Statistics":
        """The same, with where these images are from; `more`: fields of `Reference`."""
        return dataclasses.replace(self, origin=Reference(name, num_images=self.count, **more))

    def rows(self, name: str) -> np.ndarray:
        """The rows of "pool" or "logits" that were kept [N,F]."""
        return np.concatenate(self.settled().kept[name])

    def save(
        self, path: str | os.PathLike, told: Mapping, images_NHWC: np.ndarray | None = None
    ) -> None:
        """Writes an npz with ADM's names, and how it was measured as JSON (`protocol`).

        With images [N,H,W,3] these are `arr_0`, as in ADM's files; without, features that were kept
        are `features`.
        """
        arrays = {"count": self.count, "protocol": json.dumps(told)}
        for name, moments in self.settled().moments.items():
            arrays[f"mu{_SUFFIX[name]}"] = moments.mean
            arrays[f"sigma{_SUFFIX[name]}"] = moments.covariance
        if images_NHWC is not None:
            arrays["arr_0"] = images_NHWC
        elif "pool" in self.keep:
            arrays["features"] = self.rows("pool")
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        partial = f"{path}.{os.getpid()}.tmp"
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A reference's file: its statistics, what it says of itself, and its images, if any.

    Attributes:
      statistics: the moments; kept rows only where the file has features.
      told: its `protocol`; {} where it has none, as ADM's files.
      has_images: whether there is an `arr_0`.
      size: height and width of its images, where they are known.
    """

    statistics: Statistics
    told: Mapping
    has_images: bool
    size: tuple[int, int] | None = None


def load(path: str | os.PathLike) -> Saved:
    """What a file of `Statistics.save`, or one of ADM's, holds.

    Raises:
      ValueError: where it is no such file, or has no mean and covariance.
    """
    has = names(path)
    try:
        with np.load(path) as file:
            if not {"mu", "sigma"} <= has:
                raise ValueError(
                    f"{path} has no mu and sigma, only {sorted(has)}; build a reference with "
                    "python -m fsq_jax.reference."
                )
            told = json.loads(str(file["protocol"])) if "protocol" in has else {}
            # A file of ADM's doesn't say of how many images it is; two rows of this scatter have
            # its covariance.
            count = int(file["count"]) if "count" in has else 2
            moments = {
                name: Moments(
                    count,
                    file[f"mu{suffix}"].astype(np.float64),
                    file[f"sigma{suffix}"].astype(np.float64) * (count - 1),
                )
                for name, suffix in _SUFFIX.items() if f"mu{suffix}" in has
            }
            kept = {"pool": (file["features"],)} if "features" in has else {}
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise ValueError(f"{path} can't be read as a reference ({error}).") from None
    if told:
        origin = Reference(**told["reference"])
    else:
        origin = Reference(
            os.path.basename(path), "", count if "count" in has else 0, sha256(path), "arr_0"
        )
    keep = {name: sum(map(len, blocks)) for name, blocks in kept.items()}
    has_images, size = "arr_0" in has, None
    if has_images:
        images = image_sets.open_images(str(path))
        size = images.height, images.width
    elif "size" in told:
        size = told["size"], told["size"]
    return Saved(Statistics(moments, keep, kept, (), origin), told, has_images, size)


def names(path: str | os.PathLike) -> set[str]:
    """The arrays of an .npz file, of which none is read; ValueError where it isn't one."""
    if not os.path.exists(path):
        raise ValueError(f"There is no reference {str(path)!r}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a whole .npz file.")
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
