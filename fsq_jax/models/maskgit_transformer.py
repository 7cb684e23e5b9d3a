"""MaskGIT stage II: a bidirectional transformer that predicts masked tokens.

BERT with the norm after each residual (post-LN), learned positions, and an output layer tied to
the word embedding. Input tokens: indices 0..K-1, class c is K + c, the mask is the last row. The
parameter tree is that of the published checkpoints. Parameters are float32; `dtype` is what the
matrix products run in. Norms keep float32 statistics, the softmax runs in float32.

Shapes: B batch  L tokens (the class first, then the image)  D width  V vocabulary  H heads
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models import attention as attention_lib
from fsq_jax.models.layers import (
    INIT,
    Bias,
    Dense,
    LayerNorm,
    Table,
    gelu,
    joined_dense,
    lookup,
)
from fsq_jax.runtime.user_error import UserError

REMAT = ("none", "dots", "full")


class _Block(nn.Module):
    """What all parts share: widths, rates (0 when not training) and the compute dtype."""

    width: int
    dropout: float
    dtype: Any

    def drop(self, x):
        key = self.make_rng("dropout") if self.dropout else None
        return attention_lib.dropout(x, self.dropout, key)

    def dense(self, features, name):
        return Dense(features, dtype=self.dtype, kernel_init=INIT, name=name)

    def norm(self, name):
        return LayerNorm(name=name)


class Embed(_Block):
    """Normed sum of word and position rows [B, L', D], and the word table [V, D] for the output.

    L' is L rounded up to a multiple of `pad_to`; padding has id 0 and a position of zeros.
    """

    vocab_size: int
    num_positions: int
    pad_to: int

    @nn.compact
    def __call__(self, tokens_BL):
        words_VD = Table(self.vocab_size, self.width, name="word_embeddings")()
        positions_LD = Table(self.num_positions, self.width, name="position_embeddings")()
        padding = -self.num_positions % self.pad_to
        tokens_BL = jnp.pad(tokens_BL, ((0, 0), (0, padding)))
        positions_LD = jnp.pad(positions_LD, ((0, padding), (0, 0)))
        rows: Any = lookup(words_VD, tokens_BL, self.dtype)
        x_BLD = rows + positions_LD.astype(self.dtype)
        return self.drop(self.norm("embeddings_ln")(x_BLD)), words_VD


class SelfAttention(nn.Module):
    """Multi-head self-attention of all tokens with all before `length`, [B, L, D]."""

    num_heads: int
    dropout: float
    attention: str
    length: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BLD):
        width = x_BLD.shape[-1]
        heads = (self.num_heads, width // self.num_heads)

        names = ("query", "key", "value")
        options: dict[str, Any] = dict(kernel_init=INIT, dtype=self.dtype)
        values: dict[str, Any] = dict(
            dropout_rate=self.dropout,
            key=self.make_rng("dropout") if self.dropout else None,
            implementation=self.attention,
            length=self.length,
        )
        if self.attention == "fused":
            qkv_BL3HD = joined_dense(x_BLD, names, heads, **options)
            read_BLHD = attention_lib.self_attention(qkv_BL3HD, **values)
        else:
            sides = (Dense(heads, **options, name=name)(x_BLD) for name in names)
            read_BLHD = attention_lib.attention(*sides, **values)
        out = Dense(width, contracted=2, dtype=self.dtype, kernel_init=INIT, name="out")
        return out(read_BLHD)


class Attention(_Block):
    """The attention half of a layer: LN(x + dropout(attention(x)))."""

    num_heads: int
    attention_dropout: float
    attention: str
    length: int

    @nn.compact
    def __call__(self, x_BLD):
        read_BLD = SelfAttention(
            self.num_heads,
            self.attention_dropout,
            self.attention,
            self.length,
            self.dtype,
            name="self_attention",
        )(x_BLD)
        return self.norm("attention_output_ln")(x_BLD + self.drop(read_BLD))


class Mlp(_Block):
    """The feed-forward half of a layer: LN(x + dropout(dense(gelu(dense(x)))))."""

    mlp_dim: int

    @nn.compact
    def __call__(self, x_BLD):
        hidden_BLF = gelu(self.dense(self.mlp_dim, "intermediate_output")(x_BLD))
        out_BLD = self.dense(self.width, "layer_output")(hidden_BLF)
        return self.norm("layer_output_ln")(x_BLD + self.drop(out_BLD))


class TransformerLayer(_Block):
    """Attention, then the feed-forward net."""

    num_heads: int
    mlp_dim: int
    attention_dropout: float
    attention: str
    length: int

    @nn.compact
    def __call__(self, x_BLD):
        shared = (self.width, self.dropout, self.dtype)
        x_BLD = Attention(
            *shared, self.num_heads, self.attention_dropout, self.attention, self.length
        )(x_BLD)
        return Mlp(*shared, self.mlp_dim)(x_BLD)


class MlmLayer(_Block):
    """float32 logits over the first `num_logits` rows of the word table, [B, L, num_logits]."""

    @nn.compact
    def __call__(self, x_BLD, words_VD, num_logits):
        x_BLD = self.norm("mlm_ln")(gelu(self.dense(self.width, "mlm_dense")(x_BLD)))
        bias_V = Bias(words_VD.shape[0], name="mlm_bias")()
        logits_BLV = jnp.einsum(
            "bld,vd->blv",
            x_BLD,
            words_VD[:num_logits].astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits_BLV + bias_V[:num_logits]


class MaskedTransformer(nn.Module):
    """MaskGIT's stage II model; the defaults are the paper's (24 layers of width 768).

    `dropout` is on embeddings and after both halves of a layer, `attention_dropout` on attention
    weights; both act only with train=True and draw from the rng "dropout". `num_logits`: how many
    rows of the vocabulary are scored, the indices say; None for all. `attention` is one of
    `attention.IMPLEMENTATIONS`. `remat`: "none" keeps all activations, "dots" recomputes all but
    matrix products, attention and random bits, "full" keeps only what enters a layer.
    """

    vocab_size: int
    num_positions: int
    width: int = 768
    depth: int = 24
    num_heads: int = 16
    mlp_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    num_logits: int | None = None
    attention: str = "auto"
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens_BL: jax.Array, train: bool = False) -> jax.Array:
        """Float32 logits [B, L, V], or [B, L, num_logits] over the first rows (the indices).

        tokens_BL: int32 in [0, vocab_size), L = num_positions, the class token first.
        Raises UserError when the length, the heads, num_logits or remat do not fit.
        """
        num_logits = self.vocab_size if self.num_logits is None else self.num_logits
        self._check(tokens_BL, num_logits)
        rate = self.dropout if train else 0.0
        attention_rate = self.attention_dropout if train else 0.0
        shared = (self.width, rate, self.dtype)
        head_dim = self.width // self.num_heads
        attention = attention_lib.resolve(
            self.attention, self.dtype, head_dim, attention_rate, joined=True
        )
        # cuDNN wants, and half-precision products like, multiples of 8 tokens (257 -> 264).
        half = jnp.dtype(self.dtype).itemsize == 2
        pad_to = 8 if half and attention != "fused" else 1
        x_BLD, words_VD = Embed(*shared, self.vocab_size, self.num_positions, pad_to)(tokens_BL)
        layer = _with_remat(self.remat)
        for i in range(self.depth):
            x_BLD = layer(
                *shared,
                self.num_heads,
                self.mlp_dim,
                attention_rate,
                attention,
                self.num_positions,
                name=f"TransformerLayer_{i}",
            )(x_BLD)
        x_BLD = x_BLD[:, : self.num_positions]
        return MlmLayer(*shared)(x_BLD, words_VD, num_logits)

    def _check(self, tokens_BL, num_logits):
        if tokens_BL.ndim != 2 or tokens_BL.shape[1] != self.num_positions:
            raise UserError(
                f"tokens have shape {tokens_BL.shape}, but num_positions={self.num_positions} "
                "asks for [batch, num_positions]: the class token and the image tokens."
            )
        if self.width % self.num_heads:
            raise UserError(f"width={self.width} is no multiple of num_heads={self.num_heads}.")
        if not 0 < num_logits <= self.vocab_size:
            raise UserError(f"{num_logits=} is not in 1..{self.vocab_size}, the vocabulary.")


def rounded(params, dtype):
    """The parameters, those that products take in `dtype` already rounded to it.

    For a sampler, which would otherwise round them at every step; no logit changes.
    """

    def round_products(path, leaf):
        return leaf.astype(dtype) if path[-1].key in ("kernel", "embedding") else leaf

    return jax.tree_util.tree_map_with_path(round_products, params)


def _with_remat(remat):
    """TransformerLayer, wrapped to recompute in the backward pass what `remat` says."""
    if remat == "none":
        return TransformerLayer
    if remat == "full":
        return nn.remat(TransformerLayer)
    if remat == "dots":
        return nn.remat(TransformerLayer, policy=_keep_dots)
    raise UserError(f"remat is one of {REMAT}, got {remat!r}.")


def _keep_dots(primitive, *args, **params):
    """Whether the backward pass keeps what `primitive` put out."""
    if "dot_product_attention" in primitive.name or primitive.name == "custom_partitioning":
        return True  # cuDNN's kernel or ours: its output and its log-sums
    policies = jax.checkpoint_policies
    policy = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable,
        policies.save_only_these_names(attention_lib.DROPOUT_BITS),
    )
    return policy(primitive, *args, **params)
