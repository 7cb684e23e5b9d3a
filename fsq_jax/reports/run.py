"""WORKDIR/report/index.html: a run's results, curves, previews over time and config, on one page.

It is written at each evaluation and holds its pictures, so that a run on a cluster can be looked at
by copying one file.
"""

import glob
import io
import os
from collections.abc import Mapping

from matplotlib import ticker
from matplotlib.figure import Figure
from PIL import Image

from fsq_jax.reports import comparison, html
from fsq_jax.runs import recorded
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.metric_writer import read_metrics
from fsq_jax.runtime.workdir import load_config, load_results
from fsq_jax.scoring import protocols

_POINTS = 500  # of a curve, at most
_PREVIEWS = 8  # of a kind, evenly spaced in time, the last one among them
_WIDTH = 480  # pixels of a preview


def write(workdir: str) -> str:
    """Writes the page of a run; returns its path."""
    path = os.path.join(workdir, "report", "index.html")
    with written_whole(path) as file:
        file.write(page(workdir))
    return path


def page(workdir: str) -> str:
    """The page as HTML.

    Raises:
      UserError: `workdir` is not a run, or its config is damaged.
    """
    config = load_config(workdir)
    recorded.check(config, workdir)
    name = os.path.basename(os.path.abspath(workdir))
    values = sorted((key, str(value)) for key, value in protocols.flat(config.to_dict()).items())
    return html.page(
        f"{name}: {config.stage}",
        {
            "In short": [progress(workdir, config)],
            "Results": results(workdir),
            "Curves": curves({name: workdir}),
            **previews(workdir),
            "Config": [html.Table(("key", "value"), values)],
        },
    )


def progress(workdir: str, config) -> str:
    """How far a run has come, and how fast, in a sentence."""
    lines = read_metrics(workdir, "train")
    if not lines:
        return f"No step of {config.steps} is reported yet."
    text = f"Step {lines[-1]['step']} of {config.steps}, batches of {config.batch_size}"
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return f"{text}, {speeds[-1]:.4g} images/s." if speeds else f"{text}."


def results(workdir: str) -> list[str | html.Table]:
    """The tables of what was measured, and how."""
    if not load_results(workdir):
        return ["Nothing was evaluated yet."]
    steps = {metric: str(result["step"]) for metric, result in load_results(workdir).items()}
    ordered = comparison.ordered(steps)
    table = comparison.comparison_table({"value": workdir}, ordered)
    rows = [(*row, steps[metric]) for row, metric in zip(table.rows, ordered, strict=True)]
    measured = comparison.protocol_table({"value": workdir})
    return [
        html.Table(("", "value", "step"), rows),
        html.Table(("metrics", "protocol"), [(row[0], row[2]) for row in measured.rows]),
    ]


def curves(workdirs: Mapping[str, str]) -> list[str | Figure]:
    """Every scalar of the runs' metrics.jsonl over the steps, one panel per scalar.

    What was reported only once has no panel: it stands among the results.
    """
    series, last = {}, 1
    for name, workdir in workdirs.items():
        for line in read_metrics(workdir):
            last = max(last, line["step"])
            for key, value in line.items():
                if key not in ("step", "split", "seconds") and isinstance(value, int | float):
                    points = series.setdefault((line["split"], key), {}).setdefault(name, [])
                    points.append((line["step"], value))
    shown = sorted(
        (key for key, of_run in series.items() if max(map(len, of_run.values())) > 1),
        key=lambda key: (key[0] != "train", key[1] != "loss", key),  # the loss of training first
    )
    if not shown:
        return ["There are no curves yet."]
    figure, axes = html.panels(len(shown), 4, (3.2, 2.2))
    for axis, (split, key) in zip(axes, shown, strict=True):
        for name, points in series[split, key].items():
            kept = points[:: -(-len(points) // _POINTS)]
            kept += points[-1:] if kept[-1] != points[-1] else []
            axis.plot(*zip(*kept, strict=True), label=name, marker="." if len(kept) < 10 else "")
        axis.set(title=key if split == "train" else f"{split} {key}", xlim=(0, last))
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axis.xaxis.set_major_locator(ticker.MaxNLocator(4))
    if len(workdirs) > 1:
        axes[0].legend(frameon=False)
    return [figure]


def previews(workdir: str) -> dict[str, list[str | bytes]]:
    """{heading: steps and pictures} of each kind of preview in WORKDIR/samples."""
    found = {}
    for path in sorted(glob.glob(os.path.join(workdir, "samples", "*_*.png"))):
        kind, _, step = os.path.basename(path).removesuffix(".png").rpartition("_")
        if kind and step.isdigit():
            found.setdefault(kind, []).append((int(step), path))
    sections = {}
    for kind, pictures in found.items():
        parts = []
        for i in sorted(
            {round(n * (len(pictures) - 1) / max(1, _PREVIEWS - 1)) for n in range(_PREVIEWS)}
        ):
            step, path = pictures[i]
            parts += [f"Step {step}", _thumbnail(path)]
        sections[f"Previews: {kind}"] = parts
    return sections


def _thumbnail(path: str) -> bytes:
    """A picture as a PNG file of at most `_WIDTH` pixels."""
    with Image.open(path) as picture:
        picture.thumbnail((_WIDTH, 2 * _WIDTH))
        picture.save(buffer := io.BytesIO(), "png")
    return buffer.getvalue()
