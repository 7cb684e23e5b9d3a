"""The benchmark times the very step that is trained, of any variant that its line can name."""

import json
import re

import pytest

from experiments.benchmarks import apart, train_step
from fsq_jax.runtime.user_error import UserError
from tests import programs, tiny

TRANSFORMER = (
    "configs/maskgit_transformer.py:scale=smoke,size=16 model.depth=1 model.width=16 "
    "model.mlp_dim=16 batch_size=8"
)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)


def test_variants_are_configs_with_overrides():
    config, tokens = train_step.load_config(f"{TRANSFORMER} --tokens")
    assert tokens and config.model.depth == 1 and config.num_classes == 30
    assert not train_step.load_config(TRANSFORMER)[1]
    with pytest.raises(ValueError, match="has no 'model.dept'; did you mean 'model.depth'"):
        train_step.load_config(f"{TRANSFORMER} model.dept=1")


def test_flops_do_not_depend_on_remat_but_on_what_the_batch_holds():
    tokens = train_step.count_flops(f"{TRANSFORMER} --tokens")
    assert train_step.count_flops(f"{TRANSFORMER} --tokens model.remat=full") == tokens
    assert train_step.count_flops(TRANSFORMER) > 2 * tokens  # which the frozen tokenizer makes


def test_program_records_what_runs_and_what_fails(tmp_path):
    out = tmp_path / "speed.jsonl"
    done = programs.run(
        "experiments.benchmarks.train_step",
        "--blocks=1",
        "--kernels",
        "--traced=2",
        "--steps=1",
        f"--out={out}",
        f"{TRANSFORMER} --tokens",
        f"{TRANSFORMER} model.num_heads=3",
        **tiny.ONE_DEVICE,
    )
    assert done.returncode == 0, done.stderr
    good, bad = map(json.loads, out.read_text().splitlines())
    assert good["step_ms"] > 0 and good["images_per_second"] > 0 and good["tflops"] > 0
    assert good["kernels"] == [] and good["traced"] == 2  # a CPU has no kernels
    assert "no multiple of num_heads=3" in bad["error"] and "step_ms" not in bad


LANGUAGE_MODEL = "configs/uvim_lm.py:scale=smoke,size=16,task=panoptic"


def test_batches_hold_what_the_task_is_trained_on():
    config, tokens = train_step.load_config(f"{LANGUAGE_MODEL} --tokens batch_size=8")
    stage = tiny.stage_of_shapes(config)
    cached = train_step.random_batch(config, stage, tokens)
    assert set(cached) == {"image", "tokens", "label"} and cached["tokens"].shape == (8, 16)
    batch = train_step.random_batch(config, stage, tokens=False, size=2)
    assert batch["segments"].shape == (2, 16, 16, 2)


def test_decoding_is_timed_for_each_batch(tmp_path):
    out = tmp_path / "decode.jsonl"
    done = programs.run(
        "experiments.benchmarks.decode",
        "--repeats=1",
        "--kernels",
        "--batches=1,2",
        f"--out={out}",
        LANGUAGE_MODEL,
        **tiny.ONE_DEVICE,
    )
    assert done.returncode == 0, done.stderr
    lines = list(map(json.loads, out.read_text().splitlines()))
    assert [line["batch_size"] for line in lines] == [1, 2], lines
    for line in lines:
        assert (
            line["kernels"] == []
            and line["batch_ms"] > 0
            and line["tokens_per_second"] > line["images_per_second"] > 0
        )


def test_changes_outside_of_a_variants_quotes_are_refused_and_not_left_out():
    assert apart.variants(["a.py:x=1 y=2", "ceilings"], one=False) == ["a.py:x=1 y=2", "ceilings"]
    for arguments, one, says in (
        ([], False, "Name what to measure"),
        (["a.py:x=1", "batch_size=32"], True, "as in 'a.py:x=1 batch_size=32'"),
        (["a.py:x=1", "b.py"], True, "--one measures one variant, and there are 2"),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            apart.variants(arguments, one)
