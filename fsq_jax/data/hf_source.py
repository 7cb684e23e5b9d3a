"""Data sets of the Hugging Face hub through the `datasets` library: its cache, its offline mode.

`datasets` keeps what it has fetched as Arrow files, which are mapped to memory: any record is read
at once, in any order.
"""

import dataclasses
import pathlib
from typing import Any

from fsq_jax.data import decode
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.splits import resolve
from fsq_jax.runtime.user_error import UserError


def open_source(name: str, split: str) -> Dataset:
    """A split of NAME or NAME:CONFIG: a data set of the hub, or a folder that `datasets` can load,
    or that its `save_to_disk` wrote.

    Raises:
      UserError: where it can't be loaded, or has no image.
    """
    where = f"hf:{name}"
    datasets = _datasets()
    loaded = _load(datasets, name, where)
    split = resolve(split, tuple(loaded), where)
    data = loaded[split]
    images = [n for n, f in data.features.items() if isinstance(f, datasets.Image)]
    if not images:
        raise UserError(f"{where} has no column of images; it has {', '.join(data.features)}.")
    image = "image" if "image" in images else images[0]
    classes = [n for n, f in data.features.items() if isinstance(f, datasets.ClassLabel)]
    label = next((n for n in ("label", "labels", "fine_label", *classes) if n in classes), "")
    names = tuple(data.features[label].names) if label else ("image",)
    data = data.select_columns([image, label] if label else [image])
    data = data.cast_column(image, datasets.Image(decode=False))
    records = _HfRecords(data, where, split, image, label, len(names))
    return Dataset(where, split, names, records, 0, len(data), tuple(loaded))


def _datasets():
    """The library, or a UserError that says what to install."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf: needs datasets; pip install 'fsq_jax[hf]'.") from None
    return datasets


def _load(datasets, name: str, where: str):
    folder = pathlib.Path(name).expanduser()
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    repository, _, config = (name, "", "") if folder.exists() else name.partition(":")
    try:
        if saved:
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(repository, config or None)
    except Exception as error:  # `datasets` raises errors of the hub, the network and the files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"{where} cannot be loaded ({reason}).") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {str(loaded.split or "train"): loaded}
    return loaded


@dataclasses.dataclass(frozen=True)
class _HfRecords:
    data: Any
    name: str
    split: str
    image: str
    label: str
    num_classes: int

    def __getitem__(self, index: int) -> dict[str, Any]:
        where = f"Record {index} of {self.name} {self.split}"
        row = self.data[index]
        image, label = row[self.image] or {}, row[self.label] if self.label else 0
        encoded = image.get("bytes")
        if encoded is None and image.get("path"):
            try:
                encoded = pathlib.Path(image["path"]).read_bytes()
            except OSError as error:
                raise decode.UnreadError(f"{where} cannot be read ({error}).") from error
        if encoded is None or label is None or not 0 <= label < self.num_classes:
            raise decode.RecordError(
                f"{where} has {'an' if encoded else 'no'} image and the label {label}; expected an "
                f"image and a label from 0 to {self.num_classes - 1}."
            )
        return {"image": decode.decode_image(encoded, where), "label": int(label)}
