"""The benchmark of published pairs runs, and its full-size networks are MaskGIT's."""

import json

import jax
import jax.numpy as jnp

from experiments.benchmarks import pretrained
from tests import programs, tiny


def test_networks_are_maskgits():
    tokenizer, transformer = pretrained.networks(smoke=False)
    inputs = {tokenizer: jnp.zeros((1, 256, 256, 3)), transformer: jnp.zeros((1, 257), int)}
    counts = [
        sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), array))
        )
        for model, array in inputs.items()
    ]
    assert counts == [54_515_587, 172_457_193]


def test_program_writes_a_line_a_dtype(tmp_path):
    out = tmp_path / "pretrained.jsonl"
    done = programs.run(
        "experiments.benchmarks.pretrained",
        "--smoke",
        "--batches=1",
        "--num_steps=2",
        f"--out={out}",
        **tiny.ONE_DEVICE,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["dtype"] for line in lines] == ["bfloat16", "float32"]
    for line in lines:
        assert line["images_per_second"] > 0 and line["compile_seconds"] > 0
        assert line["load_tokenizer_seconds"] > 0 and line["load_transformer_seconds"] > 0
        assert (line["size"], line["num_steps"], line["batch_size"]) == (32, 2, 1)
