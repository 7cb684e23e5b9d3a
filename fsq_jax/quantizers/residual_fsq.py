"""FSQ in several stages, each quantizing what the ones before left, and FSQ in groups of channels.

`ResidualFSQ` has three ways to bring what is left back into the range of a stage's grid:

"levels" is vector-quantize-pytorch's ResidualFSQ (1.32): z is bounded softly to (-c, c), c = L / (L
- 1), and stage i has a grid L^i times as fine as the first. Their cells fit into each other without
a gap, so that n stages of L levels are one uniform grid of L^n levels: channel by channel it is an
FSQ with many levels whose index is spelt stage by stage.

"layer_norm" and "learned" are those of "Robust Residual FSQ" (Zhu et al., arXiv 2508.15860): a
stage is FSQ (tanh and all) of an affine function of what is left, undone after rounding.

Each token has one index, the number that its digits spell in mixed radix, first stage least
significant: it is the index of an FSQ whose levels are repeated for each stage.

Legend: N tokens  S stages  d channels.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.quantizers import fsq
from fsq_jax.quantizers.fsq import Quantized
from fsq_jax.quantizers.vq import BATCH, STATE
from fsq_jax.runtime.user_error import UserError, did_you_mean

SCALINGS = ("levels", "layer_norm", "learned")
_GRID = "symmetric"


def soft_clamp(z: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Squashes z, [..., d], into (-c, c), c = L / (L - 1): all that L cells of a grid cover."""
    limit = jnp.array([n / (n - 1) for n in levels], jnp.float32)
    return jnp.tanh(z.astype(jnp.float32) / limit) * limit


