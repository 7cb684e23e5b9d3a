"""Evaluators of depth, colours and segments, on models that answer with what they were given."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from fsq_jax.data import pipeline, transforms
from fsq_jax.data.open import open_dataset
from fsq_jax.evaluators import codebook, colorization, depth, panoptic
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.metrics.depth_error import depth_error
from fsq_jax.metrics.panoptic_quality import PanopticQuality, merge_stuff
from fsq_jax.runtime import sharding
from fsq_jax.stages.stage import Stage, StageFacts

SIZE, COUNT = 16, 20


def make_run(predict, features=(), size_of_scenes=SIZE, crop=None) -> Predictor:
    """A run on 20 scenes in batches of 8, the last one ragged, over eight devices."""

    def source(split):
        names = {"eval": f"validation[:{COUNT}]"}
        opened = open_dataset("scenes", names.get(split, split), size_of_scenes)
        return opened.mapped(transforms.crop_to(crop)) if crop else opened

    def batches(split, limit, transform=None):
        transform = transform or transforms.evaluation(SIZE, "uvim")
        records = source(split) if isinstance(split, str) else split
        return pipeline.eval_batches(
            records, transform, batch_size=8, limit=limit or None, features=features
        )

    facts = StageFacts(codebook_size=4, levels=(2, 2), downsampling=1)
    return Predictor(
        config=ml_collections.ConfigDict({"eval_batch_size": 8}),
        stage=Stage(init=None, update=None, predict={}, facts=facts),
        predict={"prediction": jax.jit(predict), "indices": predict},
        state=None,
        batches=batches,
        dataset=source,
        mesh=sharding.make_mesh(),
        protocol={"size": SIZE},
        seed=0,
        step=0,
    )


@pytest.mark.parametrize("crop", [None, (4, 23, 1, 24)])
def test_depth_is_measured_at_the_size_of_the_truth(crop):
    run = make_run(lambda state, batch, key: {"depth": batch["depth"] * 1.3}, ("depth",), 24, crop)
    values, protocol = depth.evaluate(run)
    errors = []
    for i in range(COUNT):
        truth = run.dataset("eval")[i]["depth"]
        assert truth.shape == ((19, 23) if crop else (24, 24))
        small = transforms.resize_nearest(truth, SIZE, SIZE) * np.float32(1.3)
        errors.append(depth_error(transforms.resize_nearest(small, *truth.shape), truth))
    for name in errors[0]:
        expected = np.mean([error[name] for error in errors])
        assert values[f"depth/{name}"] == pytest.approx(expected, rel=1e-5)
    assert values["depth/delta1"] < 0.5 < values["depth/delta2"]
    assert protocol["num_images"] == COUNT and protocol["truth_size"] == list(truth.shape)
    some = depth.evaluate(run, limit=5)[0]["depth/rmse"]
    assert some == pytest.approx(np.mean([error["rmse"] for error in errors[:5]]), rel=1e-5)


def test_depth_that_is_nowhere_known():
    run = make_run(lambda state, batch, key: {"depth": batch["depth"]}, ("depth",))
    with pytest.raises(ValueError, match="None of 20 images has a depth between 20 and 30"):
        depth.evaluate(run, min_depth=20, max_depth=30)


def test_panoptic_quality_of_the_truth_and_of_a_worse_answer():
    def give_back(state, batch, key):
        return {"segments": batch["segments"]}

    values, protocol = panoptic.evaluate(make_run(give_back, ("segments",)))
    assert set(values) == {
        f"panoptic/{name}{of}" for name in ("pq", "sq", "rq") for of in ("", "_things", "_stuff")
    }
    assert set(values.values()) == {100.0}
    assert (protocol["num_classes"], protocol["num_things"]) == (7, 5)

    larger = make_run(give_back, ("segments",), 40)
    quality = PanopticQuality.empty(8)
    for i in range(COUNT):
        truth = larger.dataset("eval")[i]["segments"]
        small = transforms.resize_nearest(truth, SIZE, SIZE)
        answer = merge_stuff(transforms.resize_nearest(small, 40, 40), range(3, 8))
        quality = quality.update(answer, truth)
    values = panoptic.evaluate(larger)[0]
    assert values["panoptic/pq"] == pytest.approx(100 * quality.result()["pq"])
    assert values["panoptic/sq_things"] == pytest.approx(100 * quality.result(range(3, 8))["sq"])
    assert 50 < values["panoptic/pq_things"] < values["panoptic/pq_stuff"] < 100


def test_panoptic_needs_to_know_what_things_are():
    run = make_run(lambda state, batch, key: {"segments": batch["segments"]}, ("segments",))
    nameless = dataclasses.replace(run.dataset("eval"), meta={})
    with pytest.raises(ValueError, match="scenes does not say which of its segments' classes"):
        panoptic.evaluate(dataclasses.replace(run, dataset=lambda split: nameless))


def test_psnr_of_colours():
    run = make_run(lambda state, batch, key: {"image": batch["image"] * 0.9})
    values, protocol = colorization.evaluate(run)
    images = np.stack([run.dataset("eval")[i]["image"] for i in range(COUNT)]) / 255
    error = ((0.1 * images) ** 2).mean(axis=(1, 2, 3))
    expected = np.mean(-10 * np.log10(error))
    assert values == {"colorization/psnr": pytest.approx(expected, abs=1e-3)}
    assert protocol == {"split": "eval", "psnr_num_images": COUNT}
    with pytest.raises(ValueError, match="'random' needs a reference_split"):
        colorization.evaluate(run, features="random")


ARGUMENTS = dict(features="random", num_images=COUNT, reference_split="eval", reference_limit=COUNT)


def test_distance_of_true_colours_is_nothing():
    run = make_run(lambda state, batch, key: {"image": batch["image"]})
    values, protocol = colorization.evaluate(run, **ARGUMENTS)
    assert values["colorization/psnr"] == 100 and abs(values["colorization/fd_random"]) < 1e-3
    assert protocol["protocol"] == "coltran"
    assert protocol["reference"]["num_images"] == COUNT and protocol["reference"]["split"] == "eval"
    assert protocol["num_images"] == COUNT and protocol["distance_size"] == SIZE


class Means:
    """In place of a feature network: it sees the pictures themselves."""

    metric = "fd_means"

    def __init__(self, run, name, protocol, weights):
        assert protocol == "coltran"

    def no_images(self):
        return ()

    def add(self, moments, batch, images):
        mask, images = sharding.to_host((batch["mask"], images))
        return (*moments, *images[mask])

    def distance(self, moments, reference, split):
        assert len(moments) == len(reference) == COUNT
        # In 8 bits: whole numbers of 255, once averaged.
        np.testing.assert_allclose(np.rint(np.stack(moments) * 255) / 255, moments, atol=1e-6)
        return float(np.abs(np.stack(moments) - np.stack(reference)).max()), {}


def test_larger_pictures_shrink_as_the_real_ones_do(monkeypatch):
    monkeypatch.setattr(colorization, "RunScorer", Means)
    monkeypatch.setattr(colorization, "_FRECHET_SIZE", 8)
    run = make_run(lambda state, batch, key: {"image": batch["image"]})
    values, protocol = colorization.evaluate(run, **ARGUMENTS)
    assert values["colorization/fd_means"] < 1.001 / 255  # a half goes up or down
    assert protocol["distance_size"] == 8
    wrong = make_run(lambda state, batch, key: {"image": batch["image"][..., ::-1]})
    assert colorization.evaluate(wrong, **ARGUMENTS)[0]["colorization/fd_means"] > 0.1
    named = colorization.evaluate(run, **ARGUMENTS | {"features": "inception"})[0]
    assert set(named) == {"colorization/psnr", "colorization/fid5k"}
    monkeypatch.setattr(colorization, "_FRECHET_SIZE", 10)
    with pytest.raises(ValueError, match="16 pixels can't be averaged to 10"):
        colorization.evaluate(run, **ARGUMENTS)


def test_codes_of_any_stage_are_counted():
    run = make_run(lambda state, batch, key: {"indices": jnp.zeros((8, 6), jnp.int32) + 2})
    np.testing.assert_array_equal(codebook.count_codes(run), [0, 0, 6 * COUNT, 0])
