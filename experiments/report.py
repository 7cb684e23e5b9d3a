"""Tables of trained runs.

Every number in a table is read from a run's results.json. What was not run says "not run".
"""

import os
import platform
from collections.abc import Mapping

import flax
import jax
import numpy as np

from fsq_jax.reports import html
from fsq_jax.reports.comparison import Workdirs, comparison_table, protocol_table

__all__ = [
    "Workdirs",
    "comparison_table",
    "environment_table",
    "protocol_table",
    "times_table",
]


def environment_table() -> html.Table:
    """Device and versions of the process that calls it."""
    devices = jax.devices()
    return html.Table(
        ("", ""),
        [
            ("device", f"{len(devices)} x {devices[0].device_kind}; {os.cpu_count()} CPU cores"),
            ("platform", platform.platform()),
            ("Python", platform.python_version()),
            ("jax, flax, numpy", f"{jax.__version__}, {flax.__version__}, {np.__version__}"),
        ],
    )


def times_table(seconds: Mapping[str, float]) -> html.Table:
    """Minutes of each part, and their sum."""

    def cell(value):
        return f"{int(value) // 60}:{int(value) % 60:02d}"

    rows = [(name, cell(value)) for name, value in seconds.items()]
    return html.Table(("part", "min:s"), [*rows, ("in all", cell(sum(seconds.values())))])
