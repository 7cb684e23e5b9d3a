"""Notices that this process has been asked to end, on all hosts at the same step."""

import signal
import threading

import jax
from jax.experimental import multihost_utils

from fsq_jax.runtime.progress import log


class StopSignal:
    """Turns SIGTERM, and the first Ctrl-C, into a question that the loop asks after each step.

    With several processes JAX's own coordination service catches SIGTERM and makes them agree on
    the step to stop at; a checkpoint that only some of them wrote would be worth nothing.
    """

    def __init__(self):
        self._requested = False
        self._previous = {}
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread alone
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number, frame):
        del frame
        if self._requested:  # asked twice: leave at once
            raise KeyboardInterrupt
        self._requested = True
        log(f"{signal.Signals(number).name}: saving a checkpoint, then leaving.")

    def requested(self, step: int) -> bool:
        """Whether to save and leave after this step; the same answer in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def close(self) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
