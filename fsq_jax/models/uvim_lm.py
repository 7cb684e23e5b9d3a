"""UViM stage II: a language model of a label's code, given the image.

A vision transformer reads the image; a decoder writes the code, each token from those before it
(causal self-attention) and from the image (cross-attention). Token 0 begins, code c is token c + 1;
there is no end token. The parameter tree is that of the published checkpoints.

Decoding with a cache: `start` computes what does not depend on tokens, `step` gives the logits of
one position and a new cache. The cache is a tree of arrays, so that it can live in a `lax.scan`.
`decoding` gives both to a sampler.

Shapes: B batch  H W pixels  P patches  N codes  V vocabulary  D width
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models.layers import LayerNorm, Table, float32_product, lookup
from fsq_jax.models.vit import (
    LN_EPSILON,
    EmbedPatches,
    Encoder,
    MlpBlock,
    MultiHeadAttention,
    Positions,
)
from fsq_jax.runtime.user_error import UserError

Cache = dict[str, Any]


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

    def image_keys_values(self, memory_BPD):
        """What cross-attention reads, the same for all tokens."""
        return self.CrossAttn.keys_values(memory_BPD)

    def step(self, x_B1D, own, image, position):
        """The token at `position` alone, [B, 1, D], and `own` with its key and value in it.

        own, image: keys and values of self-attention (of N tokens) and of cross-attention.
        """
        normed_B1D = self.LayerNorm1(x_B1D)
        own = jax.tree.map(
            lambda past, now: jax.lax.dynamic_update_slice_in_dim(past, now, position, axis=1),
            own,
            self.SelfAttn.keys_values(normed_B1D),
        )
        x_B1D = x_B1D + self.SelfAttn.read(normed_B1D, own, length=position + 1)
        x_B1D = x_B1D + self.CrossAttn.read(self.LayerNorm2(x_B1D), image)
        return x_B1D + self.MLP(self.LayerNorm3(x_B1D)), own


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
        x_BND = self.embed(tokens_BN) + positions_1ND
        for block in self.blocks:
            x_BND = block(x_BND, memory_BPD)
        return self.LogitsDense(self.LayerNorm(x_BND))

    def embed(self, tokens_BN):
        return lookup(self.EmbedTargets(), tokens_BN, self.dtype)

    def start(self, memory_BPD, num_codes: int) -> Cache:
        heads = (self.num_heads, self.width // self.num_heads)
        empty = jnp.zeros((memory_BPD.shape[0], num_codes, *heads), self.dtype)
        return {
            "own": [(empty, empty) for _ in self.blocks],
            "image": [block.image_keys_values(memory_BPD) for block in self.blocks],
        }

    def step(self, cache: Cache, tokens_B, position_11D, position):
        x_B1D = self.embed(tokens_B[:, None]) + position_11D
        own = []
        for block, past, image in zip(self.blocks, cache["own"], cache["image"], strict=True):
            x_B1D, now = block.step(x_B1D, past, image, position)
            own.append(now)
        logits_B1V = self.LogitsDense(self.LayerNorm(x_B1D))
        return logits_B1V[:, 0], cache | {"own": own}


class Logits(nn.Module):
    """A dense layer whose output is float32, [..., features]; zero at first."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        zeros, shape = nn.initializers.zeros, (x.shape[-1], self.features)
        kernel = self.param("kernel", zeros, shape, jnp.float32)
        bias = self.param("bias", zeros, shape[1:], jnp.float32)
        logits: Any = float32_product(x, kernel, self.dtype)
        return logits + bias


class CodeLanguageModel(nn.Module):
    """UViM's stage II model; the defaults are the paper's.

    vocab_size: V, the number of codes and one more. num_codes: N, how long a code is. patch: side
    of a patch of the image in pixels. remat: recompute activations of the blocks in the backward
    pass. Context is an image, float32 [B,H,W,3] in [-1, 1], H and W multiples of `patch`.
    """

    vocab_size: int
    num_codes: int = 256
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

        indices_BN: codes from 0; what is predicted at position n is token indices_BN[:, n] + 1.
        Raises UserError for another number of codes than `num_codes`.
        """
        if indices_BN.ndim != 2 or indices_BN.shape[1] != self.num_codes:
            raise UserError(
                f"Codes have shape {indices_BN.shape}, but num_codes={self.num_codes} asks for "
                "[batch, num_codes]."
            )
        memory_BPD = self.encode(context_BHWC)
        tokens_BN = jnp.pad(indices_BN[:, :-1] + 1, ((0, 0), (1, 0)))
        return self.decoder(tokens_BN, self.decoder_positions(self.num_codes), memory_BPD)

    def encode(self, context_BHWC: jax.Array) -> jax.Array:
        """What the decoder reads of an image, [B, P, D]."""
        x_BPD = self.EmbedPatches(context_BHWC)
        return self.encoder(x_BPD + self.encoder_positions(x_BPD.shape[1]))

    def start(self, context_BHWC: jax.Array) -> Cache:
        """The cache before the first token: the image's keys and values of every block, and room
        for the tokens' own."""
        return self.decoder.start(self.encode(context_BHWC), self.num_codes)

    def step(
        self, cache: Cache, tokens_B: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """(float32 logits [B, V] of the token after `position` others, cache with one more).

        tokens_B: the token before it, 0 at position 0. Positions come in turn, from 0.
        """
        positions_1ND = self.decoder_positions(self.num_codes)
        position_11D = jax.lax.dynamic_slice_in_dim(positions_1ND, position, 1, axis=1)
        return self.decoder.step(cache, tokens_B, position_11D, position)


def decoding(model: CodeLanguageModel, params: Any, context_BHWC: jax.Array):
    """(step, cache before the first token), as `sampling.autoregressive` takes them.

    What the decoder's dense layers would round to `model.dtype` at every token is rounded here,
    once: a token reads little besides weights.
    """

    def rounded(path, leaf):
        names = [entry.key for entry in path]
        is_dense = names[-1] in ("kernel", "embedding") or "MLP" in names
        return leaf.astype(model.dtype) if is_dense else leaf

    decoder = jax.tree_util.tree_map_with_path(rounded, params["decoder"])
    apply = functools.partial(model.apply, {"params": {**params, "decoder": decoder}})
    return functools.partial(apply, method="step"), apply(context_BHWC, method="start")
