"""Batches: each record once an epoch, the same whatever the hosts and workers, and resumable."""

import dataclasses

import numpy as np
import pytest

from fsq_jax.data import pipeline, token_cache, transforms
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.decode import RecordError, UnreadError


@dataclasses.dataclass
class Numbers:
    """Records whose label is their index; `broken` cannot be read."""

    broken: int = -1

    def __getitem__(self, index):
        if index == self.broken:
            raise RecordError(f"Record {index} of numbers is not a whole, readable image.")
        return {"image": np.full((4, 4, 3), index, np.uint8), "label": index, "depth": np.eye(4)}


def numbers(length, broken=-1):
    return Dataset("numbers", "train", ("n",), Numbers(broken), 0, length, ("train",))


def noise(record, rng):
    return record | {"image": np.float32(rng.random((2, 2, 3)))}


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def test_what_a_batch_holds():
    batches = pipeline.train_batches(
        numbers(9), transforms.augment(4), batch_size=3, seed=0, features=("depth",)
    )
    (batch,) = take(batches, 1)
    types = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert types == {
        "image": ((3, 4, 4, 3), "float32"),
        "label": ((3,), "int32"),
        "mask": ((3,), "bool"),
        "depth": ((3, 4, 4), "float64"),
    }
    assert batch["mask"].all() and 0 <= batch["image"].min() <= batch["image"].max() <= 1


def test_what_was_not_asked_for_is_not_even_transformed():
    seen = set()

    def see(record, rng):
        seen.update(record)
        return record

    (batch,) = take(pipeline.train_batches(numbers(4), see, batch_size=2, seed=0), 1)
    assert "depth" not in batch and seen == {"image", "label"}


def test_each_epoch_has_every_record_once_in_another_order():
    batches = pipeline.train_batches(numbers(10), noise, batch_size=4, seed=0)
    labels = np.concatenate([b["label"] for b in take(batches, 10)]).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(labels, axis=1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in labels}) == 4
    other = pipeline.train_batches(numbers(10), noise, batch_size=4, seed=1)
    assert next(other)["label"].tolist() != labels[0, :4].tolist()


def test_augmentation_differs_between_epochs():
    batches = pipeline.train_batches(numbers(2), noise, batch_size=2, seed=0)
    images = np.concatenate([b["image"] for b in take(batches, 5)])
    assert len({image.tobytes() for image in images}) == 10


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_the_global_batch(hosts):
    whole = take(pipeline.train_batches(numbers(20), noise, batch_size=6, seed=3), 5)
    parts = [
        take(
            pipeline.train_batches(
                numbers(20), noise, batch_size=6, seed=3, process_index=i, process_count=hosts
            ),
            5,
        )
        for i in range(hosts)
    ]
    for i, part in enumerate(parts):
        assert_same(part, [{k: v[i::hosts] for k, v in batch.items()} for batch in whole])


def test_resume_is_exact():
    def fresh(**options):
        return pipeline.train_batches(numbers(7), noise, batch_size=4, seed=5, **options)

    straight = take(fresh(prefetch=1), 10)
    first = fresh()
    head = take(first, 4)
    state = first.get_state()
    assert state == {"position": 4}
    second = fresh()
    next(second)
    second.set_state(state)
    assert_same(straight, head + take(second, 6))
    assert_same(straight[7:], take(fresh(start=7), 3))
    assert second.get_state() == {"position": 10}


def test_resume_with_workers_is_exact_and_errors_come_through():
    """One test for both, since starting processes takes seconds."""
    source = numbers(7, broken=3)
    options = dict(batch_size=4, seed=5, skip_damaged=True)
    straight = take(pipeline.train_batches(source, noise, **options), 10)
    workers = pipeline.train_batches(source, noise, **options, workers=2)
    workers.set_state({"position": 4})
    assert_same(straight[4:], take(workers, 6))
    workers.close()
    broken = pipeline.train_batches(numbers(7, 3), noise, batch_size=7, seed=5, workers=1)
    with pytest.raises(RecordError, match="^Record 3 of numbers is not"):
        next(broken)