def nearest(x: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Returns the nearest of L equally spaced values from -1 to 1; its gradient is the identity."""
    half = jnp.array(fsq.half_widths(levels, _GRID), jnp.float32)
    digits = jnp.clip(jnp.floor(x * half + half + 0.5), 0, 2 * half)
    return jax.lax.stop_gradient((digits - half) / half) + (x - jax.lax.stop_gradient(x))


def quantize(
    x: jax.Array, gain_Sd: jax.Array, offset_Sd: jax.Array, rounded: Callable
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what the stages make of x, [..., d], in sum; their codes; and what each one saw.

    The last two are [..., S, d]. Stage s rounds gain_s left + offset_s, of what is left, to a code,
    and its part of the sum is that undone, (code - offset_s) / gain_s.

    rounded: its argument to a code, with a gradient. Nothing is detached: where a stage passes its
      gradient on whole, there is nothing of it left for the next. vector-quantize-pytorch detaches
      what is subtracted, so that stages add up: its gradient of z is up to S times ours.
    """
    left, total, codes, seen = x, jnp.zeros_like(x), [], []
    for gain_d, offset_d in zip(gain_Sd, offset_Sd, strict=True):
        code = rounded(left * gain_d + offset_d)
        part = (code - offset_d) / gain_d
        seen.append(left)
        codes.append(code)
        left, total = left - part, total + part
    return total, jnp.stack(codes, axis=-2), jnp.stack(seen, axis=-2)


def part_indices(indices: jax.Array, levels: Sequence[int], num_parts: int) -> jax.Array:
    """Returns each stage's (or group's) own index, int32 [..., num_parts], of combined ones [...].

    levels: of one part, whose index is in [0, product of its levels).
    """
    size = math.prod(levels)
    weights = jnp.array([size**i for i in range(num_parts)], jnp.int32)
    return indices[..., None] // weights % size


class ResidualFSQ(nn.Module):
    """FSQ in stages.

    levels: of each stage, one count per channel. num_stages: how many.
    scaling: "levels", "layer_norm" or "learned", see the file's head.
    momentum: of layer_norm's running mean and variance, per step. Where weights are averaged for
      evaluation, it is to be their decay: what is left does not depend on z's scale, which
      drifts, so that weights of another time than the norm's make other codes.

    "learned" has a parameter `log_scale` [S, 1]: what is left is multiplied by its exponential
    (with the authors, by a softplus). "layer_norm" standardizes each channel of what is left first,
    and has `log_scale` and `bias` [S, d]. Its mean and variance are running ones over all tokens,
    in the collection "codebook_state": updated in training as EMAVectorQuantizer's are, after the
    call, and only read in evaluation, so that an index alone tells its code. The authors' code
    takes mean and variance over the sample at hand, without which its indices can't be decoded.

    The grid is symmetric throughout, as in vector-quantize-pytorch; the authors of "Robust Residual
    FSQ" have the grid of the FSQ paper.
    """

    levels: tuple[int, ...]
    num_stages: int = 2
    scaling: str = "levels"
    momentum: float = 0.999

    def __post_init__(self):
        if self.num_stages < 1:
            raise UserError(f"There must be at least one stage, not num_stages={self.num_stages}.")
        object.__setattr__(self, "levels", _checked(self.levels, self.num_stages))
        if self.scaling not in SCALINGS:
            raise UserError(
                f"scaling={self.scaling!r} is unknown{did_you_mean(self.scaling, SCALINGS)}"
            )
        if self.scaling == "levels":
            _checked(tuple(n**self.num_stages for n in self.levels), 1)  # the one grid they make
        super().__post_init__()

    def setup(self):
        shape = (self.num_stages, self.channels)
        if self.scaling != "levels":
            of_scale = shape if self.scaling == "layer_norm" else (self.num_stages, 1)
            self.log_scale = self.param("log_scale", nn.initializers.zeros, of_scale, jnp.float32)
        if self.scaling == "layer_norm":
            self.bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
            self.mean = self.variable(STATE, "mean", jnp.zeros, shape)
            # Until the first steps are known: each stage leaves a cell of its grid.
            self.variance = self.variable(STATE, "variance", lambda: self._fineness() ** -2)

    @property
    def codebook_size(self) -> int:
        return fsq.codebook_size(self.levels) ** self.num_stages

    @property
    def channels(self) -> int:
        return len(self.levels)

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., d]; training with layer_norm updates its mean and variance."""
        if z.ndim == 0 or z.shape[-1] != self.channels:
            raise UserError(
                f"The last dimension of z, of shape {z.shape}, must be {self.channels}, one for "
                f"each of the levels {self.levels}."
            )
        x = z.astype(jnp.float32)
        if self.scaling == "levels":
            x, rounded = soft_clamp(x, self.levels), nearest
        else:
            rounded = functools.partial(fsq.quantize, grid=_GRID)
        rounded = functools.partial(rounded, levels=self.levels)
        total, codes, seen = quantize(x, *self._stages(), rounded)
        indices = fsq.codes_to_indices(
            codes.reshape(*z.shape[:-1], -1), self.levels * self.num_stages, grid=_GRID
        )
        # The same value as of the index, to the last bit.
        value = jax.lax.stop_gradient(self.indices_to_codes(indices))
        codes = value + (total - jax.lax.stop_gradient(total))
        if self.scaling == "layer_norm" and train and not self.is_initializing():
            self._learn(jax.lax.stop_gradient(seen).reshape(-1, *seen.shape[-2:]))
        return Quantized(codes=codes, indices=indices, loss=jnp.zeros((), jnp.float32), metrics={})

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns float32 codes [..., d] of int32 indices [...]; NaN for one outside."""
        gain_Sd, offset_Sd = self._stages()
        codes = fsq.indices_to_codes(indices, self.levels * self.num_stages, grid=_GRID)
        codes = codes.reshape(*codes.shape[:-1], self.num_stages, self.channels)
        return jnp.sum((codes - offset_Sd) / gain_Sd, axis=-2)

    def after_step(self, state, batch, key):
        """Returns the variables of "codebook_state" after a step, of those before it and of the
        sum of what its calls left in "codebook_batch"."""
        del key  # nothing is drawn
        mean = batch["sums"] / batch["count"]
        variance = jnp.maximum(batch["squares"] / batch["count"] - mean**2, 0)
        return {
            name: self.momentum * state[name] + (1 - self.momentum) * value
            for name, value in (("mean", mean), ("variance", variance))
        }

    def _stages(self) -> tuple[jax.Array, jax.Array]:
        """Gain and offset of each stage, [S, d]."""
        if self.scaling == "levels":
            gain_Sd = self._fineness()
            return gain_Sd, jnp.zeros_like(gain_Sd)
        gain_Sd = jnp.exp(self.log_scale) * jnp.ones(self.channels)
        if self.scaling == "learned":
            return gain_Sd, jnp.zeros_like(gain_Sd)
        gain_Sd *= jax.lax.rsqrt(self.variance.value + 1e-10)
        return gain_Sd, self.bias - self.mean.value * gain_Sd

    def _fineness(self) -> jax.Array:
        """How much finer than the first stage's grid each stage's is, [S, d]."""
        powers = [[float(n) ** i for n in self.levels] for i in range(self.num_stages)]
        return jnp.array(powers, jnp.float32)

    def _learn(self, seen_NSd: jax.Array) -> None:
        batch = {
            "count": jnp.float32(len(seen_NSd)),
            "sums": seen_NSd.sum(axis=0),
            "squares": (seen_NSd**2).sum(axis=0),
        }
        if self.is_mutable_collection(BATCH):
            for name, value in batch.items():
                self.put_variable(BATCH, name, value)
        elif self.is_mutable_collection(STATE):
            state = {"mean": self.mean.value, "variance": self.variance.value}
            state = self.after_step(state, batch, None)
            self.mean.value, self.variance.value = state["mean"], state["variance"]


