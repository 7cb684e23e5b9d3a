"""Finite scalar quantization: bound each channel, round it, and read the digits as one index.

The whole quantizer of "Finite Scalar Quantization: VQ-VAE Made Simple" (Mentzer et al., ICLR 2024,
arXiv 2309.15505). It has no parameters, no auxiliary loss and no state, so it is written as pure
functions of an array and a tuple of levels, with a Flax module as their shell. This file needs
nothing of the package and may be copied out of it.

Shapes: [..., d] for d channels, one level count each; [...] for indices. `levels` = (L_1 ... L_d).

Words: channel i is squashed into an interval (`bound`) where rounding leaves L_i values, its
`digits` 0 ... L_i - 1. The `code` is the digit moved and scaled into [-1, 1]: what a decoder is
fed. The `index` is the number that the d digits spell in mixed radix, first channel least
significant.
"""

import difflib
import math
import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

# Table 1 and appendix A.4.1, which prints (7, 5, 5, 5) for 2**12, 875 codes; Table 1 has it right.
LEVELS: dict[int, tuple[int, ...]] = {
    2**4: (5, 3),
    2**6: (8, 8),
    2**8: (8, 6, 5),
    2**9: (8, 8, 8),
    2**10: (8, 5, 5, 5),
    2**11: (8, 8, 6, 5),
    2**12: (7, 5, 5, 5, 5),
    2**14: (8, 8, 8, 6, 5),
    2**16: (8, 8, 8, 5, 5, 5),
}

SHIFTS = ("arctanh", "tan", "none")
GRIDS = ("paper", "symmetric")
# The slope of tanh. iFSQ (arXiv 2601.17124) bounds with 2 sigmoid(1.6 z) - 1, which is tanh(0.8 z).
SQUASHES = {"tanh": 1.0, "ifsq": 0.8}

_MAX_LEVEL = 2**20  # tanh in float32 does not resolve finer levels near its ends
_MAX_CODES = 2**31  # indices are int32


@struct.dataclass
class Quantized:
    """What every quantizer returns.

    codes: float32 [..., d], what the decoder is fed; carries the straight-through gradient.
    indices: int32 [...], in [0, codebook_size).
    loss: float32 scalar, the sum of the quantizer's weighted losses; 0 for FSQ.
    metrics: name -> scalar, for the log.
    """

    codes: jax.Array
    indices: jax.Array
    loss: jax.Array
    metrics: dict[str, jax.Array]


