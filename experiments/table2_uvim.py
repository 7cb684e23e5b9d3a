"""Table 2 of the paper: UViM with FSQ or VQ codes, on three tasks and with two ablations.

python -m experiments.table2_uvim --per_gpu=4 --seconds=540
python -m experiments.table2_uvim --scale=paper --commands
python -m experiments.table2_uvim --scale=smoke --only=depth_fsq,depth_vq

Stage I once for each row, and on it stage II with each seed, as the paper's three runs. Bench: the
embedded scenes at 128 px, stage I long enough for idle codewords to be revived.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from configs import uvim_base
from experiments import claims, curves, entries, figures, launcher, maskgit_runs, tables
from experiments.entries import Entry
from experiments.options import Options
from experiments.table2_claims import CLAIMS, TASKS, VARIANTS
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import comparison, html


@dataclass(frozen=True)
class Row:
    """A row of the table: its config arguments, and what the paper reached with them.

    Attributes:
      task, variant: together its name.
      arguments: of both configs.
      paper: the paper's number of the task's metric, mean and deviation of three runs, as printed
        (PQ in percent, its deviation as a fraction).
      paper_usage: the share of the codebook that it used.
    """

    task: str
    variant: str
    arguments: str
    paper: str
    paper_usage: str

    @property
    def name(self) -> str:
        return f"{self.task}_{self.variant}"

    def codebook(self, scale: str) -> dict:
        """The facts of its codebook, as the configs have it."""
        defaults = uvim_base.DEFAULTS[scale]
        if self.variant.startswith("fsq"):
            levels = defaults["levels"]
            return {"quantizer": "fsq", "levels": levels, "size": math.prod(levels)}
        size = defaults["codebook_size"]
        return {"quantizer": "vq", "codebook_size": size, "size": size}


ROWS = (
    Row("depth", "fsq", "quantizer=fsq", "0.473 ± 0.012", "99%"),
    Row("depth", "vq", "quantizer=vq_ema", "0.468 ± 0.012", "99%"),
    Row("depth", "vq_no_splitting", "quantizer=vq_ema,splitting=false", "0.490 ± 0.0037", "0.78%"),
    Row("panoptic", "fsq", "quantizer=fsq", "43.2 ± 0.0014", "100%"),
    Row("panoptic", "vq", "quantizer=vq_ema", "43.4 ± 0.0008", "100%"),
    Row("panoptic", "fsq_no_context", "quantizer=fsq,context=none", "40.2 ± 0.0019", "99%"),
    Row("panoptic", "vq_no_context", "quantizer=vq_ema,context=none", "39.0 ± 0.0023", "99%"),
    Row("colorization", "fsq", "quantizer=fsq", "17.55 ± 0.057", "100%"),
    Row("colorization", "vq", "quantizer=vq_ema", "16.90 ± 0.056", "100%"),
)
PAPER_METRICS = {"depth": "RMSE, m ↓", "panoptic": "PQ ↑", "colorization": "FID-5k ↓"}
# Of all that is evaluated, what the table shows: usage, the tasks' metrics, how codes are modelled.
OF_TASKS = (
    "depth/rmse",
    "panoptic/pq",
    "colorization/psnr",
    "colorization/fid5k",
    "colorization/fd_efficientnet",
    "colorization/fd_random",
)
SHOWN = {
    "base": ("codebook/usage", "codebook/used", *OF_TASKS),
    "lm": (*OF_TASKS, "validation/loss", "validation/accuracy"),
}
STAGES = {"base": "stage I", "lm": "stage II"}
SAMPLES = 8
DATA = "scenes128"
BASE = {
    "steps": 6_000,
    "preview_every": 6_000,
    "checkpoint_every": 2_000,
    "evals.codebook.every": 6_000,
}
# Images a second of one H100 (experiments/results/speed/h100).
PAPER_SPEED = {"base": 272.0, "lm": 134.0}
PAPER_IMAGES = {
    "base": {"depth": 47_584 * 200, "colorization": 1_277_071 * 100, "panoptic": 114_191 * 1000},
    "lm": {"depth": 47_584 * 50, "colorization": 1_277_071 * 50, "panoptic": 114_191 * 200},
}


def data_run(options: Options) -> list[Run]:
    """What renders the scenes once for all runs of scale=bench."""
    if options.scale != "bench":
        return []
    splits = ("train[:20000]", "validation")
    return [maskgit_runs.prepared(options, DATA, "scenes", 128, splits)]


def runs(options: Options) -> list[Run]:
    """Stage I of each row, and on it stage II with each seed."""
    made = data_run(options)
    for row in ROWS:
        base = _base(options, row)
        made += [base, *(_lm(options, row, base, seed) for seed in range(options.repeats()))]
    return made


def _arguments(options: Options, row: Row) -> str:
    data = {
        "paper": f"data_dir={options.data_dir}" if options.data_dir else "",
        "bench": f"data=arrays:{os.path.join(options.workdir, DATA)}",
        "smoke": "",
    }[options.scale]
    parts = (f"scale={options.scale}", f"task={row.task}", row.arguments, data)
    return ",".join(filter(None, parts))


def _base(options: Options, row: Row) -> Run:
    name = f"{row.name}_base"
    path = os.path.join(options.workdir, name)
    own = {"seed": 0}
    if options.scale == "bench":
        own |= BASE | {f"evals.{row.task}.every": BASE["steps"]}
    config = f"configs/uvim_base.py:{_arguments(options, row)}"
    train = maskgit_runs.train_command(options, config, path, own)
    facts = row.codebook(options.scale) | {
        "stage": "base",
        "seed": 0,
        "task": row.task,
        "variant": row.variant,
        "data": _data_name(options, row),
    }
    return Run(
        name,
        (("results.json", train), (maskgit_runs.WEIGHTS, maskgit_runs.export_command(path))),
        facts,
        needs=tuple(run.name for run in data_run(options)),
        weights=maskgit_runs.WEIGHTS,
        rank=10,
        gpu_hours=_hours(options, row, "base"),
    )


def _lm(options: Options, row: Row, base: Run, seed: int) -> Run:
    name = f"{row.name}_lm_s{seed}"
    path = os.path.join(options.workdir, name)
    weights = os.path.join(options.workdir, base.name, maskgit_runs.WEIGHTS)
    encoder = f",encoder={options.encoder}" if options.encoder else ""
    config = f"configs/uvim_lm.py:{_arguments(options, row)},base={weights}{encoder}"
    train = maskgit_runs.train_command(options, config, path, {"seed": seed})
    commands = [("results.json", train)]
    if seed == 0:
        samples = os.path.join(path, "samples.npz")
        commands.append(
            (
                "samples.npz",
                (
                    "-m",
                    "fsq_jax.sample",
                    f"--workdir={path}",
                    f"--num={SAMPLES}",
                    f"--npz={samples}",
                ),
            )
        )
    facts = dict(base.facts) | {"stage": "lm", "seed": seed, "stage_1": base.name}
    return Run(
        name,
        tuple(commands),
        facts,
        needs=(base.name, *base.needs),
        rank=20 + seed,
        gpu_hours=_hours(options, row, "lm"),
    )


def _data_name(options: Options, row: Row) -> str:
    paper = {
        "depth": "tfds:nyu_depth_v2",
        "panoptic": "tfds:coco/2017_panoptic",
        "colorization": "tfds:imagenet2012",
    }
    return paper[row.task] if options.scale == "paper" else "scenes"


def _hours(options: Options, row: Row, stage: str) -> float:
    if options.scale != "paper":
        return 0.0
    return PAPER_IMAGES[stage][row.task] / PAPER_SPEED[stage] / 3600


def table(found: Sequence[Entry], task: str) -> html.Table:
    """One row per variant: metrics of both stages over seeds, and the paper's beside them."""
    of_task = entries.select(found, task=task)
    shown = [
        (stage, metric)
        for stage, metrics in SHOWN.items()
        for metric in metrics
        if any(metric in entry for entry in entries.select(of_task, stage=stage))
    ]
    cells = []
    for row in (row for row in ROWS if row.task == task):
        line = [VARIANTS[row.variant]]
        for stage, metric in shown:
            group = entries.select(of_task, stage=stage, variant=row.variant)
            line.append(comparison.cell(metric, entries.values(group, metric)))
        count = len(entries.select(of_task, stage="lm", variant=row.variant))
        cells.append((*line, str(count), row.paper, row.paper_usage))
    header = [f"{STAGES[stage]}: {tables.title(metric)}" for stage, metric in shown]
    return html.Table(
        (
            task,
            *header,
            "seeds of stage II",
            f"paper's stage II, {PAPER_METRICS[task]}",
            "paper's usage",
        ),
        cells,
    )


