"""Trained weights by a path, whatever lies there: a run's workdir, or a file of weights."""

import dataclasses
import json
import os
from typing import Any

import ml_collections

from fsq_jax.formats import weights_file
from fsq_jax.runtime import checkpoint
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import load_config, parse_config

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's arrays, on the host, and what is known of them.

    Attributes:
      path: where they come from.
      params: parameters; the moving averages, where it is a run of ours.
      model_state: {collection: tree} of the network's other arrays (UViM's codebook).
      step: updates that they have seen; 0 where nobody says.
      config: of the run; None for other people's files, see `layouts` for what they hold.
    """

    path: str
    params: PyTree
    model_state: PyTree
    step: int = 0
    config: ml_collections.ConfigDict | None = None

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes."""
        return {"params": self.params, **self.model_state}

    @property
    def fingerprint(self) -> str:
        """Tells these weights from any others."""
        return checkpoint.fingerprint(self.variables)


def is_run(path: str) -> bool:
    """Whether a path is the workdir of a run."""
    return os.path.exists(os.path.join(path, "config.json"))


def load(path: str, step: int | None = None) -> Weights:
    """The weights of a run, or of a msgpack, .npz or safetensors file.

    Args:
      path: a workdir, or a file; `weights_file.read` tells of which format.
      step: which of a run's checkpoints; the latest by default.

    Raises:
      UserError: there is nothing of the kind, or it can't be read.
    """
    if is_run(path):
        config = load_config(path)
        step, weights = checkpoint.load_weights(path, step)
        # LeCam's averages belong to the discriminator, which isn't among these weights.
        state = {k: v for k, v in weights["model_state"].items() if k != "lecam"}
        return Weights(path, weights["ema_params"], state, step, config)
    variables, metadata = weights_file.read(path)
    if "params" not in variables:
        raise UserError(f"{path} holds {sorted(variables)[:4]} at the top; expected 'params'.")
    config = None
    if "config" in metadata:  # written by fsq_jax.export
        config = parse_config(metadata["config"], path)
    step = json.loads(metadata.get("step", "0"))
    return Weights(path, variables.pop("params"), variables, step, config)
