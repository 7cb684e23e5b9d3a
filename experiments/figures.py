"""Figures of trained runs: curves, pictures in rows, the use of codes.

Every curve is read from a run's metrics.jsonl. What was not run says "not run".

N images  H W height, width  K codes
"""

import io
from collections.abc import Mapping, Sequence

import jax
import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from fsq_jax.evaluators.run import Run
from fsq_jax.logging import grid, read_metrics
from fsq_jax.metrics import codebook

_STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "axes.titlesize": 11, "axes.axisbelow": True,
}


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
            axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes)
        elif min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            axis.set_yscale("log")
        axis.set(title=metric, xlabel="step")
        if drawn:
            axis.legend(frameon=False)
    return figure


def rows_figure(rows: Mapping[str, np.ndarray], num_images: int = 12) -> Figure:
    """A row a name: its first images [N,H,W,3] beside each other, the same ones in each row."""
    num_images = min(num_images, *map(len, rows.values()))
    figure, axes = _panels(len(rows), 1, (11.0, 11.0 / num_images + 0.05))
    for axis, (name, images_NHWC) in zip(axes, rows.items(), strict=True):
        axis.imshow(grid(images_NHWC[:num_images], num_images), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        _bare(axis)
    return figure


def reconstructions_figure(tokenizers: Mapping[str, Run], num_images: int = 12) -> Figure:
    """Held-out images in the first row, and below them each tokenizer's reconstructions."""
    rows = {}
    for name, run in tokenizers.items():
        batch = run.put(next(iter(run.batches(run.eval_split, num_images))))
        out = run.predict["reconstruct"](run.state, batch, jax.random.key(run.seed))
        rows.setdefault("original", np.asarray(batch["image"])[:num_images])
        rows[name] = np.asarray(out["reconstruction"])[:num_images]
    return rows_figure(rows, num_images)


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
