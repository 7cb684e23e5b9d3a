"""Segments against loops over them, and a picture in COCO's format written by hand."""

import numpy as np
import pytest

from fsq_jax.data import segments


def canonical_by_loops(array):
    height = array.shape[0]
    keys = {}
    for pair in {tuple(p) for p in array.reshape(-1, 2)}:
        y, x = np.nonzero((array == pair).all(-1))
        if pair[0]:
            keys[pair] = (x + height * y).sum() / len(x)
    out = np.zeros_like(array)
    for number, pair in enumerate(sorted(sorted(keys), key=keys.get), start=1):
        out[(array == pair).all(-1)] = [pair[0], number]
    return out


@pytest.mark.parametrize("height, width", [(7, 5), (4, 9)])
def test_canonical_numbers(height, width):
    rng = np.random.default_rng(0)
    for _ in range(20):
        array = rng.integers([0, 0], [4, 3], (height, width, 2)).astype(np.int32)
        numbered = segments.canonical(array)
        assert numbered.dtype == np.int32
        np.testing.assert_array_equal(numbered, canonical_by_loops(array))
        np.testing.assert_array_equal(segments.canonical(numbered), numbered)


def test_void_alone_and_stuff_without_an_instance():
    void = np.zeros((3, 4, 2), np.int32)
    np.testing.assert_array_equal(segments.canonical(void), void)
    void[:, :, 1] = 5  # the instance of void says nothing
    assert not segments.canonical(void).any()
    halves = np.zeros((2, 4, 2), np.int32)
    halves[:, :2, 0], halves[:, 2:] = 2, [1, 9]
    np.testing.assert_array_equal(segments.canonical(halves)[0], [[2, 1], [2, 1], [1, 2], [1, 2]])


def test_a_panoptic_picture():
    png = np.zeros((2, 3, 3), np.uint8)
    png[0, 0] = [1, 2, 3]  # 1 + 2 * 256 + 3 * 65536
    png[0, 1] = [255, 0, 0]
    png[1] = [0, 1, 0]  # listed nowhere
    objects = {
        "id": np.array([255, 1 + 2 * 256 + 3 * 65536]),
        "label": np.array([132, 0]),
        "is_crowd": np.array([False, True]),
    }
    array, crowd = segments.from_panoptic(png, objects)
    np.testing.assert_array_equal(array[0], [[1, 2], [133, 1], [0, 0]])
    assert not array[1].any() and array.dtype == np.int32 and crowd.tolist() == [2]
    empty = {"id": [], "label": [], "is_crowd": []}
    array, crowd = segments.from_panoptic(png, empty)
    assert not array.any() and array.shape == (2, 3, 2) and len(crowd) == 0
