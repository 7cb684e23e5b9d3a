"""Tables, figures in one style, and the self-contained HTML pages that hold them.

K codes  L levels of a channel
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fsq_jax.metrics import codebook

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.titlesize": 11,
    "axes.axisbelow": True,
}
_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
img { max-width: 100%; } h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .3em .9em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; } caption { text-align: left; color: #555; }
"""


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


def panels(count: int, columns: int, size: tuple[float, float]):
    """A figure and its `count` axes in the house style, at most `columns` in a row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure((size[0] * columns, size[1] * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def not_run(axis) -> None:
    """Says on an axis without data that what belongs there was not run."""
    axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes)


def bare(axis) -> None:
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
    figure, axes = panels(1 + len(levels), 4, (3.4, 2.8))
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
    figure.set_dpi(dpi)
    # Drawn once; `savefig` draws a first time for the layout alone.
    FigureCanvasAgg(figure).print_png(buffer := io.BytesIO())
    return buffer.getvalue()


def page(title: str, sections: Mapping[str, Sequence[str | Table | Figure | bytes]]) -> str:
    """One self-contained HTML page: pictures are embedded, text is escaped.

    Args:
      title: of the page.
      sections: heading -> what stands below it: paragraphs, tables, figures, PNG files' bytes.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, parts in sections.items():
        body.append(f"<h2>{html.escape(heading)}</h2>")
        for part in parts:
            if isinstance(part, Table):
                body.append(part.html())
            elif isinstance(part, Figure | bytes):
                picture = part if isinstance(part, bytes) else png(part)
                data, alt = base64.b64encode(picture).decode(), html.escape(heading)
                body.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
            else:
                body.append(f"<p>{html.escape(part)}</p>")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_CSS}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
