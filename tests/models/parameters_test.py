import jax
import jax.numpy as jnp
import pytest
from flax import errors
from flax import linen as nn

from fsq_jax.models.parameters import param

X = jnp.ones((2, 4))


class Scale(nn.Module):
    @nn.compact
    def __call__(self, x, init=nn.initializers.ones):
        return x * param(self, "scale", init, x.shape[-1:])


def test_it_is_made_at_first_and_then_looked_up():
    def never(*_):
        raise AssertionError("asked for")

    variables = Scale().init(jax.random.key(0), X)
    assert variables["params"]["scale"].dtype == jnp.float32
    doubled = jax.tree.map(lambda x: 2 * x, variables)
    assert (Scale().apply(doubled, X, never) == 2).all()


def test_another_shape_is_refused_as_flax_refuses_it():
    variables = Scale().init(jax.random.key(0), X)
    with pytest.raises(errors.ScopeParamShapeError, match=r"scale.*\(5,\).*\(4,\)"):
        Scale().apply(variables, jnp.ones((2, 5)))
