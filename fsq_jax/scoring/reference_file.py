"""Reads a reference's .npz: statistics of real images, ADM's or those of `fsq_jax.reference`."""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping

import numpy as np

from fsq_jax.metrics.frechet import Moments
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import image_sets
from fsq_jax.scoring.accumulator import _SUFFIX, Statistics
from fsq_jax.scoring.protocols import Reference


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
      UserError: where it is no such file, or has no mean and covariance.
    """
    has = names(path)
    try:
        with np.load(path) as file:
            if not {"mu", "sigma"} <= has:
                raise UserError(
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
        raise UserError(f"{path} can't be read as a reference ({error}).") from None
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
    """The arrays of an .npz file, of which none is read; UserError where it isn't one."""
    if not os.path.exists(path):
        raise UserError(f"There is no reference {str(path)!r}.")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a whole .npz file.")
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
