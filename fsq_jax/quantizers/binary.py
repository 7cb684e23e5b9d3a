"""Quantizers of one bit per channel: LFQ and BSQ, whose codes are signs and are looked up nowhere.

`LFQ` is MAGVIT-v2's lookup-free quantization (Yu et al., ICLR 2024, arXiv 2310.05737): the code is
the sign of z. `BSQ` is binary spherical quantization (Zhao et al., arXiv 2406.07548): the sign of z
on the unit sphere, over sqrt(d). Both need an entropy loss, or few of the codes are used: low when
every token is sure of its code and all codes are chosen alike.

The soft choice that it takes, softmax over all 2^d codes c of 2 z c / temperature, is a product
over the bits: bit i is 1 with probability sigmoid(4 z_i / temperature) for c_i = -1 or 1. So the
entropy of a token's choice is a sum over its bits, and the mean choice of 2^d codes is one product
of two matrices, [2^(d/2), N] x [N, 2^(d/2)], exactly: nothing of size N 2^d exists.

Both compute in float32 and return the `Quantized` of fsq.py. Means run over the whole batch.

Legend: N tokens (all leading dimensions flattened)  D bits  G groups of bits  K codes of a group.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.quantizers.fsq import Quantized
from fsq_jax.runtime.placement import automatic
from fsq_jax.runtime.user_error import UserError

_MAX_BITS = 31  # indices are int32
_MAX_GROUP = 24  # bits whose 2^24 probabilities are held at once


def signs(z: jax.Array) -> jax.Array:
    """Returns 1 where z > 0 and -1 elsewhere, at 0 too, float32."""
    return jnp.where(z > 0, 1.0, -1.0)


def codes_to_indices(codes: jax.Array) -> jax.Array:
    """Returns the index of each code [..., D]: int32 [...], bit i set where channel i is positive.

    The first channel is least significant, as in the paper's equation and in FSQ. In
    vector-quantize-pytorch and in BSQ's own code it is the most significant.
    """
    bits = (codes > 0).astype(jnp.int32)
    return jnp.sum(bits << jnp.arange(bits.shape[-1], dtype=jnp.int32), axis=-1, dtype=jnp.int32)


def indices_to_codes(indices: jax.Array, num_bits: int) -> jax.Array:
    """Returns -1 or 1 for each bit, float32 [..., num_bits], of indices [...].

    An index outside [0, 2^num_bits) gives a code of NaN.
    """
    indices = jnp.asarray(indices).astype(jnp.int32)[..., None]
    bits = (indices >> jnp.arange(num_bits, dtype=jnp.int32)) & 1
    is_code = (indices >= 0) & (indices <= 2**num_bits - 1)
    return jnp.where(is_code, bits * 2.0 - 1.0, jnp.nan)


def token_entropy(logits_ND: jax.Array) -> jax.Array:
    """Returns the mean entropy of a token's soft choice, in nats: a sum over its D bits.

    logits_ND: log odds of each bit.
    """
    distance_ND = jnp.abs(logits_ND)  # from a coin: so that nothing cancels where a bit is sure
    entropy_ND = jnp.log1p(jnp.exp(-distance_ND)) + distance_ND * jax.nn.sigmoid(-distance_ND)
    return entropy_ND.sum(axis=1).mean()


@automatic()
def codebook_entropy(logits_ND: jax.Array, group_bits: int) -> jax.Array:
    """Returns the entropy of the mean of the tokens' soft choices, in nats, at most D log 2.

    Exact for group_bits = D. With fewer it is the sum over groups of `group_bits` neighbouring bits
    each: what it would be if they were independent, and never less (equation 8 of BSQ, whose groups
    have one bit).
    """
    p_NGb = jax.nn.sigmoid(logits_ND).reshape(logits_ND.shape[0], -1, group_bits)
    low_NGA, high_NGB = (_choices(p) for p in jnp.split(p_NGb, [group_bits // 2], axis=2))
    mean_GAB = (
        jnp.einsum("nga,ngb->gab", low_NGA, high_NGB, precision=jax.lax.Precision.HIGHEST)
        / logits_ND.shape[0]
    )
    # The floor keeps a gradient of 0 * log 0 from being NaN. vector-quantize-pytorch has 1e-5 in
    # its place, more than a code's share where 2^17 are used alike: nothing there spreads them.
    return -jnp.sum(mean_GAB * jnp.log(jnp.maximum(mean_GAB, 1e-20)))


def _choices(p_NGb: jax.Array) -> jax.Array:
    """Returns the probability of each of the 2^b values of b independent bits, [N, G, 2^b]."""
    choices = jnp.ones((*p_NGb.shape[:2], 1))
    for i in range(p_NGb.shape[2]):
        p = p_NGb[..., i : i + 1]
        choices = jnp.concatenate([choices * (1 - p), choices * p], axis=-1)
    return choices


class LFQ(nn.Module):
    """Lookup-free quantizer of MAGVIT-v2; it has no parameters.

    codebook_size: 2^D; z has D channels. Codes are -1 or 1 in each.
    entropy_weight: of token entropy - diversity_weight * codebook entropy; 0 leaves it out.
    entropy_temperature: the soft choice is softmax(-|z - c|^2 / temperature).
    entropy_bits: bits that share one mean choice, see `codebook_entropy`; 0 for all.
    commitment_weight: of mean (z - sg(code))^2.

    Weights and temperature are those of Open-MAGVIT2 (arXiv 2409.04410), MAGVIT-v2's code being
    unpublished. vector-quantize-pytorch has the same temperature, as inv_temperature=100, and
    entropy weight, no commitment loss unless asked, and losses in training alone.
    """

    codebook_size: int
    diversity_weight: float = 1.0
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    entropy_bits: int = 0
    commitment_weight: float = 0.25

    def __post_init__(self):
        size = self.codebook_size
        if size < 2 or size & (size - 1) or size > 2**_MAX_BITS:
            raise UserError(
                f"{type(self).__name__} has a power of two of codes, from 2 to 2^{_MAX_BITS}, not "
                f"codebook_size={size}."
            )
        bits = self.entropy_bits or self.channels
        if self.entropy_weight and (self.channels % bits or bits > _MAX_GROUP):
            raise UserError(
                f"entropy_bits={self.entropy_bits} must divide the {self.channels} bits of "
                f"codebook_size={size} into groups of at most {_MAX_GROUP}; 0 makes one group."
            )
        super().__post_init__()

    @property
    def channels(self) -> int:
        return self.codebook_size.bit_length() - 1

    @property
    def scale(self) -> float:
        """The size of a code's channels."""
        return 1.0

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., D]; training and evaluation do the same.

        The codes' gradient is that of z (straight-through). metrics: the losses before their
        weights, and the two entropies in nats.
        """
        if z.ndim == 0 or z.shape[-1] != self.channels:
            raise UserError(
                f"The last dimension of z, of shape {z.shape}, must be {self.channels}, one for "
                f"each bit of codebook_size={self.codebook_size}."
            )
        x_ND = self._latents(z.astype(jnp.float32).reshape(-1, self.channels))
        codes_ND = self.scale * signs(x_ND)
        metrics = {"commitment_loss": jnp.mean((x_ND - codes_ND) ** 2)}
        loss = self.commitment_weight * metrics["commitment_loss"]
        if self.entropy_weight:
            logits_ND = 4 * self.scale / self.entropy_temperature * x_ND
            metrics["token_entropy"] = token_entropy(logits_ND)
            metrics["codebook_entropy"] = codebook_entropy(
                logits_ND, self.entropy_bits or self.channels
            )
            loss += self.entropy_weight * (
                metrics["token_entropy"] - self.diversity_weight * metrics["codebook_entropy"]
            )
        # The code's value exactly, for x - sg(x) is 0.
        through_ND = codes_ND + self.scale * (x_ND - jax.lax.stop_gradient(x_ND))
        return Quantized(
            codes=through_ND.reshape(z.shape),
            indices=codes_to_indices(codes_ND).reshape(z.shape[:-1]),
            loss=jnp.asarray(loss, jnp.float32),
            metrics=metrics,
        )

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns float32 codes [..., D] of int32 indices [...]; NaN for one outside."""
        return self.scale * indices_to_codes(indices, self.channels)

    def _latents(self, z_ND: jax.Array) -> jax.Array:
        """What is compared with the codes."""
        return z_ND


