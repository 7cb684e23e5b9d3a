"""What all quantizers with a codebook have in common: sizes, projections, estimator, result.

Legend: N tokens (all leading dimensions flattened)  K codes  C channels of z  D of a codeword.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.quantizers import estimators, nearest
from fsq_jax.quantizers.fsq import Quantized
from fsq_jax.runtime.user_error import UserError, did_you_mean

STATE = "codebook_state"  # collection of what a codebook keeps besides parameters


class Codebook(nn.Module):
    """Base of the quantizers that look up the nearest codeword.

    codebook_size: K, at least 2. channels: C, the width of z and of the codes that come out.
    codebook_channels: D, the width of a codeword. Other than 0, z is projected to it by a linear
      layer and looked up there, and the codeword is projected back by another: 32 in ViT-VQGAN
      (arXiv 2110.04627, section 3.2), 8 in LlamaGen (arXiv 2406.06525), both with cosines;
      `codebook_dim` of vector-quantize-pytorch. 0: D = C, and there are no layers.
    gradient: what the decoder's gradient passes on to the encoder, by its name in
      `estimators.ESTIMATORS`: "straight_through", or "rotation" (arXiv 2410.06424).
    """

    codebook_size: int
    channels: int
    _: dataclasses.KW_ONLY
    codebook_channels: int = 0
    gradient: str = "straight_through"

    def __post_init__(self):
        if self.codebook_size < 2 or self.channels < 1 or self.codebook_channels < 0:
            raise UserError(
                "A codebook needs at least 2 codes and 1 channel, not "
                f"codebook_size={self.codebook_size}, channels={self.channels}"
                + (f", codebook_channels={self.codebook_channels}." if self.channels > 0 else ".")
            )
        if self.gradient not in estimators.ESTIMATORS:
            raise UserError(
                f"gradient={self.gradient!r} is unknown"
                f"{did_you_mean(self.gradient, estimators.ESTIMATORS)}"
            )
        super().__post_init__()

    def setup(self):
        if self.codebook_channels:
            self.project_in, self.project_out = (
                nn.Dense(width, precision=jax.lax.Precision.HIGHEST)
                for width in (self.codebook_channels, self.channels)
            )

    @property
    def width(self) -> int:
        """D, of a codeword."""
        return self.codebook_channels or self.channels

    def codewords(self) -> jax.Array:
        """What z is compared with, and what is decoded before it is projected: float32 [K, D]."""
        raise NotImplementedError

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns codes [..., C] of indices [...]; NaN where an index is outside [0, K)."""
        return self._back(nearest.take(self.codewords(), indices))

    def tokens(self, z: jax.Array) -> jax.Array:
        """Returns z, [..., C], as float32 tokens in the width of codewords, [N, D]."""
        if z.ndim == 0 or z.shape[-1] != self.channels:
            raise UserError(
                f"The last dimension of z, of shape {z.shape}, must be channels={self.channels}."
            )
        z_NC = z.astype(jnp.float32).reshape(-1, self.channels)
        return self.project_in(z_NC) if self.codebook_channels else z_NC

    def quantized(self, z, z_ND, q_ND, indices_N, loss, metrics) -> Quantized:
        """Shapes the result like z: codewords exactly, with the estimator's gradient."""
        codes_NC = self._back(estimators.ESTIMATORS[self.gradient](z_ND, q_ND))
        return Quantized(
            codes=codes_NC.reshape(z.shape),
            indices=indices_N.reshape(z.shape[:-1]),
            loss=jnp.asarray(loss, jnp.float32),
            metrics=metrics,
        )

    def share(self, indices_N: jax.Array) -> jax.Array:
        """Returns the share of tokens that chose each code, [K]."""
        return nearest.counts(indices_N, self.codebook_size) / indices_N.shape[0]

    def _back(self, codewords: jax.Array) -> jax.Array:
        return self.project_out(codewords) if self.codebook_channels else codewords


def unit(x_ND: jax.Array) -> jax.Array:
    """Returns vectors of length 1 in the same directions."""
    return x_ND * jax.lax.rsqrt(jnp.sum(x_ND**2, axis=1, keepdims=True) + 1e-30)


def standardize(x_ND: jax.Array) -> jax.Array:
    """Returns vectors of mean 0 and variance 1 over their channels."""
    mean_N1 = x_ND.mean(axis=1, keepdims=True)
    return (x_ND - mean_N1) * jax.lax.rsqrt(x_ND.var(axis=1, keepdims=True) + 1e-5)


def perplexity(share_K: jax.Array) -> jax.Array:
    """Returns exp of the entropy of shares that sum to 1: from 1 to K codes."""
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share_K, share_K)))
