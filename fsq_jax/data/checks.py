"""Checks of a data set against what is trained on it, made when it is opened, before any cost.

A few dozen records, spread over the split, are looked at: types, shapes, ranges. What a run's
model can tell apart (classes, classes of segments, depths) is held against what there is. Every
later record is held against its own image's size when it is read, see `check_record`.

Legend: H, W height and width of a record.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fsq_jax.data.array_columns import spread
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.decode import RecordError, UnreadError
from fsq_jax.runtime.user_error import UserError

_SECONDS = 5.0  # that looking at records may take, once two have been seen
_MOST_INSTANCES = 2**16 - 1  # tables of that length are made, so ids from files must be renumbered
_BEYOND = 0.5  # share of known depths beyond the largest: above it, they are not metres


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a run needs of its data.

    Attributes:
      features: of each record, besides its image: "depth", "segments".
      num_classes: of labels; 0 where they are not looked at.
      depths: the least and the largest depth, in metres, that the task tells apart.
      num_semantics: classes of segments, void included.
      things: whether the data must say which classes are things, for panoptic quality.
      skip_damaged: whether damaged records are left out, unless all that are looked at are.
    """

    features: tuple[str, ...] = ()
    num_classes: int = 0
    depths: tuple[float, float] = (0.0, np.inf)
    num_semantics: int = 0
    things: bool = False
    skip_damaged: bool = False


def check_dataset(source: Dataset, wanted: Wanted, least: int = 1, purpose: str = "") -> None:
    """Looks at records spread over a split, and at what the data set says of its classes.

    Args:
      source: the split.
      wanted: what it is needed for.
      least: how many records there must be.
      purpose: what needs as many, for the message: "evals.generation".

    Raises:
      UserError: with the data set, the feature, what was found and what is expected.
    """
    where = _where(source)
    if len(source) < least:
        raise UserError(f"{where} has {len(source)} records; {purpose} needs {least} or more.")
    if wanted.num_classes not in (0, source.num_classes):
        raise UserError(
            f"{where} has {source.num_classes} classes and the config's num_classes is "
            f"{wanted.num_classes}; a run is of the classes that its data has (num_classes=0 takes "
            "them from there)."
        )
    if "segments" in wanted.features:
        _check_segment_classes(source, wanted)
    if source.name == "scenes":  # made by our own code, and slow to make large
        return
    sample = _sample(source, wanted)
    for record in sample.values():
        image = record.get("image")
        if image is not None and (image.dtype != np.uint8 or image.shape[2:] != (3,)):
            raise UserError(
                f"{where} has images of {image.dtype} {image.shape}; expected uint8 [H,W,3]."
            )
    if "depth" in wanted.features:
        _check_depths(where, sample, *wanted.depths)
    if "segments" in wanted.features:
        if not any(record["segments"][..., 0].any() for record in sample.values()):
            raise UserError(
                f"Every pixel of {len(sample)} records of {where} is void: segments of class 0; "
                "expected classes from 1 on."
            )


def num_semantics(source: Dataset) -> int:
    """How many classes a data set's segments have, void included.

    Raises:
      UserError: where it doesn't say.
    """
    names = source.meta.get("segment_names")
    if not names:
        raise UserError(
            f"{_where(source)} does not say which classes its segments have (of arrays, meta.json's"
            " segment_names and things do)."
        )
    return len(names)


