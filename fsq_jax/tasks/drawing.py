"""Pictures of labels: depth in colours of a fixed range, segments coloured and outlined.

B batch, H W pixels. All functions work on arrays of JAX, inside of a compiled function or out.
"""

import colorsys

import jax.numpy as jnp
import matplotlib
import numpy as np

DEPTH_RANGE = (0.0, 10.0)  # metres from the first to the last colour, in every picture alike
# Near is bright. Perceptually uniform: equal steps of depth look like equal steps of colour.
_DEPTH_COLOURS = matplotlib.colormaps["magma_r"](np.linspace(0, 1, 256))[:, :3].astype(np.float32)
_OUTLINE = 0.15  # of the brightness stays where two segments meet


def draw(name: str, values) -> jnp.ndarray:
    """A picture float32 [B,H,W,3] in [0, 1] of a task's prediction, or of the truth.

    Args:
      name: "image", "depth" or "segments", as `Task.to_prediction` names it.
      values: image [B,H,W,3] in [0, 1]; depth in metres [B,H,W], 0 where it is missing, which is
        drawn black; segments int [B,H,W,2], semantic class and instance, class 0 is drawn black.
    """
    drawings = {"image": jnp.asarray, "depth": draw_depth, "segments": draw_segments}
    return drawings[name](values)


def draw_depth(depth_BHW) -> jnp.ndarray:
    """Colours [B,H,W,3] of depths in metres over `DEPTH_RANGE`; black where depth is missing."""
    low, high = DEPTH_RANGE
    shade_BHW = jnp.clip((depth_BHW - low) / (high - low), 0, 1)
    index_BHW = jnp.round(shade_BHW * (len(_DEPTH_COLOURS) - 1)).astype(jnp.int32)
    return jnp.where(depth_BHW[..., None] > 0, jnp.asarray(_DEPTH_COLOURS)[index_BHW], 0.0)


def draw_segments(segments_BHW2) -> jnp.ndarray:
    """Colours [B,H,W,3]: a hue for each class, a brightness for each instance, dark outlines."""
    semantic_BHW, instance_BHW = segments_BHW2[..., 0], segments_BHW2[..., 1]
    colour_BHW3 = jnp.asarray(palette())[semantic_BHW % 256]
    # Neighbouring numbers differ most: 1, 0.55, 0.85, 0.7, …
    brightness_BHW = jnp.asarray([1.0, 0.55, 0.85, 0.7], jnp.float32)[instance_BHW % 4]
    colour_BHW3 = colour_BHW3 * brightness_BHW[..., None]
    below_BHW = _differs(segments_BHW2, axis=1)
    beside_BHW = _differs(segments_BHW2, axis=2)
    return jnp.where((below_BHW | beside_BHW)[..., None], _OUTLINE * colour_BHW3, colour_BHW3)


def _differs(segments_BHW2, axis: int) -> jnp.ndarray:
    """True [B,H,W] where the next pixel along an axis belongs to another segment."""
    last = jnp.take(segments_BHW2, jnp.array([-1]), axis=axis)
    shifted = jnp.concatenate(
        [jnp.delete(segments_BHW2, 0, axis=axis, assume_unique_indices=True), last], axis=axis
    )
    return (shifted != segments_BHW2).any(axis=-1)


def palette(size: int = 256) -> np.ndarray:
    """Colours [size, 3]: black, then hues a golden angle apart, so that neighbours differ."""
    hues = (0.11 + 0.381966 * np.arange(size)) % 1
    light = [colorsys.hls_to_rgb(h, (0.62, 0.5, 0.72)[i % 3], 0.75) for i, h in enumerate(hues)]
    return np.array([(0.0, 0.0, 0.0), *light[: size - 1]], np.float32)
