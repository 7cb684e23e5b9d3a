"""The programs on two tiny trained runs: evaluate, sample, encode, and training on a cache."""

import dataclasses
import json
import os
import shutil
import types

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from fsq_jax import encode, evaluate, evaluators, runs, sample, train
from fsq_jax.data.open import open_dataset
from fsq_jax.runs import inputs
from fsq_jax.runs.config import parse_overrides
from fsq_jax.runs.frozen import make_stage
from fsq_jax.runtime.workdir import (
    is_evaluated,
    load_config,
    load_results,
    metric_values,
    save_results,
)
from tests import tiny


@pytest.fixture(scope="module")
def generator(trained):
    """The masked transformer's predictor."""
    return runs.load(trained.transformer)


def copied(workdir: str, folder) -> str:
    return shutil.copytree(workdir, folder / "run")


def test_evaluate_takes_results_into_the_file(trained, tmp_path):
    workdir = copied(trained.tokenizer, tmp_path)
    save_results(workdir, {"other": {"value": 1.0, "protocol": {}, "step": 1}})
    first = evaluate.evaluate(workdir, ["codebook"])
    assert set(first) == {"codebook/usage", "codebook/perplexity", "codebook/used"}
    assert all(result["step"] == 3 for result in first.values())
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(saved) == set(first) | {"other"}
    assert saved["codebook/usage"] == first["codebook/usage"]
    usage = f"{first['codebook/usage']['value']:.2%}"
    assert usage in (tmp_path / "run" / "codebook" / "index.html").read_text()
    save_results(workdir, {"other": {"value": 2.0, "protocol": {}, "step": 3}})
    assert metric_values(load_results(workdir))["other"] == 2.0
    assert is_evaluated(workdir, 3) and not is_evaluated(workdir, 2)


def test_overrides_reach_the_sampler(trained, tmp_path):
    workdir = copied(trained.transformer, tmp_path)
    values = {}
    for guidance in (0.0, 8.0):
        overrides = parse_overrides([f"sampling.guidance={guidance}"])
        results = evaluate.evaluate(workdir, ["generation"], overrides=overrides)
        result = results["sampling/fd_random"]
        assert result["protocol"]["sampling"]["guidance"] == guidance
        values[guidance] = result["value"]
    assert values[0.0] != values[8.0]
    assert load_config(workdir).sampling.guidance == 0.0  # the run's own stays


def test_guidance_changes_samples(trained):
    batch = {"label": np.resize(np.arange(30, dtype=np.int32), 64)}
    tokens = []
    for guidance in (0.0, 8.0):
        run = runs.load(trained.transformer, overrides={"sampling.guidance": guidance})
        out = run.predict["sample"](run.state, run.put(batch), jax.random.key(0))
        tokens.append(jax.device_get(out["tokens"]))
    assert (tokens[0] != tokens[1]).mean() > 0.1


def test_settings_of_an_override_are_checked(trained):
    with pytest.raises(ValueError, match="has no 'sampling.guidnce'; did you mean 'sampling.guid"):
        runs.load(trained.transformer, overrides={"sampling.guidnce": 1.0})
    with pytest.raises(ValueError, match="sampling.guidance='high' is not of type float, as 0.0"):
        runs.load(trained.transformer, overrides={"sampling.guidance": "high"})
    parsed = parse_overrides(["a.b=1", "c=x", "d=(1, 2)", "e=True", "f=g=h"])
    assert parsed == {"a.b": 1, "c": "x", "d": (1, 2), "e": True, "f": "g=h"}


