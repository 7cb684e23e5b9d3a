"""Panoptic segments: int32 [H,W,2], a class (0: void) and an instance of each pixel.

A segment is a pair of the two: stuff, such as floor, may have instance 0 everywhere, or ids of its
own. Instances are small numbers: tables as long as the largest one are made.

Legend: H, W height and width of a record, K ids of pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

_PNG_BASE = 256  # a pixel's id is R + 256 G + 256**2 B


def canonical(segments: np.ndarray) -> np.ndarray:
    """The same segments, numbered 1, 2, ... from the top; stuff too, and 0 where void.

    They are sorted by x + H y of their centres of mass (in pixels), as in UViM: a model can't
    know which number a segment had in its file, but it can find where the segment lies.
    """
    height, width = segments.shape[:2]
    semantic, instance = segments[..., 0].ravel(), segments[..., 1].ravel()
    base = int(instance.max(initial=0)) + 1
    pair = semantic * base + instance
    pixels_K = np.bincount(pair)
    # Weighing by the key itself needs one sum where two centres would need two.
    key = np.add.outer(height * np.arange(height), np.arange(width)).ravel()
    sums_K = np.bincount(pair, weights=key)
    first = base  # smaller ids are of class 0
    present = first + np.flatnonzero(pixels_K[first:])
    order = np.argsort(sums_K[present] / pixels_K[present], kind="stable")
    number_K = np.zeros(len(pixels_K), np.int32)
    number_K[present[order]] = np.arange(1, len(present) + 1)
    return np.stack([semantic, number_K[pair]], axis=-1).reshape(height, width, 2).astype(np.int32)


def from_panoptic(
    png: np.ndarray, objects: Mapping[str, Sequence]
) -> tuple[np.ndarray, np.ndarray]:
    """(segments [H,W,2], ids of those that are crowds) of a picture in COCO's panoptic format.

    Args:
      png: uint8 [H,W,3], an id in base 256 for each pixel.
      objects: "id", "label" (from 0) and "is_crowd" of each segment; the first becomes instance 1
        and class label + 1, and so on. Pixels of no listed id are void.
    """
    ids_HW = png.astype(np.int32) @ np.array([1, _PNG_BASE, _PNG_BASE**2], np.int32)
    known = np.asarray(objects["id"], np.int64)
    if not len(known):
        return np.zeros((*ids_HW.shape, 2), np.int32), np.zeros(0, np.int32)
    numbers = np.arange(1, len(known) + 1)
    order = np.argsort(known)
    place_HW = np.minimum(np.searchsorted(known[order], ids_HW), len(known) - 1)
    is_listed = known[order][place_HW] == ids_HW
    pairs = np.stack([np.asarray(objects["label"]) + 1, numbers], axis=-1)[order]
    segments = np.where(is_listed[..., None], pairs[place_HW], 0).astype(np.int32)
    return segments, numbers[np.asarray(objects["is_crowd"], bool)].astype(np.int32)
