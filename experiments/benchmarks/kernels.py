"""The kernels of a GPU at work in a call, from a trace of it."""

import collections
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax

MOST = 40  # kernels that are listed


def listed(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """[{"kernel", "ms" in all, "count"}] of one call, those that take longest first.

    To be called with what has run before: compiling is not to be traced. What waits for nothing
    else runs in the same stream, so that the sum is the time of the call but for gaps. Empty where
    there is no GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        traced = jax.profiler.ProfileData.from_file(str(path))
    milliseconds, counts = collections.Counter(), collections.Counter()
    for plane in (p for p in traced.planes if "/device:GPU" in p.name):
        for line in (x for x in plane.lines if x.name.startswith("Stream")):
            for event in line.events:
                milliseconds[event.name] += event.duration_ns / 1e6
                counts[event.name] += 1
    return [
        {"kernel": name[:80], "ms": round(ms, 3), "count": counts[name]}
        for name, ms in milliseconds.most_common(MOST)
    ]
