"""Table 2 of the paper: UViM with FSQ or VQ codes, on three tasks and with two ablations.

python -m experiments.table2_uvim --scale=bench --parallel=9
python -m experiments.table2_uvim --scale=paper --commands
python -m experiments.table2_uvim --scale=smoke --rows=depth_fsq,depth_vq

Trains stage I, then stage II, of every row; what is done already is not done again, and a row that
fails does not stop the others. Writes table.md, table.json and a picture a task to --out. What
follows "--" goes to every training run ("-- --config.data.workers=2"). With --parallel=N so many
rows are trained at once, dealt out over the GPUs.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from absl import flags

from experiments import figures, gpus, report
from fsq_jax.reports import html
from fsq_jax.runtime import cli
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import is_evaluated, load_config, load_results


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


VARIANTS = {
    "fsq": "FSQ", "vq": "VQ", "vq_no_splitting": "VQ without splitting",
    "fsq_no_context": "FSQ without context", "vq_no_context": "VQ without context",
}
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
SHOWN = (
    "codebook/usage", "codebook/used", "validation/loss", "validation/accuracy", "depth/rmse",
    "panoptic/pq", "colorization/psnr", "colorization/fid5k", "colorization/fd_efficientnet",
    "colorization/fd_random",
)
STAGES = ("base", "lm")
SCENES = {"train": "train[:20000]", "validation": "validation"}  # of scale=bench
SAMPLES = 12


def folder(workdir: str, row: Row, stage: str) -> str:
    """Where a stage ("base" or "lm") of a row is trained."""
    return os.path.join(workdir, f"{row.name}_{stage}")


def commands(
    workdir: str, row: Row, scale: str, data: str = "", changes: Sequence[str] = ()
) -> dict[str, list[str]]:
    """The commands of a row in their order, by the file that each leaves when it is done.

    Args:
      workdir: gets a folder for each run.
      row: of `ROWS`.
      scale: "paper", "bench" or "smoke".
      data: the configs' arguments that name the data, "data=arrays:PATH"; "" for the scale's own.
      changes: further arguments of `fsq_jax.train`.
    """
    common = ",".join(filter(None, (f"scale={scale}", f"task={row.task}", row.arguments, data)))
    base, lm = (folder(workdir, row, stage) for stage in STAGES)
    arguments = {base: f"uvim_base.py:{common}", lm: f"uvim_lm.py:{common},base={base}"}
    trained = {
        os.path.join(path, "results.json"): [
            "-m", "fsq_jax.train", f"--config=configs/{argument}", f"--workdir={path}", *changes
        ]
        for path, argument in arguments.items()
    }
    samples = os.path.join(lm, "samples.npz")
    return trained | {
        samples: ["-m", "fsq_jax.sample", f"--workdir={lm}", f"--num={SAMPLES}", f"--npz={samples}"]
    }


def prepare_scenes(workdir: str) -> str:
    """The scenes of scale=bench on disk, rendered once for all rows; returns what names them."""
    out = os.path.join(workdir, "scenes")
    wanted = [split for split in ("train", "validation")
              if not os.path.exists(os.path.join(out, split))]
    if wanted:
        log(f"Rendering scenes to {out} …")
        command = [
            "-m", "fsq_jax.prepare", "--data=scenes", "--size=128", f"--out={out}",
            f"--splits={','.join(SCENES[split] for split in wanted)}",
        ]
        subprocess.run([sys.executable, *command], check=True)
    return f"arrays:{out}"


def environment(workdir: str, place: int, parallel: int) -> dict[str, str]:
    """What the process at a place of `parallel` is told: its share of a GPU, the common cache."""
    return gpus.environment(place, parallel) | {
        "JAX_COMPILATION_CACHE_DIR": os.path.abspath(os.path.join(workdir, "compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }


def finished(path: str) -> bool:
    """Whether a command has left its file: results of the last step, where it is a training run."""
    run = os.path.dirname(path)
    if not path.endswith("results.json") or not os.path.exists(path):
        return os.path.exists(path)
    return is_evaluated(run, load_config(run).steps)


def train(workdir: str, row: Row, todo: Mapping[str, list[str]], told: Mapping[str, str]) -> str:
    """Runs a row's commands but those whose file is there; returns what went wrong, or ""."""
    for done, command in todo.items():
        if finished(done):
            continue
        run = os.path.dirname(done)
        os.makedirs(run, exist_ok=True)
        begin = time.monotonic()
        log(f"{row.name}: python {' '.join(command)}")
        with open(os.path.join(run, "log.txt"), "a") as output:
            code = subprocess.run(
                [sys.executable, *command], stdout=output, stderr=output, env=os.environ | told
            ).returncode
        log(f"{row.name}: {os.path.basename(done)} after {time.monotonic() - begin:.0f} s")
        if code or not finished(done):
            return f"{row.name} failed with exit status {code}; see {output.name}."
    return ""


def train_all(workdir: str, rows: Sequence[Row], scale: str, data: str, changes) -> list[str]:
    """Trains what is left of all rows; returns a sentence for each that failed."""
    parallel = min(flags.FLAGS.parallel, len(rows))
    places = list(range(parallel))

    def work(row: Row) -> str:
        place = places.pop()  # one a thread, so there is always one
        try:
            told = environment(workdir, place, parallel)
            return train(workdir, row, commands(workdir, row, scale, data, changes), told)
        finally:
            places.append(place)

    with ThreadPoolExecutor(parallel) as pool:
        return [problem for problem in pool.map(work, rows) if problem]


