"""PSNR and SSIM against scikit-image, whose answers are written below."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.metrics import image_quality

ssim, psnr = jax.jit(image_quality.ssim), jax.jit(image_quality.psnr)

# scikit-image 0.26.0, structural_similarity(..., gaussian_weights=True, sigma=1.5,
# use_sample_covariance=False, data_range=1.0, channel_axis=-1) and peak_signal_noise_ratio.
SSIM = [0.9973590419809538, 0.9488849788807422, 0.45207807205512923, 0.7334489924095763]
PSNR = [34.15646522573494, 20.631941269392744, 9.111856713916293, 14.774388360386952]


def pairs():
    rng = np.random.default_rng(0)
    x = rng.random((3, 24, 19, 3)).astype(np.float32)
    noise = rng.normal(size=x.shape) * np.array([0.02, 0.1, 0.5]).reshape(3, 1, 1, 1)
    y = np.clip(x + noise, 0, 1).astype(np.float32)
    ramp = np.linspace(0, 1, 24 * 19 * 3, dtype=np.float32).reshape(1, 24, 19, 3)
    return np.concatenate([x, ramp]), np.concatenate([y, ramp**2])


def test_against_scikit_image():
    x, y = pairs()
    np.testing.assert_allclose(ssim(x, y), SSIM, atol=1e-5)
    np.testing.assert_allclose(psnr(x, y), PSNR, atol=1e-4)
    np.testing.assert_allclose(ssim(y, x), SSIM, atol=1e-5)


def test_identical_images():
    x, _ = pairs()
    np.testing.assert_allclose(psnr(x, x), 100)
    np.testing.assert_allclose(ssim(x, x), 1, atol=1e-6)
    flat = jnp.full((1, 11, 11, 3), 0.5)
    np.testing.assert_allclose(ssim(flat, flat), 1, rtol=1e-6)


def test_known_error():
    images = jnp.full((2, 4, 4, 3), 0.5)
    np.testing.assert_allclose(image_quality.psnr(images, images + 0.1), 20, rtol=1e-5)


def test_mistakes():
    with pytest.raises(ValueError, match="float in .0, 1., not uint8"):
        image_quality.psnr(jnp.zeros((1, 4, 4, 3), jnp.uint8), jnp.zeros((1, 4, 4, 3), jnp.uint8))
    with pytest.raises(ValueError, match="shapes .* differ"):
        image_quality.psnr(jnp.zeros((2, 4, 4, 3)), jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="11 x 11 pixels, not 16 x 10"):
        image_quality.ssim(jnp.zeros((1, 16, 10, 3)), jnp.zeros((1, 16, 10, 3)))
