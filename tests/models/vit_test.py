"""Patches, positions and pre-LN blocks against Flax's own layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.models import vit
from tests.compiled import apply, init


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_patches_are_in_reading_order_and_go_back():
    image = np.arange(4 * 6).reshape(1, 4, 6)
    patches = vit.patchify(image, 2)
    assert patches.shape == (1, 6, 4)
    np.testing.assert_array_equal(patches[0, :2], [[0, 1, 6, 7], [2, 3, 8, 9]])
    colors = normal(2, 4, 6, 3)
    np.testing.assert_array_equal(vit.unpatchify(vit.patchify(colors, 2), 2, 4, 6), colors)
    with pytest.raises(ValueError, match="4 x 6 pixels.*patch=4"):
        vit.patchify(image, 4)


def test_patch_embedding_is_a_strided_convolution():
    image = normal(2, 8, 12, 3)
    ours = vit.EmbedPatches(4, 5)
    variables = init(ours, image)
    conv = nn.Conv(5, (4, 4), (4, 4), "VALID")
    expected = np.reshape(apply(conv, variables, image), (2, 6, 5))
    np.testing.assert_allclose(apply(ours, variables, image), expected, atol=1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
def test_attention_is_that_of_flax(use_bias):
    x, memory = normal(2, 5, 8), normal(2, 7, 8, seed=1)
    ours = vit.MultiHeadAttention(8, 2, use_bias)
    variables = init(ours, x)
    theirs = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=use_bias)
    np.testing.assert_allclose(
        apply(ours, variables, x, memory), apply(theirs, variables, x, memory), atol=1e-5
    )
    causal = nn.make_causal_mask(jnp.ones((2, 5)))
    np.testing.assert_allclose(
        apply(ours, variables, x, causal=True), apply(theirs, variables, x, mask=causal), atol=1e-5
    )


def test_encoder_starts_like_the_reference():
    x = jnp.zeros((1, 4, 64))
    params = jax.device_get(init(vit.Encoder(1, 2, 128), x)["params"])
    mlp = params["encoderblock_0"]["MlpBlock_0"]
    bound = (6 / (64 + 128)) ** 0.5  # xavier, uniform
    kernel = mlp["Dense_0"]["kernel"]
    assert 0.95 * bound < np.abs(kernel).max() <= bound
    assert 0 < np.abs(mlp["Dense_0"]["bias"]).max() < 1e-5
    query = params["encoderblock_0"]["MultiHeadDotProductAttention_0"]["query"]["kernel"]
    bound = (6 / (64 + 64)) ** 0.5
    assert query.shape == (64, 2, 32) and 0.95 * bound < np.abs(query).max() <= bound


def test_remat_changes_nothing():
    x = normal(2, 4, 16)
    plain = vit.Encoder(2, 2, 32)
    variables = init(plain, x)

    def gradient(remat):
        model = plain.clone(remat=remat)
        return jax.jit(jax.grad(lambda v: (model.apply(v, x) ** 2).mean()))(variables)

    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(close, gradient(False), gradient(True))


def test_errors_name_the_values():
    x = normal(1, 4, 9)
    with pytest.raises(ValueError, match="width=9 is no multiple of num_heads=2"):
        vit.MultiHeadAttention(9, 2).init(jax.random.key(0), x)
    positions = vit.Positions("pos", 8)
    variables = positions.init(jax.random.key(0), 4)
    assert variables["params"]["pos"].shape == (1, 4, 8)
    with pytest.raises(ValueError, match="pos is for 4 tokens, but the input has 9"):
        positions.apply(variables, 9)