def collect(workdir: str, rows: Sequence[Row]) -> dict[str, dict]:
    """{row: {stage: its results.json}}, {} for what was not run."""
    return {
        row.name: {stage: load_results(folder(workdir, row, stage)) for stage in STAGES}
        for row in rows
    }


def tables(rows: Sequence[Row], results: Mapping[str, Mapping]) -> dict[str, html.Table]:
    """{task: its table}: a row a variant, metrics of both stages, and the paper's beside them."""
    made = {}
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        found = {
            (stage, metric)
            for row in of_task for stage, result in results[row.name].items() for metric in result
        }
        shown = [
            (stage, metric) for stage in STAGES for metric in SHOWN
            if (stage, metric) in found
        ]
        titles = {"base": "stage I", "lm": "stage II"}
        header = [f"{titles[stage]}: {report.METRICS[metric][0]}" for stage, metric in shown]
        cells = []
        for row in of_task:
            line = [VARIANTS[row.variant]]
            for stage, metric in shown:
                result = results[row.name][stage].get(metric)
                form = report.METRICS[metric][1]
                line.append(form.format(result["value"]) if result else report.NOT_RUN)
            cells.append((*line, row.paper, row.paper_usage))
        made[task] = html.Table(
            (task, *header, f"paper's stage II, {PAPER_METRICS[task]}", "paper's usage"), cells
        )
    return made


def pictures(workdir: str, rows: Sequence[Row]) -> dict[str, bytes]:
    """{task: a PNG}: inputs in the first row, then what each variant predicts, then the truth."""
    made = {}
    for task in dict.fromkeys(row.task for row in rows):
        panels = {}
        for row in rows:
            path = os.path.join(folder(workdir, row, "lm"), "samples.npz")
            if row.task == task and os.path.exists(path):
                arrays = {name: array / 255 for name, array in np.load(path).items()}
                panels |= {"input": arrays["input"], VARIANTS[row.variant]: arrays["prediction"]}
                truth = arrays["truth"]
        if panels:
            made[task] = html.png(figures.rows_figure(panels | {"truth": truth}))
    return made


def write(workdir: str, out: str, rows: Sequence[Row], failed: Sequence[str]) -> str:
    """Writes tables, results and pictures to `out`; returns the tables' text."""
    os.makedirs(out, exist_ok=True)
    results = collect(workdir, rows)
    with open(os.path.join(out, "table.json"), "w") as file:
        json.dump({"rows": results, "failed": list(failed)}, file, indent=2)
    text = "\n\n".join(table.text() for table in tables(rows, results).values())
    with open(os.path.join(out, "table.md"), "w") as file:
        file.write(text + "\n")
    for task, picture in pictures(workdir, rows).items():
        with open(os.path.join(out, f"{task}.png"), "wb") as file:
            file.write(picture)
    for row in rows:
        for stage in STAGES:
            run = folder(workdir, row, stage)
            names = [n for n in ("config.json", "results.json", "metrics.jsonl")
                     if os.path.exists(os.path.join(run, n))]
            if names:
                target = os.path.join(out, os.path.basename(run))
                os.makedirs(target, exist_ok=True)
                for name in names:
                    shutil.copy(os.path.join(run, name), target)
    return text


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """The rows of these names, all for none; a UserError for a name that there isn't."""
    known = {row.name: row for row in ROWS}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f"There are no rows {unknown}; there are {sorted(known)}.")
    return [row for row in ROWS if not names or row.name in names]


def main(argv) -> None:
    options = flags.FLAGS
    rows = chosen_rows(options.rows)
    workdir = options.workdir or f"runs/uvim_{options.scale}"
    out = options.out or f"experiments/results/uvim_{options.scale}"
    data = options.data
    if options.scale == "bench" and not data:
        data = f"arrays:{workdir}/scenes" if options.commands else prepare_scenes(workdir)
    data = ",".join(f"{name}={value}" for name, value in (
        ("data", data), ("data_dir", options.data_dir)) if value)
    if options.commands:
        for row in rows:
            for command in commands(workdir, row, options.scale, data, argv[1:]).values():
                print("python", *command)
        return
    failed = []
    if not options.collect:
        failed = train_all(workdir, rows, options.scale, data, argv[1:])
    print(write(workdir, out, rows, failed))
    if failed:
        raise UserError("\n".join(failed))


if __name__ == "__main__":
    flags.DEFINE_enum("scale", "bench", ["paper", "bench", "smoke"], "As in the configs.")
    flags.DEFINE_list("rows", [], "Which rows, such as depth_fsq; all by default.")
    flags.DEFINE_bool("commands", False, "Print the commands, and run nothing.")
    flags.DEFINE_bool("collect", False, "Train nothing; write what there is.")
    flags.DEFINE_integer("parallel", 1, "Rows that are trained at once.", lower_bound=1)
    flags.DEFINE_string("data", "", "Data of all tasks, arrays:PATH; the scale's by default.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_string("workdir", "", "Folder of the runs; runs/uvim_SCALE by default.")
    flags.DEFINE_string("out", "", "Folder of the results; experiments/results/uvim_SCALE.")
    cli.run(main, takes_arguments=True)
