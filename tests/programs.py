"""Programs as processes, forked from one that has imported what they need, which takes seconds.

Where the start itself is what a test is about, it starts Python.
"""

import atexit
import gc
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

from tests import tiny

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["fsq_jax.train", "tests.tiny", "pytest"])


class Program:
    """A process that calls `target(*arguments)`, in part with the interface of `Popen`.

    Args:
      target: a function of a module; what it does to its process stays there.
      arguments: for it.
      environment: over the present one.
    """

    def __init__(self, target, *arguments, **environment):
        self._folder = tempfile.TemporaryDirectory()
        self._said = [pathlib.Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for file in self._said:
            file.touch()
        environment = dict(os.environ) | environment
        self._process = _PROCESSES.Process(
            target=_run, args=(target, arguments, environment, self._said)
        )
        self._process.start()
        self.pid, self.kill = self._process.pid, self._process.kill

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> tuple[str, ...]:
        """Its stdout and stderr so far."""
        return tuple(file.read_text() for file in self._said)

    def communicate(self, timeout: float = 120) -> tuple[str, ...]:
        """Its stdout and stderr, at its end."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self.said()


def start(module: str, *arguments: str, **environment: str) -> Program:
    """`python -m MODULE ARGUMENTS`, in the checkout."""
    return Program(_main, module, arguments, **environment)


def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The same, and its end."""
    program = start(module, *arguments, **environment)
    out, err = program.communicate()
    return subprocess.CompletedProcess(arguments, program.returncode, out, err)


def collect_seldom() -> None:
    """Tracing makes many objects, few of them garbage: they are searched for it less often."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _run(target, arguments, environment, said) -> None:
    collect_seldom()
    for number, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    try:
        target(*arguments)
    finally:
        atexit._run_exitfuncs()  # which `multiprocessing` leaves out


def _main(module: str, arguments: tuple[str, ...]) -> None:
    os.chdir(tiny.ROOT)
    sys.modules.pop(module, None)  # where it has been imported as well
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
