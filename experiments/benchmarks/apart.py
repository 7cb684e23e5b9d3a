"""A measurement in a process of its own, and the file of JSON lines that its result goes to."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence


def run(
    module: str, arguments: Sequence[str], timeout: float, environment: Mapping[str, str] = {}
) -> dict:
    """What a benchmark prints as its last line; {"error": ...} where it fails, is late, or its last
    line is no JSON.

    Args:
      module: of `experiments.benchmarks`.
      arguments: its own, one of which makes it measure in that process.
      timeout: seconds after which it is given up, with all that it started.
      environment: over the present one.
    """
    # The last line of stderr is then the error, and not a remark on filtered frames.
    environment = os.environ | {"JAX_TRACEBACK_FILTERING": "off"} | environment
    process = subprocess.Popen(
        [sys.executable, "-m", f"experiments.benchmarks.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # so that compilers in processes of their own end with it
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:.0f} s"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        return {"error": (err.strip().splitlines() or ["no output"])[-1][:300]}
    try:
        return json.loads((out.strip().splitlines() or [""])[-1])
    except ValueError:
        return {"error": f"its last line is no result: {out[-300:]!r}"}


def record(result: Mapping, out: str) -> None:
    """Prints a result as a line of JSON, and appends it to the file `out` where there is one."""
    print(json.dumps(result), flush=True)
    if out:
        with open(out, "a") as file:
            file.write(json.dumps(result) + "\n")
