"""Parameters of modules, looked up without tracing what makes them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn


def param(
    module: nn.Module, name: str, init: Callable, shape: Sequence[int], dtype: Any = jnp.float32
) -> jax.Array:
    """`module.param(name, init, shape, dtype)`, for a shape that is known.

    Flax traces `init` whenever a module is applied, only to compare shapes, which the start of a
    large network feels.

    Raises:
      flax.errors.ScopeParamShapeError: where the parameter that is there has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, dtype)
    value = module.get_variable("params", name)
    if jnp.shape(value) != tuple(shape):
        path = module.scope.path_text if module.scope else ""
        raise errors.ScopeParamShapeError(name, path, jnp.shape(value), tuple(shape))
    return value
