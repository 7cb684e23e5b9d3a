"""Layers against Flax's, and products whose sums are float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.models import layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("epsilon", [1e-12, 0.5])
def test_layer_norm_is_that_of_flax(epsilon):
    x = normal(2, 3, 8)
    variables = {"params": {"scale": normal(8), "bias": normal(8, seed=1)}}
    np.testing.assert_allclose(
        layers.LayerNorm(epsilon).apply(variables, x),
        nn.LayerNorm(epsilon).apply(variables, x),
        atol=1e-5,
    )


def test_float32_product_and_its_gradients():
    x, kernel, weight = normal(2, 3, 8), normal(8, 5, seed=1), normal(2, 3, 5, seed=2)

    def of(product):
        return jax.value_and_grad(lambda x, k: (product(x, k) * weight).sum(), argnums=(0, 1))

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
