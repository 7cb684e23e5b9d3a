"""A trace of some steps of a training, for TensorBoard and Perfetto."""

import contextlib
import os
import re
from collections.abc import Mapping

import jax

from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError


class Profiler:
    """Traces the steps "START:STOP", both included, into WORKDIR/profile.

    Only a step that is traced waits for the devices: the last one, until all of it has happened.
    Each host writes its own part. The first steps of a start compile, and show little else.

    Args:
      window: "START:STOP", numbers of steps from 1 on; "" for none.
      steps: of the whole run.
      workdir: of the run.

    Raises:
      UserError: where these are no steps of the run.
    """

    def __init__(self, window: str, steps: int, workdir: str):
        self._first, self._last = parse_window(window, steps) if window else (0, 0)
        self._folder = os.path.join(workdir, "profile")
        self._tracing = False

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """To be held around all that a step starts."""
        if not self._first <= step <= self._last:
            return contextlib.nullcontext()
        if not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, metrics: Mapping) -> None:
        """To be called after a step, with its metrics."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(dict(metrics))
            self.close()

    def close(self) -> None:
        """Writes what was traced, where the run ends within the window, too."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            log(f"The trace is in {self._folder}: TensorBoard and Perfetto read it.")


def parse_window(window: str, steps: int) -> tuple[int, int]:
    """(first step, last step) of "START:STOP"; UserError unless 1 <= START <= STOP <= steps."""
    found = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", window)
    if not found:
        raise UserError(f"profile={window!r} is not START:STOP, two numbers of steps.")
    first, last = map(int, found.groups())
    if not 1 <= first <= last <= steps:
        raise UserError(f"profile={window!r}: of {steps} steps, 1 <= START <= STOP can be traced.")
    return first, last
