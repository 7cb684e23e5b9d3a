"""Statistics of a run's data are computed once, found again, and told apart."""

import dataclasses

import numpy as np
import pytest

from fsq_jax import evaluators, runs
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.metrics import frechet
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import reference_file


@pytest.fixture(scope="module")
def run(trained):
    return runs.load(trained.tokenizer)


def in_folder(run, folder, **changes):
    """The run with a workdir of its own, and a count of the batches that it reads."""
    read = []

    def batches(split, limit):
        read.append((split, limit))
        return run.batches(split, limit)

    changed = {"workdir": str(folder / "run"), "batches": batches} | changes
    return dataclasses.replace(run, **changed), read


def files(folder):
    return sorted((folder / "references").glob("*.npz"))


def test_a_reference_is_computed_once(run, tmp_path):
    first, _ = in_folder(run, tmp_path)
    seen = RunScorer(first, "random", every_metric=True).reference("train", 0)
    (file,) = files(tmp_path)

    def nothing(split, limit):
        class Batches(list):
            def __iter__(self):
                raise AssertionError("the data was read again")

        return Batches(range(len(run.batches(split, limit))))

    neighbour, _ = in_folder(run, tmp_path, workdir=str(tmp_path / "other"), batches=nothing)
    again = RunScorer(neighbour, "random", every_metric=True).reference("train", 0)
    assert again.origin == seen.origin and again.count == seen.count == 32
    assert frechet.distance(seen.flush().moments["pool"], again.moments["pool"]) < 1e-9
    np.testing.assert_array_equal(again.rows("pool"), seen.rows("pool"))
    assert reference_file.load(file).record["reference"]["split"] == "train[:32]"


def test_another_split_limit_or_need_is_another_reference(run, tmp_path):
    changed, read = in_folder(run, tmp_path)
    network = RunScorer(changed, "random")
    for split, limit in (("train", 0), ("train", 8), ("eval", 0), ("train", 0)):
        network.reference(split, limit)
    RunScorer(changed, "random", every_metric=True).reference("train", 0)
    assert len(files(tmp_path)) == 4 and len(read) == 5


def test_a_reference_may_be_a_file(run, tmp_path):
    changed, _ = in_folder(run, tmp_path)
    network = RunScorer(changed, "random")
    network.reference("train", 0)
    (file,) = files(tmp_path)
    real = network.reference("eval", 0, str(file))  # the split has no say then
    assert real.origin.split == "train[:32]"
    value, protocol = network.measure(real, real)
    assert abs(value[network.metric]) < 1e-6 and protocol["reference"]["num_images"] == 32
    assert network.distance(real, real, "train")[0] == value[network.metric]
    with pytest.raises(ValueError, match=r"of 'train\[:32\]', not 'validation\[:20\]'"):
        network.distance(real, real, "eval")
    other = tmp_path / "adm.npz"
    real.save(other, reference_file.load(file).record | {"transform": "adm"})
    with pytest.raises(UserError, match="of images with transform=adm, these have square"):
        network.reference("train", 0, str(other))


def test_images_that_a_caller_adds_may_be_the_reference(run, tmp_path):
    changed, _ = in_folder(run, tmp_path)
    network = RunScorer(changed, "random")
    real = network.no_images()
    for batch in map(run.put, run.batches("eval", 0)):
        real = network.add(real, batch, batch["image"])
    value, protocol = network.distance(real, network.reference("eval", 0), "eval")
    again, own = network.distance(real, real, "eval")
    assert abs(value) < 1e-3 and abs(again) < 1e-3
    assert own["reference"] == protocol["reference"]


def test_without_a_workdir_nothing_is_written(run, tmp_path):
    changed, _ = in_folder(run, tmp_path, workdir="")
    assert RunScorer(changed, "random").reference("train", 0).count == 32
    assert not (tmp_path / "references").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": "inceptoin"}, r"evals.generation: There are no features named 'inceptoin'"),
        (
            {"features": "inception"},
            "FID needs Inception's.*generation.features=efficientnet needs no",
        ),
        (
            {"features": "inception", "weights": "/no/file"},
            "no file of Inception's weights at /no/fi",
        ),
        ({"weights": "/some/file"}, "weights=./some/file. is for inception; random brings its"),
        ({"protocol": "ADM"}, "There is no protocol 'ADM'; choose one of adm"),
        ({"reference": "/no/ref.npz"}, "evals.generation: There is no reference '/no/ref.npz'"),
    ],
)
def test_what_an_evaluation_lacks_is_said_before_training(change, message, monkeypatch):
    monkeypatch.delenv("FSQ_JAX_INCEPTION", raising=False)
    evals = {"every": 0, "features": "random"}
    evaluators.check({"generation": evals, "reconstruction": {"every": 0, "features": ""}})
    with pytest.raises(ValueError, match=message):
        evaluators.check({"generation": evals | change})