@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("length", [12, 13, 5, 1])
def test_evaluation_visits_each_record_once_in_order(hosts, length):
    parts = [
        list(
            pipeline.eval_batches(
                numbers(length), noise, batch_size=6, process_index=i, process_count=hosts
            )
        )
        for i in range(hosts)
    ]
    assert {len(part) for part in parts} == {-(-length // 6)}
    whole = [{k: np.concatenate([p[k] for p in step]) for k in step[0]}
             for step in zip(*parts, strict=True)]  # fmt: skip
    assert all(len(batch["label"]) == 6 for batch in whole)
    labels = np.concatenate([b["label"] for b in whole])
    mask = np.concatenate([b["mask"] for b in whole])
    np.testing.assert_array_equal(labels[mask], np.arange(length))
    assert mask[:length].all() and not mask[length:].any()
    assert_same(whole, list(pipeline.eval_batches(numbers(length), noise, batch_size=6)))


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_batches_are_filled_up_with_rows_that_do_not_count(hosts):
    parts = [
        list(
            pipeline.eval_batches(
                numbers(12), noise, batch_size=5, rows=8, process_index=i, process_count=hosts
            )
        )
        for i in range(hosts)
    ]
    whole = [{k: np.concatenate([p[k] for p in step]) for k in step[0]}
             for step in zip(*parts, strict=True)]  # fmt: skip
    assert [batch["mask"].sum() for batch in whole] == [5, 5, 2]
    assert all(len(batch["label"]) == 8 for batch in whole)
    labels = np.concatenate([batch["label"][batch["mask"]] for batch in whole])
    np.testing.assert_array_equal(labels, np.arange(12))
    with pytest.raises(ValueError, match="no more than rows=4"):
        pipeline.eval_batches(numbers(12), noise, batch_size=5, rows=4)


@pytest.mark.parametrize("batch_size, hosts", [(1, 1), (2, 2), (3, 1)])
def test_batches_of_one_image_have_no_end_either(batch_size, hosts):
    batches = pipeline.train_batches(
        numbers(3), noise, batch_size=batch_size, seed=0, process_count=hosts, start=10
    )
    seen = [label for batch in take(batches, 7) for label in batch["label"].tolist()]
    assert len(seen) == 7 * batch_size // hosts and set(seen) <= {0, 1, 2}


def test_records_are_spread_over_the_split():
    few = numbers(50).cut("train[10:]").spread(4)
    assert [few[i]["label"] for i in range(len(few))] == [10, 20, 30, 40]
    assert len(numbers(3).spread(9)) == 3


def test_evaluation_limit_and_again():
    batches = pipeline.eval_batches(numbers(50), noise, batch_size=4, limit=6)
    assert len(batches) == 2
    assert_same(list(batches), list(batches))
    assert sum(int(b["mask"].sum()) for b in batches) == 6
    (batch,) = pipeline.eval_batches(numbers(3), noise, batch_size=4, limit=99)
    assert batch["mask"].tolist() == [True, True, True, False]


def test_tokens_take_a_view_by_the_records_own_chance():
    class Tokens:
        def __getitem__(self, index):
            return {"tokens_VL": np.array([[index, 0], [index, 1]], np.int32), "label": 0}

    source = Dataset("t", "train", ("n",), Tokens(), 0, 8, ("train",))
    (batch,) = take(
        pipeline.train_batches(source, token_cache.sample_token_view, batch_size=32, seed=0), 1
    )
    assert set(batch) == {"tokens", "label", "mask"}
    assert batch["tokens"].shape == (32, 2) and 5 < batch["tokens"][:, 1].sum() < 27


def test_a_damaged_record_and_a_missing_feature_are_clear():
    batches = pipeline.train_batches(numbers(5, broken=2), noise, batch_size=5, seed=0)
    with pytest.raises(RecordError, match="^Record 2 of numbers is not") as caught:
        next(batches)
    assert caught.value.__context__ is None and not hasattr(caught.value, "__notes__")
    with pytest.raises(RecordError, match="Record 2 of numbers"):
        list(pipeline.eval_batches(numbers(5, broken=2), noise, batch_size=5))
    lacking = pipeline.eval_batches(numbers(5), noise, batch_size=5, features=("segments",))
    with pytest.raises(
        RecordError, match="Record 0 of numbers train has no feature 'segments'; it has depth"
    ):
        list(lacking)


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_damaged_record_is_skipped_named_and_counted(hosts, capsys):
    def batches(source, **options):
        parts = [
            take(
                pipeline.train_batches(
                    source, noise, batch_size=4, seed=1, process_index=i, process_count=hosts,
                    **options,
                ),
                10,
            )
            for i in range(hosts)
        ]  # fmt: skip
        return {k: np.concatenate([b[k] for p in parts for b in p]) for k in parts[0][0]}

    whole, skipping = batches(numbers(10)), batches(numbers(10, broken=2), skip_damaged=True)
    damaged = whole["label"] == 2
    assert damaged.sum() == 4  # epochs
    np.testing.assert_array_equal(skipping["skipped"], damaged)
    assert len(set(skipping["label"][damaged])) == 1 and 2 not in skipping["label"]
    np.testing.assert_array_equal(skipping["label"][~damaged], whole["label"][~damaged])
    np.testing.assert_array_equal(skipping["image"], whole["image"])  # drawn by position
    said = "Record 2 of numbers is not a whole, readable image. It is skipped, as data.skip_damaged"
    assert 1 <= capsys.readouterr().err.count(said) <= hosts


def test_a_damaged_record_is_left_out_of_an_evaluation(capsys):
    evaluation = pipeline.eval_batches(
        numbers(5, broken=2), noise, batch_size=2, rows=3, skip_damaged=True
    )
    masks = np.stack([batch["mask"] for batch in evaluation])
    assert masks.tolist() == [[True, True, False], [False, True, False], [True, False, False]]
    assert all(set(batch) == {"image", "label", "mask"} for batch in evaluation)
    assert capsys.readouterr().err.count("Record 2 of numbers") == 1


def test_what_cannot_be_read_now_or_at_all_is_not_skipped():
    class Gone:
        def __getitem__(self, index):
            raise (UnreadError if index == 0 else RecordError)(f"Record {index} is gone.")

    def first(start, stop):
        source = Dataset("gone", "train", ("n",), Gone(), start, stop, ("train",))
        next(pipeline.train_batches(source, noise, batch_size=1, seed=0, skip_damaged=True))

    with pytest.raises(RecordError, match=r"^Record 0 is gone\.$"):
        first(0, 1)
    with pytest.raises(RecordError, match="is gone. Nor can any of 8 others be read in its place"):
        first(1, 9)


def test_sizes_that_do_not_fit():
    for make, more in ((pipeline.train_batches, {"seed": 0}), (pipeline.eval_batches, {})):
        with pytest.raises(ValueError, match="batch_size=5 is not a multiple of process_count=2"):
            make(numbers(9), noise, batch_size=5, process_count=2, **more)
        with pytest.raises(ValueError, match="process_index=2 of process_count=2"):
            make(numbers(9), noise, batch_size=4, process_index=2, process_count=2, **more)
    with pytest.raises(ValueError, match="no record to evaluate"):
        pipeline.eval_batches(numbers(9), noise, batch_size=4, limit=0)
