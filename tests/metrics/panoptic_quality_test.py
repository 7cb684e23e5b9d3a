"""Panoptic quality against torchmetrics and panopticapi, and void and crowds worked out by hand."""

import pathlib

import numpy as np
import pytest

from fsq_jax.metrics.panoptic_quality import PanopticQuality, merge_stuff

REFERENCE = pathlib.Path(__file__).parent / "reference"


def row(*runs):
    """Segments [1,W,2] of runs (class, instance, pixels)."""
    return np.concatenate([np.tile([c, i], (n, 1)) for c, i, n in runs])[None].astype(np.int32)


def counts(prediction, truth, crowd=()):
    """(TP, FP, FN, sum of IoUs) of one image, over all of three classes."""
    quality = PanopticQuality.empty(4).update(prediction, truth, crowd)
    return (
        int(quality.true_positives.sum()),
        int(quality.false_positives.sum()),
        int(quality.false_negatives.sum()),
        float(quality.iou.sum()),
    )


def test_torchmetrics_agrees_where_nothing_is_void():
    with np.load(REFERENCE / "panoptic_quality_torchmetrics.npz") as file:
        reference = dict(file)
    quality = PanopticQuality.empty(6)
    for prediction, truth in zip(reference["prediction"], reference["truth"], strict=True):
        quality = quality.update(prediction, truth)
    assert quality.true_positives.sum() > 30
    np.testing.assert_allclose(quality.iou[1:], reference["iou"], rtol=1e-6)
    for name in ("true_positives", "false_positives", "false_negatives"):
        np.testing.assert_array_equal(getattr(quality, name)[1:], reference[name])
    for classes in (None, [1, 2], [3, 4, 5], [4]):
        chosen = np.array(classes or range(1, 6)) - 1
        np.testing.assert_allclose(
            list(quality.result(classes).values()),
            reference["per_class"][chosen].mean(0),
            rtol=1e-6,
        )


def test_panopticapi_agrees_on_void_and_crowds():
    with np.load(REFERENCE / "panoptic_quality_coco.npz") as file:
        reference = dict(file)
    halves = [PanopticQuality.empty(6)] * 2  # merged in the end, as of two hosts
    for i, images in enumerate(zip(reference["prediction"], reference["truth"], strict=True)):
        halves[i % 2] = halves[i % 2].update(*images, crowd=[1] if i % 2 else [])
    quality = halves[0].merge(halves[1])
    np.testing.assert_allclose(quality.iou[1:], reference["iou"], rtol=1e-12)
    for name in ("true_positives", "false_positives", "false_negatives"):
        np.testing.assert_array_equal(getattr(quality, name)[1:], reference[name])
    for name, classes in (("all", None), ("things", [3, 4, 5]), ("stuff", [1, 2])):
        np.testing.assert_allclose(list(quality.result(classes).values()), reference[name])


def test_an_iou_of_a_half_is_no_match():
    truth = row((1, 1, 4), (2, 0, 4))
    assert counts(truth, truth) == (2, 0, 0, 2.0)
    half = row((1, 1, 2), (3, 0, 2), (2, 0, 4))  # 2 of 4 pixels
    assert counts(half, truth) == (1, 2, 1, 1.0)
    more = row((1, 1, 3), (2, 0, 5))  # 3 of 4, and 4 of 5
    assert counts(more, truth) == (2, 0, 0, 0.75 + 0.8)


def test_void_pixels_of_the_truth_are_in_no_union():
    truth = row((1, 1, 4), (0, 0, 4))
    assert counts(row((1, 1, 8)), truth) == (1, 0, 0, 1.0)


def test_a_prediction_that_lies_mostly_on_void_is_no_false_positive():
    truth = row((0, 0, 5), (1, 1, 5))
    mostly = row((2, 1, 5), (2, 1, 4), (1, 1, 1))  # 5 of 9 on void
    assert counts(mostly, truth) == (0, 1, 1, 0.0)  # the one of class 1 is wrong, though
    half = row((0, 0, 1), (2, 1, 8), (1, 1, 1))  # 4 of 8: not more than half
    assert counts(half, truth) == (0, 2, 1, 0.0)


def test_crowds_are_neither_matched_nor_missed():
    truth = row((1, 7, 6), (2, 0, 4))
    assert counts(truth, truth, crowd=[7]) == (1, 0, 0, 1.0)
    assert counts(row((0, 0, 6), (2, 0, 4)), truth, crowd=[7]) == (1, 0, 0, 1.0)
    # One of a crowd's class is forgiven there; one of another class isn't.
    assert counts(row((3, 1, 6), (2, 0, 4)), truth, crowd=[7]) == (1, 1, 0, 1.0)
    # Unlike void, a crowd stays in unions: 4 of 6.
    assert counts(row((0, 0, 4), (2, 0, 6)), truth, crowd=[7]) == (1, 0, 0, 4 / 6)


def test_void_in_a_prediction_is_no_segment():
    truth = row((1, 1, 4), (2, 0, 4))
    assert counts(row((0, 3, 4), (2, 0, 4)), truth) == (1, 0, 1, 1.0)
    assert counts(row((0, 0, 8)), truth) == (0, 0, 2, 0.0)


def test_classes_that_do_not_occur_are_in_no_mean():
    quality = PanopticQuality.empty(4).update(row((1, 1, 4)), row((1, 1, 4)))
    assert quality.result() == {"pq": 1.0, "sq": 1.0, "rq": 1.0}
    assert np.isnan(quality.result([2, 3])["pq"])
    quality = quality.update(row((2, 1, 4)), row((0, 0, 2), (3, 1, 2)))
    # Class 2 lies half on void: a false positive; class 3 is missed.
    assert quality.result() == {"pq": 1 / 3, "sq": 1 / 3, "rq": 1 / 3}


def test_stuff_is_one_segment_a_class():
    segments = row((1, 1, 2), (1, 2, 2), (3, 1, 2), (3, 2, 2))
    merged = merge_stuff(segments, things=[3])
    np.testing.assert_array_equal(merged, row((1, 0, 4), (3, 1, 2), (3, 2, 2)))
    assert merged.dtype == segments.dtype


def test_what_can_not_be_counted():
    with pytest.raises(ValueError, match=r"shapes \(1, 2, 2\) and \(1, 3, 2\)"):
        counts(row((1, 1, 2)), row((1, 1, 3)))
    with pytest.raises(ValueError, match=r"A predicted segment .* classes are 0 to 3"):
        counts(row((4, 1, 2)), row((1, 1, 2)))
    with pytest.raises(ValueError, match="4 classes and 5"):
        PanopticQuality.empty(4).merge(PanopticQuality.empty(5))
