import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from fsq_jax.models.group_norm import GroupNorm
from fsq_jax.models.maskgit_tokenizer import Tokenizer, average_pool, upsample
from fsq_jax.quantizers.fsq import FSQ
from tests.tiny import random_variables

SMALL = dict(filters=8, channel_multipliers=(1, 2), num_res_blocks=1)


def shapes(model, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return traverse_util.flatten_dict(variables["params"], sep="/")


def count(model, size=256):
    return sum(np.prod(a.shape) for a in shapes(model, size).values())


# With VQ and with FSQ's (8, 5, 5, 5) they are counted in tests/describe_test.py.
@pytest.mark.parametrize(
    "quantizer,expected",
    [
        (FSQ((8, 6, 5)), 52_962_951 - 5_121),
        (FSQ((7, 5, 5, 5, 5)), 52_962_951 + 5_121),
    ],
)
def test_parameter_count_is_the_papers(quantizer, expected):
    assert count(Tokenizer(quantizer)) == expected


def test_dense_layers_stand_around_the_quantizer_alone():
    plain = shapes(Tokenizer(FSQ((8, 5, 5, 5)), **SMALL), 8)
    more = shapes(Tokenizer(FSQ((8, 5, 5, 5)), dense_layers=2, **SMALL), 8)
    own = {name: array.shape for name, array in more.items() if "DenseLayers" in name}
    assert set(more) - set(own) == set(plain) and len(own) == 2 * 2 * 2
    assert own["encoder/DenseLayers_0/Dense_0/kernel"] == (16, 16)
    assert own["decoder/DenseLayers_0/Dense_0/kernel"] == (4, 16)


def test_corrected_shortcut_reads_the_input():
    params = shapes(Tokenizer(FSQ((8, 5, 5, 5)), shortcut="input"), 256)
    assert params["encoder/ResBlock_4/Conv_2/kernel"].shape == (1, 1, 128, 256)
    assert params["decoder/ResBlock_4/Conv_2/kernel"].shape == (1, 1, 512, 256)


def test_bfloat16_and_remat_change_nothing_but_rounding():
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    target = images[:, ::-1]
    model = Tokenizer(FSQ((8, 5, 5)), **SMALL)
    variables = random_variables(model, images)

    def gradient(**settings):
        other = model.clone(**settings)

        def loss(variables):
            reconstruction, quantized = other.apply(variables, images, train=True)
            assert reconstruction.dtype == quantized.codes.dtype == jnp.float32
            assert quantized.indices.shape == (2, 4, 4)
            return jnp.square(reconstruction - target).mean()

        gradients = jax.jit(jax.grad(loss))(variables)["params"]
        assert {a.dtype for a in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}
        return np.concatenate([np.ravel(a) for a in jax.tree.leaves(gradients)])

    exact = gradient()
    assert np.linalg.norm(exact) > 0
    np.testing.assert_allclose(gradient(remat=True), exact, atol=1e-5 * np.abs(exact).max())
    half = gradient(dtype=jnp.bfloat16)
    # A latent close to a boundary of FSQ may round to the other side, so only the direction holds.
    assert exact @ half > 0.95 * np.linalg.norm(exact) * np.linalg.norm(half)


def test_decode_indices_gives_the_reconstruction():
    images = np.random.default_rng(0).random((2, 8, 12, 3), np.float32)
    model = Tokenizer(FSQ((8, 5, 5)), **SMALL)
    variables = random_variables(model, images)
    reconstruction, quantized = jax.jit(model.apply)(variables, images)
    decode = jax.jit(lambda v, i: model.apply(v, i, method="decode_indices"))
    decoded = decode(variables, quantized.indices)
    assert reconstruction.shape == images.shape
    np.testing.assert_allclose(decoded, reconstruction, atol=1e-5)


def test_refuses_sides_that_do_not_divide():
    model = Tokenizer(FSQ((8, 5, 5)))
    with pytest.raises(ValueError, match="100x128 .* 16x16"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 100, 128, 3)))


