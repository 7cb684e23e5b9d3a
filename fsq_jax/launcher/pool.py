"""Runs at work side by side: places on GPUs, one process after the other, an end in time."""

import collections
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fsq_jax.launcher import gpus, plan
from fsq_jax.launcher.plan import Run
from fsq_jax.runtime import bounded, checkpoint
from fsq_jax.runtime.files import append_json_line
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError

GRACE = 35.0  # seconds that a run has to save its checkpoint, once it was asked to end
LEAST = 40.0  # seconds below which nothing is begun: it would end before its first step
ALIKE = 5  # runs in a row that fail with one error, at least, after which none is begun
# JAX's words where CUDA gives a process no GPU. Of 22 that were started at once on two H200 nine
# found none, while the others worked on the same two.
NO_GPU = "Unable to initialize backend"
STARTS = 3  # of a run that found no GPU
_LAUNCHES = "launches.jsonl"
_LAUNCH = {"status": int, "error?": str}  # what is read of a line
_LOCK = "launch.lock"  # of whatever runs there; a training takes its workdir's own beside it

# Begins a run: it gets SIGTERM when the launcher dies, however it does (Linux's prctl).
_END_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 15)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@dataclass
class Job:
    """A run at work: its process, and where it stands."""

    run: Run
    gpu: str
    places: int
    left: list  # commands, the one at work first
    process: subprocess.Popen = field(init=False)
    begin: float = field(init=False)
    saved: int = 0  # step of the last checkpoint when its command was started


class Pool:
    """The places on the machine's GPUs, and the runs that wait for them, that are at work on them.

    Args:
      workdir: of the experiments.
      runs: all of them, in the order in which they are begun.
      per_gpu: places on a GPU.
      environment: of the processes that it starts.
    """

    def __init__(
        self, workdir: str, runs: Sequence[Run], per_gpu: int, environment: Mapping[str, str]
    ):
        self._workdir, self._per_gpu, self._environment = workdir, per_gpu, dict(environment)
        self.waiting, self._wanted = plan.wanted_weights(workdir, runs)
        self._by_name = {run.name: run for run in runs}
        self._free = dict.fromkeys(gpus.visible() or [""], per_gpu)
        self._processes = per_gpu * len(self._free)
        self.jobs: list[Job] = []
        self.failed: dict[str, str] = {}
        self._errors: list[str] = []  # of runs that failed, since one was last finished
        self._in_vain = collections.Counter()  # starts of a run that found no GPU

    def begin(self) -> None:
        """Begins what can be begun. Nothing overtakes a run that waits for several places."""
        for run in list(self.waiting):
            unmet = [n for n in run.needs if not plan.has_weights(self._workdir, self._by_name[n])]
            if unmet:
                lost = [name for name in unmet if name in self.failed]
                if lost:
                    self.waiting.remove(run)
                    self.failed[run.name] = f"{run.name} needs {lost[0]}, which failed."
                continue
            gpu = max(self._free, key=self._free.__getitem__)
            places = min(run.places, self._per_gpu)
            if self._free[gpu] < places:
                return
            left = plan.commands_left(self._workdir, run, run.name in self._wanted)
            self.waiting.remove(run)
            job = Job(run, gpu, places, left)
            try:
                self._start(job)
            except UserError as locked:
                self.failed[run.name] = str(locked)
                log(self.failed[run.name])
                continue
            self._free[gpu] -= places
            self.jobs.append(job)

    def _start(self, job: Job) -> None:
        """Starts the first of a job's commands."""
        path = plan.folder(self._workdir, job.run)
        os.makedirs(path, exist_ok=True)
        share = job.places / self._per_gpu
        own = gpus.environment(job.gpu, share, self._processes)
        with open(os.path.join(path, "log.txt"), "a") as output, _locked(path) as lock:
            job.process = subprocess.Popen(
                [sys.executable, "-c", _END_WITH_PARENT, *job.left[0][1]],
                stdout=output,
                stderr=output,
                env=self._environment | own,
                pass_fds=(lock,),
            )
        job.begin, job.saved = time.monotonic(), _saved(path)

    def collect(self, stopping: bool) -> list[Run]:
        """Looks after processes that have ended; returns the runs that are finished."""
        finished = []
        for job in list(self.jobs):
            status = job.process.poll()
            if status is None:
                continue
            error = self._note(job, status)
            file = job.left[0][0]
            rest = plan.commands_left(self._workdir, job.run, job.run.name in self._wanted)
            done = file not in [name for name, _ in rest]
            if done and not status and rest and not stopping:
                job.left = rest
                self._start(job)
                continue
            self.jobs.remove(job)
            self._free[job.gpu] += job.places
            if done and not status:
                self._errors.clear()
                if not rest:
                    finished.append(job.run)
            elif not stopping:
                self._failed(job, status, error)
        return finished

    def give_up(self) -> None:
        """Begins nothing more where as many runs in a row as there are places failed with one
        error, such as a missing file that all of them read."""
        enough = max(ALIKE, self._processes)
        errors = self._errors[-enough:]
        alike = len(errors) == enough and len(set(errors)) == 1 and errors[0]
        if alike and self.waiting:
            log(f"{enough} runs in a row failed alike, and no other is begun: {errors[0]}")
            self.failed |= {run.name: f"{run.name} was not begun." for run in self.waiting}
            self.waiting.clear()

    def _failed(self, job: Job, status: int, error: str) -> None:
        """Puts a run that came further than before, or found no GPU, at the end of the queue; gives
        up others."""
        path = plan.folder(self._workdir, job.run)
        failure = f"{job.run.name} failed with exit status {status}"
        if (step := _saved(path)) > job.saved:
            self.waiting.append(job.run)
            log(f"{failure}; it goes on from step {step} when the others have begun.")
            return
        self._errors.append(error)
        self._in_vain[job.run.name] += NO_GPU in error
        if NO_GPU in error and self._in_vain[job.run.name] < STARTS:
            self.waiting.append(job.run)
            log(f"{failure}: it found no GPU, and is begun again when the others have begun.")
            return
        says = f": {error}" if error else "."
        self.failed[job.run.name] = f"{failure}; see {os.path.join(path, 'log.txt')}{says}"
        log(self.failed[job.run.name])

    def _note(self, job: Job, status: int) -> str:
        """Leaves a line in the run's folder: what was run, for how long, on what share of a GPU.

        Returns the error that it ended with, "" for none.
        """
        line = {
            "file": job.left[0][0],
            "seconds": round(time.monotonic() - job.begin, 1),
            "status": status,
            "gpu": job.gpu,
            "share": f"{job.places} of {self._per_gpu}",
        }
        folder = plan.folder(self._workdir, job.run)
        if status:
            line["error"] = _last_error(os.path.join(folder, "log.txt"))
        append_json_line(os.path.join(folder, _LAUNCHES), line)
        return line.get("error", "")

    def signal(self, number: int) -> None:
        """Sends a signal to all that is at work."""
        for job in self.jobs:
            with contextlib.suppress(ProcessLookupError):
                job.process.send_signal(number)


