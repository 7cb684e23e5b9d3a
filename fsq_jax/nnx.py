"""The quantizers as Flax NNX modules, for models that are written in NNX.

Each wraps its Linen namesake by flax's own bridge, and gives what that gives. Parameters are
nnx.Param, what a codebook keeps beside them is `CodebookState`, which training calls update in
place. Fields are those of the Linen module (`fsq_jax.quantizers`), and `rngs` is what it draws
from: "params" (or the default stream) for initial values, "codebook" in training, where it draws.

Shapes: z is [..., channels], codes are [..., channels], indices [...].
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from fsq_jax.quantizers import binary, fsq, residual_fsq, simvq, vq
from fsq_jax.quantizers.fsq import Quantized


class CodebookState(nnx.Variable):
    """What a codebook keeps beside parameters: running sums, frozen words."""


nnx.register_variable_name(vq.STATE, CodebookState)


class Quantizer(nnx.bridge.ToNNX):
    """Base of the quantizers: the Linen module of class `kind`, with its variables."""

    kind: ClassVar[type[nn.Module]]

    def __init__(self, *args, rngs: nnx.Rngs | None = None, **kwargs):
        super().__init__(self.kind(*args, **kwargs), rngs)
        self.lazy_init(jnp.zeros((1, self.channels)))

    @property
    def codebook_size(self) -> int:
        return self.to_nnx__module.codebook_size

    @property
    def channels(self) -> int:
        return self.to_nnx__module.channels

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., channels]; in training a running codebook learns of it."""
        return super().__call__(z, train=train, mutable=[vq.STATE] if train else False)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns float32 codes [..., channels] of int32 indices [...]."""
        return super().__call__(indices, method="indices_to_codes", mutable=False)


class FSQ(Quantizer):
    """Finite scalar quantizer; without noise it holds nothing, draws nothing, takes no `rngs`."""

    kind = fsq.FSQ

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(self.to_nnx__module.levels)


class ResidualFSQ(Quantizer):
    """FSQ in stages."""

    kind = residual_fsq.ResidualFSQ


class GroupedFSQ(Quantizer):
    """FSQ of groups of channels."""

    kind = residual_fsq.GroupedFSQ


class LFQ(Quantizer):
    """MAGVIT-v2's lookup-free quantizer."""

    kind = binary.LFQ


class BSQ(Quantizer):
    """Binary spherical quantizer."""

    kind = binary.BSQ


class VectorQuantizer(Quantizer):
    """MaskGIT's quantizer, whose codebook is a parameter."""

    kind = vq.VectorQuantizer


class EMAVectorQuantizer(Quantizer):
    """UViM's quantizer, whose codebook is running means."""

    kind = vq.EMAVectorQuantizer


class SimVQ(Quantizer):
    """A frozen codebook seen through a linear layer."""

    kind = simvq.SimVQ
