"""Files of weights, sampled and evaluated without a workdir, as the runs that they came from."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from fsq_jax import evaluate, export, runs, sample
from fsq_jax.pretrained.uvim import load_uvim_base
from fsq_jax.runs.frozen import load_stage_1
from fsq_jax.runtime.workdir import metric_values
from tests.programs_test import run_sample

DATA = {
    "data.source": "scenes",
    "data.size": 16,
    "data.train_split": "train[:32]",
    "data.eval_split": "validation[:20]",
    "eval_batch_size": 8,
}


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """{"tokenizer.FORMAT": path, "transformer.FORMAT": path}."""
    folder = tmp_path_factory.mktemp("files")
    return {
        f"{name}.{format}": export.export(getattr(trained, name), format, str(folder / name))[0]
        for name in ("tokenizer", "transformer")
        for format in ("safetensors", "msgpack")
    }


def tokens(run) -> np.ndarray:
    batch = {"label": np.arange(8, dtype=np.int32)}
    out = run.predict["sample"](run.state, run.put(batch), jax.random.key(0))
    return jax.device_get(out["tokens"])


def test_a_pair_of_files_samples_what_its_runs_do(trained, files):
    run = runs.load(trained.transformer)
    config = run.config
    expected = tokens(run)
    pair = (files["transformer.safetensors"], files["tokenizer.safetensors"])
    np.testing.assert_array_equal(tokens(runs.load(*pair)), expected)
    sampling = {f"sampling.{name}": value for name, value in config.sampling.items()}
    loaded = runs.load(
        files["transformer.msgpack"],
        files["tokenizer.safetensors"],
        overrides=sampling | {"eval_batch_size": 8},
    )
    assert loaded.config.data.size == 16 and loaded.config.num_classes == 30
    np.testing.assert_array_equal(tokens(loaded), expected)


def test_a_file_evaluates_as_its_run(trained, files, tmp_path):
    run = runs.load(trained.tokenizer)
    expected = metric_values(evaluate.measure(run, ["codebook"]))
    fsq = {"quantizer.levels": (5, 3), "model.num_groups": 2}
    out = tmp_path / "results.json"
    for format, overrides in (("safetensors", {}), ("msgpack", DATA | fsq)):
        path = files[f"tokenizer.{format}"]
        results = evaluate.evaluate(path, ["codebook"], overrides=overrides, out=str(out))
        assert metric_values(results) == pytest.approx(expected)
        assert json.loads(out.read_text()) == json.loads(json.dumps(results))
        protocol = results["codebook/usage"]["protocol"]
        assert protocol["weights_file"] == path
        assert protocol["fingerprint"] == load_stage_1(trained.tokenizer).fingerprint
        assert (protocol["data"], protocol["size"]) == ("scenes", 16)


def test_the_programs_take_files(files, tmp_path):
    out, image, mask = (str(tmp_path / name) for name in ("out.png", "in.png", "mask.png"))
    transformer = files["transformer.msgpack"]
    pair = dict(
        stage_1=files["tokenizer.safetensors"],
        set=["sampling.num_steps=2", "eval_batch_size=8", "sampling.guidance=1.0"],
    )
    run_sample(transformer, labels="3,7", num=4, out=out, **pair)
    assert Image.open(out).size == (4 * 18 + 2, 18 + 2)
    for path, color in ((image, 90), (mask, 255)):
        Image.new("L", (16, 16), color).save(path)
    run_sample(transformer, labels="2", num=3, out=out, image=image, mask=mask, **pair)
    assert Image.open(out).size == (3 * 18 + 2, 18 + 2)


def test_names_of_other_data_are_not_the_models(files):
    run = runs.load(
        files["transformer.msgpack"],
        files["tokenizer.safetensors"],
        overrides={"data.source": "scenes"},
    )
    assert len(sample.class_names(run)) == 30 and "red" in sample.class_names(run)[0]
    facts = dataclasses.replace(run.facts, num_classes=12)
    other = dataclasses.replace(run, stage=dataclasses.replace(run.stage, facts=facts))
    assert sample.class_names(other) == [str(label) for label in range(12)]


def test_what_does_not_go_together_is_refused(trained, files, shared):
    tokenizer, transformer = files["tokenizer.safetensors"], files["transformer.msgpack"]
    with pytest.raises(ValueError, match="holds a MaskGIT transformer, .* give --stage_1=P"):
        runs.load(transformer)
    with pytest.raises(ValueError, match="is no stage II, which alone takes a stage_1="):
        runs.load(tokenizer, tokenizer)
    with pytest.raises(ValueError, match="no codebook, .* give its 2 levels"):
        runs.load(files["tokenizer.msgpack"])
    with pytest.raises(ValueError, match="no codebook, .* give its 2 levels"):
        runs.load(transformer, files["tokenizer.msgpack"])
    with pytest.raises(ValueError, match="17 positions, the class and 16 tokens, but images of 32"):
        runs.load(transformer, tokenizer, overrides={"data.size": 32})
    with pytest.raises(
        ValueError, match="of stage 'maskgit_transformer'; one of stage 'maskgit_tokenizer' is"
    ):
        runs.load(transformer, trained.transformer)
    other = str(shared / "oracles" / "maskgit_tokenizer" / "checkpoint.msgpack")
    with pytest.raises(ValueError, match="trained on stage I .* but .* holds"):
        runs.load(files["transformer.safetensors"], other)
    with pytest.raises(ValueError, match="holds another network .*; expected a MaskGIT tok"):
        runs.load(str(shared / "oracles" / "uvim_lm" / "expected.npz"))
    with pytest.raises(ValueError, match="step=3 is one of a run's checkpoints; .* is a file."):
        run_sample(files["transformer.safetensors"], step=3, out="x.png")


def test_uvims_pair_is_the_same_door(shared):
    base, lm = (
        str(shared / "oracles" / name / "checkpoint.npz") for name in ("uvim_depth", "uvim_lm")
    )
    run = runs.load(base, overrides={"data.source": "scenes"})
    config, stage = run.config, run.stage
    assert (config.stage, config.data.size, config.task.num_bins) == ("uvim_base", 64, 16)
    assert stage.facts.codebook_size == 32 and set(config.evals) == {"codebook", "depth"}
    expected = np.load(shared / "oracles" / "uvim_depth" / "expected.npz")
    ours = load_uvim_base(base)
    batch = {
        "image": np.zeros((8, 64, 64, 3), np.float32),
        "depth": np.full((8, 64, 64), 3.0, np.float32),
    }
    indices = jax.device_get(run.predict["indices"](run.state, run.put(batch), None)["indices"])
    bins = np.full((8, *expected["ids_depth"].shape[1:]), 4, np.int32)
    np.testing.assert_array_equal(indices, ours.encode({"depth": bins}, batch["image"] * 2 - 1))
    with pytest.raises(ValueError, match="holds a UViM stage II, .* give --stage_1=PATH"):
        runs.load(lm)
    with pytest.raises(ValueError, match="of other images .data.size: 64 there, 32 here"):
        runs.load(lm, base)
