"""From a config's quantizer=NAME to samples: trained, evaluated, exported, loaded, sampled.

`python -m tests.quantizers.whole_path_test` walks it with every quantizer, which takes minutes. The
test takes the one that has both parameters and running state, and leaves out the training, of which
tests/stages and tests/configs_test.py have some.
"""

import os
import sys
import tempfile
from collections.abc import Callable

import jax
import numpy as np
import pytest

from fsq_jax import describe, evaluate, export, quantizers, runs, train
from fsq_jax.runtime.workdir import load_results, metric_values
from fsq_jax.stages.blank import blank_batch
from tests import tiny

MORE = {"residual_fsq": {"quantizer.scaling": "layer_norm"}}


def walk(name: str, folder: str, make: Callable = train.train) -> None:
    """Raises where a stage I with this quantizer, or a stage II on it, isn't as it should be.

    make: (config, workdir) -> writes a run.
    """
    changes = {"steps": 3, "checkpoint_every": 3, "loss.adversarial": 0.0} | MORE.get(name, {})
    config = tiny.tokenizer(changes, name)
    workdir, second = os.path.join(folder, "tokenizer"), os.path.join(folder, "transformer")
    make(config, workdir)
    run = runs.load(workdir)
    size = quantizers.of_config(config).codebook_size
    assert run.facts.codebook_size == size and run.facts.levels == quantizers.levels(
        quantizers.of_config(config)
    )
    said = describe.text(describe.describe(config))
    assert f"codes: {size} of {name}; 16 tokens an image" in said

    evaluate.evaluate(workdir)
    values = metric_values(load_results(workdir))
    assert 0 < values["codebook/usage"] <= 1
    assert os.path.exists(os.path.join(workdir, "codebook", "index.html"))

    # An export alone, without the workdir, gives the same pictures.
    file, card = export.export(workdir, "safetensors", os.path.join(folder, "export"))
    assert f"name={name}" in open(card).read()
    batch = {"image": np.random.default_rng(0).uniform(size=(8, 8, 8, 3)).astype(np.float32)}

    def pictures(path: str):
        loaded = runs.load(path)
        predict = loaded.predict["reconstruct"]
        return predict(loaded.state, loaded.put(batch), jax.random.key(0))

    ours, theirs = (jax.device_get(pictures(path)) for path in (workdir, file))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    encode, decode, _ = export.export(workdir, "jax-export", os.path.join(folder, "functions"))
    called = [jax.export.deserialize(open(path, "rb").read()).call for path in (encode, decode)]
    indices = called[0](batch["image"])
    assert (np.asarray(indices) == ours["indices"]).mean() > 0.95  # compiled apart: ties may fall
    np.testing.assert_allclose(called[1](ours["indices"]), ours["reconstruction"], atol=1e-3)
    readable = name in ("fsq", "grouped_fsq", "vq")
    if readable:
        export.export(workdir, "msgpack", os.path.join(folder, "msgpack"))
    else:
        with pytest.raises(ValueError, match="safetensors holds all"):
            export.export(workdir, "msgpack", os.path.join(folder, "msgpack"))

    make(tiny.transformer(workdir, {"steps": 3}), second)
    loaded = runs.load(second, file)
    labels = loaded.put({"label": np.arange(8, dtype=np.int32)})
    drawn = jax.device_get(loaded.predict["sample"](loaded.state, labels, jax.random.key(0)))
    assert drawn["tokens"].max() < size and np.isfinite(drawn["image"]).all()


def trace_uvim(name: str) -> None:
    """The same of UViM's stage I, as shapes: what is computed is what the tokenizer computes."""
    config = tiny.label_coder(MORE.get(name), quantizer=name)
    stage, batch = tiny.stage_of_shapes(config), blank_batch(config, 8)
    state = jax.eval_shape(stage.init, jax.random.key(0), batch)
    moved, _ = jax.eval_shape(stage.update, state, batch, jax.random.key(0))
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    jax.eval_shape(stage.predict["prediction"], state, batch, jax.random.key(0))


def test_the_whole_path(tmp_path):
    walk("residual_fsq", str(tmp_path), tiny.untrained)
    trace_uvim("residual_fsq")


def test_both_families_hand_the_noise_its_key():
    changes = {"quantizer.noise": 0.5}
    for config in (tiny.tokenizer(changes | {"loss.adversarial": 0.0}), tiny.label_coder(changes)):
        stage, batch = tiny.stage_of_shapes(config), blank_batch(config, 8)
        state = jax.eval_shape(stage.init, jax.random.key(0), batch)
        jax.eval_shape(stage.update, state, batch, jax.random.key(0))


def main(names) -> None:
    for name in names or quantizers.QUANTIZERS:
        with tempfile.TemporaryDirectory() as folder:
            walk(name, folder)
        trace_uvim(name)
        print(name, "ok", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