def run_sample(workdir: str, **options) -> None:
    """`fsq_jax.sample` with these flags."""
    values = dict(
        workdir=workdir,
        stage_1="",
        labels="",
        num=0,
        out="",
        npz="",
        image="",
        mask="",
        seed=0,
        step=None,
        set=[],
    )
    flags_given = type("Flags", (), values | options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", flags_given)
        sample.main([])


def test_sample_writes_a_grid_and_adm_arrays(trained, tmp_path):
    out, npz = tmp_path / "new" / "grid.png", tmp_path / "samples.npz"
    names = open_dataset("scenes", "validation", 16).class_names
    run_sample(trained.transformer, labels=f"3,{names[7]}", num=11, out=str(out), npz=str(npz))
    arrays = np.load(npz)
    assert arrays.files == ["arr_0", "arr_1"]
    assert arrays["arr_0"].shape == (11, 16, 16, 3) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [3, 7] * 5 + [3]
    assert Image.open(out).size == (8 * 18 + 2, 2 * 18 + 2)
    run_sample(trained.transformer, labels="3,7", out=str(out))
    assert Image.open(out).size == (8 * 18 + 2, 2 * 18 + 2)  # one row per class


def test_a_seed_is_a_set_of_images(generator):
    run = generator
    labels = np.arange(11, dtype=np.int32)
    first = sample.sample(run, labels, seed=0)
    assert first.shape == (11, 16, 16, 3) and first.min() >= 0 and first.max() <= 1
    np.testing.assert_array_equal(first, sample.sample(run, labels, seed=0))
    assert (first != sample.sample(run, labels, seed=1)).any(axis=(1, 2, 3)).mean() > 0.5
    # Batches differ from each other though their labels are the same.
    same = sample.sample(run, np.zeros(16, np.int32))
    assert (same[:8] != same[8:]).any()


def test_labels_are_numbers_or_names():
    names = ["top", "bag", "7"]
    assert sample.parse_labels("bag,0,7", names).tolist() == [1, 0, 2]
    assert sample.parse_labels("", names).tolist() == [0, 1, 2]
    for wrong in ("3", "shoe", "-1"):
        with pytest.raises(ValueError, match=f"Label '{wrong}' is neither a number below 3 nor"):
            sample.parse_labels(wrong, names)


def test_names_of_classes_without_the_data(generator):
    names = sample.class_names(generator)
    assert len(names) == 30 and "red" in names[0]
    config = generator.config.copy_and_resolve_references()
    config.data.source = "folder:/no/such/folder"
    elsewhere = dataclasses.replace(
        generator, dataset=lambda split: inputs.eval_dataset(config, split)
    )
    assert list(sample.class_names(elsewhere)) == [str(i) for i in range(30)]


def test_inpainting_keeps_what_is_known(trained, generator, tmp_path):
    run = generator
    record = inputs.open_split(run.config.data, "validation")[0]
    image, mask = tmp_path / "in.png", tmp_path / "mask.png"
    Image.fromarray(record["image"]).save(image)
    white = np.zeros((16, 16), np.uint8)
    white[5:9, 8:] = 255  # rows 1 and 2 of the tokens, columns 2 and 3
    Image.fromarray(white).save(mask)
    known = sample.known_tokens(run, str(image), str(mask))
    expected = np.ones((4, 4), bool)
    expected[1:3, 2:] = False
    np.testing.assert_array_equal(known["known"].reshape(4, 4), expected)

    own = run.outputs("tokens", limit=1)
    np.testing.assert_array_equal(known["tokens"], jax.device_get(next(own)[1]["tokens"])[0])
    drawn = []
    run = runs.load(trained.transformer, overrides={"sampling.guidance": 30.0})
    for label in (2, 9):  # another class at the same place: editing
        batch = {"label": np.full(8, label, np.int32)}
        batch |= {name: np.broadcast_to(value, (8, 16)) for name, value in known.items()}
        out = run.predict["sample"](run.state, run.put(batch), jax.random.key(0))
        drawn.append(jax.device_get(out["tokens"]))
        assert (drawn[-1][:, known["known"]] == known["tokens"][known["known"]]).all()
    assert (drawn[0] != drawn[1]).any()
    assert len(np.unique(drawn[0], axis=0)) > 1  # eight completions, not one
    out = tmp_path / "filled.png"
    run_sample(trained.transformer, image=str(image), mask=str(mask), labels="2", out=str(out))
    assert Image.open(out).size == (8 * 18 + 2, 18 + 2)


@pytest.fixture(scope="module")
def cache(trained, tmp_path_factory):
    """A token cache of three views."""
    out = str(tmp_path_factory.mktemp("cache"))
    encode.encode(trained.tokenizer, out, views=3)
    return out


def test_cache_holds_the_tokenizers_own_tokens(trained, cache, generator, tmp_path):
    run = generator
    expected = [jax.device_get(out["tokens"]) for _, out in run.outputs("tokens", "train")]
    folder = encode.encode(trained.tokenizer, str(tmp_path))
    tokens = np.load(os.path.join(folder, "tokens.npy"))
    assert tokens.shape == (32, 1, 16) and tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens[:, 0], np.concatenate(expected))
    source = inputs.open_split(generator.config.data, "train[:32]")
    labels = [source[i]["label"] for i in range(32)]
    assert np.load(os.path.join(folder, "labels.npy")).tolist() == labels

    views = np.load(os.path.join(cache, "train", "tokens.npy"))
    assert views.shape == (32, 3, 16)
    assert (views[:, 0] != views[:, 1]).any() and (views[:, 1] != views[:, 2]).any()
    meta = json.loads(open(os.path.join(cache, "train", "meta.json")).read())
    assert (meta["views"], meta["codebook_size"], meta["num_classes"]) == (3, 15, 30)
    assert meta["fingerprint"] == run.facts.stage_1


def on_cache(trained, cache, **changes):
    config = load_config(trained.transformer)
    config.update_from_flattened_dict(
        {"token_cache": cache, "steps": 2, "checkpoint_every": 2, "log_every": 1} | changes
    )
    config.evals = {}
    return config


def test_training_on_a_cache(trained, cache, tmp_path, without_page):
    workdir = str(tmp_path)
    train.train(on_cache(trained, cache), workdir)
    assert [line["step"] for line in tiny.lines(workdir, "train")] == [1, 2]
    run = runs.load(workdir)
    assert evaluators.evaluate({"compression": {"every": 0}}, run)


