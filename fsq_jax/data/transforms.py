"""Crops, flips and sizes of a record: functions (record, rng) -> record, in NumPy and OpenCV.

A record's depth and segments are cropped and flipped with its image. They are resized to the
nearest pixel, since a mean of two depths or of two classes is neither. What becomes of a record
comes in three kinds:

    square  crops have areas that are uniform; without chance, the largest square in the middle.
            The image is averaged over areas along a side that shrinks (so nothing aliases), and
            bicubic along one that grows.
    adm     in training as `square`; without chance, the square in the middle as ADM cuts it, so
            that images fit the references of ADM's suite (`adm_crop`).
    uvim    crops are TensorFlow's distorted bounding boxes, and the whole image is squashed where
            it isn't cropped. The image is bilinear, and aliases where it shrinks (the published
            models were trained so); segments get the numbers of `segments.canonical` after all
            else.

Legend: H, W height and width of a record, S side of the result, V views, L tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from fsq_jax.data import segments
from fsq_jax.data.adm_crop import adm_crop, scaled_size
from fsq_jax.data.crops import distorted_bounding_box, draw_crop
from fsq_jax.runtime.user_error import UserError

Record = dict[str, Any]
# The generator may be None for those without chance.
Transform = Callable[[Record, Any], Record]

KINDS = ("square", "adm", "uvim")
MAPS = ("image", "depth", "segments")  # what is laid out as [H,W,...]


def compose(*transforms: Transform) -> Transform:
    """One transform that applies the given ones from the first to the last."""
    return functools.partial(_apply_all, transforms)


def reseeded(transform: Transform, seed: int) -> Transform:
    """The transform, drawing otherwise for each seed where it would draw the same."""
    return functools.partial(_apply_reseeded, transform, seed)


def _apply_reseeded(transform, seed, record, rng):
    return transform(record, np.random.default_rng([seed, int(rng.integers(2**62))]))


def _apply_all(transforms, record, rng):
    for transform in transforms:
        record = transform(record, rng)
    return record


def augment(
    size: int,
    min_area: float = 1.0,
    aspect: tuple[float, float] = (1.0, 1.0),
    flip: bool = True,
    kind: str = "square",
) -> Transform:
    """The training transform: a random crop of at least `min_area` of the image (a fraction) and
    a ratio of width to height within `aspect`, at S x S, flipped half of the time, float32 in
    [0, 1].

    UViM: kind="uvim", min_area=0.05, aspect=(0.75, 1.33), see `distorted_bounding_box`; with
    min_area=1 this kind crops nothing. The other kinds' crop is this project's own (`draw_crop`):
    MaskGIT's was never published.
    Raises UserError for a `min_area` outside (0, 1], or an `aspect` that isn't 0 < low <= high.
    """
    if not 0 < min_area <= 1 or len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
        raise UserError(
            f"Needs 0 < min_area <= 1 and 0 < aspect[0] <= aspect[1], not {min_area=}, {aspect=}."
        )
    crop = fit(size, kind)
    if kind != "uvim" or min_area < 1:
        crop = functools.partial(
            random_resized_crop,
            size=size,
            area=(min_area, 1.0),
            aspect=(aspect[0], aspect[1]),
            kind=kind,
        )
    return compose(crop, *([random_flip] if flip else []), *_last(kind))


def evaluation(size: int, kind: str = "square") -> Transform:
    """The transform without chance: `fit`, in [0, 1]."""
    return compose(fit(size, kind), *_last(kind))


def fit(size: int, kind: str = "square") -> Transform:
    """A record at S x S: its largest square in the middle ("adm": as ADM cuts it), or ("uvim") all
    of it, squashed.

    Raises UserError for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of transform; there are {', '.join(KINDS)}.")
    if kind == "adm":
        return functools.partial(_adm, size=size)
    if kind == "square":
        return compose(centre_crop, functools.partial(resize, height=size, width=size))
    return functools.partial(resize, height=size, width=size, bilinear=True)


def _adm(record: Record, rng: np.random.Generator | None = None, *, size: int) -> Record:
    """The record as `adm_crop` cuts its image; maps come from the pixels under the same centres."""
    height, width = record["image"].shape[:2]
    height, width = scaled_size(height, width, size)
    top, left = (height - size) // 2, (width - size) // 2
    maps = {
        name: resize_nearest(record[name], height, width)[top : top + size, left : left + size]
        for name in MAPS
        if name in record and name != "image"
    }
    return record | maps | {"image": adm_crop(record["image"], size)}


def coltran(size: int) -> Transform:
    """The transform of ColTran's evaluation of colours: the largest square in the middle of the
    image at S x S, by areas even where it grows, in [0, 1]."""
    return compose(
        centre_crop,
        functools.partial(_resize_with, resize_area, size, size),
        value_range(0.0, 1.0),
    )


