"""Reads a reference's .npz: statistics of real images, ADM's or those of `fsq_jax.reference`."""

import dataclasses
import os
from collections.abc import Mapping

import numpy as np

from fsq_jax.formats import numpy_file
from fsq_jax.metrics.frechet import Moments
from fsq_jax.runtime import bounded, manifest
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import image_sets
from fsq_jax.scoring.accumulator import _SUFFIX, Statistics
from fsq_jax.scoring.protocols import Reference

# What `Statistics.save` writes as the protocol, see `bounded.read_json`.
_RECORD = {
    "reference": {
        "name?": str, "split?": str, "num_images?": int, "sha256?": str, "subset?": str,
    },
    "features?": dict,
    "size?": int,
}  # fmt: skip
_MAX_COUNT = 1 << 53  # images, which float64 counts


@dataclasses.dataclass(frozen=True)
class Saved:
    """A reference's file: its statistics, what it says of itself, and its images, if any.

    Attributes:
      statistics: the moments; kept rows only where the file has features.
      record: its `protocol`; {} where it has none, as ADM's files.
      has_images: whether there is an `arr_0`.
      size: height and width of its images, where they are known.
    """

    statistics: Statistics
    record: Mapping
    has_images: bool
    size: tuple[int, int] | None = None


def load(path: str | os.PathLike) -> Saved:
    """What a file of `Statistics.save`, or one of ADM's, holds.

    Raises:
      UserError: where it is no such file, has no mean and covariance, or these can't be such.
    """
    has = names(path)
    if not {"mu", "sigma"} <= has:
        raise UserError(
            f"{path} has no mu and sigma, only {sorted(has)[:20]}; build a reference with "
            "python -m fsq_jax.reference."
        )
    wanted = {"count", "protocol", "features"} & has
    suffixes = {name: suffix for name, suffix in _SUFFIX.items() if f"mu{suffix}" in has}
    wanted |= {f"{part}{suffix}" for part in ("mu", "sigma") for suffix in suffixes.values()}
    arrays = numpy_file.read_npz(path, sorted(wanted))
    record = _record(path, arrays.get("protocol"))
    # A file of ADM's doesn't say of how many images it is; two rows of this scatter have its
    # covariance.
    count = _count(path, arrays["count"]) if "count" in arrays else 2
    moments = {
        name: _moments(path, count, arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"], suffix)
        for name, suffix in suffixes.items()
    }
    kept = {}
    if "features" in arrays:
        kept["pool"] = (_features(path, arrays["features"], len(moments["pool"].mean)),)
    if record:
        known = {field.name for field in dataclasses.fields(Reference)}
        if strange := sorted(record["reference"].keys() - known):
            raise UserError(f"{path}: the protocol's reference has {strange[:4]}, which none has.")
        origin = Reference(**record["reference"])
    else:
        origin = Reference(
            name=os.path.basename(path),
            split="",
            num_images=count if "count" in has else 0,
            sha256=manifest.sha256(path),
            subset="arr_0",
        )
    keep = {name: sum(map(len, blocks)) for name, blocks in kept.items()}
    has_images, size = "arr_0" in has, None
    if has_images:
        images = image_sets.open_images(str(path))
        size = images.height, images.width
    elif "size" in record:
        size = record["size"], record["size"]
    return Saved(Statistics(moments, keep, kept, (), origin), record, has_images, size)


def names(path: str | os.PathLike) -> set[str]:
    """The arrays of an .npz file, of which none is read; UserError where it isn't one."""
    if not os.path.exists(path):
        raise UserError(f"There is no reference {str(path)!r}.")
    try:
        return numpy_file.npz_names(path)
    except UserError as error:
        raise UserError(f"{error} It is not a whole .npz file.") from None


def _record(path, protocol: np.ndarray | None) -> Mapping:
    """How a reference was measured; {} where the file doesn't say."""
    if protocol is None:
        return {}
    if protocol.shape != () or protocol.dtype.kind != "U":
        raise UserError(
            f"{path}: its protocol is {protocol.dtype} of shape {protocol.shape}; expected a text."
        )
    where = f"{path}: its protocol"
    record = bounded.parse_json(str(protocol), where, {})
    return bounded.parse_json(str(protocol), where, _RECORD) if record else {}


def _count(path, count: np.ndarray) -> int:
    if count.shape != () or count.dtype.kind not in "iu" or not 1 < int(count) < _MAX_COUNT:
        shown = f"{count.dtype} of shape {count.shape}" if count.shape else f"{count}"
        raise UserError(f"{path}: its count of images is {shown}; expected an integer above 1.")
    return int(count)


def _moments(path, count: int, mean: np.ndarray, covariance: np.ndarray, suffix: str) -> Moments:
    """The moments that a mean and a covariance are of, each checked before anything is measured."""
    for name, array in ((f"mu{suffix}", mean), (f"sigma{suffix}", covariance)):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            found = array.dtype if array.dtype.kind not in "fiu" else "NaN or infinity"
            raise UserError(f"{path}: {name} has {found}; expected finite numbers.")
    if mean.ndim != 1 or covariance.shape != mean.shape * 2 or not mean.size:
        raise UserError(
            f"{path}: mu{suffix} of shape {mean.shape} and sigma{suffix} of shape "
            f"{covariance.shape} are no mean [F] and covariance [F,F]."
        )
    covariance = covariance.astype(np.float64)
    if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-3 * np.abs(covariance).max()):
        raise UserError(f"{path}: sigma{suffix} is no covariance: it is not symmetric.")
    return Moments(count, mean.astype(np.float64), covariance * (count - 1))


def _features(path, features: np.ndarray, width: int) -> np.ndarray:
    if features.ndim != 2 or features.shape[1] != width or features.dtype.kind != "f":
        raise UserError(
            f"{path}: features are {features.dtype} of shape {features.shape}; expected floats "
            f"[N,{width}]."
        )
    if not np.isfinite(features).all():
        raise UserError(f"{path}: features have NaN or infinity.")
    return features
