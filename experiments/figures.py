"""Figures of trained runs: curves, pictures in rows, samples by class.

Every curve is read from a run's metrics.jsonl. What was not run says "not run".

N images  H W height, width
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.reports import html
from fsq_jax.runs import inputs
from fsq_jax.runtime.image_grid import image_grid
from fsq_jax.runtime.metric_writer import read_metrics


def curves_figure(
    workdirs: Mapping[str, str], metrics: Sequence[str] = ("loss",), split: str = "train"
) -> Figure:
    """One panel per metric, one line per run, over steps; runs without the metric are left out.

    A metric whose values are all positive and span more than a factor of ten is drawn on a
    logarithmic scale.
    """
    lines = {name: read_metrics(path, split) for name, path in workdirs.items()}
    figure, axes = html.panels(len(metrics), 3, (4.2, 3.0))
    for axis, metric in zip(axes, metrics, strict=True):
        drawn = []
        for name, records in lines.items():
            points = [(r["step"], r[metric]) for r in records if metric in r]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, linewidth=1.4)
                drawn += [value for _, value in points]
        if not drawn:
            html.not_run(axis)
        elif min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            axis.set_yscale("log")
        axis.set(title=metric, xlabel="step")
        if drawn:
            axis.legend(frameon=False)
    return figure


def rows_figure(rows: Mapping[str, np.ndarray], num_images: int = 12) -> Figure:
    """One row per name: its first images [N,H,W,3] beside each other, the same ones in each row."""
    num_images = min(num_images, *map(len, rows.values()))
    figure, axes = html.panels(len(rows), 1, (11.0, 11.0 / num_images + 0.05))
    for axis, (name, images_NHWC) in zip(axes, rows.items(), strict=True):
        axis.imshow(image_grid(images_NHWC[:num_images], num_images), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        html.bare(axis)
    figure.draw_without_rendering()  # after it the layout knows where names stand
    return figure


def reconstructions_figure(tokenizers: Mapping[str, Predictor], num_images: int = 12) -> Figure:
    """Held-out images in the first row, and below them each tokenizer's reconstructions.

    The images are spread evenly over the split: a folder's first ones are all of one class.
    """
    rows = {}
    for name, predictor in tokenizers.items():
        batch = predictor.put(spread_images(predictor, num_images))
        key = jax.random.key(predictor.seed)
        out = predictor.predict["reconstruct"](predictor.state, batch, key)
        rows.setdefault("original", np.asarray(batch["image"])[:num_images])
        rows[name] = np.asarray(out["reconstruction"])[:num_images]
    return rows_figure(rows, num_images)


def spread_images(predictor: Predictor, num_images: int) -> dict[str, np.ndarray]:
    """A batch whose first rows are held-out images, spread evenly over their split."""
    dataset = predictor.dataset(predictor.eval_split)
    _, plain = inputs.transforms_of(predictor.config)
    wanted = np.arange(num_images) * len(dataset) // num_images
    images = np.stack([plain(dataset[int(index)], None)["image"] for index in wanted])
    rows = -(-num_images // predictor.rows) * predictor.rows
    return {"image": np.resize(images, (rows, *images.shape[1:]))}


def samples_figure(
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    class_names: Sequence[str],
    *,
    columns: int = 6,
    tile: int = 3,
) -> Figure:
    """One panel per class, titled with its name: its images, `tile` beside each other."""
    classes = np.unique(labels_N)
    of_class = [images_NHWC[labels_N == c] for c in classes]
    tall = -(-max(map(len, of_class)) // tile) / tile
    figure, axes = html.panels(len(classes), columns, (1.9, 1.9 * tall + 0.25))
    for axis, c, images in zip(axes, classes, of_class, strict=True):
        axis.imshow(image_grid(images, tile), interpolation="nearest")
        axis.set_title(class_names[c], fontsize=10)
        html.bare(axis)
    return figure
