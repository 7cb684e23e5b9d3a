"""Arrays lie where they should, and a run is the same on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fsq_jax import train
from fsq_jax.runs.frozen import make_stage
from fsq_jax.runtime import checkpoint, sharding
from fsq_jax.runtime.batch_random_init import batch_random_init
from tests import tiny

KEY = jax.random.key(0)
MIN_SIZE = 128  # elements; far below the 2**18 of a real run, since nothing here is as large


def spec(shape, num_devices=8, **arguments):
    mesh = sharding.make_mesh(num_devices)
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    return sharding.state_shardings(leaf, mesh, **{"fsdp": True, "min_size": 8} | arguments).spec


def test_fsdp_cuts_along_the_largest_axis_that_divides():
    assert spec((3, 3, 16, 64)) == P(None, None, None, "data")
    assert spec((3, 3, 64, 16)) == P(None, None, "data")
    assert spec((16, 16)) == P(None, "data")  # of equal ones the last
    assert spec((100, 16)) == P(None, "data")  # 100 is no multiple of 8


def test_what_is_small_or_cannot_be_cut_is_replicated():
    assert spec((3, 5, 7)) == P()
    assert spec(()) == P()
    assert spec((16, 16), min_size=257) == P()
    assert spec((16, 16), fsdp=False) == P()
    assert spec((16, 16), num_devices=1) == P()


def test_the_default_leaves_small_arrays_whole():
    mesh = sharding.make_mesh()
    leaves = [jax.ShapeDtypeStruct((n, 512), jnp.float32) for n in (511, 512)]
    whole, cut = sharding.state_shardings(leaves, mesh, fsdp=True)
    assert whole.is_fully_replicated and not cut.is_fully_replicated


def test_arrays_go_to_the_devices_and_come_back():
    mesh = sharding.make_mesh()
    rows = np.arange(16, dtype=np.float32).reshape(16, 1)
    batch = sharding.put_batch({"image": rows}, mesh)
    assert batch["image"].sharding.spec == P("data")
    assert batch["image"].addressable_shards[3].data.tolist() == [[6], [7]]
    cut = sharding.state_shardings({"a": rows}, mesh, fsdp=True, min_size=1)
    for shardings in (sharding.replicated(mesh), cut):
        placed = sharding.put({"a": rows}, shardings)
        np.testing.assert_array_equal(sharding.to_host(placed)["a"], rows)
    assert placed["a"].addressable_shards[3].data.shape == (2, 1)
    assert sharding.put(None, sharding.replicated(mesh)) is None


@pytest.mark.parametrize("size, accumulate, nearest", [(12, 1, 16), (8, 2, 16), (3, 1, 8)])
def test_batches_that_do_not_fit_are_refused_with_one_that_does(size, accumulate, nearest):
    with pytest.raises(ValueError, match=f"batch_size={size} .* nearest that is: {nearest}"):
        sharding.check_batch_size(size, accumulate)
    sharding.check_batch_size(nearest, accumulate)


def test_devices_that_a_batch_cannot_be_cut_over_may_stay_idle():
    assert sharding.training_mesh(12, idle_devices=True).size == 6
    assert sharding.training_mesh(256, idle_devices=True).size == 8
    assert sharding.training_mesh(12, 4, idle_devices=True).size == 3
    assert sharding.training_mesh(1, idle_devices=True).size == 1
    with pytest.raises(ValueError, match="batch_size=12 is not a multiple of 8 devices"):
        sharding.training_mesh(12)


def test_a_batch_is_filled_up_to_the_devices():
    mesh = sharding.make_mesh()
    assert [sharding.padded(size, mesh) for size in (1, 5, 8, 9)] == [8, 8, 8, 16]
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        sharding.padded(0, mesh)


def test_computing_in_64_bits_is_refused():
    with jax.enable_x64(True), pytest.raises(ValueError, match="JAX_ENABLE_X64 is set"):
        sharding.make_mesh()


def test_half_a_cluster_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES"):
        sharding.initialize_distributed()


def images(rows=8):
    rng = np.random.default_rng(0)
    return {
        "image": rng.random((rows, 8, 8, 3), np.float32),
        "label": rng.integers(0, 3, rows, np.int32),
        "mask": np.ones(rows, bool),
        "depth": rng.uniform(1, 9, (rows, 8, 8)).astype(np.float32),
    }


def cut_first_state(stage):
    """The state before the first step, on eight devices, each array made where it lies."""
    mesh = sharding.make_mesh()
    batch = sharding.put_batch(images(), mesh)
    shapes = jax.eval_shape(stage.init, KEY, batch)
    shardings = sharding.state_shardings(shapes, mesh, fsdp=True, min_size=MIN_SIZE)
    return jax.jit(batch_random_init(stage.init), out_shardings=shardings)(KEY, batch)


def updates(stage, state, num_devices, fsdp, num_steps=3):
    """(metrics of each step, state after the last), the way that the loop makes them."""
    mesh, state = sharding.make_mesh(num_devices), state.replace(frozen=stage.frozen)
    shardings = sharding.state_shardings(state, mesh, fsdp=fsdp, min_size=MIN_SIZE)
    state = sharding.put(state, shardings)
    update = jax.jit(
        stage.update,
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    batch, metrics = sharding.put_batch(images(), mesh), []
    for _ in range(num_steps):
        state, values = update(state, batch, KEY)
        metrics.append(jax.device_get(values))
    return metrics, state


def assert_close(ours, theirs):
    """Equal to rounding in the first step; Adam then makes more of what is next to nothing."""
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                a[name], b[name], rtol=1e-4 if step == 0 else 5e-3, atol=1e-5, err_msg=name
            )


def cut_leaves(tree):
    return [x for x in jax.tree.leaves(tree) if not x.sharding.is_fully_replicated]


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory):
    return tiny.untrained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def label_coder_run(tmp_path_factory):
    return tiny.untrained(tiny.label_coder(), tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("name", ["fsq", "vq", "vq_ema", "maskgit", "uvim_base", "uvim_lm"])
def test_same_metrics_on_one_device_and_on_eight(name, tokenizer_run, label_coder_run):
    if name == "maskgit":
        config = tiny.transformer(tokenizer_run)
    elif name == "uvim_base":
        config = tiny.label_coder(quantizer="vq_ema")  # with splitting, and code dropout
    elif name == "uvim_lm":
        config = tiny.code_model(label_coder_run)
    elif name == "fsq":
        config = tiny.tokenizer({"loss.lecam": 0.1, "loss.r1_every": 2})
    else:
        config = tiny.tokenizer({"loss.adversarial": 0.0}, name)
    stage = make_stage(config)
    first = sharding.to_host(tiny.first_state(stage, images()))
    alone, _ = updates(stage, first, 1, fsdp=False)
    if name == "vq":  # once, of what compiles soonest: none of it depends on the stage
        made = cut_first_state(stage)
        assert cut_leaves(made.params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), made, first)
        copied, state = updates(stage, first, 8, fsdp=False)
        assert not cut_leaves(state)
        assert_close(copied, alone)
    cut, state = updates(stage, first, 8, fsdp=True)
    assert_close(cut, alone)
    for part in (state.params, state.opt_state, state.ema_params):
        leaves = cut_leaves(part)
        assert leaves
        for leaf in leaves:
            assert leaf.size >= MIN_SIZE
            assert leaf.addressable_shards[0].data.size == leaf.size // 8
    if name in ("maskgit", "uvim_lm"):
        assert cut_leaves(state.frozen)


def test_fsdp_run_is_saved_and_resumed(tmp_path, monkeypatch, without_page):
    monkeypatch.setattr(
        sharding, "state_shardings", functools.partial(sharding.state_shardings, min_size=MIN_SIZE)
    )
    config = tiny.tokenizer({"fsdp": True, "steps": 3, "loss.adversarial": 0.0})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    results = train.train(config, str(whole))

    def interrupted(self, step):
        return step == 1

    with monkeypatch.context() as patch:
        patch.setattr(train.StopSignal, "requested", interrupted)
        assert train.train(config, str(parts)) == {}
    assert checkpoint.load_weights(str(parts))[0] == 1
    assert train.train(config, str(parts)) == results
    assert tiny.lines(parts) == tiny.lines(whole)
