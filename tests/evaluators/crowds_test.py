"""What the evaluators of labels take from a record besides the labels: its crowds, its own size."""

import types

import numpy as np
import pytest

from fsq_jax.evaluators import depth, panoptic

VOID, SKY, PERSON = 0, 1, 2
META = {"segment_names": ("void", "sky", "person"), "things": (PERSON,)}


def predictor(pairs, meta=META):
    """One whose predictions, and the records that they are of, are given."""
    return types.SimpleNamespace(
        eval_split="eval",
        dataset=lambda split: types.SimpleNamespace(meta=meta, name="made"),
        predictions=lambda name, limit=0: iter(pairs[: limit or None]),
    )


def segments(*columns):
    """[4, n, 2] of (class, instance) for each column."""
    return np.broadcast_to(np.array(columns), (4, len(columns), 2)).astype(np.int32)


SKY_0, A, B = (SKY, 0), (PERSON, 1), (PERSON, 2)


def quality(prediction, truth, **record):
    pair = {"segments": prediction}, {"segments": truth} | record
    return panoptic.evaluate(predictor([pair]))[0]


def test_a_crowd_is_neither_missed_nor_a_false_alarm():
    truth = segments(SKY_0, SKY_0, A, A, B, B, B, B)
    without = segments(SKY_0, SKY_0, A, A, SKY_0, SKY_0, SKY_0, SKY_0)
    within = segments(SKY_0, SKY_0, A, A, B, B, B, (PERSON, 3))  # two people, found in the crowd
    # One of two people is missed, or two false ones are found beside one and a half.
    assert quality(without, truth)["panoptic/pq_things"] == pytest.approx(100 / 1.5)
    assert quality(within, truth)["panoptic/pq_things"] < 100
    for prediction in (without, within):
        values = quality(prediction, truth, crowd=(2,))
        assert values["panoptic/pq_things"] == values["panoptic/rq_things"] == 100


def test_a_crowd_is_one_of_its_record_alone():
    truth = segments(SKY_0, A, A, B, B)
    wrong = segments(SKY_0, A, A, SKY_0, SKY_0)
    pairs = [({"segments": wrong}, {"segments": truth, "crowd": crowd}) for crowd in ((2,), ())]
    values, protocol = panoptic.evaluate(predictor(pairs))
    assert values["panoptic/pq_things"] == pytest.approx(100 * 2 / 2.5)
    assert protocol["num_images"] == 2


def test_stuff_is_one_segment_of_its_class():
    truth = segments((SKY, 4), (SKY, 5), A, A)
    prediction = segments((SKY, 7), (SKY, 8), A, A)
    values = quality(prediction, truth)
    assert values["panoptic/pq"] == values["panoptic/pq_stuff"] == 100
    apart = quality(segments(SKY_0, SKY_0, (PERSON, 4), (PERSON, 5)), truth)
    assert apart["panoptic/pq_stuff"] == 100 and apart["panoptic/pq_things"] == 0


def test_quality_is_in_percent_and_of_the_truths_size():
    truth = segments(SKY_0, SKY_0, A, A).repeat(3, axis=0).repeat(3, axis=1)
    values = quality(segments(SKY_0, SKY_0, A, A), truth)
    assert set(values.values()) == {100.0}
    half = segments(SKY_0, A, A, A)  # sky: 1 of 2, which is no match; person: 2 of 3
    values = quality(half, truth)
    assert values["panoptic/sq_things"] == pytest.approx(100 * 2 / 3)
    assert values["panoptic/pq"] == pytest.approx(100 * (0 + 2 / 3) / 2)


def test_depths_count_between_the_limits_and_at_the_truths_size():
    truth = np.array([[0.0, 1.0], [2.0, 20.0]], np.float32).repeat(2, 0).repeat(2, 1)
    prediction = np.array([[5.0, 1.5], [3.0, 5.0]], np.float32)
    other = np.full((2, 2), 4.0, np.float32)
    pairs = [({"depth": prediction}, {"depth": truth}), ({"depth": other}, {"depth": other + 1})]
    values, protocol = depth.evaluate(predictor(pairs))
    first = np.sqrt((0.5**2 + 1.0**2) / 2)
    assert values["depth/rmse"] == pytest.approx((first + 1.0) / 2, rel=1e-5)  # a mean of roots
    assert protocol["num_images"] == 2 and protocol["known_between"] == [0.001, 10.0]
    near = depth.evaluate(predictor(pairs), max_depth=1.5)[0]
    assert near["depth/rmse"] == pytest.approx(0.5, rel=1e-5)
