"""Draws made together are those made one by one, and are few."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fsq_jax.runtime import batch_random_init


class Net(nn.Module):
    """Dense layers of equal shapes, one of another, and a state."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.Dense(8, bias_init=nn.initializers.normal(1.0))(x)
        noise = jax.random.uniform(self.make_rng("noise"), x.shape)
        self.variable("state", "noise", lambda: noise)
        return nn.Dense(3)(x)


def init(key, batch):
    key_params, key_noise = jax.random.split(key)
    return Net().init({"params": key_params, "noise": key_noise}, batch["x"])


def arguments():
    return jax.random.key(3), {"x": jnp.ones((2, 8)), "unused": jnp.zeros(4)}


def test_same_values_in_the_same_tree():
    # As programs compile it: without optimisation the last digit of a draw may be another.
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    expected, got = (
        jax.jit(f, compiler_options=options)(*arguments())
        for f in (init, batch_random_init.batch_random_init(init))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)
    assert len({float(leaf.sum()) for leaf in jax.tree.leaves(got)}) == len(jax.tree.leaves(got))


def test_equal_shapes_share_a_generator():
    def generators(jaxpr) -> int:
        own = sum(eqn.primitive.name == "random_bits" for eqn in jaxpr.eqns)
        inner = [p for eqn in jaxpr.eqns for p in eqn.params.values() if hasattr(p, "eqns")]
        return own + sum(map(generators, inner))

    def count(function) -> int:
        return generators(jax.make_jaxpr(function)(*arguments()))

    # Kernels of 8 x 8, their biases, the noise, the last kernel and its zeros, which draw nothing.
    assert count(batch_random_init.batch_random_init(init)) == 4
    assert count(init) == 8


def test_a_key_that_depends_on_what_was_drawn():
    def twice(key):
        first = jax.random.normal(key, (4,))
        again = jax.random.fold_in(key, (1000 * first[0]).astype(jnp.int32))
        return first, jax.random.normal(again, (4,))

    key = jax.random.key(0)
    expected, got = jax.jit(twice)(key), jax.jit(batch_random_init.batch_random_init(twice))(key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


def test_nothing_to_draw():
    twice = jax.jit(batch_random_init.batch_random_init(lambda x: {"twice": 2 * x}))
    assert twice(jnp.ones(2))["twice"].tolist() == [2, 2]
