"""Tables of trained runs, and the one HTML page that holds them and their figures.

Every number in a table is read from a run's results.json. What was not run says "not run".
"""

import base64
import html
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import flax
import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.figures import png
from fsq_jax import runs

NOT_RUN = "not run"
# Metric -> (title, format), in the order of a table; metrics that are not here follow them.
METRICS = {
    "codebook/usage": ("codebook usage ↑", "{:.1%}"),
    "codebook/perplexity": ("codebook perplexity ↑", "{:.1f}"),
    "codebook/used": ("codes used ↑", "{:.0f}"),
    "reconstruction/psnr": ("reconstruction PSNR, dB ↑", "{:.2f}"),
    "reconstruction/ssim": ("reconstruction SSIM ↑", "{:.3f}"),
    "reconstruction/fd_random": ("reconstruction Fréchet distance, random features ↓", "{:.3g}"),
    "reconstruction/fd_efficientnet": ("reconstruction Fréchet distance, EfficientNet ↓", "{:.3g}"),
    "reconstruction/fid": ("reconstruction FID ↓", "{:.2f}"),
    "compression/bits_per_token": ("bits per token ↓", "{:.3f}"),
    "validation/loss": ("token loss, nats ↓", "{:.3f}"),
    "validation/accuracy": ("token accuracy ↑", "{:.1%}"),
    "sampling/fd_random": ("samples, Fréchet distance, random features ↓", "{:.3g}"),
    "sampling/fd_efficientnet": ("samples, Fréchet distance, EfficientNet ↓", "{:.3g}"),
    "sampling/fid": ("samples, FID ↓", "{:.2f}"),
    "depth/rmse": ("depth RMSE, m ↓", "{:.3f}"),
    "panoptic/pq": ("PQ ↑", "{:.1f}"),
    "colorization/psnr": ("colour PSNR, dB ↑", "{:.2f}"),
    "colorization/fid5k": ("colour FID-5k ↓", "{:.2f}"),
}
_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
img { max-width: 100%; } h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .3em .9em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; } caption { text-align: left; color: #555; }
"""

Workdirs = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Table:
    """Cells as text; every row is as long as the header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def text(self) -> str:
        """The table for a terminal, columns aligned; also valid Markdown."""
        cells = [[str(cell) for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
            for row in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        return "\n".join(lines)

    def html(self) -> str:
        def row(cells, tag):
            cells = (f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
            return f"<tr>{''.join(cells)}</tr>"

        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = "".join(row(cells, "td") for cells in self.rows)
        return f"<table>{caption}{row(self.header, 'th')}{body}</table>"


def load_results(workdirs: str | Sequence[str]) -> dict[str, dict]:
    """The results.json of a workdir, or of several (a tokenizer, its transformer) in one."""
    paths = [workdirs] if isinstance(workdirs, str) else workdirs
    return {name: result for path in paths for name, result in runs.load_results(path).items()}


def comparison_table(workdirs: Workdirs, metrics: Sequence[str] | None = None) -> Table:
    """A row a metric, a column a run.

    Args:
      workdirs: column -> workdir, or workdirs whose results belong together.
      metrics: which rows; by default all that any of the runs has.
    """
    results = {name: load_results(paths) for name, paths in workdirs.items()}
    if metrics is None:
        found = {metric for result in results.values() for metric in result}
        metrics = [m for m in METRICS if m in found] + sorted(found - set(METRICS))
    rows = []
    for metric in metrics:
        title, form = METRICS.get(metric, (metric, "{:.4g}"))
        cells = [
            form.format(result[metric]["value"]) if metric in result else NOT_RUN
            for result in results.values()
        ]
        rows.append((title, *cells))
    return Table(("", *results), rows)


def protocol_table(workdirs: Workdirs) -> Table:
    """How each number of `comparison_table` was measured, a row for runs that share a protocol."""
    runs_of = {}
    for run, paths in workdirs.items():
        for metric, result in load_results(paths).items():
            told = {k: v for k, v in result["protocol"].items() if k != "level_histograms"}
            protocol = f"step={result['step']}; {_told(told)}"
            runs_of.setdefault((metric.split("/")[0], protocol), {})[run] = None
    rows = [(group, ", ".join(names), text) for (group, text), names in runs_of.items()]
    return Table(("metrics", "runs", "protocol"), rows)


def _told(values: Mapping) -> str:
    """{"a": 1, "b": {"c": 2}} as "a=1; b.c=2"."""
    parts = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts += [f"{name}.{part}" for part in filter(None, _told(value).split("; "))]
        else:
            parts.append(f"{name}={value}")
    return "; ".join(parts)


def environment_table() -> Table:
    """Device and versions of the process that calls it."""
    devices = jax.devices()
    return Table(("", ""), [
        ("device", f"{len(devices)} x {devices[0].device_kind}; {os.cpu_count()} CPU cores"),
        ("platform", platform.platform()),
        ("Python", platform.python_version()),
        ("jax, flax, numpy", f"{jax.__version__}, {flax.__version__}, {np.__version__}"),
    ])


def times_table(seconds: Mapping[str, float]) -> Table:
    """Minutes of each part, and their sum."""
    def cell(value):
        return f"{int(value) // 60}:{int(value) % 60:02d}"

    rows = [(name, cell(value)) for name, value in seconds.items()]
    return Table(("part", "min:s"), [*rows, ("in all", cell(sum(seconds.values())))])


def page(title: str, sections: Mapping[str, Sequence[str | Table | Figure]]) -> str:
    """One self-contained HTML page: pictures are embedded, text is escaped.

    Args:
      title: of the page.
      sections: heading -> what stands below it: paragraphs, tables and figures.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, parts in sections.items():
        body.append(f"<h2>{html.escape(heading)}</h2>")
        for part in parts:
            if isinstance(part, Table):
                body.append(part.html())
            elif isinstance(part, Figure):
                data, alt = base64.b64encode(png(part)).decode(), html.escape(heading)
                body.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
            else:
                body.append(f"<p>{html.escape(part)}</p>")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_CSS}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
