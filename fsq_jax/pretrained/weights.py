"""Trained weights by a path, whatever lies there: a run's workdir, or a file of weights."""

import dataclasses
import os
from collections.abc import Collection
from typing import Any

import jax
import ml_dtypes
import numpy as np

from fsq_jax.formats import weights_file
from fsq_jax.pretrained import shipped
from fsq_jax.runtime import bounded, checkpoint
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
      step: updates that they have seen; 0 where it is not recorded.
      config: of the run; None for other people's files, see `parameter_trees` for what they hold.
    """

    path: str
    params: PyTree
    model_state: PyTree
    step: int = 0
    config: Any = None  # an ml_collections.ConfigDict

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


def load(path: str, step: int | None = None, stages: Collection[str] = ()) -> Weights:
    """The weights of a run, or of a msgpack, .npz or safetensors file; each file is read once.

    Args:
      path: a workdir, or a file, also one of the hub (hf:OWNER/NAME[/FILE][@REVISION]) or of this
        package (pretrained:NAME); `weights_file.read` tells the format by its content.
      step: which of a run's checkpoints; the latest by default.
      stages: those that a run may be of, checked before its arrays are read; () for any.

    Raises:
      UserError: there is nothing of the kind, or it can't be read.
    """
    if is_run(path):
        config = load_config(path)
        check_stage(path, config.stage, stages)
        step, restored = checkpoint.load_weights(path, step)
        return Weights(path, restored["ema_params"], restored["model_state"], step, config)
    if step is not None:
        raise UserError(f"step={step} is one of a run's checkpoints; {path!r} is a file.")
    variables, metadata = weights_file.read(shipped.local_path(path))
    if "params" not in variables:
        raise UserError(f"{path} holds {sorted(variables)[:4]} at the top; expected 'params'.")
    config = None
    if "config" in metadata:  # written by fsq_jax.export
        config = parse_config(metadata["config"], path)
        check_stage(path, config.stage, stages)
        variables = as_float32(variables)
    seen = bounded.parse_json(metadata.get("step", "0"), f"{path}: the step in it", int)
    return Weights(path, variables.pop("params"), variables, seen, config)


def as_float32(variables: PyTree) -> PyTree:
    """Variables that were stored in bfloat16 in the type of all our parameters."""
    return jax.tree.map(
        lambda array: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array,
        variables,
    )


def rounded(loaded: Weights) -> Weights:
    """The weights as `load` gives them back where they are stored in bfloat16, still float32."""

    def to_bfloat16(array):
        array = np.asarray(array)
        return array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array

    variables = as_float32(jax.tree.map(to_bfloat16, loaded.variables))
    return dataclasses.replace(loaded, params=variables.pop("params"), model_state=variables)


def check_stage(path: str, stage: str, stages: Collection[str]) -> None:
    """Raises a UserError where a path holds a stage that is not among those wanted; () for any."""
    if stages and stage not in stages:
        needed = " or ".join(map(repr, stages))
        raise UserError(f"{path!r} is of stage {stage!r}; one of stage {needed} is needed.")
