"""Tables and figures of trained runs, and the one HTML page that holds them.

Every number in a table is read from a run's results.json, every curve from its metrics.jsonl.
What was not run says "not run".

N images  H W height, width  K codes
"""

import base64
import html
import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import flax
import jax
import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from fsq_jax import runs
from fsq_jax.evaluators.run import Run
from fsq_jax.logging import grid, read_metrics
from fsq_jax.metrics import codebook

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
    "validation/loss": ("masked-token loss, nats ↓", "{:.3f}"),
    "validation/accuracy": ("masked-token accuracy ↑", "{:.1%}"),
    "sampling/fd_random": ("samples, Fréchet distance, random features ↓", "{:.3g}"),
    "sampling/fd_efficientnet": ("samples, Fréchet distance, EfficientNet ↓", "{:.3g}"),
    "sampling/fid": ("samples, FID ↓", "{:.2f}"),
}
_STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "axes.titlesize": 11, "axes.axisbelow": True,
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


def _panels(count: int, columns: int, size: tuple[float, float]):
    """A figure and its `count` axes in the house style, at most `columns` in a row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure((size[0] * columns, size[1] * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def curves_figure(
    workdirs: Mapping[str, str], metrics: Sequence[str] = ("loss",), split: str = "train"
) -> Figure:
    """A panel a metric, a line a run, over steps; runs without the metric are left out.

    A metric whose values are all positive and span more than a factor of ten is drawn on a
    logarithmic scale.
    """
    lines = {name: read_metrics(path, split) for name, path in workdirs.items()}
    figure, axes = _panels(len(metrics), 3, (4.2, 3.0))
    for axis, metric in zip(axes, metrics, strict=True):
        drawn = []
        for name, records in lines.items():
            points = [(r["step"], r[metric]) for r in records if metric in r]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, linewidth=1.4)
                drawn += [value for _, value in points]
        if not drawn:
            axis.text(0.5, 0.5, NOT_RUN, ha="center", transform=axis.transAxes)
        elif min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            axis.set_yscale("log")
        axis.set(title=metric, xlabel="step")
        if drawn:
            axis.legend(frameon=False)
    return figure


def reconstructions_figure(tokenizers: Mapping[str, Run], num_images: int = 12) -> Figure:
    """Held-out images in the first row, and below them each tokenizer's reconstructions."""
    rows = {}
    for name, run in tokenizers.items():
        batch = run.put(next(iter(run.batches(run.eval_split, num_images))))
        out = run.predict["reconstruct"](run.state, batch, jax.random.key(run.seed))
        rows.setdefault("original", np.asarray(batch["image"])[:num_images])
        rows[name] = np.asarray(out["reconstruction"])[:num_images]
    figure, axes = _panels(len(rows), 1, (11.0, 11.0 / num_images + 0.05))
    for axis, (name, images_NHWC) in zip(axes, rows.items(), strict=True):
        axis.imshow(grid(images_NHWC, num_images), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        _bare(axis)
    return figure


def samples_figure(
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    class_names: Sequence[str],
    *,
    columns: int = 6,
    tile: int = 3,
) -> Figure:
    """A panel a class, titled with its name: its images, `tile` beside each other."""
    classes = np.unique(labels_N)
    of_class = [images_NHWC[labels_N == c] for c in classes]
    tall = -(-max(map(len, of_class)) // tile) / tile
    figure, axes = _panels(len(classes), columns, (1.9, 1.9 * tall + 0.25))
    for axis, c, images in zip(axes, classes, of_class, strict=True):
        axis.imshow(grid(images, tile), interpolation="nearest")
        axis.set_title(class_names[c], fontsize=10)
        _bare(axis)
    return figure


def _bare(axis) -> None:
    """Takes ticks and frame from an axis that shows a picture."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def codes_figure(
    counts: Mapping[str, np.ndarray], levels: Sequence[int] = (), levels_of: str = "FSQ"
) -> Figure:
    """How often codes are used: sorted frequencies of each quantizer, and digits of each level.

    Args:
      counts: quantizer -> occurrences of its codes [K], as `evaluators.codebook.count_codes` gives.
      levels: of the FSQ among them; one more panel for each.
      levels_of: the FSQ's name in `counts`.
    """
    figure, axes = _panels(1 + len(levels), 4, (3.4, 2.8))
    for name, counts_K in counts.items():
        counts_K = np.asarray(counts_K, np.float64)
        share_K = np.sort(counts_K)[::-1] / counts_K.sum()
        axes[0].step(np.arange(1, len(share_K) + 1), share_K, where="mid", label=name)
    axes[0].set(title="code frequencies, sorted", xlabel="rank", ylim=(0, None))
    axes[0].yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=1))
    axes[0].legend(frameon=False)
    if len(levels):
        histograms = codebook.level_histograms(np.asarray(counts[levels_of]), levels)
        for i, (axis, histogram_L) in enumerate(zip(axes[1:], histograms, strict=True)):
            histogram_L = np.asarray(histogram_L)
            axis.bar(range(len(histogram_L)), histogram_L / histogram_L.sum())
            axis.set(title=f"{levels_of} channel {i + 1}, {levels[i]} levels", xlabel="level")
            axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
            axis.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file's bytes."""
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


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