def test_refuses_an_unknown_shortcut():
    with pytest.raises(ValueError, match="inptu"):
        shapes(Tokenizer(FSQ((8, 5, 5)), shortcut="inptu"), 32)


def test_bfloat16_keeps_no_float32_activations_for_the_backward_pass():
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    model = Tokenizer(FSQ((8, 5, 5)), dtype=jnp.bfloat16, **SMALL)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def residuals(variables, images):
        _, backward = jax.vjp(lambda v: model.apply(v, images)[0], variables)
        return jax.tree.leaves(backward)

    kept = jax.eval_shape(residuals, variables, images)
    large = [a for a in kept if a.size >= 8 * 8 * 8 and a.ndim == 4 and a.shape[1] == 8]
    assert large and {a.dtype for a in large} == {jnp.dtype(jnp.bfloat16)}


def test_group_norm_matches_flax_with_gradients():
    rng = np.random.default_rng(0)
    x = (3 + 2 * rng.standard_normal((2, 4, 6, 64))).astype(np.float32)
    params = {"scale": rng.random(64, np.float32), "bias": rng.random(64, np.float32)}
    weights = rng.standard_normal(x.shape).astype(np.float32)

    def ours(params, x):
        return jnp.sum(weights * GroupNorm(32).apply({"params": params}, x))

    def flax(params, x):
        return jnp.sum(weights * nn.swish(nn.GroupNorm(32).apply({"params": params}, x)))

    for a, b in zip(
        jax.tree.leaves(jax.jit(jax.value_and_grad(ours, (0, 1)))(params, x)),
        jax.tree.leaves(jax.jit(jax.value_and_grad(flax, (0, 1)))(params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_black_image_makes_gradients_a_thousand_times_as_large_as_in_flax():
    """Without variance a norm divides by the root of its epsilon; thirteen of them overflow."""
    x = np.zeros((1, 4, 4, 8), np.float32)
    params = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    weights = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    grads = [
        jax.jit(jax.grad(lambda x, norm=norm: jnp.sum(weights * norm(x))))(x)
        for norm in (
            lambda x: GroupNorm(2).apply({"params": params}, x),
            lambda x: nn.swish(nn.GroupNorm(2).apply({"params": params}, x)),
        )
    ]
    np.testing.assert_allclose(*grads, rtol=1e-5, atol=1e-3)
    means = weights.reshape(16, 2, 4).mean((0, 2)).repeat(4)
    np.testing.assert_allclose(grads[0], 0.5e3 * (weights - means), rtol=1e-5, atol=1e-3)


def test_group_norm_of_bfloat16_has_the_gradients_of_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * rng.standard_normal((2, 4, 6, 16)), jnp.bfloat16)
    params = {"scale": rng.random(16, np.float32), "bias": rng.random(16, np.float32)}
    weights = rng.standard_normal(x.shape).astype(np.float32)

    @jax.jit
    def grads(x):
        def value(params, x):
            return jnp.sum(weights * GroupNorm(4).apply({"params": params}, x))

        return jax.tree.leaves(jax.grad(value, (0, 1))(params, x))

    for half, full in zip(grads(x), grads(x.astype(jnp.float32)), strict=True):
        # Incoming gradients are rounded to 8 bits, and sums of 48 of them keep that error.
        np.testing.assert_allclose(np.float32(half), full, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(("num_groups", "width", "groups"), [(32, 48, 16), (8, 20, 4), (2, 8, 2)])
def test_groups_divide_the_width(num_groups, width, groups):
    x = np.random.default_rng(0).standard_normal((1, 4, 4, width)).astype(np.float32)
    params = {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    ours = jax.jit(GroupNorm(num_groups).apply)({"params": params}, x)
    flax = jax.jit(lambda *a: nn.swish(nn.GroupNorm(groups).apply(*a)))({"params": params}, x)
    np.testing.assert_allclose(ours, flax, rtol=1e-4, atol=1e-5)


def test_resampling():
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(average_pool(x)[0, :, :, 0], [[2.5, 4.5]])
    np.testing.assert_array_equal(upsample(x), x.repeat(2, 1).repeat(2, 2))
