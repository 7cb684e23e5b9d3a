"""A run's scalars, pictures and config in Weights & Biases, beside TensorBoard.

`config.wandb.project` switches it on. Account, server and mode are the client's own (`wandb login`,
WANDB_BASE_URL, WANDB_MODE=offline). A run that goes on in its workdir goes on in the same W&B run,
whose id is WORKDIR/wandb.json. Lines of steps that a killed run writes again are drawn twice there,
with the same values.
"""

import importlib.util
import os
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.user_error import UserError

FILE = "wandb.json"


def check(section: Mapping[str, str]) -> None:
    """Raises a UserError where `config.wandb` asks for what is not installed."""
    if section.get("name") and not section.get("project"):
        raise UserError(f"wandb.name={section['name']!r} needs a wandb.project.")
    if section.get("project") and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb.project needs wandb; pip install 'fsq_jax[wandb]'.")


class WandbWriter:
    """Writes into the W&B run of a workdir, which it begins or goes on with.

    Args:
      workdir: of the run.
      config: {"wandb": {"project", "name"}, ...}; all of it is shown beside the run.

    Raises:
      UserError: W&B refuses, or can't be reached.
    """

    def __init__(self, workdir: str, config: Mapping[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        path = os.path.join(workdir, FILE)
        section = config["wandb"]
        known = {"project": section["project"], "id": uuid.uuid4().hex[:8]}
        if os.path.exists(path):
            found = bounded.read_json(path, {"project": str, "id": str})
            known = {name: found[name] for name in known}
        else:
            write_json(path, known)
        name = section["name"] or os.path.basename(os.path.abspath(workdir))
        try:
            self._run = wandb.init(
                **known,
                name=name,
                dir=workdir,
                config=dict(config),
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            raise UserError(f"W&B: {str(error).strip().splitlines()[0]}") from error
        # An axis of our own: W&B's steps can't go back to where a killed run was resumed.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Logs values under `split/`."""
        self._run.log({"step": step} | {f"{split}/{name}": v for name, v in values.items()})

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture, uint8 [H,W,3]."""
        self._run.log({"step": step, f"samples/{name}": self._wandb.Image(picture)})

    def close(self) -> None:
        self._run.finish()
