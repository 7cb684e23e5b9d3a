"""Labels in and out of tokens, against dense layers over one-hot labels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.models import label_patches
from tests.compiled import apply, init

B, P, C, X, D = 2, 3, 5, 32, 8  # two chunks of pixels
RNG = np.random.default_rng(0)
IDS = RNG.integers(-2, C + 2, (B, P, X)).astype(np.int32)  # some are outside
ONE_HOT = np.moveaxis(IDS[..., None] == np.arange(C), -1, 2).astype(np.float32)  # [B,P,C,X]


def test_ids_are_looked_up_as_if_one_hot():
    ours = label_patches.LabelEmbedding(C, D)
    variables = init(ours, IDS)
    assert variables["params"]["kernel"].shape == (C, X, D)
    expected = apply(nn.DenseGeneral(D, axis=(-2, -1)), variables, ONE_HOT)
    np.testing.assert_allclose(apply(ours, variables, IDS), expected, atol=1e-5)
    np.testing.assert_allclose(np.std(variables["params"]["kernel"]), (C * X) ** -0.5, rtol=0.1)
    real = ours.clone(real=True)
    np.testing.assert_allclose(apply(real, variables, ONE_HOT), expected, atol=1e-5)


@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)])
def test_gradient_is_that_of_the_one_hot_product(dtype, atol):
    kernel = RNG.normal(size=(C, X, D)).astype(np.float32)
    weight = RNG.normal(size=(B, P, D)).astype(np.float32)
    value = lambda k: (label_patches.sum_rows(k, IDS, dtype) * weight).sum()  # noqa: E731
    ours = jax.jit(jax.grad(value))(kernel)
    expected = np.einsum("bpcx,bpd->cxd", ONE_HOT, weight)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, atol=atol)


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_one_hot_ids_of_any_type(channels, dtype):
    one_hot = jax.jit(lambda ids: label_patches.one_hot(ids, channels, dtype))(IDS)
    assert one_hot.dtype == dtype
    np.testing.assert_array_equal(one_hot, IDS[..., None] == np.arange(channels))


def test_gradient_of_the_head_is_that_of_a_dense_layer():
    x, weight = RNG.normal(size=(B, P, D)), RNG.normal(size=(B, P, C, X))
    shapes = {"kernel": (D, C, X), "bias": (C, X)}
    params = {n: RNG.normal(size=s).astype(np.float32) for n, s in shapes.items()}

    def gradients(head):
        value = lambda params, x: (head.apply({"params": params}, x) * weight).sum()  # noqa: E731
        return jax.jit(jax.grad(value, (0, 1)))(params, x.astype(np.float32))

    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0.03, atol=0.3),
        gradients(label_patches.LabelHead(C, X, jnp.bfloat16)),
        gradients(nn.DenseGeneral((C, X))),
    )


def test_head_starts_at_zero_and_is_a_dense_layer():
    x = RNG.normal(size=(B, P, D)).astype(np.float32)
    head = label_patches.LabelHead(C, X)
    variables = init(head, x)
    np.testing.assert_array_equal(apply(head, variables, x), 0)
    shapes = {"kernel": (D, C, X), "bias": (C, X)}
    variables = {"params": {n: RNG.normal(size=s).astype(np.float32) for n, s in shapes.items()}}
    expected = apply(nn.DenseGeneral((C, X)), variables, x)
    np.testing.assert_allclose(apply(head, variables, x), expected, atol=1e-5)
    half = apply(head.clone(dtype=jnp.bfloat16), variables, x)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, atol=0.1)
