"""Batches of black images, for shapes: what a config's batches carry, with nothing in it."""

import jax
import jax.numpy as jnp

from fsq_jax import tasks
from fsq_jax.tasks.unlabelled import blank_labels


def blank_batch(config, size: int = 1) -> dict[str, jax.Array]:
    """{"image" [B,S,S,3], "label" [B], and the task's labels} of `size` black images."""
    shape = (size, config.data.size, config.data.size)
    batch = {"image": jnp.zeros((*shape, 3)), "label": jnp.zeros(size, jnp.int32)}
    names = tasks.make(**config.task).features if "task" in config else ()
    return batch | blank_labels(names, shape)