def in_short(failed: Mapping[str, str]) -> list[str]:
    """The sentences of runs that failed, where they only differ in the runs' names one for all."""
    alike: dict[str, list[str]] = {}
    for name, sentence in failed.items():
        alike.setdefault(sentence.replace(name, ""), []).append(name)
    return [
        failed[first] + (f" ({len(others)} others likewise.)" if others else "")
        for first, *others in alike.values()
    ]


def _saved(path: str) -> int:
    return max(checkpoint.saved_steps(path), default=0)


def _last_error(path: str) -> str:
    """The last line of a log that speaks of an error: logs stay behind when results travel."""
    with open(path, errors="replace") as file:
        lines = [line.strip() for line in file if "error" in line.lower()]
    return lines[-1][:300] if lines else ""


def launches(path: str) -> list[dict]:
    """The lines of a run's launches.jsonl, oldest first; none where it was never begun. A line that
    was only half written is left out: the launcher was killed."""
    file = os.path.join(path, _LAUNCHES)
    return bounded.read_lines(file, _LAUNCH) if os.path.exists(file) else []


def compilation_cache(workdir: str) -> dict[str, str]:
    """Environment variables: what one process has compiled, the others of this machine read."""
    folder = os.path.abspath(os.path.join(workdir, "compiled"))
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }


@contextlib.contextmanager
def _locked(path: str):
    """A file descriptor to hand to a process, which holds the run's lock for as long as it lives.

    Raises:
      UserError: where another process, of a launcher that was killed, is still at work there.
    """
    lock = os.open(os.path.join(path, _LOCK), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    except BlockingIOError:
        raise UserError(f"A process is at work in {path!r} already; end it first.") from None
    finally:
        os.close(lock)


def work(pool: Pool, seconds: float, on_finished: Callable[[Run], None]) -> None:
    """Runs until nothing is left that can be run, or the seconds are over (0: no end)."""
    begin = time.monotonic()
    end = begin + seconds if seconds else float("inf")
    total, done, stopping = len(pool.waiting), 0, False

    def stop(number, frame):
        del number, frame
        nonlocal end
        end = time.monotonic()

    previous = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        while pool.jobs or pool.waiting:
            now = time.monotonic()
            if now >= end and not stopping:
                stopping = True
                log(f"Time is over: {len(pool.jobs)} runs are asked to save and end.")
                pool.signal(signal.SIGTERM)
            if now >= end + GRACE:
                pool.signal(signal.SIGKILL)
            if now < end - (LEAST if seconds else 0):
                pool.begin()
            for run in pool.collect(stopping):
                done += 1
                log(f"[{now - begin:.0f} s, {done} of {total}] {run.name}")
                on_finished(run)
            pool.give_up()
            if not pool.jobs and (stopping or not _can_begin(pool, end - LEAST)):
                break
            time.sleep(0.1)
    finally:
        pool.signal(signal.SIGTERM)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _can_begin(pool: Pool, end: float) -> bool:
    return bool(pool.waiting) and time.monotonic() < end
