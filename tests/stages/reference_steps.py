"""Runs a stage's compiled update beside a reference, on states that were drawn and not trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fsq_jax.models import attention, uvim_base
from fsq_jax.sampling import masked


class Draws:
    """Records what compiled functions draw: which function, with what key, what came out."""

    watched = (
        (attention, "keep_mask"),
        (masked, "random_mask"),
        (uvim_base, "kept_codes"),
        (jax.random, "bernoulli"),
    )

    def __init__(self, monkeypatch):
        self._noted, self._sites = {}, 0
        for owner, name in self.watched:
            monkeypatch.setattr(owner, name, self._recording(name, getattr(owner, name)))

    def _recording(self, name, draw):
        def recorded(key, *args, **kwargs):
            value = draw(key, *args, **kwargs)
            self._sites += 1
            given = (*args, *kwargs.values())
            note = functools.partial(self._note, self._sites, name, given)
            jax.debug.callback(note, jax.random.key_data(key), value)
            return value

        return recorded

    def _note(self, site, name, args, key, value):
        self._noted[site] = (name, args, tuple(np.ravel(key).tolist()), np.array(value))

    def take(self) -> list[tuple]:
        """(function, arguments after the key, key, value) of each draw since the last time."""
        jax.effects_barrier()
        noted, self._noted = self._noted, {}
        return [noted[site] for site in sorted(noted)]


def flat(tree) -> dict[str, np.ndarray]:
    """{path: float64 array}"""
    leaves = traverse_util.flatten_dict(jax.device_get(tree), sep="/")
    return {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}


def nested(leaves):
    return traverse_util.unflatten_dict(leaves, sep="/")


def drawn(shapes, seed=0, spread=0.3):
    """Arrays of these shapes, none of them zero or one: initial values hide mistakes."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4.0
        value = rng.standard_normal(leaf.shape) * max(spread, fan_in**-0.5 if fan_in > 12 else 0)
        return (value + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def first_state(stage, batch):
    """The state before the first update, its parameters drawn, nothing compiled."""
    shapes = jax.eval_shape(stage.init, jax.random.key(0), batch)
    state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    params = drawn(shapes.params)
    averaged = params["tokenizer"] if "tokenizer" in params else params
    return state.replace(
        params=jax.tree.map(jnp.asarray, params), ema_params=jax.tree.map(jnp.asarray, averaged)
    )


def run(stage, state, batch, draws, num_steps=3):
    """[(state after, metrics, draws)] of that many updates with one key."""
    update, done = jax.jit(stage.update), []
    for _ in range(num_steps):
        state, metrics = update(state, batch, jax.random.key(5))
        done.append((state, {k: float(v) for k, v in metrics.items()}, draws.take()))
    return done


def in_float64(function):
    """A function compiled in float64; arguments and results are NumPy's."""
    compiled = jax.jit(function)

    def call(*args):
        with jax.enable_x64(True):
            wide = jax.tree.map(
                lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else x, args
            )
            return jax.device_get(compiled(*wide))

    return call


def assert_gradients(ours, theirs, rtol=2e-4):
    """Holds gradients {path: array} against each other, in units of the leaf's largest."""
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(g).max() for g in theirs.values())
    for name, g in theirs.items():
        atol = rtol * np.abs(g).max() + 1e-6 * largest
        np.testing.assert_allclose(ours[name], g, rtol=0, atol=atol, err_msg=name)


def assert_params(ours, theirs, grads, rate, most=0.0, share=1e-2):
    """Holds parameters against each other: within `share` of a step's length, but for those that no
    gradient moves (a division by its own size leaves noise), and at most `most` of all."""
    largest = max(np.abs(g).max() for g in grads.values())
    wrong = total = 0
    for name, leaf in theirs.items():
        moved = np.abs(grads[name]) > 1e-4 * largest
        off = (np.abs(ours[name] - leaf) > share * rate) & moved
        if not most:
            assert not off.any(), (name, ours[name][off][:3], leaf[off][:3])
        wrong, total = wrong + off.sum(), total + moved.sum()
    assert wrong <= most * total, (wrong, total)
    assert total > 0.3 * sum(leaf.size for leaf in theirs.values())


def assert_distinct_keys(steps):
    """No two draws of any steps have one key."""
    keys = [draw[2] for _, _, draws in steps for draw in draws]
    assert keys and len(set(keys)) == len(keys)
