"""Training curves of an experiment's runs: whether they had flattened when training ended."""

import os
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.entries import Entry, select
from fsq_jax.reports import html
from fsq_jax.runtime.metric_writer import read_metrics


def figure(out: str, found: Sequence[Entry], stage: str, metric: str) -> Figure:
    """A panel per quantizer, a line per codebook (its first run), a training metric over steps."""
    quantizers = list(dict.fromkeys(e["quantizer"] for e in select(found, stage=stage)))
    drawn, axes = html.panels(max(1, len(quantizers)), 2, (5.0, 3.4))
    for axis, quantizer in zip(axes, quantizers, strict=False):
        first = {}
        for entry in select(found, stage=stage, quantizer=quantizer):
            first.setdefault(entry["size"], entry)
        colours = colormaps["viridis"].resampled(max(2, len(first)))
        for number, (size, entry) in enumerate(sorted(first.items())):
            records = read_metrics(os.path.join(out, "runs", entry["run"]), "train")
            points = [(r["step"], r[metric]) for r in records if metric in r]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=f"{size:,}",
                    color=colours(number),
                    linewidth=1.2,
                )
        axis.set(title=f"{quantizer.upper()}, {stage}: {metric}", xlabel="step", yscale="log")
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8, ncols=2)
    if not quantizers:
        axes[0].text(0.5, 0.5, "not run", ha="center", transform=axes[0].transAxes)
    return drawn