def check_record(
    record: Mapping[str, Any], features: Sequence[str], where: str, num_segment_classes: int = 0
) -> None:
    """Checks what a record has for each pixel against its image.

    Args:
      record: has all of `features`.
      features: that are wanted.
      where: "Record 3 of DATA SPLIT", for the message.
      num_segment_classes: of segments, void included; 0 where it is not known.

    Raises:
      RecordError: where depth or segments are of another height and width than the image, which is
        cropped and flipped with them, or segments are of no class that there is.
    """
    image = record.get("image")
    for name in features:
        size = tuple(record[name].shape[:2])
        if image is not None and size != tuple(image.shape[:2]):
            raise RecordError(
                f"{where} has {name} of {size[0]} x {size[1]} and an image of {image.shape[0]} x "
                f"{image.shape[1]} pixels; expected the same height and width."
            )
    if "segments" in features:
        segments = record["segments"]
        if segments.shape[2:] != (2,) or segments.dtype.kind not in "iu":
            raise RecordError(
                f"{where} has segments of {segments.dtype} {segments.shape}; expected integers "
                "[H,W,2]."
            )
        classes, instances = segments[..., 0], segments[..., 1]
        highest = num_segment_classes - 1 if num_segment_classes else np.iinfo(np.int32).max
        low, high = instances.min(), instances.max()
        if classes.min() < 0 or classes.max() > highest or low < 0 or high > _MOST_INSTANCES:
            raise RecordError(
                f"{where} has segments of classes {classes.min()} to {classes.max()} and instances "
                f"{low} to {high}; expected classes 0 (void) to {highest}, and instances 0 to "
                f"{_MOST_INSTANCES}."
            )


def check_same_size(first: np.ndarray, second: np.ndarray, names: tuple[str, str]) -> None:
    """UserError where two pictures [H,W,...] that belong together are not of one size."""
    if first.shape[:2] != second.shape[:2]:
        sizes = [
            f"{name} is of {x.shape[0]} x {x.shape[1]} pixels"
            for name, x in zip(names, (first, second), strict=True)
        ]
        raise UserError(f"{' and '.join(sizes)} (height x width); expected the same size.")


def _where(source: Dataset) -> str:
    return f"{source.name} {source.split}"


def _sample(source: Dataset, wanted: Wanted) -> dict[int, Mapping[str, Any]]:
    """Some records by their positions, each held against its own image."""
    sample, started, damaged = {}, time.monotonic(), None
    for index in spread(len(source)):
        if len(sample) > 1 and time.monotonic() - started > _SECONDS:
            break
        try:
            sample[index] = checked_record(source, index, wanted.features)
        except RecordError as error:
            if not wanted.skip_damaged or isinstance(error, UnreadError):
                raise
            damaged = error
    if damaged and not sample:
        raise damaged
    return sample


def checked_record(source: Dataset, index: int, features: Sequence[str]) -> dict[str, Any]:
    """Record `index`, which has the features that are wanted of it; a RecordError where it is
    damaged, or lacks one."""
    record, where = source[index], f"Record {index} of {_where(source)}"
    if lacking := [name for name in features if name not in record]:
        raise RecordError(
            f"{where} has no feature {lacking[0]!r}; it has {', '.join(sorted(record))}."
        )
    check_record(record, features, where, len(source.meta.get("segment_names", ())))
    return record


def _check_segment_classes(source: Dataset, wanted: Wanted) -> None:
    found = num_semantics(source)
    if wanted.num_semantics not in (0, found):
        raise UserError(
            f"{_where(source)} has segments of {found} classes, void included, and the config's "
            f"task.num_semantics is {wanted.num_semantics}; a run is of the classes that its data "
            "has (task.num_semantics=0 takes them from there)."
        )
    if wanted.things and "things" not in source.meta:
        raise UserError(
            f"{_where(source)} does not say which of its segments' classes are things (of arrays, "
            "meta.json's things does); panoptic quality needs it."
        )


def _check_depths(where: str, sample: Mapping[int, Mapping], least: float, largest: float) -> None:
    depths = np.concatenate([record["depth"].ravel() for record in sample.values()])
    finite = np.isfinite(depths).all()
    known = depths[depths > least]
    if depths.dtype.kind != "f" or not finite or not known.size:
        found = f"{depths.min():.4g} to {depths.max():.4g}" if finite else "NaN or infinity"
        raise UserError(
            f"{where} has depth of {depths.dtype}, {found} in {len(sample)} records; expected "
            f"floats above {least:g} metres, and 0 where it is not known."
        )
    beyond, median = float((known > largest).mean()), float(np.median(known))
    if beyond > _BEYOND:
        hint = "; these look like millimetres" if median / 1000 <= largest < median / 20 else ""
        raise UserError(
            f"{where} has depths up to {known.max():.6g}, half of them above {median:.6g}, and "
            f"task.max_depth is {largest:g} metres{hint}: {beyond:.0%} of the pixels would be one "
            "class."
        )
