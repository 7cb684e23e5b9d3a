"""The kernels of a GPU at work in a call, and when it waits for the next, from a trace."""

import collections
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax

MOST = 40  # kernels that are listed
LONGEST = 10  # gaps that are listed

Event = tuple[float, float, str]  # begin and end in ns, name


def traced(call: Callable[[], Any]) -> dict[str, Any]:
    """What one call has the GPUs do: see `kernels`, and `idle`, of the first GPU.

    To be called with what has run before: compiling is not to be traced. Where there is no GPU,
    the list of kernels is empty, and nothing is said of gaps.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        gpus = [
            [
                (event.start_ns, event.end_ns, event.name)
                for line in plane.lines
                if line.name.startswith("Stream")
                for event in line.events
            ]
            for plane in planes
            if "/device:GPU" in plane.name
        ]
    found: dict[str, Any] = {"kernels": kernels(event for gpu in gpus for event in gpu)}
    return found | (idle(gpus[0]) if gpus and gpus[0] else {})


def kernels(events: Iterable[Event]) -> list[dict[str, Any]]:
    """[{"kernel", "ms" in all, "count"}] of events, those that take longest first."""
    milliseconds, counts = collections.Counter(), collections.Counter()
    for begin, end, name in events:
        milliseconds[name] += (end - begin) / 1e6
        counts[name] += 1
    return [
        {"kernel": name[:80], "ms": round(ms, 3), "count": counts[name]}
        for name, ms in milliseconds.most_common(MOST)
    ]


def idle(events: Iterable[Event]) -> dict[str, Any]:
    """{"busy_ms" with a kernel in any stream, "idle_ms" between the first and the last without,
    "gaps": the longest, {"ms", "at_ms" from the first kernel on, "after", "before"}}.

    The host queues kernels in advance; where the GPU waits it was too slow in that, or had to wait
    for a result itself. The call begins with nothing queued, and tracing costs the host time, too.
    """
    events = sorted(events)
    first, busy, gaps = events[0][0], 0.0, []
    until, last = first, ""
    for begin, end, name in events:
        if begin > until:
            gaps.append((begin - until, until - first, last, name))
        busy += max(0.0, end - max(begin, until))
        if end > until:
            until, last = end, name
    longest = sorted(gaps, reverse=True)[:LONGEST]
    return {
        "busy_ms": round(busy / 1e6, 3),
        "idle_ms": round((until - first - busy) / 1e6, 3),
        "gaps": [
            {
                "ms": round(ns / 1e6, 3),
                "at_ms": round(at / 1e6, 3),
                "after": after[:80],
                "before": before[:80],
            }
            for ns, at, after, before in longest
        ],
    }
