"""Features of an untrained network, for machines without weights.

Four 3x3 convolutions of stride 2 (widths 32, 64, 128, 256; SAME padding; normal weights of variance
2 / fan-in from NumPy's PCG64 with seed 0; no bias; leaky ReLU of slope 0.2) at the images' own
resolution, mapped to [-1, 1]; the features are the spatial averages of all four layers.

    B batch  H W image height, width  C channels  F features
"""

import jax
import jax.numpy as jnp
import numpy as np

WIDTHS = (32, 64, 128, 256)


def make_weights() -> dict[str, np.ndarray]:
    """The weights by layer, always the same ones."""
    rng = np.random.Generator(np.random.PCG64(0))
    weights, width_in = {}, 3
    for i, width in enumerate(WIDTHS):
        scale = np.sqrt(2.0 / (9 * width_in))
        weights[f"conv{i}"] = (scale * rng.standard_normal((3, 3, width_in, width))).astype("<f4")
        width_in = width
    return weights


def apply(variables, images_BHWC: jax.Array) -> jax.Array:
    """Features float32 [B,480] of images [B,H,W,3] in [0, 1]."""
    x = images_BHWC.astype(jnp.float32) * 2.0 - 1.0
    features = []
    for i in range(len(WIDTHS)):
        x = jax.lax.conv_general_dilated(
            x,
            variables[f"conv{i}"],
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = jax.nn.leaky_relu(x, 0.2)
        features.append(x.mean((1, 2)))
    return jnp.concatenate(features, axis=-1)
