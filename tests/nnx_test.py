"""The NNX shell of FSQ gives what the Linen one gives, through NNX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fsq_jax
from fsq_jax.nnx import FSQ

Z = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)


def check(got, options):
    want = fsq_jax.FSQ((8, 6, 5), **options).apply({}, Z)
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.indices, want.indices)
    assert got.loss == 0 and got.metrics == {}


@pytest.mark.parametrize("options", [{}, {"grid": "symmetric", "squash": "ifsq", "epsilon": 0.0}])
def test_equals_linen(options):
    module = FSQ([8, 6, 5], **options)
    assert (module.levels, module.codebook_size, module.channels) == ((8, 6, 5), 240, 3)
    check(module(Z), options)
    check(nnx.jit(lambda m, z: m(z, train=True))(module, Z), options)
    graph, state = nnx.split(module)
    assert not jax.tree.leaves(state)
    check(jax.jit(lambda state, z: nnx.merge(graph, state)(z))(state, Z), options)
    np.testing.assert_array_equal(module.indices_to_codes(module(Z).indices), module(Z).codes)


def test_inside_a_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.encoder = nnx.Linear(7, 3, rngs=rngs)
            self.quantizer = FSQ((8, 6, 5))

        def __call__(self, x):
            return self.quantizer(self.encoder(x)).codes

    model = Model(nnx.Rngs(0))
    gradient = nnx.grad(lambda m, x: m(x).sum())(model, jnp.ones((2, 7)))
    assert float(jnp.abs(gradient["encoder"]["kernel"][...]).sum()) > 0


def test_errors():
    with pytest.raises(ValueError, match="at least 2"):
        FSQ((8, 1))
    with pytest.raises(ValueError, match="Did you mean 'symmetric'"):
        FSQ((8, 5), grid="symetric")
