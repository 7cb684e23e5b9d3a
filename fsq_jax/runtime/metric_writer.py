"""What a run writes for people and programs: metrics.jsonl, TensorBoard, image grids."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.image_grid import image_grid
from fsq_jax.runtime.wandb_writer import WandbWriter

# The fields in which two equal runs differ.
WALL_CLOCK = ("seconds", "images_per_second", "data_wait", "mfu")


class MetricWriter:
    """Writes scalars and images of a run into its workdir; silent on all hosts but the first.

    Opening it at step s drops every later line of metrics.jsonl: a run that was killed after its
    last checkpoint writes those steps again, and the file reads as if it never had been.

    Args:
      workdir: of the run.
      step: that it goes on from.
      active: whether this is the first host.
      config: of the run; with a `wandb.project` in it, the same goes to Weights & Biases.
    """

    def __init__(
        self,
        workdir: str,
        *,
        step: int = 0,
        active: bool = True,
        config: Mapping[str, Any] | None = None,
    ):
        self._active = active
        self._start = time.monotonic()
        if not active:
            return
        self._samples = os.path.join(workdir, "samples")
        os.makedirs(self._samples, exist_ok=True)
        self._path = os.path.join(workdir, "metrics.jsonl")
        self._there = _drop_after(self._path, step)
        self._file = open(self._path, "a", buffering=1)  # noqa: SIM115
        self._tensorboard = SummaryWriter(
            os.path.join(workdir, "tensorboard"), purge_step=step + 1 if step else None
        )
        logged = config and config.get("wandb", {}).get("project")
        self._wandb = WandbWriter(workdir, config) if config and logged else None

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends one line to metrics.jsonl, and the same to TensorBoard under `split/`.

        An evaluation that is made again, after a run was resumed at its step, has its line already.
        """
        if not self._active or (step, split) in self._there:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {"step": step, "split": split} | values
        with bounded.names_path(self._path):
            self._file.write(json.dumps(line | {"seconds": time.monotonic() - self._start}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        if self._wandb:
            self._wandb.scalars(step, split, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Saves grids of images [N,H,W,3] in [0, 1] as samples/NAME_STEP.png and in TensorBoard."""
        if not self._active:
            return
        for name, images_NHWC in images.items():
            picture = image_grid(images_NHWC)
            with written_whole(os.path.join(self._samples, f"{name}_{step:07d}.png"), "wb") as file:
                Image.fromarray(picture).save(file, "png")
            self._tensorboard.add_image(name, picture, step, dataformats="HWC")
            if self._wandb:
                self._wandb.image(step, name, picture)

    def close(self) -> None:
        if self._active:
            self._file.close()
            with bounded.names_path(os.path.dirname(self._path)):
                self._tensorboard.close()
            if self._wandb:
                self._wandb.close()


def read_metrics(workdir: str, split: str | None = None) -> list[dict]:
    """The lines of a run's metrics.jsonl, all or those of one split; none before the first.

    A last line that was only half written is left out.

    Raises:
      UserError: for a line that is no object with a step and a split; says which.
    """
    path = os.path.join(workdir, "metrics.jsonl")
    if not os.path.lexists(path):
        return []
    lines = bounded.read_lines(path, {"step": int, "split": str})
    return [line for line in lines if split is None or line["split"] == split]


def _drop_after(path: str, step: int) -> set[tuple[int, str]]:
    """Rewrites a JSON-lines file without the lines after `step`, and a line half written.

    Returns the (step, split) of those that stay.
    """
    kept = [line for line in read_metrics(os.path.dirname(path)) if line["step"] <= step]
    with written_whole(path) as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
    return {(line["step"], line["split"]) for line in kept}
