"""What a run says while it works: messages, a progress bar, each step's metrics."""

import math
import sys
import time
from collections.abc import Mapping

import jax
import tqdm

from fsq_jax.runtime.metric_writer import MetricWriter
from fsq_jax.runtime.user_error import UserError


def log(message: str) -> None:
    """Prints a line on stderr, above a progress bar if there is one; on the first host alone."""
    if jax.process_index() == 0:
        tqdm.tqdm.write(message, file=sys.stderr)


class NonFiniteError(UserError, FloatingPointError):
    """A metric that is NaN or infinite; the message names the step and the metrics."""


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
          NonFiniteError: with the step and the metrics, where one of them is not finite.
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
    """Raises a NonFiniteError that names the step and the metrics, where one isn't finite."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        raise NonFiniteError(
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
            log(f"{self._title} {self._step}/{self._total}, {rate:.2f} steps/s {text}")
            self._next = time.monotonic() + 30

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
