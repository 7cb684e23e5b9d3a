"""Writes a data set's decoded records to disk, for training that waits for no rendering.

python -m fsq_jax.prepare --data=scenes --size=128 --out=data/scenes128 --workers=4 \
    --splits='train[:20000],validation'
python -m fsq_jax.train --config=configs/uvim_base.py:data=arrays:data/scenes128 --workdir=runs/base

Scenes are rendered at --size. Pictures of any other data set are brought to --size x --size, once
and for all, by what evaluation does to them: --transform=square keeps the largest square in the
middle, --transform=uvim squashes the whole picture. What a training crop then takes, it takes from
these pixels; leave room for it with a larger --size.

OUT/train, OUT/validation get image.npy, label.npy, where there are depth.npy, segments.npy,
crowd.npy, and meta.json.
"""

import os

import tqdm
from absl import flags

from fsq_jax.data import array_source, splits, transforms
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime import cli
from fsq_jax.runtime.user_error import UserError


def prepare(
    data: str,
    size: int,
    out: str,
    split_names: list[str],
    *,
    data_dir: str = "",
    transform: str = "square",
    workers: int = 0,
) -> list[str]:
    """Writes splits of a data set as arrays; returns the folders that were written.

    Args:
      data: the data set's spec, see `data.sources`.
      size: side of the pictures in pixels.
      out: the folder; it must not have any of the splits yet.
      split_names: such as ["train[:20000]", "validation"]: written to OUT/train, OUT/validation.
      data_dir: where TFDS keeps its data sets.
      transform: how pictures come to their size, see `data.transforms`.
      workers: processes; 0 for this one alone.

    Raises:
      UserError: for data or splits that are not there, for two splits of one name, for a folder
        that is there already; before anything is written.
    """
    if size < 1 or workers < 0:
        raise UserError(f"Needs size >= 1 and workers >= 0, not {size=}, {workers=}.")
    fit = transforms.fit(size, transform)
    names = [splits.parse_split(split)[0] for split in split_names]
    if len(set(names)) < len(names) or not names:
        raise UserError(f"splits={','.join(split_names)} must name each of its splits once.")
    folders = [os.path.join(out, name) for name in names]
    there = [folder for folder in folders if os.path.exists(folder)]
    if there:
        raise UserError(f"{there[0]!r} is there already; remove it, or name another --out.")
    opened = [open_dataset(data, split, size, data_dir) for split in split_names]
    for source, split, folder in zip(opened, split_names, folders, strict=True):
        if "image" not in source[0]:
            raise UserError(f"{data} has no images.")
        meta = {"data": data, "split": split, "size": size, "transform": transform}
        with tqdm.tqdm(total=len(source), desc=split, unit="image", disable=None) as bar:
            for written in array_source.write(source, folder, fit, meta, workers):
                bar.update(written)
    return folders


def main(argv) -> None:
    del argv
    values = flags.FLAGS
    print(
        *prepare(
            values.data,
            values.size,
            values.out,
            values.splits,
            data_dir=values.data_dir,
            transform=values.transform,
            workers=values.workers,
        ),
        sep="\n",
    )


if __name__ == "__main__":
    flags.DEFINE_string(
        "data", "scenes", "What to write: scenes, tfds:NAME, folder:PATH, wds:PATTERN."
    )
    flags.DEFINE_integer("size", None, "Side of the pictures in pixels.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_list("splits", ["train", "validation"], "Which splits, such as train[:20000].")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_enum("transform", "square", transforms.KINDS, "How pictures come to their size.")
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes; 0 for this one alone.")
    cli.run(main)