def pictures(workdir: str, found: Sequence[Entry]) -> dict[str, Figure]:
    """{task: inputs in the first row, then what each variant predicts, then the truth}.

    Of tasks whose samples are all at hand: they stay with the runs.
    """
    made = {}
    for task in TASKS:
        shown = {
            e["variant"]: e["run"] for e in entries.select(found, task=task, stage="lm", seed=0)
        }
        paths = {name: os.path.join(workdir, run, "samples.npz") for name, run in shown.items()}
        if not all(map(os.path.exists, paths.values())):
            continue
        arrays = {name: dict(np.load(path)) for name, path in paths.items()}
        if arrays:
            first, variants = next(iter(arrays.values())), (v for v in VARIANTS if v in arrays)
            predicted = {VARIANTS[name]: arrays[name]["prediction"] for name in variants}
            rows = {"input": first["input"], **predicted, "truth": first["truth"]}
            made[task] = figures.rows_figure({name: row / 255 for name, row in rows.items()})
    return made


def write(found: Sequence[Entry], out: str, options: Options) -> None:
    """Writes a table per task, the claims, the curves and a picture per task to `out`."""
    made = {f"table_{task}": table(found, task) for task in TASKS}
    drawn = {
        f"curves_{stage}": curves.figure(out, found, stage, "loss", panel="task", line="variant")
        for stage in STAGES
    }
    tables.write(
        out,
        made | {"claims": claims.table(CLAIMS, found)},
        drawn | pictures(options.workdir, found),
    )


if __name__ == "__main__":
    launcher.program("table2_uvim")
