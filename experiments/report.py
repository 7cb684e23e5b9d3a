"""Tables and figures of trained runs.

Every number in a table is read from a run's results.json, every curve from its metrics.jsonl.
What was not run says "not run".

N images  H W height, width  C channels
"""

import os
import platform
from collections.abc import Mapping, Sequence

import flax
import jax
import numpy as np
from matplotlib.figure import Figure

from fsq_jax import pages, protocols, runs
from fsq_jax.evaluators.run import Run
from fsq_jax.logging import grid, read_metrics

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
    "reconstruction/sfid": ("reconstruction sFID ↓", "{:.2f}"),
    "compression/bits_per_token": ("bits per token ↓", "{:.3f}"),
    "validation/loss": ("masked-token loss, nats ↓", "{:.3f}"),
    "validation/accuracy": ("masked-token accuracy ↑", "{:.1%}"),
    "sampling/fd_random": ("samples, Fréchet distance, random features ↓", "{:.3g}"),
    "sampling/fd_efficientnet": ("samples, Fréchet distance, EfficientNet ↓", "{:.3g}"),
    "sampling/fid": ("samples, FID ↓", "{:.2f}"),
    "sampling/sfid": ("samples, sFID ↓", "{:.2f}"),
    "sampling/inception_score": ("samples, Inception Score ↑", "{:.1f}"),
    "sampling/precision": ("samples, precision ↑", "{:.3f}"),
    "sampling/recall": ("samples, recall ↑", "{:.3f}"),
}
Workdirs = Mapping[str, str | Sequence[str]]


def load_results(workdirs: str | Sequence[str]) -> dict[str, dict]:
    """The results.json of a workdir, or of several (a tokenizer, its transformer) in one."""
    paths = [workdirs] if isinstance(workdirs, str) else workdirs
    return {name: result for path in paths for name, result in runs.load_results(path).items()}


def comparison_table(workdirs: Workdirs, metrics: Sequence[str] | None = None) -> pages.Table:
    """A row a metric, a column a run.

    Args:
      workdirs: column -> workdir, or workdirs whose results belong together.
      metrics: which rows; by default all that any of the runs has.

    Raises:
      ValueError: with the keys that differ, for numbers that were measured differently; the model,
        its sampler, seed and machine may differ (see `fsq_jax.protocols`).
    """
    results = {name: load_results(paths) for name, paths in workdirs.items()}
    if metrics is None:
        found = {metric for result in results.values() for metric in result}
        metrics = [m for m in METRICS if m in found] + sorted(found - set(METRICS))
    rows = []
    for metric in metrics:
        title, form = METRICS.get(metric, (metric, "{:.4g}"))
        measured = {name: r[metric]["protocol"] for name, r in results.items() if metric in r}
        if measured:
            protocols.check_comparable(metric, measured)
        cells = [
            form.format(result[metric]["value"]) if metric in result else NOT_RUN
            for result in results.values()
        ]
        rows.append((title, *cells))
    return pages.Table(("", *results), rows)


def protocol_table(workdirs: Workdirs) -> pages.Table:
    """How each number of `comparison_table` was measured, a row for runs that share a protocol."""
    runs_of = {}
    for run, paths in workdirs.items():
        for metric, result in load_results(paths).items():
            told = {k: v for k, v in result["protocol"].items() if k != "level_histograms"}
            text = "; ".join(f"{name}={value}" for name, value in protocols.flat(told).items())
            protocol = f"step={result['step']}; {text}"
            runs_of.setdefault((metric.split("/")[0], protocol), {})[run] = None
    rows = [(group, ", ".join(names), text) for (group, text), names in runs_of.items()]
    return pages.Table(("metrics", "runs", "protocol"), rows)


def environment_table() -> pages.Table:
    """Device and versions of the process that calls it."""
    devices = jax.devices()
    return pages.Table(("", ""), [
        ("device", f"{len(devices)} x {devices[0].device_kind}; {os.cpu_count()} CPU cores"),
        ("platform", platform.platform()),
        ("Python", platform.python_version()),
        ("jax, flax, numpy", f"{jax.__version__}, {flax.__version__}, {np.__version__}"),
    ])


def times_table(seconds: Mapping[str, float]) -> pages.Table:
    """Minutes of each part, and their sum."""
    def cell(value):
        return f"{int(value) // 60}:{int(value) % 60:02d}"

    rows = [(name, cell(value)) for name, value in seconds.items()]
    return pages.Table(("part", "min:s"), [*rows, ("in all", cell(sum(seconds.values())))])


def curves_figure(
    workdirs: Mapping[str, str], metrics: Sequence[str] = ("loss",), split: str = "train"
) -> Figure:
    """A panel a metric, a line a run, over steps; runs without the metric are left out.

    A metric whose values are all positive and span more than a factor of ten is drawn on a
    logarithmic scale.
    """
    lines = {name: read_metrics(path, split) for name, path in workdirs.items()}
    figure, axes = pages.panels(len(metrics), 3, (4.2, 3.0))
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
    figure, axes = pages.panels(len(rows), 1, (11.0, 11.0 / num_images + 0.05))
    for axis, (name, images_NHWC) in zip(axes, rows.items(), strict=True):
        axis.imshow(grid(images_NHWC, num_images), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        pages.bare(axis)
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
    figure, axes = pages.panels(len(classes), columns, (1.9, 1.9 * tall + 0.25))
    for axis, c, images in zip(axes, classes, of_class, strict=True):
        axis.imshow(grid(images, tile), interpolation="nearest")
        axis.set_title(class_names[c], fontsize=10)
        pages.bare(axis)
    return figure
