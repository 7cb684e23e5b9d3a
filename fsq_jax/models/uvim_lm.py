"""UViM stage II: a language model of a label's tokens, given the image.

A vision transformer reads the image; a decoder writes the tokens, each from those before it
(causal self-attention) and from the image (cross-attention). Token 0 begins, index i of
stage I's codebook is token i + 1; there is no end token. The parameter tree is that of the
published checkpoints.

`uvim_decode` writes with it, one token after the other.

Shapes: B batch  H W pixels  P patches  N tokens  V vocabulary  D width
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models.layers import LayerNorm, Table, float32_product, lookup
from fsq_jax.models.parameters import param
from fsq_jax.models.vit import (
    LN_EPSILON,
    EmbedPatches,
    Encoder,
    MlpBlock,
    MultiHeadAttention,
    Positions,
)
from fsq_jax.runtime.user_error import UserError


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention and MLP, each on the norm of its input, and added."""

    width: int
    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32

    def setup(self):
        attention: dict[str, Any] = dict(
            use_bias=False, initializer=nn.initializers.lecun_normal(), dtype=self.dtype
        )
        self.LayerNorm1 = LayerNorm(LN_EPSILON)
        self.SelfAttn = MultiHeadAttention(self.width, self.num_heads, **attention)
        self.LayerNorm2 = LayerNorm(LN_EPSILON)
        self.CrossAttn = MultiHeadAttention(self.width, self.num_heads, **attention)
        self.LayerNorm3 = LayerNorm(LN_EPSILON)
        self.MLP = MlpBlock(self.mlp_dim, self.dtype)

    def __call__(self, x_BND, memory_BPD):
        """All tokens at once, [B, N, D]."""
        x_BND = x_BND + self.SelfAttn(self.LayerNorm1(x_BND), causal=True)
        x_BND = x_BND + self.CrossAttn(self.LayerNorm2(x_BND), memory_BPD)
        return x_BND + self.MLP(self.LayerNorm3(x_BND))


class Decoder(nn.Module):
    """Tokens to float32 logits [B, N, V]."""

    vocab_size: int
    depth: int
    width: int
    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        init = nn.initializers.normal(1.0)
        self.EmbedTargets = Table(self.vocab_size, self.width, init)
        block = nn.remat(DecoderBlock) if self.remat else DecoderBlock
        self.blocks = [
            block(self.width, self.num_heads, self.mlp_dim, self.dtype, name=f"EncDecBlock{i}")
            for i in range(self.depth)
        ]
        self.LayerNorm = LayerNorm(LN_EPSILON)
        self.LogitsDense = Logits(self.vocab_size, self.dtype)

    def __call__(self, tokens_BN, positions_1ND, memory_BPD):
        x_BND = lookup(self.EmbedTargets(), tokens_BN, self.dtype) + positions_1ND
        for block in self.blocks:
            x_BND = block(x_BND, memory_BPD)
        return self.LogitsDense(self.LayerNorm(x_BND))


class Logits(nn.Module):
    """A dense layer whose output is float32, [..., features]; zero at first."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        zeros, shape = nn.initializers.zeros, (x.shape[-1], self.features)
        kernel = param(self, "kernel", zeros, shape, jnp.float32)
        bias = param(self, "bias", zeros, shape[1:], jnp.float32)
        logits: Any = float32_product(x, kernel, self.dtype)
        return logits + bias


class CodeLanguageModel(nn.Module):
    """UViM's stage II model; the defaults are the paper's.

    vocab_size: V, the codebook's size plus one. num_tokens: N, the tokens of a label. patch: side
    of a patch of the image in pixels. remat: recompute activations of the blocks in the backward
    pass. Context is an image, float32 [B,H,W,3] in [-1, 1], H and W multiples of `patch`.
    """

    vocab_size: int
    num_tokens: int = 256
    patch: int = 16
    width: int = 1024
    encoder_depth: int = 24
    decoder_depth: int = 24
    num_heads: int = 16
    mlp_dim: int = 4096
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        self.EmbedPatches = EmbedPatches(self.patch, self.width, self.dtype)
        self.encoder_positions = Positions("pos_embedding_encoder", self.width, self.dtype)
        self.decoder_positions = Positions("pos_embedding_decoder", self.width, self.dtype)
        for positions in (self.encoder_positions, self.decoder_positions):
            nn.share_scope(self, positions)
        options = (self.num_heads, self.mlp_dim, self.dtype, self.remat)
        self.encoder = Encoder(self.encoder_depth, *options)
        self.decoder = Decoder(self.vocab_size, self.decoder_depth, self.width, *options)

    def __call__(self, context_BHWC: jax.Array, indices_BN: jax.Array) -> jax.Array:
        """float32 logits [B, N, V] of each token, given the true ones before it.

        indices_BN: of the codebook; what is predicted at position n is token indices_BN[:, n] + 1.
        Raises UserError for another number of indices than `num_tokens`.
        """
        if indices_BN.ndim != 2 or indices_BN.shape[1] != self.num_tokens:
            raise UserError(
                f"Indices have shape {indices_BN.shape}, but num_tokens={self.num_tokens} asks for "
                "[batch, num_tokens]."
            )
        memory_BPD = self.encode(context_BHWC)
        tokens_BN = jnp.pad(indices_BN[:, :-1] + 1, ((0, 0), (1, 0)))
        return self.decoder(tokens_BN, self.decoder_positions(self.num_tokens), memory_BPD)

    def encode(self, context_BHWC: jax.Array) -> jax.Array:
        """What the decoder reads of an image, [B, P, D]."""
        x_BPD = self.EmbedPatches(context_BHWC)
        return self.encoder(x_BPD + self.encoder_positions(x_BPD.shape[1]))
