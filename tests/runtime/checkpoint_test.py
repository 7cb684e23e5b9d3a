"""What is kept, what is read back, and what is said where there is nothing to read."""

import logging
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from fsq_jax.runtime import checkpoint, sharding
from fsq_jax.runtime.workdir import differing_keys, load_config, save_config
from fsq_jax.stages.stage import TrainState
from tests import tiny

# Orbax leaves reads behind where one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step: int) -> TrainState:
    params = {"Conv_0": {"kernel": jnp.full((8, 4), step, jnp.float32)}}
    return TrainState(
        step=jnp.int32(step), params=params, opt_state=({"count": jnp.int32(step)}, None),
        ema_params=jax.tree.map(lambda x: x / 2, params),
        model_state={"codebook": {"real": jnp.float32(step)}}, frozen={"net": jnp.ones(3)},
    )


def save(workdir, values, **arguments) -> None:
    """One checkpoint for each of `values`, which are what an evaluation gave, or None."""
    checkpoints = checkpoint.Checkpoints(str(workdir), **arguments)
    for step, value in enumerate(values, 1):
        metrics = {} if value is None else {"psnr": value}
        checkpoints.save(state(step), {"position": step}, metrics)
    checkpoints.close()


def restore(workdir):
    shapes = jax.eval_shape(lambda: state(0)).replace(frozen=None)
    shardings = sharding.state_shardings(shapes, sharding.make_mesh(), fsdp=True, min_size=8)
    checkpoints = checkpoint.Checkpoints(str(workdir))
    try:
        return checkpoints.restore(shapes, shardings)
    finally:
        checkpoints.close()


def steps(workdir) -> list[int]:
    folders = (pathlib.Path(workdir) / "checkpoints").iterdir()
    return sorted(int(folder.name) for folder in folders)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, [None, None, None], keep=2)
    return workdir


def test_the_last_ones_are_kept(run):
    assert steps(run) == [2, 3]


@pytest.mark.parametrize("mode, best", [("max", 2), ("min", 1)])
def test_the_best_one_is_kept_as_well(tmp_path, mode, best):
    values = [1.0, 9.0, None, 5.0, None]
    save(tmp_path, values, keep=1, best="psnr", best_mode=mode)
    assert steps(tmp_path) == [best, 5]


def test_restored_is_what_was_saved_where_it_belongs(run):
    restored, data_state = restore(run)
    assert data_state == {"position": 3}
    saved = state(3).replace(frozen=None)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    kernel = restored.params["Conv_0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 4)  # read in eight parts


def test_a_step_is_not_saved_twice(run):
    checkpoints = checkpoint.Checkpoints(str(run), keep=2)
    checkpoints.save(state(3).replace(params={}), {"position": 0}, {})
    checkpoints.close()
    assert restore(run)[1] == {"position": 3}


def test_weights_for_reuse_are_the_averages(run):
    step, weights = checkpoint.load_weights(str(run))
    assert step == 3 and set(weights) == {"ema_params", "model_state"}
    np.testing.assert_array_equal(weights["ema_params"]["Conv_0"]["kernel"], np.full((8, 4), 1.5))
    assert isinstance(weights["ema_params"]["Conv_0"]["kernel"], np.ndarray)
    assert checkpoint.load_weights(str(run), 2)[1]["model_state"]["codebook"]["real"] == 2


def test_frozen_weights_are_not_saved(run):
    names = [p.name for p in (run / "checkpoints" / "3" / "state").rglob("*")]
    content = (run / "checkpoints" / "3" / "state" / "_METADATA").read_text()
    assert "ema_params" in content and "frozen" not in content
    assert not [name for name in names if "frozen" in name]


def test_missing_checkpoints_are_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint of step 7; there are \[2, 3\]"):
        checkpoint.load_weights(str(run), 7)
    with pytest.raises(ValueError, match="no checkpoint; there are none"):
        checkpoint.load_weights(str(tmp_path))


def damage(folder) -> None:
    """Cuts every file short."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, caplog):
    save(tmp_path, [None, None], keep=2)
    damage(tmp_path / "checkpoints" / "2" / "state")
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ValueError, match=r"checkpoints/2 is damaged.*one before it: \[1\]"):
        restore(tmp_path)
    with pytest.raises(ValueError, match="is damaged or incomplete"):
        checkpoint.load_weights(str(tmp_path))


def test_a_checkpoint_of_another_model_is_an_error(run):
    other = state(0)
    other.params["Conv_0"]["kernel"] = jnp.zeros((16, 4))
    shapes = jax.eval_shape(lambda: other)
    shardings = sharding.state_shardings(shapes, sharding.make_mesh(), fsdp=False)
    checkpoints = checkpoint.Checkpoints(str(run), keep=2)
    with pytest.raises(ValueError, match="belongs to another model"):
        checkpoints.restore(shapes, shardings)
    checkpoints.close()


@pytest.mark.parametrize("arguments", [dict(keep=0), dict(best_mode="most")])
def test_impossible_rules_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        checkpoint.Checkpoints(str(tmp_path), **arguments)


def test_fingerprint_tells_weights_apart():
    weights = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    prints = [
        checkpoint.fingerprint(tree)
        for tree in (
            weights,
            weights | {"b": np.array([1, 1 + 1e-6], np.float32)},
            weights | {"b": np.ones(2, np.float16)},
            weights | {"a": np.zeros((3, 2), np.float32)},
            {"a": weights["a"], "c": weights["b"]},
        )
    ]
    assert len(set(prints)) == len(prints) and all(len(p) == 16 for p in prints)
    same = {"b": jnp.ones(2), "a": jnp.zeros((2, 3))}
    assert checkpoint.fingerprint(same) == prints[0]


@pytest.mark.parametrize("config", [tiny.tokenizer(), tiny.transformer("runs/x")],
                         ids=["tokenizer", "transformer"])
def test_config_is_the_same_after_json(tmp_path, config):
    save_config(str(tmp_path), config)
    loaded = load_config(str(tmp_path))
    assert loaded.to_dict() == config.to_dict()
    assert not differing_keys(config.to_dict(), loaded.to_dict())


def test_config_keeps_tuples(tmp_path):
    nested = dict(pairs=((1, 2), (3, 4)))
    config = ml_collections.ConfigDict(dict(stage="x", levels=(8, 5), nested=nested))
    save_config(str(tmp_path), config)
    assert load_config(str(tmp_path)).to_dict() == config.to_dict()


@pytest.mark.parametrize("text", ["{}", "[1]", "3"])
def test_json_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="is not a config of fsq_jax: it names no stage"):
        load_config(str(tmp_path))


def test_differing_keys_are_dotted():
    ours = dict(a=1, model=dict(width=8, depth=2), levels=(8, 5))
    theirs = dict(model=dict(width=16, depth=2), levels=[8, 5], b=None)
    assert differing_keys(ours, theirs) == {
        "a": (1, "absent"), "b": ("absent", None), "model.width": (8, 16),
    }


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"stage": ')
    with pytest.raises(ValueError, match="config.json is not readable as JSON"):
        load_config(str(tmp_path))
