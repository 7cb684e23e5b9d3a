"""A run of several processes that loses one: each survivor says so in one sentence, and ends.

Each process of a run keeps a counter going in WORKDIR/processes, which lies where all can read it,
as checkpoints do. Process 0 watches all of them, the others watch process 0. Where one stands still
the watcher writes down which, says so, and ends; the others find its note. JAX's own heartbeats end
a process as well, by an abort and with a stack; that abort is turned into the same sentence.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import jax

from fsq_jax.runtime.user_error import UserError

BEAT_SECONDS = 2.0
LOST_SECONDS = 20.0  # without a beat, after which a process is lost
LOST_STATUS = 75  # of the survivors: EX_TEMPFAIL, "try again", on which a scheduler can requeue


class Watch:
    """Beats for this process and watches the others, until closed; of one process, does nothing.

    Args:
      workdir: the run's folder.
      how_to_go_on: a sentence for the survivors, with the last checkpoint in it.
    """

    def __init__(self, workdir: str, how_to_go_on: Callable[[], str]):
        self._folder = os.path.join(os.path.abspath(workdir), "processes")
        self._how_to_go_on = how_to_go_on
        self._closed, self._ending = threading.Event(), threading.Lock()
        self._seen: dict[
            int, tuple[str | None, float]
        ] = {}  # process -> (its counter, when that was new)
        if jax.process_count() == 1:
            return
        os.makedirs(self._folder, exist_ok=True)
        if jax.process_index() == 0:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._note)  # of an earlier loss
        self._beat(0)
        watched = range(1, jax.process_count()) if jax.process_index() == 0 else [0]
        self._seen = {number: (None, time.monotonic()) for number in watched}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_abort)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._abort)

    def wait_for_verdict(self, error: BaseException) -> None:
        """Waits after an exception until a process is known to be lost, which ends this one.

        What a collective raises when its other end is gone doesn't say which process that was.
        Returns where none is lost, and at once for a mistake that all processes find.
        """
        if jax.process_count() > 1 and not isinstance(error, UserError):
            self._closed.wait(LOST_SECONDS + 3 * BEAT_SECONDS)

    def close(self) -> None:
        if jax.process_count() > 1 and not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            ctypes.CDLL(None).signal(signal.SIGABRT, None)  # SIG_DFL

    @property
    def _note(self) -> str:
        return os.path.join(self._folder, "lost.json")

    def _run(self) -> None:
        count = 0
        while not self._closed.wait(BEAT_SECONDS):
            count += 1
            with contextlib.suppress(OSError):  # a full disk is no lost process
                self._beat(count)
            if lost := self._noted() or self._late(LOST_SECONDS):
                self._end(lost)

    def _beat(self, count: int) -> None:
        with open(os.path.join(self._folder, str(jax.process_index())), "w") as file:
            file.write(str(count))

    def _late(self, seconds: float) -> list[int]:
        """The watched processes whose counter has stood still for so long."""
        now = time.monotonic()
        for number, (count, _) in self._seen.items():
            with contextlib.suppress(OSError), open(os.path.join(self._folder, str(number))) as f:
                if (found := f.read()) != count:
                    self._seen[number] = found, now
        return [number for number, (_, since) in self._seen.items() if now - since > seconds]

    def _noted(self) -> list[int]:
        """The processes that another one found to be lost."""
        try:
            with open(self._note) as file:
                return json.load(file)
        except (OSError, ValueError):  # there is none, or it is being written
            return []

    def _on_abort(self, number: int) -> None:
        """JAX gives up: process 0, where its service ran, is gone, or those known to be."""
        del number
        self._end(self._noted() or self._late(3 * BEAT_SECONDS) or [0])

    def _end(self, lost: list[int]) -> None:
        if not self._ending.acquire(blocking=False):
            return  # another thread is at it
        if jax.process_index() not in lost:
            with contextlib.suppress(OSError), open(self._note, "w") as file:
                json.dump(lost, file)
        which, count = ", ".join(map(str, lost)), jax.process_count()
        subject = f"Process {which} of {count} is" if len(lost) == 1 else f"Processes {which} are"
        print(f"Error: {subject} lost. {self._how_to_go_on()}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(LOST_STATUS)  # an orderly end would wait for the process that is lost
