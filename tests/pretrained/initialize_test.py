"""Runs that start from other weights: what is taken, what is new, what is left over."""

import functools
import json

import jax
import numpy as np
import pytest

from fsq_jax import export, train
from fsq_jax.formats import weights_file
from fsq_jax.pretrained import initialize, weights
from fsq_jax.runs import startup
from fsq_jax.runs.frozen import make_stage
from fsq_jax.runtime import sharding
from fsq_jax.runtime.batch_random_init import batch_random_init
from fsq_jax.runtime.workdir import load_config
from tests import tiny

# Of the smallest tokenizer with 2 levels of FSQ, on a VQ's weights.
NEW = {
    "params/decoder/Conv_0/kernel": ((3, 3, 2, 8), (3, 3, 8, 8)),
    "params/encoder/Conv_1/bias": ((2,), (8,)),
    "params/encoder/Conv_1/kernel": ((1, 1, 8, 2), (1, 1, 8, 8)),
}


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    """A VQ tokenizer in MaskGIT's format: (path, its parameters by path)."""
    folder = tmp_path_factory.mktemp("vq")
    workdir = tiny.untrained_tokenizer(folder / "run", "vq")
    path, _ = export.export(workdir, "msgpack", str(folder))
    return path, weights_file.flatten(weights.load(path).variables)


def started(config, path, workdir):
    """(state as drawn, state that it starts with, Start) of a config with init_from."""
    config.init_from = path
    stage = make_stage(config)
    images = jax.numpy.zeros((8, config.data.size, config.data.size, 3))
    batch = {"image": images, "label": jax.numpy.zeros(8, int)}
    shapes = startup.abstract_state(config, stage, batch)
    shardings = sharding.state_shardings(shapes, sharding.make_mesh(), fsdp=config.fsdp)
    init = jax.jit(batch_random_init(stage.init), out_shardings=shardings)
    state = init(jax.random.key(0), batch)
    start = startup.initial_weights(config, str(workdir), shapes)
    return state, start.apply_to(state, shardings, str(workdir)), start


def test_fsq_in_the_place_of_vq(vq, tmp_path, capsys):
    path, arrays = vq
    drawn, state, start = started(tiny.tokenizer(), path, tmp_path)
    assert start.new == NEW
    assert start.left_over == {"params/quantizer/codebook": (16, 8)}
    assert start.taken.keys() == arrays.keys() - NEW.keys() - start.left_over.keys()
    flat = {
        "params": weights_file.flatten({"params": state.params["tokenizer"]}),
        "ema_params": weights_file.flatten({"params": state.ema_params}),
    }
    before = weights_file.flatten({"params": drawn.ema_params})
    for ours in flat.values():
        for name, array in ours.items():
            np.testing.assert_array_equal(
                array, arrays[name] if name in start.taken else before[name]
            )
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, drawn)
    same = [
        (state.params["discriminator"], drawn.params["discriminator"]),
        (state.opt_state, drawn.opt_state),
    ]
    for ours, theirs in same:
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    said = capsys.readouterr().err
    assert f"{len(start.taken)} arrays taken" in said and "3 are new, 1 left over" in said
    assert "new: params/encoder/Conv_1/kernel (1, 1, 8, 2), there (1, 1, 8, 8)" in said
    assert "left over: params/quantizer/codebook (16, 8)" in said
    kept = json.loads((tmp_path / "init_from.json").read_text())
    assert kept["path"] == path and kept["taken"] == sorted(start.taken)
    assert kept["left_over"] == {"params/quantizer/codebook": [16, 8]}


def test_the_codebooks_of_moving_averages_are_taken(tmp_path):
    workdir = tiny.untrained_tokenizer(tmp_path / "run", "vq_ema")
    for format in ("npz", "safetensors"):
        path, _ = export.export(workdir, format, str(tmp_path))
        config = tiny.tokenizer({"loss.adversarial": 0.0}, "vq_ema")
        _, state, start = started(config, path, tmp_path)
        assert not start.new and not start.left_over
        expected = weights.load(workdir).model_state["codebook_state"]
        jax.tree.map(np.testing.assert_array_equal, state.model_state["codebook_state"], expected)


def test_a_transformer_starts_from_a_run(trained, tmp_path):
    config = load_config(trained.transformer)
    config.num_classes = 7  # another vocabulary
    _, state, start = started(config, trained.transformer, tmp_path)
    names = {"params/Embed_0/word_embeddings/embedding", "params/MlmLayer_0/mlm_bias/bias"}
    assert start.new.keys() == names and not start.left_over
    expected = weights.load(trained.transformer).params["Embed_0"]["position_embeddings"]
    for params in (state.params, state.ema_params):
        jax.tree.map(
            np.testing.assert_array_equal, params["Embed_0"]["position_embeddings"], expected
        )


def test_weights_of_which_nothing_fits_are_refused_before_the_workdir_is_made(trained, tmp_path):
    workdir = tmp_path / "run"
    config = tiny.tokenizer({"init_from": trained.transformer})
    with pytest.raises(ValueError, match="Nothing of init_from=.* fits this model: it holds .*Emb"):
        train.train(config, str(workdir))
    config.init_from = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere is not a file; expected"):
        train.train(config, str(workdir))
    assert not workdir.exists()


def test_training_starts_there_and_resumes_from_its_own(vq, tmp_path, monkeypatch, without_page):
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, 1))
    config = tiny.tokenizer(
        {
            "init_from": vq[0],
            "steps": 2,
            "checkpoint_every": 1,
            "preview_every": 2,
            "loss.adversarial": 0.0,
            "optim.learning_rate": 0.0,
            "evals": {},
        }
    )
    workdir = tmp_path / "run"
    train.train(config, str(workdir))
    after = weights_file.flatten(weights.load(str(workdir)).variables)
    taken = vq[1].keys() - NEW.keys() - {"params/quantizer/codebook"}
    for name in taken:  # nothing was learnt, at a rate of zero
        np.testing.assert_allclose(after[name], vq[1][name], rtol=1e-6)
    assert load_config(str(workdir)).init_from == vq[0]

    def unread(*arguments):
        raise AssertionError("A run that goes on reads its own checkpoint alone.")

    monkeypatch.setattr(weights, "load", unread)
    monkeypatch.setattr(initialize, "fit", unread)
    train.train(config, str(workdir))
