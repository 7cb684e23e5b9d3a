"""The quickstart's configs can be run, and what is done is not done again."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import maskgit_tokenizer
from experiments.quickstart import maskgit as quickstart
from experiments.quickstart import runner, uvim
from fsq_jax import quantizers
from fsq_jax.runs import costs, startup
from fsq_jax.runs.config import resolve_config
from fsq_jax.runs.frozen import make_stage
from fsq_jax.runtime.workdir import save_results
from tests import tiny


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
@pytest.mark.parametrize("scale", [0.001, 0.01, 1.0])
def test_tokenizer_configs_build(quantizer, scale):
    config = resolve_config(quickstart.tokenizer_config(quantizer, scale))
    stage = make_stage(config)
    batch = {"image": jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")}
    state = jax.eval_shape(stage.init, jax.random.key(0), batch)
    assert state.ema_params and stage.facts.downsampling == 4
    assert config.optim.warmup_steps < config.steps


def test_both_tokenizers_differ_in_the_quantizer_alone():
    fsq, vq = (quickstart.tokenizer_config(name).to_dict() for name in ("fsq", "vq"))
    sizes = [quantizers.make(**config.pop("quantizer")).codebook_size for config in (fsq, vq)]
    assert sizes == [quickstart.CODEBOOK_SIZE] * 2
    assert fsq == vq


def test_transformer_config_builds():
    config = quickstart.transformer_config("no/such/run", "no/such/cache", scale=0.01)
    tokenizer = quickstart.tokenizer_config("fsq", 0.01)
    config.stage_1.model, config.stage_1.quantizer = tokenizer.model, tokenizer.quantizer
    config.num_classes = 30
    stage = tiny.stage_of_shapes(config)
    state = jax.eval_shape(stage.init, jax.random.key(0), {})
    assert state.params and stage.facts.grid == 8
    assert config.optim.warmup_steps < config.steps


def test_no_key_is_misspelt():
    known = maskgit_tokenizer.get_config("scale=smoke").to_dict()
    ours = quickstart.tokenizer_config("fsq").to_dict()
    assert set(ours) == set(known)
    for name in ("model", "optim", "loss", "data"):
        assert set(ours[name]) == set(known[name])


def test_the_report_says_what_the_data_is(tmp_path):
    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(40):
                image = Image.new("RGB", (4, 4), (number, 0, 0))
                image.save(tmp_path / split / name / f"{number}.png")
    config = quickstart.tokenizer_config("fsq", 0.001, f"data=folder:{tmp_path}")
    text = quickstart.INTRODUCTION.format(data=runner.described(config))
    assert "80 images of 32 x 32 pixels" in text and "2 classes: cat, dog" in text
    assert "scenes" not in text
    scenes = runner.described(uvim.base_config("fsq", 0.001))
    assert "'scenes'" in scenes and "classes" in scenes


def test_time_is_kept_only_where_something_was_done(tmp_path):
    runner.timed(str(tmp_path), "fsq", "FSQ", lambda: True)
    first = json.loads((tmp_path / "times.json").read_text())
    runner.timed(str(tmp_path), "fsq", "FSQ", lambda: False)
    assert runner.load_times(str(tmp_path)) == first
    runner.timed(str(tmp_path), "fsq", "FSQ", lambda: True)
    assert runner.load_times(str(tmp_path))["fsq"] > first["fsq"]


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    config = quickstart.tokenizer_config("fsq", 0.01)
    resolved = resolve_config(config)
    startup.claim_workdir(str(tmp_path), resolved, make_stage(resolved))
    results = {"codebook/usage": {"value": 1.0, "protocol": {}, "step": config.steps}}
    save_results(str(tmp_path), results)
    (tmp_path / "checkpoints" / str(config.steps)).mkdir(parents=True)
    monkeypatch.setattr(runner.train, "train", lambda *_: pytest.fail("trained again"))
    assert not runner.train_once(config, str(tmp_path))
    with pytest.raises(ValueError, match="another config"):
        runner.train_once(quickstart.tokenizer_config("fsq", 0.02), str(tmp_path))


@pytest.mark.parametrize("scale", [0.001, 1.0])
def test_uvim_configs_build_and_differ_in_the_quantizer_alone(scale):
    bases = [uvim.base_config(quantizer, scale) for quantizer in runner.QUANTIZERS]
    for config in bases:
        make_stage(resolve_config(config))
        assert config.optim.warmup_steps < config.steps
    fsq, vq = (config.to_dict() for config in bases)
    sizes = [quantizers.make(**config.pop("quantizer")).codebook_size for config in (fsq, vq)]
    assert sizes == [240, 240] and fsq == vq
    lm = uvim.lm_config("vq", "no/such/run", scale)
    assert lm.task == bases[1].task and lm.data.train_split == bases[1].data.train_split
    _, state, _ = costs.shapes_of(lm)
    assert state.params and lm.optim.warmup_steps < lm.steps


def folder_of_images(path, count):
    """`count` small pictures of each of two classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (path / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path / name / f"{i}.png")
    return f"data=folder:{path}"


@pytest.mark.parametrize("count", [2, 60])
def test_a_folder_of_few_images_is_taken_whole(tmp_path, count):
    data = folder_of_images(tmp_path, count)
    config = resolve_config(quickstart.tokenizer_config("fsq", 0.01, data))
    assert (config.data.train_split, config.data.eval_split) == ("train", "validation")
    assert config.evals.reconstruction.get("reference_limit") == 0
    few = count == 2  # one is held out: nothing to measure a distance of
    assert (config.evals.reconstruction.features == "") == few
    text = runner.described(config)
    assert "8 x 8" not in text and "32 x 32 pixels" in text and "2 classes: cat, dog" in text


def test_scenes_and_tfds_are_cut(tmp_path):
    config = quickstart.tokenizer_config("fsq", 0.01)
    assert config.data.train_split == "train[:64]" and config.data.eval_split == "validation[:32]"
