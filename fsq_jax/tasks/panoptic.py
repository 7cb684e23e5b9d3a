"""Panoptic segmentation: a class and a segment for each pixel (UViM on COCO).

Legend: B batch, H W pixels, C channels, N instances, S classes.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from fsq_jax.metrics import losses
from fsq_jax.runtime.user_error import UserError


@dataclasses.dataclass(frozen=True)
class Panoptic:
    """Class ids (0: void) and segment ids (0: none; stuff has ids, too) of each pixel.

    Segment ids are those of `data.segments.canonical`. `min_fraction`: a predicted segment of no
    more than this share of the image becomes void.
    Raises UserError for numbers below 2, and for a fraction outside [0, 1).
    """

    num_semantics: int = 134
    num_instances: int = 100
    min_fraction: float = 0.0

    features: ClassVar[tuple[str, ...]] = ("segments",)
    real: ClassVar[bool] = False

    def __post_init__(self):
        if min(self.num_semantics, self.num_instances) < 2 or not 0 <= self.min_fraction < 1:
            raise UserError(
                "Needs num_semantics >= 2, num_instances >= 2 and 0 <= min_fraction < 1, not "
                f"{self.num_semantics=}, {self.num_instances=}, {self.min_fraction=}."
            )

    @property
    def kinds(self) -> dict[str, int]:
        return {"semantics": self.num_semantics, "instances": self.num_instances}

    def to_inputs(self, batch: Mapping[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        """The two ids of batch["segments"] [B,H,W,2], int32 [B,H,W], and the image in [-1, 1].

        Segments from `num_instances` on keep their ids: one-hot, these are zeros.
        """
        segments = batch["segments"]
        labels = {"semantics": segments[..., 0], "instances": segments[..., 1]}
        return labels, batch["image"] * 2 - 1

    def loss(self, logits: Mapping[str, jax.Array], labels: Mapping[str, jax.Array]) -> jax.Array:
        """Returns the sum of both kinds' mean cross-entropies, [B].

        Void is a class like any other. Ids without a channel cost nothing.
        """
        costs = [
            losses.cross_entropy(logits[kind], labels[kind]).mean(axis=(1, 2))
            for kind in self.kinds
        ]
        return functools.reduce(operator.add, costs)

    def to_prediction(self, logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{"segments": int32 [B,H,W,2]}, class and segment of each pixel; (0, 0) where void.

        A pixel is of its likeliest segment, and all of a segment of the class whose logits have
        the largest sum over it.
        """
        instance_BHW = jnp.argmax(logits["instances"], axis=-1)
        mask_BHWN = jax.nn.one_hot(instance_BHW, self.num_instances, dtype=jnp.float32)
        votes_BNS = jnp.einsum(
            "bhwn,bhws->bns",
            mask_BHWN,
            logits["semantics"].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        share_BN = mask_BHWN.mean(axis=(1, 2))
        keep_BN = share_BN > self.min_fraction
        class_BN = jnp.where(keep_BN, jnp.argmax(votes_BNS, axis=-1), 0)
        flat_BP = instance_BHW.reshape(instance_BHW.shape[0], -1)
        semantic_BHW = jnp.take_along_axis(class_BN, flat_BP, axis=1).reshape(instance_BHW.shape)
        segments = jnp.stack([semantic_BHW, jnp.where(semantic_BHW > 0, instance_BHW, 0)], axis=-1)
        return {"segments": segments.astype(jnp.int32)}
