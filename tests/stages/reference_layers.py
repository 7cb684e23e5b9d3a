"""Layers in float64, written from the papers' equations: what the updates are held against.

Every function takes a dict of arrays with the names of the published checkpoints. Shapes: B batch,
L tokens, D width, H heads, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np


def conv(x_BHWC, p):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x_BHWC, p["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
    )
    return y + p.get("bias", 0.0)


def group_norm_swish(x_BHWC, p, groups, epsilon=1e-6):
    batch, height, width, channels = x_BHWC.shape
    x = x_BHWC.reshape(batch, height * width, groups, channels // groups)
    mean = x.mean(axis=(1, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=(1, 3), keepdims=True)
    y = ((x - mean) / jnp.sqrt(variance + epsilon)).reshape(x_BHWC.shape)
    y = y * p["scale"] + p["bias"]
    return y / (1 + jnp.exp(-y))


def layer_norm(x_BLD, p, epsilon):
    mean = x_BLD.mean(axis=-1, keepdims=True)
    variance = ((x_BLD - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x_BLD - mean) / jnp.sqrt(variance + epsilon) * p["scale"] + p["bias"]


def dense(x, p, contracted=1):
    return jnp.tensordot(x, p["kernel"], contracted) + p.get("bias", 0.0)


def gelu(x):
    return x / 2 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(x_BLD, memory_BKD, p, causal=False, weights_times=1.0):
    """Multi-head attention; `weights_times` [L, K] multiplies the weights (dropout)."""
    q, k, v = (
        dense(x, p[name])
        for name, x in (("query", x_BLD), ("key", memory_BKD), ("value", memory_BKD))
    )
    scores = jnp.einsum("blhd,bkhd->bhlk", q, k) / np.sqrt(q.shape[-1])
    if causal:
        scores = jnp.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -1e30)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True) * weights_times
    return dense(jnp.einsum("bhlk,bkhd->blhd", weights, v), p["out"], contracted=2)


def log_softmax(x):
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))


def softplus(x):
    return jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0)


def pre_norm_encoder(x_BLD, p):
    """UViM's encoder: blocks that add attention and MLP, each of the norm of its input."""
    for i in range(len(p) - 1):
        block = p[f"encoderblock_{i}"]
        normed = layer_norm(x_BLD, block["LayerNorm_0"], 1e-6)
        x_BLD = x_BLD + attention(normed, normed, block["MultiHeadDotProductAttention_0"])
        x_BLD = x_BLD + mlp(layer_norm(x_BLD, block["LayerNorm_1"], 1e-6), block["MlpBlock_0"])
    return layer_norm(x_BLD, p["encoder_norm"], 1e-6)


def mlp(x_BLD, p):
    return dense(gelu(dense(x_BLD, p["Dense_0"])), p["Dense_1"])


def embed_patches(images_BHWC, p):
    """A convolution whose stride is its size: [B, patches, D]."""
    kernel = p["kernel"]
    side = kernel.shape[0]
    batch, height, width, channels = images_BHWC.shape
    cut = images_BHWC.reshape(batch, height // side, side, width // side, side, channels)
    y = jnp.einsum("bhiwjc,ijcd->bhwd", cut, kernel) + p["bias"]
    return y.reshape(batch, -1, y.shape[-1])
