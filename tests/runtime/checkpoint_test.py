"""What is kept, what is read back, and what is said where there is nothing to read."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint
import pytest

from fsq_jax.runtime import checkpoint, sharding
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import differing_keys, load_config, save_config
from fsq_jax.stages.stage import TrainState
from tests import tiny

# Orbax leaves reads behind where one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step: int) -> TrainState:
    params = {"Conv_0": {"kernel": jnp.full((8, 4), step, jnp.float32)}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=({"count": jnp.int32(step)}, None),
        ema_params=jax.tree.map(lambda x: x / 2, params),
        model_state={"codebook": {"real": jnp.float32(step)}},
        frozen={"net": jnp.ones(3)},
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


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    "values, best",
    [
        ([{"other": 5.0}, {"psnr": 3.0}, {"other": -5.0}], 2),  # those without the number come last
        ([{"psnr": -3.0}, {"other": 5.0}, {}], 1),
    ],
)
def test_a_checkpoint_without_the_metric_is_never_the_best(tmp_path, mode, values, best):
    checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1, best="psnr", best_mode=mode)
    for step, metrics in enumerate(values, 1):
        checkpoints.save(state(step), {"position": step}, metrics)
    checkpoints.close()
    assert steps(tmp_path) == [best, 3]


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


def test_the_best_one_is_kept_after_a_restart(tmp_path):
    for step in range(1, 5):
        checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1, best="psnr")
        checkpoints.save(state(step), {"position": step}, {"psnr": 9.0 if step == 2 else 1.0})
        checkpoints.close()
    assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("metrics", [{}, {"other": 99.0}, {"psnr": float("nan")}])
def test_a_checkpoint_without_the_number_is_never_the_best(tmp_path, mode, metrics):
    checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1, best="psnr", best_mode=mode)
    for step, found in enumerate([{"psnr": 5.0}, metrics, metrics], 1):
        checkpoints.save(state(step), {"position": step}, found)
    checkpoints.close()
    assert steps(tmp_path) == [1, 3]


def files(folder) -> list[pathlib.Path]:
    """Those that hold a checkpoint's arrays and what it says of them."""
    inside = (p for name in ("state", "data") for p in (folder / name).rglob("*"))
    return sorted(path for path in inside if path.is_file())


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, pathlib.Path.unlink])
def test_any_damaged_file_is_named(run, tmp_path, damage):
    for number, path in enumerate(files(run / "checkpoints" / "3")):
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        path = copy / path.relative_to(run)
        damage(path)
        name = path.relative_to(copy / "checkpoints" / "3")
        message = rf"checkpoints/3/state is damaged.*{name}.*of this run: \[2\]"
        with pytest.raises(UserError, match=message):
            checkpoint.load_weights(str(copy))
        assert checkpoint.load_weights(str(copy), 2)[0] == 2
        if number % 5 == 0:  # a restore takes longer
            restored, data_state = restore(copy)
            assert int(restored.step) == data_state["position"] == 2


def test_training_goes_on_from_the_one_before_a_damaged_one(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    flip(next((folder / "3" / "state" / "d").iterdir()))
    assert restore(tmp_path / "run")[1] == {"position": 2}
    said = capsys.readouterr().err
    assert "checkpoints/3 is damaged (state/d/" in said
    assert "it is kept as 3.damaged, and that of step 2 is used" in said
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3.damaged"]
    checkpoints = checkpoint.Checkpoints(str(tmp_path / "run"), keep=1)
    assert checkpoints.latest_step == 2
    checkpoints.save(state(3), {"position": 33}, {})  # its step is free again
    checkpoints.close()
    assert restore(tmp_path / "run")[1] == {"position": 33}
    assert (folder / "3.damaged" / "state" / "_METADATA").is_file()


def test_nothing_is_moved_where_no_checkpoint_is_whole(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for step in ("2", "3"):
        cut(tmp_path / "run" / "checkpoints" / step / "state" / "_METADATA")
    with pytest.raises(UserError, match=r"checkpoints/3 is damaged .*each before it: \['2'\]"):
        restore(tmp_path / "run")
    assert steps(tmp_path / "run") == [2, 3]


def older(folder) -> None:
    """Takes the checksums away, as in checkpoints of before them."""
    for path in folder.glob("checkpoints/*/manifest.json"):
        path.unlink()


def test_checkpoints_without_checksums_are_read(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    older(tmp_path / "run")
    assert restore(tmp_path / "run")[1] == {"position": 3}
    assert checkpoint.load_weights(str(tmp_path / "run"))[0] == 3


@pytest.mark.parametrize("name, content", [
    ("state/_METADATA", b"[" * 10**5), ("state/_METADATA", b"[1]"), ("data/metadata", b"[]"),
    ("data/metadata", b'{"position": "x"}'), ("state/manifest.ocdbt", b"x"),
])  # fmt: skip
def test_damage_is_noticed_without_checksums(run, tmp_path, name, content):
    shutil.copytree(run, tmp_path / "run")
    older(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "3" / name).write_bytes(content)
    assert restore(tmp_path / "run")[1] == {"position": 2}


def test_a_pipe_in_a_checkpoint_is_not_waited_for(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "3" / "state" / "_sharding"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="state/_sharding is no plain file"):
        checkpoint.load_weights(str(tmp_path / "run"))


@pytest.mark.parametrize("change", [
    dict(shape=[2**40, 4]), dict(shape=[2**20, 2**20]), dict(chunks=[2**40, 4]),
    dict(chunks=[16, 4]),
])  # fmt: skip
def test_absurd_shapes_are_refused_before_room_is_made(run, tmp_path, change):
    shutil.copytree(run, tmp_path / "run")
    older(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "3" / "state"
    shutil.rmtree(folder)
    weights = {"ema_params": {"kernel": jnp.ones((8, 4))}, "model_state": {"x": jnp.ones(3)}}
    handler = orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=False)
    orbax.checkpoint.Checkpointer(handler).save(
        folder, args=orbax.checkpoint.args.PyTreeSave(weights)
    )
    assert checkpoint.load_weights(str(tmp_path / "run"))[0] == 3
    path = folder / "ema_params.kernel" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="checkpoints/3/state is damaged or incomplete"):
        checkpoint.load_weights(str(tmp_path / "run"))


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


@pytest.mark.parametrize(
    "config", [tiny.tokenizer(), tiny.transformer("runs/x")], ids=["tokenizer", "transformer"]
)
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
        "a": (1, "absent"),
        "b": ("absent", None),
        "model.width": (8, 16),
    }


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"stage": ')
    with pytest.raises(ValueError, match="config.json is not readable as JSON"):
        load_config(str(tmp_path))
