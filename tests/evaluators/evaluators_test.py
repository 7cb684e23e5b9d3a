"""Evaluators against plain NumPy, over 20 held-out images in batches of 8, the last one ragged."""

import functools
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax import evaluators, runs, sample
from fsq_jax.evaluators import codebook, compression, generation, reconstruction
from fsq_jax.evaluators.masked_means import masked_means
from fsq_jax.metrics import compression as code_length
from fsq_jax.runs import inputs
from fsq_jax.runs.frozen import load_stage_1, make_stage
from fsq_jax.runtime import sharding
from fsq_jax.stages import maskgit_tokenizer as tokenizer_stage


@pytest.fixture(scope="module")
def tokenizer(trained):
    """The tokenizer's run, over eight devices."""
    return runs.load(trained.tokenizer)


@pytest.fixture(scope="module")
def transformer(trained):
    return runs.load(trained.transformer)


@pytest.fixture(scope="module")
def expected(trained):
    """Images, their tokens and reconstructions: all 20 at once, without a mesh or a batch."""
    config = runs.load(trained.tokenizer).config
    source = inputs.open_split(config.data, config.data.eval_split)
    images = np.stack([source[i]["image"] for i in range(20)]).astype(np.float32) / 255
    loaded = load_stage_1(trained.tokenizer)
    tokens = jax.jit(loaded.encode)(loaded.variables, {"image": images})
    decode = jax.jit(functools.partial(tokenizer_stage.decode, loaded.model))
    decoded = decode(loaded.variables, tokens)
    labels = np.array([source[i]["label"] for i in range(20)], np.int32)
    return {
        "images": images,
        "tokens": np.asarray(tokens),
        "reconstruction": np.asarray(decoded),
        "labels": labels,
    }


def test_codebook_is_what_numpy_counts(tokenizer, expected):
    counts = np.bincount(expected["tokens"].ravel(), minlength=15)
    np.testing.assert_array_equal(codebook.count_codes(tokenizer), counts)
    values, protocol = codebook.evaluate(tokenizer)
    share = counts[counts > 0] / counts.sum()
    assert values["codebook/usage"] == pytest.approx((counts > 0).mean(), rel=1e-6)
    assert values["codebook/used"] == (counts > 0).sum() > 1
    assert values["codebook/perplexity"] == pytest.approx(
        np.exp(-(share * np.log(share)).sum()), rel=1e-5
    )
    assert protocol["num_tokens"] == 20 * 16 and protocol["codebook_size"] == 15
    digits = np.stack(np.unravel_index(expected["tokens"].ravel(), (5, 3), order="F"))
    for digit, histogram, level in zip(digits, protocol["level_histograms"], (5, 3), strict=True):
        assert histogram == np.bincount(digit, minlength=level).tolist()


def test_codebook_of_some_of_the_images(tokenizer, expected):
    counts = codebook.count_codes(tokenizer, limit=5)
    np.testing.assert_array_equal(counts, np.bincount(expected["tokens"][:5].ravel(), minlength=15))


def test_one_device_measures_what_eight_do(trained, tokenizer, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, 1))
    alone = runs.load(trained.tokenizer)
    assert (alone.mesh.size, tokenizer.mesh.size) == (1, 8)
    np.testing.assert_array_equal(codebook.count_codes(alone), codebook.count_codes(tokenizer))
    one, eight = (reconstruction.evaluate(r, "", "train")[0] for r in (alone, tokenizer))
    assert one == pytest.approx(eight, rel=1e-5)


def test_batches_that_devices_do_not_divide_measure_the_same(trained, tokenizer):
    """Batches of five on eight devices, filled up, are those of eight."""
    five = runs.load(trained.tokenizer, overrides={"eval_batch_size": 5})
    assert (five.mesh.size, five.rows, five.batch_size) == (8, 8, 5)
    np.testing.assert_array_equal(codebook.count_codes(five), codebook.count_codes(tokenizer))
    ours, theirs = (reconstruction.evaluate(r, "", "train")[0] for r in (five, tokenizer))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_samples_of_filled_up_batches_are_those_of_one_device(trained, monkeypatch):
    labels = np.arange(12, dtype=np.int32)
    eight = runs.load(trained.transformer, overrides={"eval_batch_size": 5})
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, 1))
    one = runs.load(trained.transformer, overrides={"eval_batch_size": 5})
    assert (eight.rows, one.rows) == (8, 5)
    ours, theirs = (sample.sample(run, labels) for run in (eight, one))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_reconstruction_quality_is_numpys(tokenizer, expected):
    values, protocol = reconstruction.evaluate(tokenizer, "", "train")
    assert set(values) == {"reconstruction/psnr", "reconstruction/ssim"}
    error = (expected["images"] - expected["reconstruction"]).astype(np.float64)
    psnr = (-10 * np.log10((error**2).mean(axis=(1, 2, 3)))).mean()
    assert values["reconstruction/psnr"] == pytest.approx(psnr, abs=1e-3)
    assert protocol == {"split": "eval", "num_images": 20}


def test_distance_of_images_to_themselves_is_nothing(tokenizer):
    """A tokenizer that gives its images back, held against the very split they come from."""

    def give_back(state, batch, key):
        return {"reconstruction": batch["image"]}

    perfect = type(tokenizer)(**{**vars(tokenizer), "predict": {"reconstruct": give_back}})
    same, protocol = reconstruction.evaluate(perfect, "random", "eval")
    assert same["reconstruction/psnr"] == 100
    assert same["reconstruction/ssim"] == pytest.approx(1, abs=1e-5)
    assert abs(same["reconstruction/fd_random"]) < 1e-3
    other = reconstruction.evaluate(tokenizer, "random", "eval")[0]
    assert other["reconstruction/fd_random"] > 1
    assert protocol["reference"] == {
        "name": "scenes",
        "split": "validation[:20]",
        "num_images": 20,
        "sha256": "",
        "subset": "",
    }
    assert protocol["class_balance"] == "data"