def test_caches_of_something_else_are_refused(trained, cache, tmp_path):
    other = tiny.untrained_tokenizer(tmp_path / "other")
    with pytest.raises(ValueError, match=f"trained on stage I .* but '{other}' holds"):
        make_stage(on_cache(trained, cache, **{"stage_1.workdir": other}))
    new_run = {"stage_1.workdir": other, "stage_1.fingerprint": ""}
    with pytest.raises(ValueError, match=f"were made by stage I .* but '{other}' holds"):
        make_stage(on_cache(trained, cache, **new_run))
    with pytest.raises(ValueError, match="has 16 tokens per image, this run 64."):
        make_stage(on_cache(trained, cache, **{"data.size": 32}))
    with pytest.raises(ValueError, match="has 30 classes, this run 10."):
        make_stage(on_cache(trained, cache, num_classes=10))
    with pytest.raises(ValueError, match="is there already; remove it, or name another --out."):
        encode.encode(trained.tokenizer, cache)
    with pytest.raises(ValueError, match="views=0 must be at least 1."):
        encode.encode(trained.tokenizer, str(tmp_path), views=0)


def test_a_workdir_belongs_to_one_run(trained):
    with pytest.raises(
        ValueError,
        match=r"another config \(stage: maskgit_tokenizer there, maskgit_transformer here",
    ):
        train.train(tiny.transformer(trained.tokenizer), trained.tokenizer)
    for folder in (trained.transformer,):
        with pytest.raises(
            ValueError, match="is of stage 'maskgit_transformer'; one of stage 'maskgit_tok"
        ):
            make_stage(tiny.transformer(folder))
        with pytest.raises(
            ValueError, match="is of stage 'maskgit_transformer'; one of stage 'maskgit_tok"
        ):
            encode.encode(folder, "unused")


def test_a_checkpoint_is_chosen_by_its_step(trained):
    assert runs.load(trained.transformer).step == 40
    assert runs.load(trained.transformer, step=20).step == 20
    with pytest.raises(ValueError, match=r"has no checkpoint of step 7; there are \[20, 40\]."):
        runs.load(trained.transformer, step=7)


@pytest.fixture(scope="module")
def uvim(tmp_path_factory):
    """Workdirs `base` and `lm` of UViM's two stages on segments, saved before their first step."""
    folder = tmp_path_factory.mktemp("uvim")
    base = tiny.untrained(tiny.label_coder(task="panoptic"), folder / "base")
    lm = tiny.untrained(tiny.code_model(base, task="panoptic"), folder / "lm")
    return types.SimpleNamespace(base=base, lm=lm)


def label(workdir: str, **options) -> None:
    """What `fsq_jax.sample` does with a run of UViM and these flags (Grain reads the real ones)."""
    values = dict(labels="", num=0, out="", npz="", image="", mask="", seed=0)
    run = runs.load(workdir)
    sample.sample_labels(run, types.SimpleNamespace(**values | options))


def test_labels_are_drawn_beside_input_and_truth(uvim, tmp_path):
    out, npz = tmp_path / "grid.png", tmp_path / "labels.npz"
    label(uvim.base, num=5, out=str(out), npz=str(npz))
    assert Image.open(out).size == (2 * (3 * 8 + 2) + 2, 3 * (8 + 2) + 2)  # 5 triples in 2 columns
    arrays = np.load(npz)
    assert arrays.files == ["input", "prediction", "truth"]
    assert all(arrays[name].shape == (5, 8, 8, 3) for name in arrays.files)
    record = open_dataset("scenes", "validation", 8)[0]
    np.testing.assert_array_equal(arrays["input"][0], record["image"])
    with pytest.raises(ValueError, match="--labels is for masked transformers; uvim_base reads"):
        label(uvim.base, labels="3", out=str(out))


def test_an_image_of_ones_own_has_no_truth(uvim, tmp_path):
    image, npz = tmp_path / "in.png", tmp_path / "labels.npz"
    Image.fromarray(np.full((30, 20, 3), 77, np.uint8)).save(image)
    label(uvim.lm, image=str(image), npz=str(npz))
    arrays = np.load(npz)
    assert arrays.files == ["input", "prediction"] and arrays["prediction"].shape == (1, 8, 8, 3)
    assert (arrays["input"] == 77).all()
    with pytest.raises(ValueError, match="Stage I encodes labels, which an image file has not"):
        label(uvim.base, image=str(image), npz=str(npz))
    with pytest.raises(ValueError, match="There is no image 'no.png'"):
        label(uvim.lm, image="no.png", npz=str(npz))


def test_a_run_leaves_a_page_with_its_curves_and_previews(trained):
    with open(os.path.join(trained.transformer, "report", "index.html")) as file:
        page = file.read()
    assert "Step 40 of 40, batches of 8" in page and "<h2>Curves</h2>" in page
    assert "<h2>Previews: " in page and "<p>Step 40</p>" in page
