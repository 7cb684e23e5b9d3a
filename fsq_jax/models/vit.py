"""Vision transformers, the part that UViM's two models share: patches and pre-LN blocks.

Names and shapes of the parameters are those of the published checkpoints. Parameters are float32;
`dtype` is what the matrix products run in. Norms keep float32 statistics, GELU and softmax run in
float32. No dropout: UViM has none.

Shapes: B batch  H W pixels  P patches  X pixels of a patch  L tokens  K keys  D width  F hidden
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models import attention as attention_lib
from fsq_jax.models.layers import Dense, LayerNorm, gelu
from fsq_jax.models.parameters import param
from fsq_jax.runtime.placement import split_by_example
from fsq_jax.runtime.user_error import UserError

LN_EPSILON = 1e-6
XAVIER = nn.initializers.xavier_uniform()


def patchify(x_BHW: jax.Array, patch: int) -> jax.Array:
    """Square patches in reading order, [B, P, X, ...] of [B, H, W, ...].

    The pixels of a patch are in reading order, too.
    Raises UserError where H or W is no multiple of `patch`.
    """
    batch, height, width, *rest = x_BHW.shape
    if height % patch or width % patch:
        raise UserError(f"{height} x {width} pixels do not divide into patches of {patch=}.")
    x = x_BHW.reshape(batch, height // patch, patch, width // patch, patch, *rest)
    return x.swapaxes(2, 3).reshape(batch, -1, patch * patch, *rest)


def unpatchify(x_BPX: jax.Array, patch: int, height: int, width: int) -> jax.Array:
    """The image [B, H, W, ...] of patches [B, P, X, ...]: the inverse of `patchify`."""
    batch, _, _, *rest = x_BPX.shape
    x = x_BPX.reshape(batch, height // patch, width // patch, patch, patch, *rest)
    return x.swapaxes(2, 3).reshape(batch, height, width, *rest)


class EmbedPatches(nn.Module):
    """One token per patch, [B, P, D], of images [B, H, W, channels].

    A convolution whose stride is its size, which is a matrix product of patches.
    """

    patch: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC):
        shape = (self.patch, self.patch, x_BHWC.shape[-1], self.width)
        kernel = param(self, "kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias_D = param(self, "bias", nn.initializers.zeros, (self.width,), jnp.float32)
        patches_BPXC = patchify(x_BHWC.astype(self.dtype), self.patch)
        patches_BPI = patches_BPXC.reshape(*patches_BPXC.shape[:2], -1)
        kernel_ID = kernel.reshape(-1, self.width).astype(self.dtype)
        return patches_BPI @ kernel_ID + bias_D.astype(self.dtype)


class Positions(nn.Module):
    """A learned vector for each token, called `parameter`: [1, L, D] in `dtype`.

    A module of its own because L is known only once an input is there; `nn.share_scope` puts the
    parameter where the published trees have it, beside its owner's.
    """

    parameter: str
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, num_tokens: int):
        if self.has_variable("params", self.parameter):
            known = self.get_variable("params", self.parameter).shape[1]
            if known != num_tokens:
                raise UserError(
                    f"{self.parameter} is for {known} tokens, but the input has {num_tokens}."
                )
        init = nn.initializers.normal(self.width**-0.5)
        shape = (1, num_tokens, self.width)
        return param(self, self.parameter, init, shape, jnp.float32).astype(self.dtype)


class MultiHeadAttention(nn.Module):
    """Multi-head attention to the tokens themselves or to others, [B, L, D]."""

    width: int
    num_heads: int
    use_bias: bool = True
    initializer: Any = XAVIER
    dtype: Any = jnp.float32

    def setup(self):
        if self.width % self.num_heads:
            raise UserError(f"width={self.width} is no multiple of num_heads={self.num_heads}.")
        heads = (self.num_heads, self.width // self.num_heads)
        values: dict[str, Any] = dict(
            use_bias=self.use_bias, kernel_init=self.initializer, dtype=self.dtype
        )
        self.query = Dense(heads, **values)
        self.key = Dense(heads, **values)
        self.value = Dense(heads, **values)
        self.out = Dense(self.width, contracted=2, **values)

    def __call__(self, x_BLD, memory_BKD=None, causal: bool = False):
        """What each token reads from `memory_BKD`, or from x (earlier tokens if `causal`)."""
        memory_BKD = x_BLD if memory_BKD is None else memory_BKD
        read_BLHD = attention_lib.attention(
            self.query(x_BLD), self.key(memory_BKD), self.value(memory_BKD), causal=causal
        )
        return self.out(read_BLHD)


class MlpBlock(nn.Module):
    """dense(gelu(dense(x))), [B, L, D]."""

    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BLD):
        values: dict[str, Any] = dict(
            kernel_init=XAVIER, bias_init=nn.initializers.normal(1e-6), dtype=self.dtype
        )
        hidden_BLF = Dense(self.mlp_dim, **values, name="Dense_0")(x_BLD)
        return Dense(x_BLD.shape[-1], **values, name="Dense_1")(gelu(hidden_BLF))


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each on the norm of its input and added to it (pre-LN)."""

    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BLD):
        attend = MultiHeadAttention(
            x_BLD.shape[-1],
            self.num_heads,
            dtype=self.dtype,
            name="MultiHeadDotProductAttention_0",
        )
        x_BLD = x_BLD + attend(LayerNorm(LN_EPSILON, name="LayerNorm_0")(x_BLD))
        mlp = MlpBlock(self.mlp_dim, dtype=self.dtype, name="MlpBlock_0")
        return split_by_example(x_BLD + mlp(LayerNorm(LN_EPSILON, name="LayerNorm_1")(x_BLD)))


class Encoder(nn.Module):
    """`depth` blocks and a norm, [B, L, D].

    remat: keep only what enters a block, and compute the rest again in the backward pass.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x_BLD):
        block = nn.remat(EncoderBlock) if self.remat else EncoderBlock
        for i in range(self.depth):
            x_BLD = block(self.num_heads, self.mlp_dim, dtype=self.dtype, name=f"encoderblock_{i}")(
                x_BLD
            )
        return LayerNorm(LN_EPSILON, name="encoder_norm")(x_BLD)
