"""Training curves of an experiment's runs: whether they had flattened when training ended."""

import os
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.entries import Entry, select
from fsq_jax.reports import html
from fsq_jax.runtime.metric_writer import read_metrics


def figure(
    out: str,
    found: Sequence[Entry],
    stage: str,
    metric: str,
    panel: str = "quantizer",
    line: str = "size",
) -> Figure:
    """A training metric over steps: a panel for each value of one fact, a line for each of another.

    A line is the first run that has its facts: one seed.
    """
    of_stage = select(found, stage=stage)
    panels = list(dict.fromkeys(e[panel] for e in of_stage))
    drawn, axes = html.panels(max(1, len(panels)), 2, (5.0, 3.4))
    for axis, value in zip(axes, panels, strict=False):
        first = {}
        for entry in select(of_stage, **{panel: value}):
            first.setdefault(entry[line], entry)
        colours = colormaps["viridis"].resampled(max(2, len(first)))
        for number, (name, entry) in enumerate(sorted(first.items())):
            records = read_metrics(os.path.join(out, "runs", entry["run"]), "train")
            points = [(r["step"], r[metric]) for r in records if metric in r]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=f"{name:,}" if isinstance(name, int) else name.replace("_", " "),
                    color=colours(number),
                    linewidth=1.2,
                )
        title = value.upper() if panel == "quantizer" else value
        axis.set(title=f"{title}, {stage}: {metric}", xlabel="step", yscale="log")
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8, ncols=2)
    if not panels:
        html.not_run(axes[0])
    return drawn
