"""Data sets of TFDS, read from their ArrayRecord files without TensorFlow."""

import dataclasses
import pathlib
from typing import Any

from fsq_jax.data import images
from fsq_jax.data.source import Source
from fsq_jax.data.splits import listed, resolve


def _prepared(data_dir: str) -> list[str]:
    folder = pathlib.Path(data_dir)
    return [path.name for path in folder.iterdir()] if data_dir and folder.is_dir() else []


def open_source(name: str, split: str, data_dir: str) -> Source:
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
            raise ValueError(
                f"tfds:{name} is not prepared under {shown}; prepare it with TFDS "
                '(file_format="array_record") or set data_dir to where it is.'
            ) from None
        hint = listed(name, known)
        raise ValueError(f"TFDS knows no data set {name!r} among its {hint}") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"tfds:{name} cannot be found: {reason}") from None
    known = tuple(builder.info.splits)
    split = resolve(split, known, f"tfds:{name}")
    data, names = _read(builder, name, split, shown)
    records = _TfdsRecords(data, f"tfds:{name} {split}", len(names), names == ("image",))
    return Source(f"tfds:{name}", split, names, records, 0, len(data), known)


def _read(builder, name: str, split: str, shown: str) -> tuple[Any, tuple[str, ...]]:
    """The records of a split, images still encoded, and the names of the classes."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    if "image" not in features:
        raise ValueError(f"tfds:{name} has no feature 'image'; it has {', '.join(features)}.")
    encoded = isinstance(features["image"], tfds.features.Image)
    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
    try:
        data = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:
        raise ValueError(
            f"tfds:{name} is prepared under {shown}, but not as array_record."
        ) from None
    label = features["label"] if "label" in features else None
    labelled = isinstance(label, tfds.features.ClassLabel)
    return data, tuple(label.names) if labelled else ("image",)


@dataclasses.dataclass(frozen=True)
class _TfdsRecords:
    data: Any
    name: str
    num_classes: int
    unlabelled: bool

    def __getitem__(self, index: int) -> dict[str, Any]:
        where = f"Record {index} of {self.name}"
        try:
            record = dict(self.data[index])
        except Exception as error:
            raise images.RecordError(f"{where} cannot be read ({error}).") from error
        record["image"] = images.to_rgb(record["image"], where)
        record["label"] = 0 if self.unlabelled else int(record["label"])
        if not 0 <= record["label"] < self.num_classes:
            raise images.RecordError(
                f"{where} has label {record['label']}; expected 0 to {self.num_classes - 1}."
            )
        return record
