"""A measurement in a process of its own, and the file of JSON lines that its result goes to."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence


def run(
    module: str, arguments: Sequence[str], timeout: float, environment: Mapping[str, str] = {}
) -> dict:
    """What a benchmark prints as its last line; {"error": ...} where it fails or is late.

    Args:
      module: of `experiments.benchmarks`.
      arguments: its own, one of which makes it measure in that process.
      timeout: seconds after which it is given up.
      environment: over the present one.
    """
    # The last line of stderr is then the error, and not a remark on filtered frames.
    environment = os.environ | {"JAX_TRACEBACK_FILTERING": "off"} | environment
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.benchmarks.{module}", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def record(result: Mapping, out: str) -> None:
    """Prints a result as a line of JSON, and appends it to the file `out` where there is one."""
    print(json.dumps(result), flush=True)
    if out:
        with open(out, "a") as file:
            file.write(json.dumps(result) + "\n")
