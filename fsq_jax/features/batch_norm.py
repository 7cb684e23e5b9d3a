"""State dicts of torch classifiers as Flax parameters, batch normalisation folded in.

At inference batch normalisation is a fixed scale and shift per channel; multiplied into the
kernel before it, it costs nothing, and the network has convolutions with a bias alone.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.formats import torch_file, weights_file
from fsq_jax.runtime import manifest
from fsq_jax.runtime.user_error import UserError


def folded(state: dict[str, np.ndarray], conv: str, norm: str, epsilon: float) -> dict:
    """Returns {"kernel": HWIO, "bias"} of a convolution and its normalisation, out of `state`."""
    weight = state.pop(f"{conv}.weight").astype(np.float64)
    names = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (state.pop(f"{norm}.{n}").astype(np.float64) for n in names)
    state.pop(f"{norm}.num_batches_tracked", None)
    scale = gamma / np.sqrt(variance + epsilon)
    return {"kernel": weight.transpose(2, 3, 1, 0) * scale, "bias": beta - mean * scale}


def dense(state: dict[str, np.ndarray], name: str) -> dict:
    """Returns {"kernel": [in, out], "bias"} of a linear layer, out of `state`."""
    return {"kernel": state.pop(f"{name}.weight").T, "bias": state.pop(f"{name}.bias")}


def load(path: str | Path, convert: Callable) -> tuple:
    """Returns (module, variables, sha256 of the file) of a network in a .pth or .npz file.

    `convert` takes a state dict, empties it and returns (module, params).

    Raises:
      UserError: the file cannot be read, or its names or shapes are not those of the network.
    """
    state = torch_file.read_state_dict(path)
    try:
        module, params = convert(state)
    except KeyError as error:
        raise UserError(f"{path} has no tensor {error} that this network needs.") from None
    except ValueError as error:
        raise UserError(f"{path} does not fit this network: {error}") from None
    if state:
        raise UserError(f"{path} has tensors that this network lacks: {sorted(state)[:5]}.")
    variables = {"params": weights_file.on_device(params)}
    _check_shapes(path, module, variables)
    return module, variables, manifest.sha256(path)


def _check_shapes(path, module, variables):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), images)
    flat, tree = jax.tree.flatten_with_path(variables)
    expected_flat, expected_tree = jax.tree.flatten_with_path(expected)
    if tree != expected_tree:
        raise UserError(f"{path} has other layers than this network.")
    for (name, array), (_, like) in zip(flat, expected_flat, strict=True):
        if array.shape != like.shape:
            where = jax.tree_util.keystr(name, simple=True, separator="/")
            raise UserError(f"{path}: {where} has shape {array.shape}, not {like.shape}.")
