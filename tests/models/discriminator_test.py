import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fsq_jax.metrics.losses import r1_penalty
from fsq_jax.models.discriminator import (
    Discriminator,
    blur_pool,
    layer_width,
    logits_and_slopes,
    logits_twice,
)
from tests.tiny import random_variables


def count(model, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return sum(np.prod(a.shape) for a in jax.tree.leaves(params))


def test_parameter_count_is_the_papers():
    assert count(Discriminator(), 256) == 23_998_017


def test_widths_follow_the_table():
    table = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    assert {r: layer_width(r) for r in table} == table
    assert [layer_width(r, channel_multiplier=2) for r in (32, 64, 256)] == [512, 512, 128]
    assert [layer_width(r, max_width=100) for r in (4, 64, 128, 256)] == [100, 100, 100, 64]


def test_blur_pool_is_the_strided_depthwise_convolution():
    x = np.random.default_rng(0).random((2, 8, 6, 5), np.float32)
    taps = np.array([1, 3, 3, 1], np.float32)
    kernel = np.tile((np.outer(taps, taps) / 64)[:, :, None, None], (1, 1, 1, 5))
    expected = lax.conv_general_dilated(
        x,
        kernel,
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    np.testing.assert_allclose(jax.jit(blur_pool)(x), expected, atol=1e-6)
    assert blur_pool(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("blur,dtype", [(True, jnp.bfloat16), (False, jnp.float32)])
def test_r1_differentiates_with_respect_to_parameters(blur, dtype):
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    model = Discriminator(max_width=8, blur=blur, dtype=dtype)
    params = random_variables(model, images)
    logits = jax.jit(model.apply)(params, images)
    assert logits.shape == (2,) and logits.dtype == jnp.float32

    def penalty(params):
        return r1_penalty(jax.grad(lambda x: model.apply(params, x).sum())(images)).mean()

    value, gradients = jax.jit(jax.value_and_grad(penalty))(params)
    assert value > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    kernels = [g for g in jax.tree.leaves(gradients) if g.ndim > 1]
    assert all(np.abs(g).max() > 0 for g in kernels)


def test_gradient_of_r1_obeys_eulers_theorem():
    # Without biases D is linear in a scale of any layer off the residual blocks, so that R1 is
    # quadratic in it: <kernel, gradient> = 2 R1. (Finite differences trip over leaky ReLU's kinks.)
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    model = Discriminator(max_width=8)
    params = random_variables(model, images)["params"]

    def penalty(params):
        slope = jax.grad(lambda x: model.apply({"params": params}, x).sum())(images)
        return r1_penalty(slope).mean()

    value, gradients = jax.jit(jax.value_and_grad(penalty))(params)
    for layer in ("Conv_0", "Conv_1", "Dense_0", "Dense_1"):
        inner = jnp.vdot(params[layer]["kernel"], gradients[layer]["kernel"])
        np.testing.assert_allclose(inner, 2 * value, rtol=1e-4)


def test_gradients_of_one_backward_pass_are_those_of_several():
    rng = np.random.default_rng(1)
    real, fake = rng.random((2, 3, 8, 8, 3), np.float32)
    a, b, c, d = rng.normal(size=(4, 3)).astype(np.float32)
    c[1] = 0  # nothing to divide by
    model = Discriminator(max_width=4)
    params = random_variables(model, real)["params"]

    def slow(params, fake):
        logits = lambda params, x: model.apply({"params": params}, x)  # noqa: E731
        slope = jax.grad(lambda x: logits(params, x).sum())(real)
        own = logits(params, real) @ a + r1_penalty(slope) @ b
        stop = jax.lax.stop_gradient
        return own + logits(params, stop(fake)) @ c + logits(stop(params), fake) @ d

    def fast(params, fake):
        logits, penalty = logits_and_slopes(model, params, real)
        of_params, of_images = logits_twice(model, params, fake)
        return logits @ a + penalty @ b + of_params @ c + of_images @ d

    ours, theirs = (jax.jit(jax.value_and_grad(f, (0, 1)))(params, fake) for f in (fast, slow))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), ours, theirs)


def test_logits_do_not_mix_examples():
    images = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    model = Discriminator(max_width=8)
    params = random_variables(model, images)
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, images)[1:], apply(params, images[1:]), atol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28), (32, 16), (4, 4)])
def test_refuses_other_sides(shape):
    with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]}"):
        jax.eval_shape(Discriminator().init, jax.random.key(0), jnp.zeros((1, *shape, 3)))
