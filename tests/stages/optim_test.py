"""Schedules, AdamW on kernels, clipping, moving averages and accumulation against arithmetic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from fsq_jax.stages import optim
from tests.stages import reference_optim


def test_warm_up_then_constant():
    rate = optim.make_schedule(2.0, total_steps=100, warmup_steps=4)
    np.testing.assert_allclose(jax.jit(rate)(np.array([0, 1, 3, 4, 99])), [0, 0.5, 1.5, 2, 2])


def test_cosine_ends_at_zero():
    rate = optim.make_schedule(2.0, total_steps=12, warmup_steps=4, schedule="cosine")
    np.testing.assert_allclose(jax.jit(rate)(np.array([2, 4, 8, 12])), [1, 2, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(schedule="linear"), "schedule='linear'.*'constant' and 'cosine'"),
        (dict(warmup_steps=10), "warmup_steps=10.*total_steps=10"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.make_schedule(1.0, total_steps=10, **arguments)


@functools.partial(jax.jit, static_argnums=0)
def step(optimizer, params, grads):
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


def test_weight_decay_is_for_kernels_alone():
    params = {
        name: {"kernel": np.full(3, 2.0), "bias": np.full(3, 2.0)} for name in ("Conv_0", "norm")
    }
    params["embedding"] = np.full((2, 3), 2.0)
    optimizer = optim.make_optimizer(0.1, total_steps=10, weight_decay=0.5)
    after = step(optimizer, params, jax.tree.map(np.zeros_like, params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        kernel = "kernel" in jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, 2.0 - 0.1 * 0.5 * 2.0 if kernel else 2.0)


def test_clip_is_by_the_norm_of_all_gradients():
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    grads = {"a": np.array([3.0]), "b": np.array([4.0])}
    # Adam hides a gradient's scale in its first step, its moments do not.
    for clip_norm, expected in ((0.0, (3.0, 4.0)), (1.0, (0.6, 0.8)), (9.0, (3.0, 4.0))):
        optimizer = optim.make_optimizer(0.1, total_steps=10, b1=0.5, clip_norm=clip_norm)
        _, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        moments = optax.tree_utils.tree_get(state, "mu")
        found = np.ravel([moments["a"], moments["b"]])
        np.testing.assert_allclose(2 * found, expected, rtol=1e-6)


def test_accumulation_averages_gradients_and_adds_up_the_rest():
    def grad_fn(params, batch, key):
        del key
        loss = lambda p: jnp.square(batch["x"] @ p).mean()  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        return grads, {"rows": batch["x"].shape[0], "x": batch["x"].sum(0)}, {"loss": value}

    batch = {"x": np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)}
    arguments = np.arange(5, dtype=np.float32), batch, jax.random.key(0)
    assert optim.accumulate(grad_fn, 1) is grad_fn
    whole = jax.jit(grad_fn)(*arguments)
    parts = jax.jit(optim.accumulate(grad_fn, 3))(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, whole)
    assert parts[1]["rows"] == 12


def test_microbatches_see_each_row_once_and_keys_of_their_own():
    def grad_fn(params, batch, key):
        seen = jnp.zeros(8, jnp.int32).at[batch["row"]].add(1)
        return params, seen, {"draw": jax.random.uniform(key)}

    arguments = (np.zeros(1), {"row": np.arange(8)}, jax.random.key(0))
    _, seen, metrics = jax.jit(optim.accumulate(grad_fn, 4))(*arguments)
    np.testing.assert_array_equal(seen, 1)
    draw = lambda i: jax.random.uniform(jax.random.fold_in(jax.random.key(0), i))  # noqa: E731
    expected = np.mean(jax.jit(jax.vmap(draw))(np.arange(4)))
    np.testing.assert_allclose(metrics["draw"], expected, rtol=1e-6)


def test_adamw_is_the_loop():
    rng = np.random.default_rng(1)
    params = {
        "head/kernel": rng.normal(size=(3, 2)),
        "head/bias": rng.normal(size=2),
        "table/embedding": rng.normal(size=(4, 3)),
        "norm/scale": rng.normal(size=3),
    }
    optimizer = optim.make_optimizer(
        0.1, total_steps=20, b1=0.7, b2=0.9, weight_decay=0.3, clip_norm=2.0, schedule="cosine"
    )
    nest = lambda flat: traverse_util.unflatten_dict(flat, sep="/")  # noqa: E731
    loop = reference_optim.AdamW(b1=0.7, b2=0.9, weight_decay=0.3, clip_norm=2.0)
    ours, state = nest(params), optimizer.init(nest(params))

    @jax.jit
    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(4):
        grads = {name: rng.normal(size=leaf.shape) for name, leaf in params.items()}
        ours, state = update(nest(grads), state, ours)
        params = loop.update(params, grads, 0.1 * reference_optim.cosine(step, 20))
        for name, leaf in traverse_util.flatten_dict(ours, sep="/").items():
            np.testing.assert_allclose(leaf, params[name], rtol=1e-4, atol=1e-5, err_msg=name)


def half(x):
    return np.asarray(x, np.float32).astype(jnp.bfloat16).astype(np.float64)


class Adafactor:
    """big_vision's variant in NumPy, for arrays of two dimensions.

    The average is kept in bfloat16 and decays in it, by 0.8984, which is 0.9 in bfloat16.
    """

    def __init__(self, shape):
        self.step, self.momentum = 0, np.zeros(shape)
        self.rows, self.columns, self.full = np.zeros(shape[0]), np.zeros(shape[1]), np.zeros(shape)

    def scale(self, grad, cap):
        self.step += 1
        decay = min(cap, 1 - self.step**-0.8)
        square = grad.astype(np.float64) ** 2 + 1e-30
        self.rows = decay * self.rows + (1 - decay) * square.mean(axis=1)
        self.columns = decay * self.columns + (1 - decay) * square.mean(axis=0)
        self.full = decay * self.full + (1 - decay) * square
        factored = min(grad.shape) >= 32
        mean = np.outer(self.rows, self.columns) / self.rows.mean() if factored else self.full
        kept = half(half(0.9) * half(self.momentum))
        self.momentum = kept + 0.1 * grad / np.sqrt(mean)
        return self.momentum


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (31, 48)], ids=str)
def test_adafactor_is_the_loop(shape):
    rng = np.random.default_rng(0)
    params = {
        "encoder": {"kernel": rng.normal(size=shape).astype(np.float32)},
        "head": {"kernel": rng.normal(size=shape).astype(np.float32)},
        "table": rng.normal(size=shape).astype(np.float32),
    }
    # Compiled on these terms alone: or it may leave out the rounding of the decayed average.
    exact = {"xla_allow_excess_precision": False}
    optimizer = optim.make_optimizer(
        0.1,
        name="adafactor",
        total_steps=40,
        b1=0.9,
        b2=0.6,
        weight_decay=0.01,
        clip_norm=1.0,
        warmup_steps=2,
        schedule="cosine",
        rate_multipliers={"encoder/.*": 0.1, ".*": 1.0},
    )
    rate = optim.make_schedule(1.0, total_steps=40, warmup_steps=2, schedule="cosine")
    state, update = optimizer.init(params), jax.jit(optimizer.update, compiler_options=exact)
    rates = np.asarray(jax.jit(rate)(np.arange(6)))
    loops = {name: Adafactor(shape) for name in params}
    for step in range(6):  # the decay is 1 - t^-0.8 up to t = 3, and then its cap
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
        updates, state = jax.tree.map(np.asarray, update(grads, state, params))
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        for name, loop in loops.items():
            leaf = lambda tree: tree[name]["kernel"] if name != "table" else tree[name]  # noqa: B023, E731
            scaled = 0.1 * loop.scale(leaf(grads) / norm, 0.6) * (0.1 if name == "encoder" else 1)
            decay = 0.0 if name == "table" else 0.01 * leaf(params)
            expected = -rates[step] * (scaled + decay)
            error = np.abs(leaf(updates) - expected)
            # Nearly all agree to float32; now and then the average is rounded the other way.
            assert error.max() <= 2**-8 * 0.1 * np.abs(loop.momentum).max()
            assert np.mean(error > 1e-5 * np.abs(expected) + 1e-8) < 0.01
        params = jax.tree.map(np.add, params, updates)
    kept = optax.tree_utils.tree_get(state, "ema")
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    # Rows and columns where it is factored, the whole where it isn't, and nothing in their place.
    rows, whole = (optax.tree_utils.tree_get(state, name)["table"] for name in ("v_row", "v"))
    factored = isinstance(whole, optax.MaskedNode)
    assert factored == (min(shape) >= 32) and isinstance(rows, optax.MaskedNode) != factored


def test_rates_by_path():
    params = {"encoder": dict.fromkeys(("a", "ab", "b"), np.zeros(2)), "head": np.zeros(2)}
    factors = (("encoder/a", 0.5), ("encoder/.*", 0.1))  # pairs, as a config holds them
    optimizer = optim.make_optimizer(1.0, total_steps=9, rate_multipliers=factors)
    after = step(optimizer, params, jax.tree.map(np.ones_like, params))
    np.testing.assert_allclose(after["encoder"]["a"], -0.5, rtol=1e-5)  # the first that fits
    for name in ("ab", "b"):
        np.testing.assert_allclose(after["encoder"][name], -0.1, rtol=1e-5)
    np.testing.assert_allclose(after["head"], -1, rtol=1e-5)
    with pytest.raises(ValueError, match="'encoder' fits no parameter, such as 'encoder/a'"):
        optim.make_optimizer(1.0, total_steps=9, rate_multipliers={"encoder": 0.1}).init(params)


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match="name='sgd'.*'adam' and 'adafactor'"):
        optim.make_optimizer(1.0, total_steps=9, name="sgd")
