"""Data sets of TFDS, read from their ArrayRecord files without TensorFlow.

A feature "depth" (nyu_depth_v2) becomes float32 metres. "panoptic_image" with "panoptic_objects"
(coco/2017_panoptic) become "segments" int32 [H,W,2], see `segments.from_panoptic`, and "crowd", the
instances that are crowds.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from fsq_jax.data import decode, segments
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.splits import listed, resolve
from fsq_jax.runtime.user_error import UserError

_COCO_THINGS = 80  # COCO lists its things before its stuff
_FILE_NAMES = ("file_name", "image/filename")  # ImageNet's feature, COCO's


def _prepared(data_dir: str) -> list[str]:
    folder = pathlib.Path(data_dir)
    return [path.name for path in folder.iterdir()] if data_dir and folder.is_dir() else []


def open_source(name: str, split: str, data_dir: str) -> Dataset:
    """A split of the TFDS data set `name` under `data_dir` ("" for TFDS's own default).

    Its label must be a ClassLabel to count; without one every record has label 0 of 1 class.
    """
    import tensorflow_datasets as tfds  # a second to import, so only where it is asked for
    from tensorflow_datasets.core import read_only_builder

    shown = data_dir or "its default folder"
    try:  # from its files alone: the code of some data sets needs TensorFlow
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except tfds.core.registered.DatasetNotFoundError:
        known = set(tfds.list_builders(with_community_datasets=False)) | set(_prepared(data_dir))
        if name.split("/")[0].split(":")[0] in known:
            raise UserError(
                f"tfds:{name} is not prepared under {shown}; prepare it with TFDS "
                '(file_format="array_record") or set data_dir to where it is.'
            ) from None
        hint = listed(name, known)
        raise UserError(f"TFDS knows no data set {name!r} among its {hint}") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"tfds:{name} cannot be found: {reason}") from None
    known = tuple(builder.info.splits)
    split = resolve(split, known, f"tfds:{name}")
    data, names = _read(builder, name, split, shown)
    lengths = tuple(builder.info.splits[split].shard_lengths)
    meta = {"shard_lengths": lengths} | _segment_classes(builder.info.features)
    records = _TfdsRecords(data, f"tfds:{name} {split}", len(names), names == ("image",))
    return Dataset(f"tfds:{name}", split, names, records, 0, len(data), known, meta)


def _read(builder, name: str, split: str, shown: str) -> tuple[Any, tuple[str, ...]]:
    """The records of a split, images still encoded, and the names of the classes."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    if "image" not in features:
        raise UserError(f"tfds:{name} has no feature 'image'; it has {', '.join(features)}.")
    decoders = {
        name: tfds.decode.SkipDecoding()
        for name in ("image", "panoptic_image")
        if name in features and isinstance(features[name], tfds.features.Image)
    }
    try:
        data = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:
        raise UserError(
            f"tfds:{name} is prepared under {shown}, but not as array_record."
        ) from None
    label: Any = features["label"] if "label" in features else None
    if isinstance(label, tfds.features.ClassLabel):
        return data, tuple(label.names or ())
    return data, ("image",)


def _segment_classes(features) -> dict[str, Any]:
    """What a source says of its segments: the names of their classes, and which are things."""
    if "panoptic_objects" not in features:
        return {}
    names = features["panoptic_objects"].feature["label"].names
    things = list(range(1, 1 + min(_COCO_THINGS, len(names))))
    return {"segment_names": ["void", *names], "things": things}


@dataclasses.dataclass(frozen=True)
class _TfdsRecords:
    data: Any
    name: str
    num_classes: int
    unlabelled: bool

    def file_name(self, index: int) -> str:
        """What the data set calls record `index`; "" where it has no such feature."""
        record = self.data[index]
        name = next((record[feature] for feature in _FILE_NAMES if feature in record), "")
        return name.decode() if isinstance(name, bytes) else str(name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        where = f"Record {index} of {self.name}"
        try:
            record = dict(self.data[index])
        except Exception as error:  # of ArrayRecord and of TFDS, on damaged bytes
            raise decode.RecordError(f"{where} cannot be read ({error}).") from error
        # As TensorFlow decodes it, whatever EXIF says: depth and segments don't turn with it.
        record["image"] = decode.to_rgb(record["image"], where, upright=False)
        record["label"] = 0 if self.unlabelled else int(record["label"])
        if not 0 <= record["label"] < self.num_classes:
            raise decode.RecordError(
                f"{where} has label {record['label']}; expected 0 to {self.num_classes - 1}."
            )
        if "depth" in record:
            depth = np.asarray(record["depth"], np.float32)
            record["depth"] = depth[..., 0] if depth.shape[2:] == (1,) else depth
        if "panoptic_image" in record:
            png = decode.to_rgb(
                record.pop("panoptic_image"), f"The panoptic image of {where}", upright=False
            )
            record["segments"], record["crowd"] = segments.from_panoptic(
                png, record.pop("panoptic_objects")
            )
        return record