def _last(kind: str) -> list[Transform]:
    numbered = [canonical_segments] if kind == "uvim" else []
    return [*numbered, value_range(0.0, 1.0)]


def canonical_segments(record: Record, rng: np.random.Generator | None = None) -> Record:
    """The record with its segments, if it has any, numbered by where they lie."""
    if "segments" not in record:
        return record
    return record | {"segments": segments.canonical(record["segments"])}


def random_resized_crop(
    record: Record,
    rng: np.random.Generator,
    *,
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    kind: str = "square",
) -> Record:
    """A random crop of the record ("uvim": `distorted_bounding_box`, else `draw_crop`), resized to
    S x S."""
    height, width = record["image"].shape[:2]
    draw = distorted_bounding_box if kind == "uvim" else draw_crop
    cropped = _crop(record, *draw(height, width, rng, area, aspect))
    return resize(cropped, rng, height=size, width=size, bilinear=kind == "uvim")


def random_flip(record: Record, rng: np.random.Generator) -> Record:
    """The record, mirrored left to right with probability 1/2."""
    if rng.random() < 0.5:
        return record
    return record | {name: record[name][:, ::-1] for name in MAPS if name in record}


def centre_crop(record: Record, rng: np.random.Generator | None = None) -> Record:
    """The largest square in the middle of the record."""
    height, width = record["image"].shape[:2]
    side = min(height, width)
    return _crop(record, (height - side) // 2, (width - side) // 2, side, side)


def crop_to(box: tuple[int, int, int, int]) -> Transform:
    """A transform that keeps rows top to bottom and columns left to right, both without the last,
    of box = (top, bottom, left, right). It raises UserError for a record that is smaller.

    NYU Depth v2 is evaluated on (54, 480, 41, 601).
    """
    if len(box) != 4:
        raise UserError(f"A crop is (top, bottom, left, right), not {tuple(box)}.")
    return functools.partial(_crop_to, tuple(box))


def _crop_to(box, record, rng=None):
    top, bottom, left, right = box
    height, width = record["image"].shape[:2]
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise UserError(f"A crop of rows and columns {box} leaves an image of {height} x {width}.")
    return _crop(record, top, left, bottom - top, right - left)


def _crop(record: Record, top: int, left: int, height: int, width: int) -> Record:
    rows, columns = slice(top, top + height), slice(left, left + width)
    return record | {name: record[name][rows, columns] for name in MAPS if name in record}


def resize(
    record: Record,
    rng: np.random.Generator | None = None,
    *,
    height: int,
    width: int,
    bilinear: bool = False,
) -> Record:
    """The record with its image, depth and segments at height x width pixels."""
    return _resize_with(resize_bilinear if bilinear else resize_image, height, width, record)


def _resize_with(of_image, height, width, record, rng=None):
    resized = {
        name: (of_image if name == "image" else resize_nearest)(record[name], height, width)
        for name in MAPS
        if name in record
    }
    return record | resized


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image [H,W,3] at another size: areas where it shrinks, then bicubic where it grows."""
    old_height, old_width = image.shape[:2]
    small_height, small_width = min(height, old_height), min(width, old_width)
    if (small_height, small_width) != (old_height, old_width):
        image = cv2.resize(image, (small_width, small_height), interpolation=cv2.INTER_AREA)
    if (small_height, small_width) != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image [H,W,3] at another size: each pixel is the mean of the area that it covers, whether
    the image shrinks or grows (TensorFlow's "area"), rounded to 8 bits."""
    rows, columns = _shares(image.shape[0], height), _shares(image.shape[1], width)
    resized = np.einsum("yh,hwc,xw->yxc", rows, image, columns, optimize=True)
    return np.rint(resized).astype(np.uint8)


def _shares(old: int, new: int) -> np.ndarray:
    """How much each of `old` pixels has in each of `new` ones along the same side, [new, old]."""
    edges = (np.arange(new + 1) * (old / new))[:, None]
    first = np.arange(old)
    overlap = np.minimum(edges[1:], first + 1) - np.maximum(edges[:-1], first)
    return (np.maximum(overlap, 0) * (new / old)).astype(np.float32)


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image [H,W,3] at another size: each pixel blends the four around its centre, whether the
    image grows or shrinks (no antialiasing), rounded to 8 bits."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map [H,W,...] at another size: each pixel takes the value under its own centre."""
    if values.shape[:2] == (height, width):
        return values
    rows = ((np.arange(height) + 0.5) * (values.shape[0] / height)).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * (values.shape[1] / width)).astype(np.int64)
    return values[rows[:, None], columns]


def value_range(low: float, high: float) -> Transform:
    """A transform of the image from uint8 to float32 in [low, high]."""
    return functools.partial(_to_range, low=low, high=high)


def _to_range(record, rng, *, low, high):
    scale = np.float32((high - low) / 255)
    return record | {"image": record["image"].astype(np.float32) * scale + np.float32(low)}
