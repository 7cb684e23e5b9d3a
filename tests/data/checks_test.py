"""A data set that doesn't fit what is trained on it is refused before its first batch."""

import dataclasses

import numpy as np
import pytest

from fsq_jax.data import checks, pipeline, transforms
from fsq_jax.data.checks import Wanted
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.decode import RecordError
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime.user_error import UserError

RNG = np.random.default_rng(0)
NAMES = {"segment_names": ["void", "wall", "box"], "things": [2]}


def record(size=(6, 8), **features):
    """An image of 6 x 8 pixels, with depth in metres and segments of 3 classes."""
    return {
        "image": RNG.integers(0, 256, (*size, 3), np.uint8),
        "label": 0,
        "depth": RNG.uniform(0.5, 9, size).astype(np.float32),
        "segments": RNG.integers(0, 3, (*size, 2)).astype(np.int32),
    } | features


def toy(records, meta=None, classes=("a", "b")) -> Dataset:
    meta = NAMES if meta is None else meta
    return Dataset("toy", "train", classes, records, 0, len(records), ("train",), meta)


DEPTH = Wanted(features=("depth",), depths=(0.001, 10.0))
PANOPTIC = Wanted(features=("segments",), num_semantics=3, things=True)


def test_what_fits_passes():
    for wanted in (Wanted(), Wanted(num_classes=2), DEPTH, PANOPTIC):
        checks.check_dataset(toy([record(), record((9, 5))]), wanted, least=2)
    assert checks.num_semantics(toy([record()])) == 3


@pytest.mark.parametrize(
    "wanted, source, message",
    [
        (
            Wanted(),
            toy([record(image=np.zeros((6, 8, 3)))]),
            r"images of float64 \(6, 8, 3\); expected",
        ),
        (Wanted(num_classes=3), toy([record()]), "toy train has 2 classes .* num_classes is 3;"),
        (Wanted(num_classes=1), toy([record()]), "toy train has 2 classes .* num_classes is 1;"),
        (
            DEPTH,
            toy([{"image": record()["image"], "label": 0}]),
            "Record 0 of toy .* no feature 'depth'",
        ),
        (DEPTH, toy([record(depth=record()["depth"] * 1000)]), "look like millimetres"),
        (
            DEPTH,
            toy([record(depth=record()["depth"] + 9)]),
            "max_depth is 10 metres: .*% of the pixels",
        ),
        (
            DEPTH,
            toy([record(depth=record()["depth"] * 0)]),
            "float32, 0 to 0 in 1 records; expected",
        ),
        (DEPTH, toy([record(depth=record()["depth"] + np.inf)]), "NaN or infinity"),
        (DEPTH, toy([record(depth=np.ones((6, 8), int))]), "depth of int64"),
        (
            DEPTH,
            toy([record(depth=np.ones((3, 4), np.float32))]),
            "Record 0 of toy train has depth of 3 x 4 and an image of 6 x 8 pixels",
        ),
        (
            DEPTH,
            toy([record(), record(depth=np.ones((8, 6), np.float32))]),
            "Record 1 .* depth of 8 x 6",
        ),
        (
            PANOPTIC,
            toy([record(segments=np.ones((3, 4, 2), int))]),
            "segments of 3 x 4 and an image",
        ),
        (
            PANOPTIC,
            toy([record(segments=np.full((6, 8, 2), 3))]),
            r"classes 3 to 3 .*0 \(void\) to 2",
        ),
        (
            PANOPTIC,
            toy([record(segments=np.array([1, 2**24]) * np.ones((6, 8, 1), int))]),
            "instances 16777216 to 16777216; expected .* 0 to 65535",
        ),
        (PANOPTIC, toy([record(segments=np.full((6, 8, 2), -1))]), "instances -1 to -1; expected"),
        (PANOPTIC, toy([record(segments=np.zeros((6, 8, 2), int))]), "Every pixel of 1 records"),
        (PANOPTIC, toy([record(segments=np.ones((6, 8, 3), int))]), r"int64 \(6, 8, 3\); expected"),
        (dataclasses.replace(PANOPTIC, num_semantics=4), toy([record()]), "of 3 classes.* is 4;"),
        (PANOPTIC, toy([record()], {}), "does not say which classes its segments have"),
        (PANOPTIC, toy([record()], {"segment_names": ["v", "x", "y"]}), "classes are things"),
    ],
)
def test_what_does_not_fit_is_named(wanted, source, message):
    with pytest.raises(UserError, match=message):
        checks.check_dataset(source, wanted)


def test_too_few_records():
    with pytest.raises(UserError, match="toy train has 1 records; evals.x needs 2 or more"):
        checks.check_dataset(toy([record()]), Wanted(), least=2, purpose="evals.x")


def test_a_few_records_all_over_the_split_are_looked_at():
    class Counted(list):
        seen = []

        def __getitem__(self, index):
            self.seen.append(index)
            return super().__getitem__(index)

    checks.check_dataset(toy(Counted([record()] * 1000)), Wanted())
    assert Counted.seen[0] == 0 and Counted.seen[-1] == 999 and 20 < len(Counted.seen) < 50
    assert max(np.diff(Counted.seen)) < 50


@pytest.mark.parametrize("kind, area", [("uvim", 1.0), ("uvim", 0.3), ("square", 0.3)])
def test_a_depth_of_another_size_never_reaches_a_batch(kind, area):
    records = [record()] * 7 + [record(depth=np.ones((3, 4), np.float32))]
    transform = transforms.augment(8, area, (3 / 4, 4 / 3), False, kind)
    batches = pipeline.train_batches(
        toy(records), transform, batch_size=8, seed=0, features=("depth",)
    )
    with pytest.raises(RecordError, match="Record 7 of toy train has depth of 3 x 4 and an image"):
        next(batches)
    next(pipeline.train_batches(toy(records), transform, batch_size=8, seed=0))  # without depth


def test_pictures_that_belong_together():
    checks.check_same_size(np.zeros((4, 5, 3)), np.zeros((4, 5)), ("in.png", "mask.png"))
    with pytest.raises(
        UserError, match="in.png is of 4 x 5 pixels and mask.png is of 5 x 4 pixels"
    ):
        checks.check_same_size(np.zeros((4, 5, 3)), np.zeros((5, 4)), ("in.png", "mask.png"))


def test_scenes_are_of_their_own_classes():
    source = open_dataset("scenes", "validation", 16)
    wanted = Wanted(("segments", "depth"), 30, (0.001, 10.0), 8, True)
    checks.check_dataset(source, wanted)
    with pytest.raises(UserError, match="scenes validation has 30 classes"):
        checks.check_dataset(source, dataclasses.replace(wanted, num_classes=29))
