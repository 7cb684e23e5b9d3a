import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.features import inception, inception_blocks


def test_average_pool_leaves_the_padding_out():
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
    got = inception_blocks.average_pool(jnp.asarray(x))
    for i in range(4):
        for j in range(5):
            window = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            np.testing.assert_allclose(got[0, i, j], window.mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_prepare_scales():
    images = np.array([0, 128, 255], np.uint8).reshape(1, 1, 3, 1).repeat(3, -1)
    tensorflow = inception.prepare(jnp.asarray(images), "none")
    np.testing.assert_allclose(tensorflow[0, 0, :, 0], [-1, 0, 127 / 128])
    symmetric = inception.prepare(jnp.asarray(images), "none", "127.5")
    np.testing.assert_allclose(symmetric[0, 0, :, 0], [-1, 1 / 255, 1], atol=1e-6)
    assert inception.prepare(jnp.asarray(images)).shape == (1, 299, 299, 3)


def test_to_uint8_rounds_and_clips():
    got = inception.to_uint8(jnp.array([-0.5, 0, 0.4 / 255, 0.6 / 255, 1, 1.5]))
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 255, 255])
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(inception.to_uint8(jnp.asarray(levels / 255)), levels)


def test_sizes():
    images = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    features, _ = jax.eval_shape(inception.Inception().init_with_output, jax.random.key(0), images)
    assert [f.shape for f in features] == [(2, 2048), (2, 2023), (2, 1008), (2, 1008)]
    halves = jax.eval_shape(
        inception.Inception("bfloat16").init_with_output, jax.random.key(0), images
    )[0]
    assert all(f.dtype == jnp.float32 for f in halves)


def test_mistakes():
    with pytest.raises(ValueError, match=r"RGB images .* not \(2, 8, 8, 1\); repeat the channel"):
        inception.prepare(jnp.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="no scaling '255'"):
        inception.prepare(jnp.zeros((2, 8, 8, 3)), scaling="255")
    with pytest.raises(ValueError, match="dtype='float16' is not one of"):
        inception.Inception("float16").init(jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
