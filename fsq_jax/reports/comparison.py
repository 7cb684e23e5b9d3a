"""Runs beside each other: a table of what they reached, how it was measured, where they differ.

Every number is read from a run's results.json. What was not run says "not run".
"""

from collections.abc import Iterable, Mapping, Sequence

from fsq_jax.reports import html
from fsq_jax.reports.spread import spread
from fsq_jax.runtime.workdir import differing_keys, load_config, load_results
from fsq_jax.scoring import protocols

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
    "validation/loss": ("token loss, nats ↓", "{:.3f}"),
    "validation/accuracy": ("token accuracy ↑", "{:.1%}"),
    "sampling/fd_random": ("samples, Fréchet distance, random features ↓", "{:.3g}"),
    "sampling/fd_efficientnet": ("samples, Fréchet distance, EfficientNet ↓", "{:.3g}"),
    "sampling/fid": ("samples, FID ↓", "{:.2f}"),
    "sampling/sfid": ("samples, sFID ↓", "{:.2f}"),
    "sampling/inception_score": ("samples, Inception Score ↑", "{:.1f}"),
    "sampling/precision": ("samples, precision ↑", "{:.3f}"),
    "sampling/recall": ("samples, recall ↑", "{:.3f}"),
    "sampling/precision_random": ("samples, precision, random features ↑", "{:.3f}"),
    "sampling/recall_random": ("samples, recall, random features ↑", "{:.3f}"),
    "sampling/precision_efficientnet": ("samples, precision, EfficientNet ↑", "{:.3f}"),
    "sampling/recall_efficientnet": ("samples, recall, EfficientNet ↑", "{:.3f}"),
    "depth/rmse": ("depth RMSE, m ↓", "{:.3f}"),
    "depth/abs_rel": ("depth, absolute relative error ↓", "{:.4f}"),
    "depth/log10": ("depth, error of log10 ↓", "{:.4f}"),
    "depth/delta1": ("depth, share within a factor of 1.25 ↑", "{:.1%}"),
    "depth/delta2": ("depth, share within 1.25² ↑", "{:.1%}"),
    "depth/delta3": ("depth, share within 1.25³ ↑", "{:.1%}"),
    "panoptic/pq": ("PQ ↑", "{:.1f}"),
    "colorization/psnr": ("colour PSNR, dB ↑", "{:.2f}"),
    "colorization/fid5k": ("colour FID-5k ↓", "{:.2f}"),
    "colorization/fd_efficientnet": ("colour Fréchet distance, EfficientNet ↓", "{:.3g}"),
    "colorization/fd_random": ("colour Fréchet distance, random features ↓", "{:.3g}"),
}
Workdirs = Mapping[str, str | Sequence[str]]


def combined_results(workdirs: str | Sequence[str]) -> dict[str, dict]:
    """The results.json of a workdir, or of several (a tokenizer, its transformer) in one."""
    paths = [workdirs] if isinstance(workdirs, str) else workdirs
    return {name: result for path in paths for name, result in load_results(path).items()}


def comparison_table(workdirs: Workdirs, metrics: Sequence[str] | None = None) -> html.Table:
    """One row per metric, one column per run.

    Args:
      workdirs: column -> workdir, or workdirs whose results belong together.
      metrics: which rows; by default all that any of the runs has.

    Raises:
      UserError: with the keys that differ, for numbers that were measured differently; the model,
        its sampler, seed and machine may differ (see `fsq_jax.scoring.protocols`).
    """
    results = {name: combined_results(paths) for name, paths in workdirs.items()}
    if metrics is None:
        found = {metric for result in results.values() for metric in result}
        metrics = ordered(found)
    rows = []
    for metric in metrics:
        title, form = title_and_form(metric)
        measured = {name: r[metric]["protocol"] for name, r in results.items() if metric in r}
        if measured:
            protocols.check_comparable(metric, measured)
        cells = [
            form.format(result[metric]["value"]) if metric in result else NOT_RUN
            for result in results.values()
        ]
        rows.append((title, *cells))
    return html.Table(("", *results), rows)


def protocol_table(workdirs: Workdirs) -> html.Table:
    """How each number of `comparison_table` was measured: one row per protocol."""
    runs_of = {}
    for run, paths in workdirs.items():
        for metric, result in combined_results(paths).items():
            record = {k: v for k, v in result["protocol"].items() if k != "level_histograms"}
            text = "; ".join(f"{name}={value}" for name, value in protocols.flat(record).items())
            protocol = f"step={result['step']}; {text}"
            runs_of.setdefault((metric.split("/")[0], protocol), {})[run] = None
    rows = [(group, ", ".join(names), text) for (group, text), names in runs_of.items()]
    return html.Table(("metrics", "runs", "protocol"), rows)


def title_and_form(metric: str) -> tuple[str, str]:
    """What a metric is called in a table, and the format of its values."""
    return METRICS.get(metric, (metric, "{:.4g}"))


def cell(metric: str, values: Sequence[float]) -> str:
    """Mean and deviation of a metric over repeated runs, in its format; "not run" of none."""
    found = spread(values)
    return found.text(title_and_form(metric)[1]) if found else NOT_RUN


def ordered(metrics: Iterable[str]) -> list[str]:
    """Metrics in the order of tables: those with a title first."""
    found = set(metrics)
    return [metric for metric in METRICS if metric in found] + sorted(found - set(METRICS))


def config_table(workdirs: Mapping[str, str]) -> html.Table:
    """One row per key in which the configs of the runs differ, one column per run."""
    configs = {name: load_config(path).to_dict() for name, path in workdirs.items()}
    first, *others = configs.values()
    keys = sorted({key for other in others for key in differing_keys(first, other)})
    flat = {name: protocols.flat(config) for name, config in configs.items()}
    rows = [
        (key, *(str(values[key]) if key in values else "–" for values in flat.values()))
        for key in keys
    ]
    return html.Table(("config", *configs), rows)
