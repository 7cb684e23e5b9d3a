"""Depth estimation: metres in linear bins (UViM on NYU Depth v2).

Legend: B batch, H W pixels, C bins.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from fsq_jax.metrics import losses
from fsq_jax.runtime.user_error import UserError


@dataclasses.dataclass(frozen=True)
class Depth:
    """Depth in `num_bins` bins of equal width between `min_depth` and `max_depth` metres.

    Bin 0 also holds what is not known (depth 0), and is not trained on.
    Raises UserError for an impossible range or number of bins.
    """

    num_bins: int = 256
    min_depth: float = 0.001
    max_depth: float = 10.0

    features: ClassVar[tuple[str, ...]] = ("depth",)
    real: ClassVar[bool] = False

    def __post_init__(self):
        if self.num_bins < 2 or not 0 <= self.min_depth < self.max_depth:
            raise UserError(
                f"Needs num_bins >= 2 and 0 <= min_depth < max_depth, not {self.num_bins=}, "
                f"{self.min_depth=}, {self.max_depth=}."
            )

    @property
    def kinds(self) -> dict[str, int]:
        return {"depth": self.num_bins}

    def to_inputs(self, batch: Mapping[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        """Bins int32 [B,H,W] of batch["depth"] (metres) and the image in [-1, 1]."""
        return {"depth": self.to_bins(batch["depth"])}, batch["image"] * 2 - 1

    def to_bins(self, depth_BHW: jax.Array) -> jax.Array:
        """The bin of each depth in metres, int32 of the same shape; what lies outside the range
        goes to the nearest bin."""
        share = (depth_BHW.astype(jnp.float32) - self.min_depth) / (self.max_depth - self.min_depth)
        return jnp.clip(jnp.floor(share * self.num_bins), 0, self.num_bins - 1).astype(jnp.int32)

    def to_metres(self, bins_BHW: jax.Array) -> jax.Array:
        """The depth in the middle of each bin, float32 metres."""
        share = (bins_BHW.astype(jnp.float32) + 0.5) / self.num_bins
        return share * (self.max_depth - self.min_depth) + self.min_depth

    def loss(self, logits: Mapping[str, jax.Array], labels: Mapping[str, jax.Array]) -> jax.Array:
        """Returns the cross-entropy of the bins, [B]: 0 where the true bin is 0, then the mean
        over all pixels, not over the valid ones."""
        loss_BHW = losses.cross_entropy(logits["depth"], labels["depth"])
        return jnp.where(labels["depth"] == 0, 0, loss_BHW).mean(axis=(1, 2))

    def to_prediction(self, logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{"depth": metres [B,H,W]}, of the likeliest bin."""
        return {"depth": self.to_metres(jnp.argmax(logits["depth"], axis=-1))}
