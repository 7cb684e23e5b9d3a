"""Images without labels: what a task's models see of them, and labels that say nothing.

B batch, H W pixels.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

_FEATURES = {"depth": ((), jnp.float32), "segments": ((2,), jnp.int32)}


def blank_labels(features: Sequence[str], shape_BHW: tuple[int, ...]) -> dict[str, jax.Array]:
    """Features of a batch that hold nothing: depth 0 [B,H,W], void segments [B,H,W,2]."""
    blank = {}
    for name in features:
        rest, dtype = _FEATURES[name]
        blank[name] = jnp.zeros((*shape_BHW, *rest), dtype)
    return blank


def context(task, batch: Mapping[str, jax.Array]) -> jax.Array:
    """What the models see of a batch, float32 [B,H,W,3] in [-1, 1]; it need not hold labels."""
    blank = blank_labels(task.features, batch["image"].shape[:3])
    return task.to_inputs(blank | dict(batch))[1]
