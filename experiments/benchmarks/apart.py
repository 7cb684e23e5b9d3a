"""A measurement in processes of its own, and the file of JSON lines that its result goes to."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from fsq_jax.runtime.user_error import UserError

_TURN = "FSQ_JAX_BENCHMARK_TURN"  # folder in which a measurement says that it is ready, and waits


class Started:
    """One program that measures, in as many processes as it is given environments.

    Args:
      module: of `experiments.benchmarks`.
      arguments: its own, one of which makes it measure in that process.
      environments: of each process, over the present one.
      waits: whether it is to wait for `go` where it calls `wait_for_turn`.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environments: Sequence[Mapping[str, str]] = ({},),
        waits: bool = False,
    ):
        self._folder = tempfile.TemporaryDirectory(prefix="fsq_jax_turn_")
        self._begin, self._files, self.processes = time.monotonic(), [], []
        turn = {_TURN: self._folder.name} if waits else {}
        for environment in environments:
            out, err = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))
            self._files.append((out, err))
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"experiments.benchmarks.{module}", *arguments],
                    stdout=out,
                    stderr=err,
                    # The last line of stderr is the error, and not a remark on filtered frames.
                    env=os.environ | {"JAX_TRACEBACK_FILTERING": "off"} | turn | environment,
                    start_new_session=True,  # compilers in processes of their own end with it
                )
            )

    @property
    def ready(self) -> bool:
        """Whether all of its processes wait for `go`; or one has ended, and there is a result."""
        waiting = len(list(pathlib.Path(self._folder.name).glob("ready.*")))
        return waiting == len(self.processes) or any(p.poll() is not None for p in self.processes)

    def go(self) -> None:
        """Lets it measure."""
        pathlib.Path(self._folder.name, "go").touch()

    def result(self, timeout: float) -> dict:
        """What its first process prints as its last line, once all have ended; {"error": ...} where
        one fails, the line is no JSON, or `timeout` seconds are over: then it is given up, with all
        that it started."""
        end = time.monotonic() + timeout
        try:
            while any(p.poll() is None for p in self.processes) and not self._failed():
                if time.monotonic() > end:
                    return {"error": f"not done after {time.monotonic() - self._begin:.0f} s"}
                time.sleep(0.02)
            return self._printed()
        finally:
            self.close()

    def _failed(self) -> list[int]:
        return [i for i, p in enumerate(self.processes) if p.poll()]

    def _printed(self) -> dict:
        failed = self._failed()
        out, err = self._files[failed[0] if failed else 0]
        out.seek(0), err.seek(0)
        if failed:
            return {"error": (err.read().strip().splitlines() or ["no output"])[-1][:300]}
        text = out.read()
        try:
            return json.loads((text.strip().splitlines() or [""])[-1])
        except ValueError:
            return {"error": f"its last line is no result: {text[-300:]!r}"}

    def close(self) -> None:
        """Ends what is still at work."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for file in (file for pair in self._files for file in pair):
            file.close()
        self._folder.cleanup()


def seeing(devices: Sequence[int], names: Sequence[str], xla: str = "") -> dict[str, str]:
    """The environment of a process that sees these of the machine's GPUs, which have these names,
    or as many simulated devices of a CPU where it has none; `xla`: further flags, on GPUs."""
    own = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # others are at work beside it
    if names:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] for i in devices)
    else:
        xla = f"--xla_force_host_platform_device_count={len(devices)}"
    return own | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla}".strip()}


def wait_for_turn() -> None:
    """Called by a measurement that has compiled: says so, and waits for its turn if it has to."""
    if folder := os.environ.get(_TURN):
        pathlib.Path(folder, f"ready.{os.getpid()}").touch()
        while not pathlib.Path(folder, "go").exists():
            time.sleep(0.02)


def run(
    module: str, arguments: Sequence[str], timeout: float, environment: Mapping[str, str] = {}
) -> dict:
    """`Started.result` of a measurement in one process, which waits for nobody."""
    return Started(module, arguments, [environment]).result(timeout)


def variants(arguments: Sequence[str], one: bool) -> list[str]:
    """What a program is to measure: in each argument a config and what changes it.

    Raises:
      UserError: where there is none; where `one` is asked for and there are several; and where a
        change stands alone, outside the quotes of its variant.
    """
    if not arguments:
        raise UserError("Name what to measure: a config and what changes it, in quotes.")
    for text in arguments:
        if "=" in text.partition(":")[0].partition(" ")[0]:
            raise UserError(
                f"{text!r} changes a variant and is none; put it into the variant's quotes, as in "
                f"'{arguments[0]} {text}'."
            )
    if one and len(arguments) > 1:
        raise UserError(f"--one measures one variant, and there are {len(arguments)}.")
    return list(arguments)


def record(result: Mapping, out: str) -> None:
    """Prints a result as a line of JSON, and appends it to the file `out` where there is one."""
    print(json.dumps(result), flush=True)
    if out:
        with open(out, "a") as file:
            file.write(json.dumps(result) + "\n")
