"""What a run says while it works: messages, a progress bar, each step's metrics."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import tqdm

from fsq_jax.runtime.guard import Guard
from fsq_jax.runtime.metric_writer import MetricWriter
from fsq_jax.runtime.user_error import UserError


def log(message: str, every_host: bool = False) -> None:
    """Prints a line on stderr, above a progress bar if there is one; on the first host alone, or
    on every one that calls it."""
    if every_host or jax.process_index() == 0:
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
      guard: checks every step's metrics.
      utilization: steps a second -> the share of the devices' peak that they are (MFU), or None
        where it isn't known.
      skipped: records that were skipped before the first step.

    Attributes:
      skipped: records that were skipped so far, as far as their steps are reported.
    """

    def __init__(
        self,
        writer: MetricWriter,
        progress: "Progress",
        every: int,
        batch_size: int,
        guard: Guard | None = None,
        utilization: Callable[[float], float | None] = lambda steps_per_second: None,
        skipped: int = 0,
    ):
        self._writer, self._progress = writer, progress
        self._every, self._batch_size = every, batch_size
        self._guard = guard or Guard()
        self._utilization = utilization
        self.skipped = skipped
        self._pending = None
        self._since, self._waited = None, 0.0

    def push(self, step: int, metrics: Mapping) -> None:
        """Takes the metrics of the step just started; reports those of the step before."""
        self.flush()
        self._pending = step, metrics

    def waited(self, seconds: float, metrics: Mapping) -> None:
        """Takes the seconds that a batch took to come, after the step with these metrics began.

        They are counted where that step was done before the batch was there: the devices then
        had nothing to do. Some of it may have passed while they still worked on it; finding out
        how much would mean to wait for them.
        """
        if all(value.is_ready() for value in jax.tree.leaves(dict(metrics))):
            self._waited += seconds

    def flush(self) -> None:
        """Reports what is pending.

        Raises:
          NonFiniteError: with the step and the metrics, where one of them is not finite.
          GuardError: where one is beyond what the guard allows.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        check_finite(step, values)
        self._guard.check(step, values)
        if "skipped_records" in values:  # of this step; what is written is of all
            values["skipped_records"] = self.skipped = self.skipped + int(values["skipped_records"])
        if step % self._every:
            self._progress.update()
            return
        now = time.monotonic()
        if self._since is not None:
            seconds = now - self._since[1]
            speed = (step - self._since[0]) / seconds
            values["images_per_second"] = speed * self._batch_size
            values["data_wait"] = min(1.0, self._waited / seconds)
            if (share := self._utilization(speed)) is not None:
                values["mfu"] = share
        self._since, self._waited = (step, now), 0.0
        self._writer.scalars(step, "train", values)
        self._progress.update(_shown(values) | gpu_memory())

    def pause(self) -> None:
        """Reports what is pending and forgets the clock: what follows is not training."""
        self.flush()
        self._since = None


def _shown(values: Mapping[str, float]) -> dict[str, str]:
    """What of a step's values stands beside the bar."""
    shown = {"loss": f"{values['loss']:.4g}"}
    if "images_per_second" in values:
        shown["images/s"] = f"{values['images_per_second']:.4g}"
    if values.get("data_wait", 0) >= 0.05:
        shown["waiting for data"] = f"{values['data_wait']:.0%}"
    if "mfu" in values:
        shown["MFU"] = f"{values['mfu']:.1%}"
    return shown


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raises a NonFiniteError that names the step and the metrics, where one isn't finite."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        raise NonFiniteError(
            f"Step {step}: {', '.join(bad)} not finite ({shown}). Checkpoints of earlier steps are "
            "kept, for --config.init_from=WORKDIR; a lower learning rate or a clip_norm may help, "
            "and so may leaving out images that are black all over."
        )


_BETWEEN_LINES = 30.0  # seconds between two lines of a log


def gpu_memory() -> dict[str, str]:
    """{"GPU": "12.3 of 59.4 GiB"}, the most that this host's fullest device held so far; or {}.

    "of" is what JAX may take of the device; a CPU counts no memory.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [
        (s["peak_bytes_in_use"], s.get("bytes_limit", 0)) for s in stats if "peak_bytes_in_use" in s
    ]
    if not peaks:
        return {}
    peak, limit = max(peaks)
    return {"GPU": f"{peak / 2**30:.1f}" + (f" of {limit / 2**30:.1f}" if limit else "") + " GiB"}


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03; days, too, where there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02d}"
    clock = f"{hour}:{minute:02d}:{second:02d}"
    return f"{days} d {clock}" if days else clock


class Progress:
    """A progress bar on a terminal; elsewhere a log line every half minute, with the time left.

    Args:
      total: steps in all.
      initial: steps made before.
      title: what is done.
      active: whether this is the first host.
      passing: whether it is a part of something longer: its bar goes away at its end, and a log
        says nothing of what takes less than half a minute.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        title: str = "",
        active: bool = True,
        passing: bool = False,
    ):
        self._step, self._total, self._title, self._passing = initial, total, title, passing
        self._said, self._said_at = initial, time.monotonic()
        self._next = self._said_at + _BETWEEN_LINES if passing else 0.0
        on_terminal = active and sys.stderr.isatty()
        self._bar, self._text = None, ""
        self._log = active and not on_terminal
        if on_terminal:
            self._bar = tqdm.tqdm(
                total=total, initial=initial, desc=title, dynamic_ncols=True, leave=not passing
            )

    def update(self, values: Mapping[str, str] | None = None) -> None:
        """One step further; `values` are shown beside the count."""
        self._step += 1
        if values:
            self._text = ", ".join(f"{name} {value}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update()
            if values:
                self._bar.set_postfix_str(self._text, refresh=False)
        elif self._log and self._due():
            now = time.monotonic()  # the speed since the last line: the first one has compiled
            rate = (self._step - self._said) / max(now - self._said_at, 1e-9)
            left = duration((self._total - self._step) / rate)
            line = f"{self._title} {self._step}/{self._total}, {rate:.2f} steps/s, {left} left"
            log(f"{line}, {self._text}" if self._text else line)
            self._said, self._said_at, self._next = self._step, now, now + _BETWEEN_LINES

    def _due(self) -> bool:
        if time.monotonic() >= self._next:
            return True
        return self._step == self._total and not self._passing

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def tracked(
    batches: Iterable[Any], title: str, images: int, total: int | None = None
) -> Iterator[Any]:
    """The batches, with a passing bar: how far they are, how fast, what memory is used.

    Args:
      batches: what is walked through.
      title: what is done.
      images: in a batch of all hosts.
      total: how many batches there are, where they have no length.
    """
    total = len(batches) if total is None else total  # type: ignore[arg-type]
    progress = Progress(total, title=title, active=jax.process_index() == 0, passing=True)
    begin = time.monotonic()
    try:
        for i, batch in enumerate(batches):
            yield batch
            speed = (i + 1) * images / max(time.monotonic() - begin, 1e-9)
            progress.update({"images/s": f"{speed:.4g}"} | gpu_memory())
    finally:
        progress.close()
