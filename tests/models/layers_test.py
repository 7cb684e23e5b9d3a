"""Layers against Flax's, and products whose sums are float32."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.models import layers
from fsq_jax.runtime import compiler


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("epsilon", [1e-12, 0.5])
def test_layer_norm_is_that_of_flax(epsilon):
    x = normal(2, 3, 8)
    variables = {"params": {"scale": normal(8), "bias": normal(8, seed=1)}}
    np.testing.assert_allclose(
        jax.jit(layers.LayerNorm(epsilon).apply)(variables, x),
        jax.jit(nn.LayerNorm(epsilon).apply)(variables, x),
        atol=1e-5,
    )


def test_float32_product_and_its_gradients():
    x, kernel, weight = normal(2, 3, 8), normal(8, 5, seed=1), normal(2, 3, 5, seed=2)

    def of(product):
        total = jax.value_and_grad(lambda x, k: (product(x, k) * weight).sum(), argnums=(0, 1))
        return jax.jit(total)

    value, grads = of(lambda x, k: layers.float32_product(x, k, jnp.float32))(x, kernel)
    expected, expected_grads = of(jnp.matmul)(x, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected_grads)
    half = layers.float32_product(x, kernel, jnp.bfloat16)
    rounded = [a.astype(jnp.bfloat16).astype(np.float32) for a in (x, kernel)]
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, np.matmul(*rounded), atol=1e-5)  # not rounded again
    half_grads = of(lambda x, k: layers.float32_product(x, k, jnp.bfloat16))(x, kernel)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.1), half_grads, grads)
    assert {a.dtype for a in half_grads} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_gradients_of_layer_norm_are_those_of_flax(offset):
    x, weight = normal(2, 3, 64) + np.float32(offset), normal(2, 3, 64, seed=2)
    variables = {"params": {"scale": normal(64), "bias": normal(64, seed=1)}}

    def grads(module):
        def value(variables, x):
            return (module.apply(variables, x) * weight).sum()

        return jax.jit(jax.grad(value, argnums=(0, 1)))(variables, x)

    # Flax's own statistics cancel at a large mean unless they take two passes.
    expected = grads(nn.LayerNorm(1e-6, use_fast_variance=False))
    close = functools.partial(np.testing.assert_allclose, atol=2e-5 * (1 + offset), rtol=1e-4)
    jax.tree.map(close, grads(layers.LayerNorm(1e-6)), expected)


def test_layer_norm_of_equal_values_has_finite_gradients():
    x = jnp.full((2, 8), 3.0)
    variables = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    grad = jax.jit(jax.grad(lambda x: layers.LayerNorm(1e-6).apply(variables, x)[0, 0]))(x)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    "options, contracted",
    [(dict(features=6), 1), (dict(features=(2, 3)), 1), (dict(features=6, use_bias=False), 2)],
)
def test_dense_is_that_of_flax(options, contracted):
    x, key = normal(2, 3, 4, 8), jax.random.key(0)
    ours = layers.Dense(contracted=contracted, bias_init=nn.initializers.normal(), **options)
    theirs = nn.DenseGeneral(
        axis=tuple(range(-contracted, 0)), bias_init=nn.initializers.normal(), **options
    )
    variables = jax.jit(ours.init)(key, x)
    jax.tree.map(np.testing.assert_array_equal, variables, jax.jit(theirs.init)(key, x))
    np.testing.assert_allclose(
        jax.jit(ours.apply)(variables, x), jax.jit(theirs.apply)(variables, x), atol=1e-6
    )
    half = layers.Dense(contracted=contracted, dtype=jnp.bfloat16, **options)
    assert jax.eval_shape(half.apply, variables, x).dtype == jnp.bfloat16


def test_gelu_in_half_precision_is_near_float32_and_so_is_its_slope(monkeypatch):
    x = np.linspace(-6, 6, 301, dtype=np.float32)
    of = lambda gelu: jax.jit(jax.vmap(jax.value_and_grad(gelu)))  # noqa: E731
    exact, slope = of(lambda x: jax.nn.gelu(x, approximate=True))(x)
    monkeypatch.setattr(compiler, "device", lambda: SimpleNamespace(platform="gpu"))
    got, half_slope = of(layers.gelu)(x.astype(jnp.bfloat16))
    assert got.dtype == half_slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), exact, atol=0.03)
    np.testing.assert_allclose(np.float32(half_slope), slope, atol=0.02)


def test_joined_dense_layers_are_the_layers_one_by_one():
    class Joined(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.joined_dense(x, ("a", "b"), (2, 4), nn.initializers.lecun_normal())

    class Apart(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.stack([layers.Dense((2, 4), name=name)(x) for name in "ab"], axis=-3)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 6), np.float32))
    variables, theirs = (jax.jit(m().init)(jax.random.key(0), x) for m in (Apart, Joined))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, theirs)))
    joined, apart = (jax.jit(m().apply)(variables, x) for m in (Joined, Apart))
    np.testing.assert_allclose(joined, apart, atol=1e-6)
