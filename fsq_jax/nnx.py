"""FSQ as a Flax NNX module, for models that are written in NNX.

Shapes: z is [..., channels], codes are [..., channels], indices [...].
"""

from collections.abc import Sequence

import jax
from flax import nnx

from fsq_jax.quantizers import fsq

Quantized = fsq.Quantized


class FSQ(nnx.Module):
    """Finite scalar quantizer without parameters or random state, so that it takes no `rngs`.

    The same maths, options and result as `fsq_jax.FSQ`. Its graph holds no arrays: `nnx.split`
    gives an empty state, and `nnx.jit` retraces for other levels or options.
    """

    def __init__(
        self,
        levels: Sequence[int],
        *,
        shift: str = "arctanh",
        grid: str = "paper",
        squash: str = "tanh",
        epsilon: float = 1e-3,
    ):
        # Without parameters a Linen module is a plain function of its fields: it needs no init and
        # no scope. It also checks them.
        self._linen = fsq.FSQ(levels, shift=shift, grid=grid, squash=squash, epsilon=epsilon)

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(self._linen.levels)

    @property
    def codebook_size(self) -> int:
        return self._linen.codebook_size

    @property
    def channels(self) -> int:
        return self._linen.channels

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., channels]; training and evaluation do the same."""
        return self._linen(z, train=train)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns float32 codes [..., channels] of int32 indices [...]."""
        return self._linen.indices_to_codes(indices)
