"""FSQ from a VQ's weights: both runs are alike, and what is recorded is what happened."""

import json

import jax
import pytest

from experiments import finetune_fsq
from fsq_jax import stages
from fsq_jax.formats import weights_file
from fsq_jax.runs.config import resolve_config
from fsq_jax.runs.frozen import make_stage
from tests import tiny


@pytest.mark.parametrize("steps", [2, 200])
def test_configs_build_and_differ_in_the_quantizer_alone(steps):
    fsq, vq = (finetune_fsq.make_config(name, steps, 32) for name in ("fsq", "vq"))
    for config in (fsq, vq):
        assert make_stage(resolve_config(config)).facts.codebook_size == 240
    fsq, vq = fsq.to_dict(), vq.to_dict()
    assert fsq.pop("quantizer") != vq.pop("quantizer")
    assert fsq == vq


def test_a_file_gives_the_runs_its_sizes(tmp_path):
    vq = finetune_fsq.make_config("vq", 2, 32)
    vq.model.update(filters=8, channel_multipliers=(1, 2), shortcut="output")
    model = stages.maskgit_tokenizer.make_model(vq)
    path = str(tmp_path / "vq")
    images = jax.numpy.zeros((1, 32, 32, 3))
    weights_file.write_msgpack(path, tiny.random_variables(model, images)["params"])
    config = finetune_fsq.make_config("fsq", 2, 32)
    finetune_fsq.fit_sizes(config, path)
    assert config.model == vq.model


def test_the_record_says_where_the_curves_meet(tmp_path):
    losses = {"from_vq": [0.5, 0.3, 0.2], "scratch": [0.9, 0.6, 0.4]}
    for name, values in losses.items():
        folder = tmp_path / name
        folder.mkdir()
        lines = [{"step": i + 1, "split": "train", "loss": v} for i, v in enumerate(values)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "config.json").write_text('{"stage": "maskgit_tokenizer"}')
    start = {"path": "a/b", "taken": ["x"], "new": {}, "left_over": {}}
    (tmp_path / "from_vq" / "init_from.json").write_text(json.dumps(start))
    folders = {name: str(tmp_path / name) for name in losses}
    record = finetune_fsq.record("a/b", folders)
    assert record["start"] == start | {"path": "b"}
    assert record["losses"]["scratch"] == [[1, 0.9], [2, 0.6], [3, 0.4]]
    assert record["step_at_which_from_vq_is_at_the_lowest_loss_from_scratch"] == 2