def round_ste(x: jax.Array) -> jax.Array:
    """Rounds to the nearest integer; its gradient is the identity (straight-through)."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def bound(
    z: jax.Array,
    levels: Sequence[int],
    *,
    shift: str = "arctanh",
    grid: str = "paper",
    squash: str = "tanh",
    epsilon: float = 1e-3,
) -> jax.Array:
    """Squashes z, [..., d], so that rounding gives L_i values in channel i: f of section 3.1, A.1.

    Returns float32 [..., d] in units of one level: within (L - 1) / 2 of zero for odd L, and half a
    level lower for even L on the paper's grid, so that L integers are in reach.

    shift: moves z for even L so that 0 is mapped to 0. "arctanh" is what the authors meant, "tan"
        what paper and colab print (a slip, confirmed by the authors; 5e-4 of a level for L = 4),
        "none" leaves z as it is, which puts z = 0 on the edge of two bins.
    grid: see `half_widths`. The symmetric grid needs no shift and ignores it.
    squash: "tanh", or "ifsq" for 2 sigmoid(1.6 z) - 1.
    epsilon: the share by which the range stays short of (L - 1) / 2 levels. -1e-3 gives the codes
        of vector-quantize-pytorch, and 0 those of arXiv 2411.19842 on the symmetric grid.
    Raises ValueError for impossible levels, unknown options and a wrong number of channels.
    """
    levels = check_levels(levels)
    _check_option("shift", shift, SHIFTS)
    _check_option("squash", squash, SQUASHES)
    z = jnp.asarray(z, jnp.float32)
    _check_channels("z", z, levels)

    half = half_widths(levels, grid)
    constants = [
        _constants(level, h, shift, epsilon) for level, h in zip(levels, half, strict=True)
    ]
    radius, offset, shifts = jnp.array(constants, jnp.float32).T
    return jnp.tanh(SQUASHES[squash] * z + shifts) * radius - offset


def quantize(
    z: jax.Array,
    levels: Sequence[int],
    *,
    shift: str = "arctanh",
    grid: str = "paper",
    squash: str = "tanh",
    epsilon: float = 1e-3,
) -> jax.Array:
    """Returns the codes of z, [..., d]: float32 in [-1, 1], L_i values in channel i.

    The gradient is that of `bound` divided by `half_widths`: rounding is passed straight through,
    tanh is not. All is computed in float32 whatever the type of z. Options as in `bound`.
    """
    bounded = bound(z, levels, shift=shift, grid=grid, squash=squash, epsilon=epsilon)
    half = jnp.array(half_widths(levels, grid), jnp.float32)
    fraction = half % 1  # an even level of the symmetric grid rounds to half-integers; else 0
    return (round_ste(bounded - fraction) + fraction) / half


def with_noise(
    codes: jax.Array, z: jax.Array, levels: Sequence[int], key: jax.Array, noise: float, **options
) -> jax.Array:
    """Returns what a decoder is trained on of codes, `quantize(z)`: [..., d], the same gradient.

    Each example (first dimension) gets, with probability `noise`, `bound` (whose options these are)
    plus U(-1/2, 1/2) of a level, with half that probability `bound` alone, or else its codes. 0.5
    is arXiv 2411.19842, section 3.2; its code's noise_dropout p perturbs 1 - p and leaves p^2 raw.
    vector-quantize-pytorch's adds U(-1/2, 1/2) of half the range to single channels of codes.
    """
    key_kind, key_noise = jax.random.split(key)
    half = jnp.array(half_widths(levels, options.get("grid", "paper")), jnp.float32)
    raw = bound(z, levels, **options)
    kind = jax.random.uniform(key_kind, (*raw.shape[:-1][:1], *(1,) * (raw.ndim - 1)))
    moved = raw + jax.random.uniform(key_noise, raw.shape, minval=-0.5, maxval=0.5)
    return jnp.where(kind < noise, moved / half, jnp.where(kind < 1.5 * noise, raw / half, codes))


def codes_to_indices(codes: jax.Array, levels: Sequence[int], *, grid: str = "paper") -> jax.Array:
    """Returns the index of each code: int32 [...] in [0, codebook_size), from codes [..., d].

    Digits are rounded to integers first and packed as integers: in bfloat16 arithmetic [8, 5, 5, 5]
    would lose half of its indices. A code between grid points gets its nearest neighbour's index.
    """
    levels = check_levels(levels)
    codes = jnp.asarray(codes, jnp.float32)
    _check_channels("codes", codes, levels)
    half = jnp.array(half_widths(levels, grid), jnp.float32)
    digits = jnp.round(codes * half + half).astype(jnp.int32)
    digits = jnp.clip(digits, 0, jnp.array(levels, jnp.int32) - 1)
    return jnp.sum(digits * _basis(levels), axis=-1, dtype=jnp.int32)


def indices_to_codes(
    indices: jax.Array, levels: Sequence[int], *, grid: str = "paper"
) -> jax.Array:
    """Returns the code of each index: float32 [..., d] in [-1, 1], from integers [...].

    An index outside [0, codebook_size), such as a mask token's, gives a code of NaN, as `jnp.take`
    does: inside jit there is no raising, and wrapping it round would hide the mistake.
    """
    levels = check_levels(levels)
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"Indices must be integers, not {indices.dtype}.")
    indices = indices.astype(jnp.int32)[..., None]
    half = jnp.array(half_widths(levels, grid), jnp.float32)
    digits = indices // _basis(levels) % jnp.array(levels, jnp.int32)
    is_code = (indices >= 0) & (indices <= codebook_size(levels) - 1)
    return jnp.where(is_code, (digits - half) / half, jnp.nan)


def codebook_size(levels: Sequence[int]) -> int:
    """Returns the number of codes, the product of the levels."""
    return math.prod(check_levels(levels))


def half_widths(levels: Sequence[int], grid: str = "paper") -> tuple[float, ...]:
    """Returns the digit of code 0, which is also the number of digits from code 0 to code 1.

    "paper": floor(L / 2). For even L the codes are -1, ..., 1 - 2 / L: 0 is one of them, 1 is not.
    "symmetric": (L - 1) / 2. The codes are L equally spaced values from -1 to 1, both included
    (arXiv 2411.19842, section 3.2). For odd L the two are the same.
    """
    _check_option("grid", grid, GRIDS)
    levels = check_levels(levels)
    return tuple(float(n // 2) if grid == "paper" else (n - 1) / 2 for n in levels)


def check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """Returns the levels as a tuple of ints, or raises ValueError with what is wrong with them."""
    try:
        values = tuple(operator.index(level) for level in levels)
    except TypeError:
        raise ValueError(f"Levels must be a sequence of integers, not {levels!r}.") from None
    if not values:
        raise ValueError("Levels must have at least one channel, not none.")
    if min(values) < 2:
        raise ValueError(f"Every level must be at least 2, but levels are {values}.")
    if max(values) > _MAX_LEVEL:
        raise ValueError(f"Every level must be at most {_MAX_LEVEL}, but levels are {values}.")
    if (size := math.prod(values)) > _MAX_CODES:
        raise ValueError(
            f"Levels {values} make {size} codes, more than the {_MAX_CODES} that int32 can index."
        )
    return values


class FSQ(nn.Module):
    """Finite scalar quantizer as a Flax Linen module; it has no parameters and needs no `init`.

    levels: one count per channel, such as LEVELS[2**10]. Other options as in `bound`.
    noise: share of the examples that are perturbed in training, see `with_noise`, 0 to 2/3; draws
      from the rng stream "codebook". Indices are those of rounding in any case.
    """

    levels: Sequence[int]
    shift: str = "arctanh"
    grid: str = "paper"
    squash: str = "tanh"
    epsilon: float = 1e-3
    noise: float = 0.0

    def __post_init__(self):
        # Checked here rather than at the first call; a list becomes a tuple, which can be hashed.
        object.__setattr__(self, "levels", check_levels(self.levels))
        _check_option("shift", self.shift, SHIFTS)
        _check_option("grid", self.grid, GRIDS)
        _check_option("squash", self.squash, SQUASHES)
        if not 0 <= self.noise <= 2 / 3:
            raise ValueError(f"noise must be from 0 to 2/3, not {self.noise}.")
        super().__post_init__()

    @property
    def codebook_size(self) -> int:
        return codebook_size(self.levels)

    @property
    def channels(self) -> int:
        return len(self.levels)

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., channels]; training and evaluation do the same but for `noise`."""
        bounding = dict(shift=self.shift, grid=self.grid, squash=self.squash)
        options: dict = bounding | dict(epsilon=self.epsilon)
        codes = quantize(z, self.levels, **options)
        indices = codes_to_indices(codes, self.levels, grid=self.grid)
        if train and self.noise:
            key = self.make_rng("codebook")
            codes = with_noise(codes, z, self.levels, key, self.noise, **options)
        return Quantized(codes, indices, loss=jnp.zeros((), jnp.float32), metrics={})

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns float32 codes [..., channels] of int32 indices [...]."""
        return indices_to_codes(indices, self.levels, grid=self.grid)


def _constants(level: int, half: float, shift: str, epsilon: float) -> tuple[float, float, float]:
    """Returns one channel's radius, offset and shift: tanh(z + shift) * radius - offset."""
    steps = level - 1
    # The outermost bins are half a level wide less epsilon * steps / 2: with more than 500 levels
    # a fixed epsilon would shrink them to nothing.
    epsilon = max(-0.5 / steps, min(epsilon, 0.5 / steps))
    radius = steps / 2 * (1 - epsilon)
    offset = half - steps / 2  # 1/2 for an even level on the paper's grid, else 0
    if shift == "none":
        return radius, offset, 0.0
    if shift == "tan":
        return radius, offset, math.tan(offset / radius)
    if level == 2:
        # The range is (-1, 0), which 0 is not in: offset > radius, of which arctanh is NaN. No
        # shift then: the bins meet at z = 0, and the code is the sign of z.
        return radius, offset, 0.0
    return radius, offset, math.atanh(offset / radius)


def _basis(levels: tuple[int, ...]) -> jax.Array:
    """Returns the weight of each digit: 1, L_1, L_1 L_2, ..., int32 [d]."""
    return jnp.array([math.prod(levels[:i]) for i in range(len(levels))], jnp.int32)


def _check_channels(name: str, array: jax.Array, levels: tuple[int, ...]) -> None:
    if array.ndim == 0 or array.shape[-1] != len(levels):
        raise ValueError(
            f"The last dimension of {name}, of shape {array.shape}, must be {len(levels)}, "
            f"one channel for each of the levels {levels}."
        )


def _check_option(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        nearest = difflib.get_close_matches(str(value), list(allowed), n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{name} must be one of {tuple(allowed)}, not {value!r}.{hint}")
