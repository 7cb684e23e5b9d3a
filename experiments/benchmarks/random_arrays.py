"""Arrays whose values do not matter, for what is timed and not trained."""

import jax
import numpy as np


def random_like(shapes):
    """Small random arrays in the place of a tree of shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: (0.02 * rng.standard_normal(s.shape, np.float32)).astype(s.dtype), shapes
    )


def random_variables(model, *inputs):
    """Such arrays in the place of all that a model's `init` makes."""
    return random_like(jax.eval_shape(model.init, jax.random.key(0), *inputs))