class BSQ(LFQ):
    """Binary spherical quantizer: LFQ on the unit sphere; it has no parameters.

    codebook_size: 2^D; z has D channels and is brought to unit length, u. Codes are sign(u) /
    sqrt(D), of unit length as well, and their gradient is that of u over sqrt(D), as in the paper;
    vector-quantize-pytorch's LFQ(spherical=True) passes on that of u.
    entropy_temperature: the soft choice is softmax(2 u c / temperature).
    commitment_weight: of mean (u - sg(code))^2. Other fields as LFQ's.

    Defaults are those of the authors' configs for ImageNet at 256 pixels: entropy_weight 0.1 (there
    three times that at first, and less from step to step until 2,000), entropy_bits 1, which is
    equation 8, and no commitment loss, which they sum over channels. vector-quantize-pytorch has
    temperature 0.01 and the codebook entropy of all bits at once (entropy_bits=0).
    """

    entropy_temperature: float = 1.0
    entropy_bits: int = 1
    commitment_weight: float = 0.0

    @property
    def scale(self) -> float:
        return self.channels**-0.5

    def _latents(self, z_ND: jax.Array) -> jax.Array:
        length_N1 = jnp.sum(z_ND**2, axis=1, keepdims=True)
        return z_ND * jax.lax.rsqrt(jnp.maximum(length_N1, 1e-24))