def test_bits_are_those_of_a_loop(trained, transformer, expected):
    values, protocol = compression.evaluate(transformer)
    stage = make_stage(transformer.config)
    make_logits = inspect.getclosurevars(stage.predict["bits"]).nonlocals["models"].logits_fn
    logits_fn = jax.jit(make_logits(transformer.state.ema_params))
    steps = code_length.groups(4, 4, num_steps=12)
    classes = expected["labels"][:, None] + 15
    bits = np.zeros(20)
    for step in range(12):
        inputs = np.where(steps < step, expected["tokens"], 15 + 30)
        logits = np.asarray(logits_fn(np.concatenate([classes, inputs], axis=1)), np.float64)
        logits = logits[:, 1:, :15]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.take_along_axis(log_p, expected["tokens"][..., None], axis=2)[..., 0]
        bits -= (chosen * (steps == step)).sum(1) / np.log(2)
    assert values["compression/bits_per_token"] == pytest.approx(bits.mean() / 16, rel=1e-4)
    assert 0 < values["validation/accuracy"] < 1 and values["validation/loss"] > 0
    assert protocol["num_images"] == 20
    assert protocol["schedule"] == "m2t, 12 steps, alpha 2.2"
    assert protocol["stage_1"] == load_stage_1(trained.tokenizer).fingerprint


@pytest.mark.parametrize("num_samples, num_classes, batch_size", [(36, 30, 8), (100, 10, 32)])
def test_labels_are_balanced(num_samples, num_classes, batch_size):
    rows = range(batch_size + 3)
    batches = list(generation.balanced_labels(num_samples, num_classes, batch_size, rows))
    assert {len(batch["label"]) for batch in batches} == {batch_size + 3}
    assert not any(batch["mask"][batch_size:].any() for batch in batches)
    labels = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    counts = np.bincount(labels, minlength=num_classes)
    assert len(labels) == num_samples and counts.max() - counts.min() <= 1


def test_balance_in_words():
    assert generation.balance(50_000, 1_000) == "50 of each of 1000 classes"
    assert generation.balance(100, 30) == "3 or 4 of each of 30 classes"


def test_codes_are_counted_by_class(tokenizer, expected):
    counts = np.zeros((30, 15), np.int64)
    for label, tokens in zip(expected["labels"], expected["tokens"], strict=True):
        counts[label] += np.bincount(tokens, minlength=15)
    np.testing.assert_array_equal(codebook.count_codes_by_class(tokenizer, 30), counts)


def test_samples_of_each_batch_are_drawn_anew(transformer):
    drawn = [jax.device_get(out["tokens"]) for _, out in generation.samples(transformer, 240)]
    assert len(drawn) == 30
    first, later = drawn[0], drawn[15]  # 120 labels later: the same classes
    assert (first != later).any()


def test_all_evaluators_with_their_protocol(trained, transformer):
    config = runs.load(trained.transformer).config
    results = evaluators.evaluate(config.evals.to_dict(), transformer)
    assert set(results) == {
        "compression/bits_per_token",
        "validation/loss",
        "validation/accuracy",
        "sampling/fd_random",
        "sampling/precision_random",
        "sampling/recall_random",
    }
    json.dumps(results)
    result = results["sampling/fd_random"]
    assert result["step"] == 40 and np.isfinite(result["value"])
    protocol = result["protocol"]
    assert protocol["num_images"] == 36
    assert protocol["reference"] == {
        "name": "scenes",
        "split": "train[:32]",
        "num_images": 32,
        "sha256": "",
        "subset": "first 10000",
    }
    assert protocol["protocol"] == "adm" and protocol["features"]["name"] == "random"
    assert len(protocol["features"]["weights_sha256"]) == 64
    assert protocol["sampling"] == config.sampling.to_dict()
    assert protocol["class_balance"] == "1 or 2 of each of 30 classes"
    assert {
        "data",
        "size",
        "eval_split",
        "train_split",
        "seed",
        "weights",
        "device",
        "jax",
        "python",
        "stage_1",
    } <= set(protocol)


def test_evaluations_are_due_at_multiples_of_every():
    evals = {"codebook": {"every": 4}, "reconstruction": {"every": 6}}
    assert [s for s in range(1, 13) if evaluators.due(evals, s)] == [4, 6, 8, 12]
    assert not any(evaluators.due({"codebook": {"every": 0}}, s) for s in range(1, 9))
    with pytest.raises(ValueError, match=r"Evaluators \['codebok'\] are unknown; there are"):
        evaluators.check({"codebok": {"every": 1}})


def test_only_what_is_due_is_evaluated(tokenizer):
    evals = {"codebook": {"every": 2}, "reconstruction": {"every": 5, "features": "random"}}
    assert set(evaluators.evaluate(evals, tokenizer, step=4)) == {
        "codebook/usage",
        "codebook/perplexity",
        "codebook/used",
    }
    assert evaluators.evaluate(evals, tokenizer, step=3) == {}


def test_padding_rows_may_hold_anything():
    batches = [
        ({"mask": jnp.array([True, True])}, {"a": jnp.array([1.0, 2.0])}),
        ({"mask": jnp.array([True, False])}, {"a": jnp.array([6.0, np.nan])}),
    ]
    assert masked_means(batches) == ({"a": 3.0}, 3)