class GroupedFSQ(nn.Module):
    """FSQ of groups of channels, each with the same levels; it has no parameters.

    levels: of one group, one count per channel. num_groups: how many.
    shift, grid, squash, epsilon, noise: as FSQ's.

    Channels don't feel each other in FSQ, so that this is the FSQ whose levels are repeated for
    each group, with the same codes and indices: groups are how one writes its levels, and
    `part_indices` tells each one's own index. vector-quantize-pytorch's GroupedResidualFSQ, whose
    groups have stages, is the ResidualFSQ with the levels repeated in the same way.
    """

    levels: tuple[int, ...]
    num_groups: int = 2
    shift: str = "arctanh"
    grid: str = "paper"
    squash: str = "tanh"
    epsilon: float = 1e-3
    noise: float = 0.0

    def __post_init__(self):
        if self.num_groups < 1:
            raise UserError(f"There must be at least one group, not num_groups={self.num_groups}.")
        object.__setattr__(self, "levels", _checked(self.levels, self.num_groups))
        super().__post_init__()

    def setup(self):
        self.flat = fsq.FSQ(
            self.levels * self.num_groups,
            shift=self.shift,
            grid=self.grid,
            squash=self.squash,
            epsilon=self.epsilon,
            noise=self.noise,
        )

    @property
    def codebook_size(self) -> int:
        return fsq.codebook_size(self.levels) ** self.num_groups

    @property
    def channels(self) -> int:
        return len(self.levels) * self.num_groups

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., channels], the channels of a group beside each other."""
        return self.flat(z, train)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns float32 codes [..., channels] of int32 indices [...]; NaN for one outside."""
        return self.flat.indices_to_codes(indices)


def _checked(levels: Sequence[int], times: int) -> tuple[int, ...]:
    """The levels as a tuple, or a UserError with what is wrong with so many of them."""
    try:
        of_one = fsq.check_levels(levels)
        fsq.check_levels(of_one * times)
    except ValueError as error:  # of FSQ, whose file stands alone and knows no UserError
        raise UserError(str(error)) from None
    return of_one
