"""UViM stage I: an autoencoder of labels, with the image as context, around a quantizer.

Labels are cut in patches; 6 transformer blocks see all of them beside the image; their tokens,
resized to `code_side` x `code_side`, are quantized: the codes. They are resized back, and 12 blocks
read the label from them and from the image again (Kolesnikov et al. 2022; section 4.4 of the FSQ
paper). The parameter tree is that of the published checkpoints; a VQ's codebook is in collection
"codebook_state".

Shapes: B batch  H W pixels  P patches  X pixels of a patch  C channels of a label kind  N codes
    D width  d channels of a code
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from fsq_jax.models.label_patches import LabelEmbedding, LabelHead
from fsq_jax.models.vit import EmbedPatches, Encoder, Positions
from fsq_jax.quantizers.fsq import Quantized
from fsq_jax.runtime.user_error import UserError

CODE_DROPOUTS = ("random", "none")


def kept_codes(key: jax.Array, batch: int, num_codes: int) -> jax.Array:
    """Which codes training keeps, bool [B, N]: 0 to N per example, each number equally likely.

    They are drawn for each example (UViM's code dropout "random").
    """
    key_count, key_order = jax.random.split(key)
    count_B1 = jax.random.randint(key_count, (batch, 1), 0, num_codes + 1)
    order_BN = jnp.argsort(jax.random.uniform(key_order, (batch, num_codes)), axis=1)
    return order_BN < count_B1


class LabelAutoencoder(nn.Module):
    """UViM's stage I model; the defaults are the paper's.

    quantizer: a module with `channels`, of fsq_jax.quantizers. kinds: {label kind: C}. real: labels
    are values rather than ids. patch: side of a patch in pixels. code_side: codes along a side of
    the image, whatever its size. encoder_context, decoder_context: which half sees the image.
    code_dropout: "random" zeroes codes in training before they are decoded, see `kept_codes`.
    remat: recompute activations of the blocks in the backward pass.

    Labels are {kind: ids int32 [B,P,X]}, or {kind: float32 [B,P,C,X]} if `real`; ids outside
    [0, C) stand for no class. Context is an image, float32 [B,H,W,3] in [-1, 1]; where neither half
    sees it only its size counts. Logits are {kind: float32 [B,P,C,X]}.
    Training draws from the rngs "code_dropout" and, for a VQ that splits words and an FSQ with
    noise, "codebook".
    """

    quantizer: nn.Module
    kinds: Mapping[str, int]
    real: bool = False
    patch: int = 16
    width: int = 768
    encoder_depth: int = 6
    decoder_depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    code_side: int = 16
    encoder_context: bool = True
    decoder_context: bool = True
    code_dropout: str = "random"
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        object.__setattr__(self, "kinds", FrozenDict(self.kinds))  # can be hashed
        if self.code_dropout not in CODE_DROPOUTS:
            raise UserError(f"code_dropout is one of {CODE_DROPOUTS}, got {self.code_dropout!r}.")
        super().__post_init__()

    def setup(self):
        self.embeddings = {
            kind: LabelEmbedding(
                channels, self.width, self.real, self.dtype, name=f"embedding_{kind}"
            )
            for kind, channels in self.kinds.items()
        }
        if self.encoder_context:
            self.ctx_enc_embedding = EmbedPatches(self.patch, self.width, self.dtype)
        if self.decoder_context:
            self.ctx_dec_embedding = EmbedPatches(self.patch, self.width, self.dtype)
        self.encoder_positions = Positions("pos_embedding_encoder", self.width, self.dtype)
        self.decoder_positions = Positions("pos_embedding_decoder", self.width, self.dtype)
        for positions in (self.encoder_positions, self.decoder_positions):
            nn.share_scope(self, positions)
        blocks = (self.num_heads, self.mlp_dim, self.dtype, self.remat)
        self.encoder = Encoder(self.encoder_depth, *blocks)
        self.encoder_head = nn.Dense(self.quantizer.channels)  # float32: what is quantized
        self.decoder_stem = nn.Dense(self.width, dtype=self.dtype)
        self.decoder = Encoder(self.decoder_depth, *blocks)
        self.heads = {
            kind: LabelHead(channels, self.patch**2, self.dtype, name=f"head_{kind}")
            for kind, channels in self.kinds.items()
        }

    @property
    def num_tokens(self) -> int:
        return self.code_side**2

    def __call__(
        self, labels: Mapping[str, jax.Array], context_BHWC: jax.Array, train: bool = False
    ) -> tuple[dict[str, jax.Array], Quantized]:
        """(logits, Quantized): labels encoded and decoded again.

        Raises UserError where labels, context and parameters are of different sizes.
        """
        quantized = self.encode(labels, context_BHWC, train)
        codes_BNd = quantized.codes
        if train and self.code_dropout == "random":
            keep_BN = kept_codes(self.make_rng("code_dropout"), *codes_BNd.shape[:2])
            codes_BNd = jnp.where(keep_BN[..., None], codes_BNd, 0)
        return self.decode(codes_BNd, context_BHWC), quantized

    def encode(
        self, labels: Mapping[str, jax.Array], context_BHWC: jax.Array, train: bool = False
    ) -> Quantized:
        """The Quantized of labels: codes [B, N, d], indices [B, N]; `train` moves a VQ's words."""
        self._check(labels, context_BHWC)
        x_BPD = sum(self.embeddings[kind](labels[kind]) for kind in self.kinds)
        if self.encoder_context:
            x_BPD += self.ctx_enc_embedding(context_BHWC)
        x_BPD = self.encoder(x_BPD + self.encoder_positions(x_BPD.shape[1]))
        code_grid = (self.code_side, self.code_side)
        x_BND = _resize(x_BPD, self._grid(context_BHWC), code_grid)
        return self.quantizer(self.encoder_head(x_BND), train=train)

    def decode(self, codes_BNd: jax.Array, context_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Logits of codes, a quantizer's output."""
        x_BND = self.decoder_stem(codes_BNd)
        code_grid = (self.code_side, self.code_side)
        x_BPD = _resize(x_BND, code_grid, self._grid(context_BHWC)).astype(self.dtype)
        if self.decoder_context:
            x_BPD += self.ctx_dec_embedding(context_BHWC)
        x_BPD = self.decoder(x_BPD + self.decoder_positions(x_BPD.shape[1]))
        return {kind: head(x_BPD) for kind, head in self.heads.items()}

    def decode_indices(
        self, indices_BN: jax.Array, context_BHWC: jax.Array
    ) -> dict[str, jax.Array]:
        """Logits of indices; NaN where an index is outside [0, codebook_size)."""
        return self.decode(self.quantizer.indices_to_codes(indices_BN), context_BHWC)

    def _grid(self, context_BHWC) -> tuple[int, int]:
        height, width = context_BHWC.shape[1:3]
        return height // self.patch, width // self.patch

    def _check(self, labels, context_BHWC):
        if set(labels) != set(self.kinds):
            raise UserError(f"Labels are of {sorted(labels)}, not of {sorted(self.kinds)}.")
        rows, columns = self._grid(context_BHWC)
        for kind, label in labels.items():
            channels = (self.kinds[kind],) if self.real else ()
            expected = (context_BHWC.shape[0], rows * columns, *channels, self.patch**2)
            if label.shape != expected:
                raise UserError(
                    f"Label {kind!r} has shape {label.shape}, but a context of "
                    f"{context_BHWC.shape} and patch={self.patch} ask for {expected}."
                )


def _resize(x_BLD: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Tokens of an `old` grid as those of a `new` one: linear, antialiased; float32 [B, L, D]."""
    batch, _, width = x_BLD.shape
    x = x_BLD.astype(jnp.float32).reshape(batch, *old, width)
    return jax.image.resize(x, (batch, *new, width), "linear").reshape(batch, -1, width)
