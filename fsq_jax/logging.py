"""What a run writes for people and programs: metrics.jsonl, TensorBoard, image grids, progress."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
import tqdm
from PIL import Image
from tensorboardX import SummaryWriter

WALL_CLOCK = ("seconds", "images_per_second")  # the fields in which two equal runs differ


def say(message: str) -> None:
    """Prints a line on stderr, above a progress bar if there is one; on the first host alone."""
    if jax.process_index() == 0:
        tqdm.tqdm.write(message, file=sys.stderr)


class MetricWriter:
    """Writes scalars and images of a run into its workdir; silent on all hosts but the first.

    Opening it at step s drops every later line of metrics.jsonl: a run that was killed after its
    last checkpoint writes those steps again, and the file reads as if it never had been.
    """

    def __init__(self, workdir: str, *, step: int = 0, active: bool = True):
        self._active = active
        self._start = time.monotonic()
        if not active:
            return
        self._samples = os.path.join(workdir, "samples")
        os.makedirs(self._samples, exist_ok=True)
        path = os.path.join(workdir, "metrics.jsonl")
        self._there = _drop_after(path, step)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115
        self._tensorboard = SummaryWriter(
            os.path.join(workdir, "tensorboard"), purge_step=step + 1 if step else None
        )

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends one line to metrics.jsonl, and the same to TensorBoard under `split/`.

        An evaluation that is made again, after a run was resumed at its step, has its line already.
        """
        if not self._active or (step, split) in self._there:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {"step": step, "split": split} | values
        self._file.write(json.dumps(line | {"seconds": time.monotonic() - self._start}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Saves grids of images [N,H,W,3] in [0, 1] as samples/NAME_STEP.png and in TensorBoard."""
        if not self._active:
            return
        for name, images_NHWC in images.items():
            picture = grid(images_NHWC)
            Image.fromarray(picture).save(os.path.join(self._samples, f"{name}_{step:07d}.png"))
            self._tensorboard.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._active:
            self._file.close()
            self._tensorboard.close()


def read_metrics(workdir: str, split: str | None = None) -> list[dict]:
    """The lines of a run's metrics.jsonl, all or those of one split; none before the first."""
    path = os.path.join(workdir, "metrics.jsonl")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    return [line for line in lines if split is None or line["split"] == split]


def _drop_after(path: str, step: int) -> set[tuple[int, str]]:
    """Rewrites a JSON-lines file without the lines after `step`, and a line half written.

    Returns the (step, split) of those that stay.
    """
    kept = [line for line in read_metrics(os.path.dirname(path)) if line["step"] <= step]
    with open(path + ".tmp", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
    os.replace(path + ".tmp", path)
    return {(line["step"], line["split"]) for line in kept}


def grid(images_NHWC: np.ndarray, columns: int = 8) -> np.ndarray:
    """One uint8 picture [rows*(H+2)+2, columns*(W+2)+2, 3] of images in [0, 1], row by row."""
    images = np.clip(np.nan_to_num(np.asarray(images_NHWC, np.float32)), 0, 1)
    num, height, width, channels = images.shape
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    canvas = np.ones((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), np.float32)
    for i, image in enumerate(images):
        top, left = 2 + i // columns * (height + 2), 2 + i % columns * (width + 2)
        canvas[top : top + height, left : left + width] = image
    return (canvas * 255 + 0.5).astype(np.uint8)


class StepReporter:
    """Reports each step's metrics one step late, so that the device never waits for the host.

    Args:
      writer: where every `every`-th step is written.
      progress: shown the last step that was written.
      every: steps between two lines.
      batch_size: of one step, for the speed.
    """

    def __init__(self, writer: MetricWriter, progress: "Progress", every: int, batch_size: int):
        self._writer, self._progress = writer, progress
        self._every, self._batch_size = every, batch_size
        self._pending = None
        self._since = None

    def push(self, step: int, metrics: Mapping) -> None:
        """Takes the metrics of the step just started; reports those of the step before."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Reports what is pending.

        Raises:
          FloatingPointError: with the step and the metrics, where one of them is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        check_finite(step, values)
        if step % self._every:
            self._progress.update()
            return
        now = time.monotonic()
        if self._since is not None:
            steps, begin = step - self._since[0], self._since[1]
            values["images_per_second"] = steps * self._batch_size / (now - begin)
        self._since = step, now
        self._writer.scalars(step, "train", values)
        self._progress.update({"loss": values["loss"]})

    def pause(self) -> None:
        """Reports what is pending and forgets the clock: what follows is not training."""
        self.flush()
        self._since = None


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raises a FloatingPointError that names the step and the metrics, where one isn't finite."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        raise FloatingPointError(
            f"Step {step}: {', '.join(bad)} not finite ({shown}). Checkpoints of earlier steps "
            f"are kept; a lower learning rate or a clip_norm may help."
        )


class Progress:
    """A progress bar on a terminal; elsewhere a log line every half minute."""

    def __init__(self, total: int, *, initial: int = 0, title: str = "", active: bool = True):
        self._step, self._total, self._title = initial, total, title
        self._begin, self._first, self._next = time.monotonic(), initial, 0.0
        on_terminal = active and sys.stderr.isatty()
        self._bar = None
        self._log = active and not on_terminal
        if on_terminal:
            self._bar = tqdm.tqdm(total=total, initial=initial, desc=title, dynamic_ncols=True)

    def update(self, values: Mapping[str, float] | None = None) -> None:
        """One step further; `values` are shown beside the count."""
        self._step += 1
        text = " ".join(f"{name}={float(v):.4g}" for name, v in (values or {}).items())
        if self._bar is not None:
            self._bar.update()
            if values:
                self._bar.set_postfix_str(text, refresh=False)
        elif self._log and (time.monotonic() >= self._next or self._step == self._total):
            rate = (self._step - self._first) / max(time.monotonic() - self._begin, 1e-9)
            say(f"{self._title} {self._step}/{self._total}, {rate:.2f} steps/s {text}")
            self._next = time.monotonic() + 30

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
