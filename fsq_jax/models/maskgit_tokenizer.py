"""MaskGIT stage I: a convolutional encoder and decoder around a quantizer.

The network of MaskGIT (Chang et al. 2022), which section 4 of the FSQ paper takes over: GroupNorm,
swish, residual blocks, no attention. Images are in [0, 1] and the output is not squashed.
Parameter names are those of the published checkpoints.

    B batch  H W image height, width  h w token grid  C width  D channels of a code  G groups
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.models.layers import DenseLayers
from fsq_jax.runtime.sharding import split_by_example
from fsq_jax.runtime.user_error import UserError

SHORTCUTS = ("output", "input")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm_swish(
    x_BHWC: jax.Array, scale_C: jax.Array, bias_C: jax.Array, groups: int, epsilon: float
) -> jax.Array:
    """swish(norm(x) * scale + bias), in the dtype of x; statistics of each group of channels.

    Float32 sums of x and x^2 in one pass over x make one multiply-add of the normalisation. The
    backward pass keeps x alone, and reads it and the gradient twice. Among the changes from 2013 to
    1950 ms a step: tokenizer_step.jsonl in experiments/results/speed/h100 and its before/.
    """
    return _group_norm_swish_fwd(x_BHWC, scale_C, bias_C, groups, epsilon)[0]


def _group_means(sums_BC, pixels, groups):
    """Mean over the pixels and channels of each channel's group, of sums over pixels: [B, C]."""
    batch, channels = sums_BC.shape
    means_BG = sums_BC.reshape(batch, groups, -1).mean(-1) / pixels
    return jnp.repeat(means_BG, channels // groups, axis=-1)


def _over_pixels(values_BC):
    return values_BC[:, None, None]


def _group_norm_swish_fwd(x_BHWC, scale_C, bias_C, groups, epsilon):
    x32_BHWC, pixels = x_BHWC.astype(jnp.float32), x_BHWC.shape[1] * x_BHWC.shape[2]
    mean_BC = _group_means(x32_BHWC.sum((1, 2)), pixels, groups)
    square_BC = _group_means(jnp.square(x32_BHWC).sum((1, 2)), pixels, groups)
    inverse_BC = jax.lax.rsqrt(jnp.maximum(square_BC - jnp.square(mean_BC), 0.0) + epsilon)
    mul_BC = inverse_BC * scale_C
    y_BHWC = x32_BHWC * _over_pixels(mul_BC) + _over_pixels(bias_C - mean_BC * mul_BC)
    return nn.swish(y_BHWC).astype(x_BHWC.dtype), (x_BHWC, scale_C, bias_C, mean_BC, inverse_BC)


def _group_norm_swish_bwd(groups, epsilon, residuals, grad_BHWC):
    x_BHWC, scale_C, bias_C, mean_BC, inverse_BC = residuals
    if x_BHWC.dtype != jnp.float32:
        return _half_bwd(groups, residuals, grad_BHWC)
    normed_BHWC = (x_BHWC - _over_pixels(mean_BC)) * _over_pixels(inverse_BC)
    slope_BHWC = _swish_bwd(normed_BHWC * scale_C + bias_C, grad_BHWC)
    sum_BC, product_BC = slope_BHWC.sum((1, 2)), (slope_BHWC * normed_BHWC).sum((1, 2))
    pixels = x_BHWC.shape[1] * x_BHWC.shape[2]
    mean_slope_BC = _group_means(sum_BC * scale_C, pixels, groups)
    along_BC = _group_means(product_BC * scale_C, pixels, groups)
    grad_x_BHWC = slope_BHWC * scale_C - normed_BHWC * _over_pixels(along_BC)
    grad_x_BHWC = (grad_x_BHWC - _over_pixels(mean_slope_BC)) * _over_pixels(inverse_BC)
    return grad_x_BHWC, product_BC.sum(0), sum_BC.sum(0)


def _swish_bwd(y_BHWC, grad_BHWC):
    gate_BHWC = jax.nn.sigmoid(y_BHWC)
    return grad_BHWC * (gate_BHWC * (1 + y_BHWC * (1 - gate_BHWC)))


def _half_bwd(groups, residuals, grad_BHWC):
    """The same for a GPU: few operations and registers for a value, few sums for many values."""
    x_BHWC, scale_C, bias_C, mean_BC, inverse_BC = residuals
    mul_BC = inverse_BC * scale_C
    add_BC = bias_C - mean_BC * mul_BC

    def slopes(x_BHWC, grad_BHWC):
        x_BHWC = x_BHWC.astype(jnp.float32)
        y_BHWC = x_BHWC * _over_pixels(mul_BC) + _over_pixels(add_BC)
        return _swish_bwd(y_BHWC, grad_BHWC.astype(jnp.float32)), x_BHWC

    def partial_sums(v_BHWC):
        """Of 16 rows each: XLA itself would take one row, and start on the next ones too often."""
        batch, height, _, channels = v_BHWC.shape
        return v_BHWC.reshape(batch, height // math.gcd(height, 16), -1, channels).sum(2)

    slope_BHWC, x32_BHWC = slopes(x_BHWC, grad_BHWC)
    sums = partial_sums(slope_BHWC), partial_sums(slope_BHWC * x32_BHWC)
    # Behind the barrier the slope is computed again rather than written out in float32, which is
    # twice the bytes of x, and the partial sums stay what they are.
    sums, x_BHWC, grad_BHWC = jax.lax.optimization_barrier((sums, x_BHWC, grad_BHWC))
    sum_BC, raw_BC = (partial.sum(1) for partial in sums)
    product_BC = inverse_BC * (raw_BC - mean_BC * sum_BC)
    pixels = x_BHWC.shape[1] * x_BHWC.shape[2]
    mean_slope_BC = _group_means(sum_BC * scale_C, pixels, groups)
    along_BC = inverse_BC * _group_means(product_BC * scale_C, pixels, groups)
    slope_BHWC, x32_BHWC = slopes(x_BHWC, grad_BHWC)
    grad_x_BHWC = slope_BHWC * _over_pixels(mul_BC) - x32_BHWC * _over_pixels(inverse_BC * along_BC)
    grad_x_BHWC += _over_pixels(inverse_BC * (mean_BC * along_BC - mean_slope_BC))
    return grad_x_BHWC.astype(x_BHWC.dtype), product_BC.sum(0), sum_BC.sum(0)


group_norm_swish.defvjp(_group_norm_swish_fwd, _group_norm_swish_bwd)


class GroupNorm(nn.Module):
    """Group normalisation followed by swish, see `group_norm_swish`.

    `num_groups` is lowered to the largest number that divides it and the channels.
    """

    num_groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x_BHWC):
        scale_C = self.param("scale", nn.initializers.ones, x_BHWC.shape[-1:], jnp.float32)
        bias_C = self.param("bias", nn.initializers.zeros, x_BHWC.shape[-1:], jnp.float32)
        groups = math.gcd(self.num_groups, x_BHWC.shape[-1])
        x_BHWC = split_by_example(x_BHWC)  # lest it is cut as FSDP cuts the kernels around it
        return split_by_example(group_norm_swish(x_BHWC, scale_C, bias_C, groups, self.epsilon))


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
