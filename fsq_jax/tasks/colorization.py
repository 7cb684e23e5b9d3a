"""Colourisation: the colours of a grey image (UViM on ImageNet).

Legend: B batch, H W pixels.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from fsq_jax.metrics import losses

_LUMA = (0.2989, 0.5870, 0.1140)  # as TensorFlow weighs red, green and blue


def grey(images_BHWC: jax.Array) -> jax.Array:
    """The grey of each pixel three times, [B,H,W,3] in [0, 1], of images in [0, 1].

    In 8 bits, as UViM trains on: TensorFlow cuts off what uint8 has no room for. (UViM's evaluator
    takes the grey of floats instead: at most one part of 255 apart.)
    """
    luma_BHW = sum(w * images_BHWC[..., c] for c, w in enumerate(_LUMA))
    grey_BHW = jnp.floor(luma_BHW * 255.5) / 255
    return jnp.repeat(grey_BHW[..., None], 3, axis=-1)


@dataclasses.dataclass(frozen=True)
class Colorization:
    """The image in RGB as three real channels in [-1, 1], given the same image in grey."""

    features: ClassVar[tuple[str, ...]] = ()
    real: ClassVar[bool] = True

    @property
    def kinds(self) -> dict[str, int]:
        return {"color": 3}

    def to_inputs(self, batch: Mapping[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        """The image and its grey, both float32 [B,H,W,3] in [-1, 1]."""
        return {"color": batch["image"] * 2 - 1}, grey(batch["image"]) * 2 - 1

    def loss(self, logits: Mapping[str, jax.Array], labels: Mapping[str, jax.Array]) -> jax.Array:
        """Returns the mean squared error over pixels and channels, [B]."""
        return losses.squared_error(labels["color"], logits["color"])

    def to_prediction(self, logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{"image": [B,H,W,3] in [0, 1]}."""
        return {"image": (jnp.clip(logits["color"].astype(jnp.float32), -1, 1) + 1) / 2}
