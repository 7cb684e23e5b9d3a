"""Pictures that runs drew of themselves in training, side by side.

They stay with the runs, and are put together where those of all entries are at hand: a workdir with
a few runs of an experiment leaves the figures of all of them as they are.

N images  H W height, width
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments import figures
from experiments.entries import Entry, select
from fsq_jax.runtime.workdir import load_config

BORDER = 2  # pixels between the images of `image_grid`


def tiles(path: str, size: int) -> np.ndarray:
    """The images [N,size,size,3] in [0, 1] of a picture that `image_grid` made, row by row."""
    with Image.open(path) as file:
        picture_HWC = np.asarray(file.convert("RGB"), np.float32) / 255
    height, width, _ = picture_HWC.shape
    pitch = size + BORDER
    corners = [
        (top, left) for top in range(BORDER, height, pitch) for left in range(BORDER, width, pitch)
    ]
    return np.stack([picture_HWC[y : y + size, x : x + size] for y, x in corners])


def last(workdir: str, run: str, kind: str) -> np.ndarray | None:
    """The images of a run's last picture, "reconstruction" or "sample"; None where it has none."""
    folder = os.path.join(workdir, run)
    found = sorted(pathlib.Path(folder, "samples").glob(f"{kind}_*.png"))
    return tiles(str(found[-1]), load_config(folder).data.size) if found else None


def reconstructions(
    workdir: str, found: Sequence[Entry], sizes: Sequence[int], num_images: int = 16
) -> dict[str, Figure]:
    """{"reconstructions": a row per quantizer and size}, of the first seed; {} where one lacks."""
    rows = {}
    for name, entry in _first(found, "tokenizer", sizes).items():
        pairs_NHWC = last(workdir, entry["run"], "reconstruction")
        if pairs_NHWC is None:
            return {}
        rows.setdefault("original", pairs_NHWC[::2])  # each stands before its reconstruction
        rows[name] = pairs_NHWC[1::2]
    return {"reconstructions": figures.rows_figure(rows, num_images)} if rows else {}


def samples(
    workdir: str, found: Sequence[Entry], sizes: Sequence[int], num_images: int = 16
) -> dict[str, Figure]:
    """{"samples": a row per quantizer and size}, of the first seed; {} where one lacks."""
    rows = {}
    for name, entry in _first(found, "transformer", sizes).items():
        images_NHWC = last(workdir, entry["run"], "sample")
        if images_NHWC is None:
            return {}
        rows[name] = images_NHWC
    return {"samples": figures.rows_figure(rows, num_images)} if rows else {}


def _first(found: Sequence[Entry], stage: str, sizes: Sequence[int]) -> Mapping[str, Entry]:
    """{"FSQ 2^10": the entry with seed 0} of each size and quantizer that was run."""
    return {
        f"{quantizer.upper()} 2^{bits}": entry
        for bits in sizes
        for quantizer in ("fsq", "vq")
        for entry in select(found, stage=stage, bits=bits, quantizer=quantizer, seed=0)
    }
