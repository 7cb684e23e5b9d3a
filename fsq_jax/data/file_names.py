"""Which images a published number is of: lists of file names, and the order in which TFDS reads.

ColTran's FID of 5,000 images, which UViM and the FSQ paper report, is of images 0 to 5,000 of
ImageNet's validation set against images 10,000 to 15,000, counted in the order in which
tensorflow_datasets reads its 64 files by default. big_vision lists both sets by name, in
evaluators/proj/uvim/coltran_fid_data/eval_file_names.txt and reference_file_names.txt.
"""

import hashlib
import os
from collections.abc import Sequence

from fsq_jax.data.dataset import Dataset
from fsq_jax.runtime.user_error import UserError

# SHA-256 of big_vision's two lists.
COLTRAN = {
    "predictions": "b0627a4677d206b64905ec4d70760f50f7b09363f65e624957c3d1cccb49eb89",
    "reference": "3d59b1214977c0021158d4264b3b18e4af1ff71cd24d22f6bedd39f57658f172",
}


def read_list(path: str | os.PathLike) -> tuple[str, ...]:
    """The file names in a text file, one per line; UserError for no file, no name or one twice."""
    if not os.path.isfile(path):
        raise UserError(f"There is no list of file names {str(path)!r}.")
    with open(path) as file:
        names = tuple(line.strip() for line in file if line.strip())
    if not names:
        raise UserError(f"{str(path)!r} lists no file names.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{str(path)!r} lists {twice!r} more than once.")
    return names


def checksum(names: Sequence[str]) -> str:
    """SHA-256 of the names, one per line, without a newline after the last."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def find(source: Dataset, names: Sequence[str]) -> list[int]:
    """The record of each name; reads the names of all records, but decodes no image.

    Raises UserError for names that no record has, and for records without names.
    """
    wanted, place = set(names), {}
    for index in range(len(source)):
        name = source.file_name(index)
        if name in wanted:
            place[name] = index
    if missing := [name for name in names if name not in place]:
        raise UserError(
            f"{source.name} {source.split} has no image {missing[0]!r}, and {len(missing)} of "
            f"{len(names)} names that are listed are not there."
        )
    return [place[name] for name in names]


def order_of(source: Dataset) -> list[int]:
    """Records of a data set of TFDS in the order in which TFDS reads them by default."""
    order = reading_order(source.meta["shard_lengths"])
    return [i - source.start for i in order if source.start <= i < source.stop]


def reading_order(shard_lengths: Sequence[int], cycle: int = 16, block: int = 16) -> list[int]:
    """Indices in the order of `tf.data`'s interleave, of files whose records are numbered through.

    `cycle` files are open at a time; of each in turn `block` records are read, and a file that
    ends makes place for the next. TFDS's defaults are 16 and 16.
    """
    starts = [sum(shard_lengths[:i]) for i in range(len(shard_lengths))]
    files = iter(
        iter(range(start, start + n)) for start, n in zip(starts, shard_lengths, strict=True)
    )
    opened, order = [next(files, None) for _ in range(cycle)], []
    while any(file is not None for file in opened):
        for place, file in enumerate(opened):
            if file is None:
                continue
            read = [index for _, index in zip(range(block), file, strict=False)]
            order += read
            if len(read) < block:
                opened[place] = next(files, None)
    return order
