"""MaskGIT stage I: a convolutional encoder and decoder around a quantizer.

The network of MaskGIT (Chang et al. 2022), which section 4 of the FSQ paper takes over: GroupNorm,
swish, residual blocks, no attention. Images are in [0, 1] and the output is not squashed.
Parameter names are those of the published checkpoints.

    B batch  H W image height, width  h w token grid  C width  D channels of a code  G groups
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models.group_norm import GroupNorm
from fsq_jax.models.layers import DenseLayers
from fsq_jax.runtime.user_error import UserError

SHORTCUTS = ("output", "input")


class ResBlock(nn.Module):
    """Two 3x3 convolutions without bias, added to a shortcut; `width` channels come out.

    Where the width changes, `shortcut` says what the 1x1 convolution of the shortcut reads.
    "output": the block's own result, as in the published code and checkpoints (kernel out x out,
    so that no identity path leads around these four blocks). "input": the block's input, as a
    residual block is meant to be (kernel in x out), and as MAGVIT corrected it.
    """

    width: int
    num_groups: int
    shortcut: str = "output"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC):
        def conv(size):
            return nn.Conv(self.width, (size, size), use_bias=False, dtype=self.dtype)

        y = GroupNorm(self.num_groups)(x_BHWC)
        y = conv(3)(y)
        y = GroupNorm(self.num_groups)(y)
        y = conv(3)(y)
        if x_BHWC.shape[-1] == self.width:
            return x_BHWC + y
        return conv(1)(y if self.shortcut == "output" else x_BHWC) + y


def average_pool(x_BHWC):
    """Halves height and width by the mean of 2x2 pixels (summed in float32)."""
    b, h, w, c = x_BHWC.shape
    return x_BHWC.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def upsample(x_BHWC):
    """Doubles height and width by repeating pixels."""
    b, h, w, c = x_BHWC.shape
    x = jnp.broadcast_to(x_BHWC[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


class Encoder(nn.Module):
    """Images [B,H,W,3] to float32 latents [B,H/f,W/f,channels], f = 2**(levels - 1)."""

    channels: int
    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    num_groups: int
    shortcut: str
    dtype: jnp.dtype
    remat: bool
    dense_layers: int

    @nn.compact
    def __call__(self, images_BHWC):
        widths = [self.filters * m for m in self.channel_multipliers]
        block = _numbered_blocks(self)
        x = nn.Conv(self.filters, (3, 3), use_bias=False, dtype=self.dtype)(images_BHWC)
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                x = block(width)(x)
            if level < len(widths) - 1:
                x = average_pool(x)
        for _ in range(self.num_res_blocks):
            x = block(widths[-1])(x)
        x = GroupNorm(self.num_groups)(x)
        x = DenseLayers(self.dense_layers, widths[-1], self.dtype)(x)
        # The quantizer rounds: let it see float32 latents, not ones rounded to bfloat16 before.
        return nn.Conv(self.channels, (1, 1), dtype=jnp.float32)(x.astype(jnp.float32))


class Decoder(nn.Module):
    """Codes [B,h,w,D] to float32 images [B,h*f,w*f,3], not clipped, f = 2**(levels - 1)."""

    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    num_groups: int
    shortcut: str
    dtype: jnp.dtype
    remat: bool
    dense_layers: int

    @nn.compact
    def __call__(self, codes_BhwD):
        widths = [self.filters * m for m in self.channel_multipliers]
        block = _numbered_blocks(self)
        x = DenseLayers(self.dense_layers, widths[-1], self.dtype)(codes_BhwD)
        x = nn.Conv(widths[-1], (3, 3), dtype=self.dtype)(x)
        for _ in range(self.num_res_blocks):
            x = block(widths[-1])(x)
        for level in reversed(range(len(widths))):
            for _ in range(self.num_res_blocks):
                x = block(widths[level])(x)
            if level > 0:
                x = nn.Conv(widths[level], (3, 3), dtype=self.dtype)(upsample(x))
        x = GroupNorm(self.num_groups)(x)
        return nn.Conv(3, (3, 3), dtype=self.dtype)(x).astype(jnp.float32)


def _numbered_blocks(module):
    """Returns width -> ResBlock, named in the order of the calls (remat would rename them)."""
    cls = nn.remat(ResBlock) if module.remat else ResBlock
    count = iter(range(1000))

    def block(width):
        name = f"ResBlock_{next(count)}"
        return cls(width, module.num_groups, module.shortcut, module.dtype, name=name)

    return block


class Tokenizer(nn.Module):
    """Images to tokens and back: `(reconstruction, Quantized)` of a batch of images.

    The defaults are MaskGIT's: at 256 px a 16x16 grid of tokens, and 54,515,587 parameters with
    1024 codes of width 256, or 52,962,951 with FSQ of four channels.

    Attributes:
      quantizer: a module of `fsq_jax.quantizers`; its `channels` set the encoder's output width.
      filters: width of the first level; `channel_multipliers` scale it level by level.
      num_res_blocks: residual blocks per level, and once more at the coarsest resolution.
      num_groups: of each GroupNorm; a width that they do not divide gets their greatest common
        divisor. A group of few channels forgets how bright and colourful the image is: networks
        narrower than MaskGIT's 128 do better with four channels per group or more.
      shortcut: "output" (the published network) or "input" (corrected), see `ResBlock`.
      dtype: of activations and convolutions. Parameters, statistics, the quantizer's input and
        the reconstruction are float32 in any case.
      remat: recompute the residual blocks in the backward pass: less memory, more time.
      dense_layers: further layers at the encoder's end and the decoder's start (section 3.3).
    """

    quantizer: nn.Module
    filters: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_groups: int = 32
    shortcut: str = "output"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    dense_layers: int = 0

    def setup(self):
        if self.shortcut not in SHORTCUTS:
            raise UserError(f"shortcut={self.shortcut!r} is not one of {SHORTCUTS}.")
        settings: dict = dict(
            filters=self.filters,
            channel_multipliers=tuple(self.channel_multipliers),
            num_res_blocks=self.num_res_blocks,
            num_groups=self.num_groups,
            shortcut=self.shortcut,
            dtype=self.dtype,
            remat=self.remat,
            dense_layers=self.dense_layers,
        )
        self.encoder = Encoder(channels=self.quantizer.channels, **settings)
        self.decoder = Decoder(**settings)

    @property
    def downsampling(self) -> int:
        """Pixels along the side of a token."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def __call__(self, images_BHWC: jax.Array, train: bool = False):
        """Returns (reconstruction [B,H,W,3] float32, Quantized) of images in [0, 1].

        Raises:
          UserError: a side of the images is not a multiple of `downsampling`.
        """
        quantized = self.encode(images_BHWC, train)
        return self.decode(quantized.codes), quantized

    def latents(self, images_BHWC: jax.Array) -> jax.Array:
        """Returns what the quantizer reads, float32 [B,h,w,channels]."""
        h, w = images_BHWC.shape[1:3]
        if h % self.downsampling or w % self.downsampling:
            raise UserError(
                f"Images of {h}x{w} pixels do not divide into tokens of {self.downsampling}x"
                f"{self.downsampling} ({len(self.channel_multipliers)} channel_multipliers)."
            )
        return self.encoder(images_BHWC)

    def encode(self, images_BHWC: jax.Array, train: bool = False):
        """Returns the Quantized of images in [0, 1]; its indices are int32 [B,h,w]."""
        return self.quantizer(self.latents(images_BHWC), train=train)

    def decode(self, codes_BhwD: jax.Array) -> jax.Array:
        """Returns images float32 [B,H,W,3] of codes; about [0, 1], not clipped."""
        return self.decoder(codes_BhwD)

    def decode_indices(self, indices_Bhw: jax.Array) -> jax.Array:
        """Returns images float32 [B,H,W,3] of int32 token indices; about [0, 1], not clipped."""
        return self.decode(self.quantizer.indices_to_codes(indices_Bhw))
