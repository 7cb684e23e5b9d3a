"""The benchmark times the very step that is trained, of any variant that its line can name."""

import json
import os
import subprocess
import sys

import pytest

from experiments.benchmarks import train_step
from tests import tiny

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
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.train_step", "--blocks=1", "--steps=1",
         f"--out={out}", f"{TRANSFORMER} --tokens", f"{TRANSFORMER} model.num_heads=3"],
        cwd=tiny.ROOT, capture_output=True, text=True,
        env=os.environ | {
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    good, bad = map(json.loads, out.read_text().splitlines())
    assert good["step_ms"] > 0 and good["images_per_second"] > 0 and good["tflops"] > 0
    assert "no multiple of num_heads=3" in bad["error"] and "step_ms" not in bad
