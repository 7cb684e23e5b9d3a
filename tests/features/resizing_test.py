"""Each resize against the tool that it is named after, or the formula that defines it."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fsq_jax.features import resizing


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(7, 9), (40, 23), (20, 20)])
def test_bicubic_is_pils(shape):
    images = noise(*shape)
    got = resizing.resize(jnp.asarray(images), 20, "bicubic-pil")
    want = [
        [
            np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize((20, 20), 3))
            for c in range(3)
        ]
        for image in images
    ]
    want = np.array(want).transpose(0, 2, 3, 1).clip(0, 255)
    np.testing.assert_allclose(got, want, atol=1e-3)
    assert 0 <= got.min() and got.max() <= 255  # it overshoots, and clean-fid clips


def bilinear(image, size, where):
    """One pixel at a time; `where`: (index, scale) to the place that a pixel comes from."""
    height, width, _ = image.shape
    out = np.zeros((size, size, 3))
    for i in range(size):
        for j in range(size):
            y, x = where(i, height / size), where(j, width / size)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            upper = image[top, left] * (1 - dx) + image[top, right] * dx
            lower = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            out[i, j] = upper * (1 - dy) + lower * dy
    return out


@pytest.mark.parametrize("shape", [(5, 8), (31, 17)])
@pytest.mark.parametrize("method", ["tf1", "bilinear"])
def test_bilinear_is_its_definition(shape, method):
    where = {
        "tf1": lambda i, scale: i * scale,
        "bilinear": lambda i, scale: max((i + 0.5) * scale - 0.5, 0),
    }[method]
    images = noise(*shape, seed=1)
    got = resizing.resize(jnp.asarray(images), 13, method)
    want = [bilinear(image.astype(float), 13, where) for image in images]
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("method", resizing.METHODS)
def test_of_the_same_size_nothing_changes(method):
    images = noise(6, 6)
    np.testing.assert_allclose(resizing.resize(jnp.asarray(images), 6, method), images, atol=1e-4)


@pytest.mark.parametrize("before, after", [(1, 5), (32, 299), (299, 32), (300, 299)])
@pytest.mark.parametrize("method", resizing.METHODS[:3])
def test_flat_images_stay_flat(method, before, after):
    matrix = resizing.weights(before, after, method)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


def test_mistakes():
    with pytest.raises(ValueError, match="no resize 'bicubic'; choose one of"):
        resizing.resize(jnp.zeros((1, 2, 2, 3)), 4, "bicubic")
