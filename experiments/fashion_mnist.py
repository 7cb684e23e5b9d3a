"""FSQ [8,5,5,5] beside VQ 1024 on Fashion-MNIST: two tokenizers, a masked transformer on each.

python -m experiments.fashion_mnist --workdir=runs/fashion_mnist --data_dir=DIR --parallel

Trains with the bench configs, evaluates on all 10,000 test images and 10,000 samples, sweeps the
guidance as the paper's figure 4 does, and writes tables, curves and sample grids to --out. What is
done already is not done again. DIR holds TFDS's fashion_mnist as ArrayRecord files.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
from absl import flags

from experiments import figures, gpus, report
from fsq_jax import runs, sample
from fsq_jax.evaluators import codebook
from fsq_jax.evaluators.generation import sample_moments
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.reports import html
from fsq_jax.runs import inputs
from fsq_jax.runtime import cli
from fsq_jax.runtime.progress import log

QUANTIZERS = {"fsq": "quantizer=fsq,levels=8-5-5-5", "vq": "quantizer=vq,codebook_size=1024"}
GUIDANCE = (0.0, 0.1, 0.2, 0.5, 1.0)
NUM_SAMPLES = 10_000


def commands(workdir: str, data_dir: str, quantizer: str) -> dict[str, list[str]]:
    """The command of each run of a quantizer, by the run's folder."""
    common = f"scale=bench,{QUANTIZERS[quantizer]},data_dir={data_dir}"
    tokenizer, maskgit = (os.path.join(workdir, f"{n}_{quantizer}") for n in ("tokenizer", "mg"))
    return {
        tokenizer: [
            "-m", "fsq_jax.train", f"--config=configs/maskgit_tokenizer.py:{common}",
            f"--workdir={tokenizer}",
        ],
        maskgit: [
            "-m", "fsq_jax.train",
            f"--config=configs/maskgit_transformer.py:{common},tokenizer={tokenizer}",
            f"--workdir={maskgit}",
        ],
    }


def train(workdir: str, data_dir: str, quantizer: str, changes: list[str]) -> dict[str, float]:
    """Runs what is left of a quantizer's runs, one after the other; seconds of each."""
    environment = dict(os.environ)
    if flags.FLAGS.parallel:
        environment |= gpus.environment(list(QUANTIZERS).index(quantizer), len(QUANTIZERS))
    seconds = {}
    for folder, command in commands(workdir, data_dir, quantizer).items():
        begin = time.monotonic()
        log(" ".join(["python", *command]))
        with open(f"{folder}.log", "a") as output:
            command = [sys.executable, *command, *changes]
            subprocess.run(command, check=True, stderr=output, stdout=output, env=environment)
        seconds[os.path.basename(folder)] = time.monotonic() - begin
    return seconds


def sweep(workdir: str, out: str, quantizer: str, num_samples: int) -> list[dict]:
    """The samples' Fréchet distance at each guidance, against the training set (figure 4).

    Written to OUT/guidance_QUANTIZER.json after each, where a sweep that was stopped goes on.
    """
    folder = os.path.join(workdir, f"mg_{quantizer}")
    path = os.path.join(out, f"guidance_{quantizer}.json")
    rows, reference = [], None
    if os.path.exists(path):
        with open(path) as file:
            rows = json.load(file)
    for guidance in GUIDANCE[len(rows):]:
        run = runs.load(folder, overrides={"sampling.guidance": guidance})
        config = run.config
        network = RunScorer(run, config.evals.generation.features)
        if reference is None:
            reference = network.reference("train", config.evals.generation.reference_limit)
        moments = sample_moments(run, network, num_samples)
        value, protocol = network.distance(moments, reference, "train")
        rows.append({"guidance": guidance, network.metric: value, "protocol": protocol})
        log(f"{quantizer}: guidance {guidance}, {network.metric} {value:.3f}")
        with open(path, "w") as file:
            json.dump(rows, file, indent=2)
    return rows


def draw(workdir: str, out: str, sweeps: dict[str, list[dict]]) -> None:
    """Writes the pictures: reconstructions, samples, codes, curves, the sweep of guidance."""
    folder = lambda name, q: os.path.join(workdir, f"{name}_{q}")  # noqa: E731
    loaded = {q.upper(): runs.load(folder("tokenizer", q)) for q in QUANTIZERS}
    pictures = {"reconstructions": figures.reconstructions_figure(loaded)}
    counts = {name: codebook.count_codes(run) for name, run in loaded.items()}
    pictures["codes"] = html.codes_figure(counts, loaded["FSQ"].facts.levels)
    pictures["tokenizer_curves"] = figures.curves_figure(
        {q.upper(): folder("tokenizer", q) for q in QUANTIZERS},
        ("reconstruction", "adversarial", "discriminator"),
    )
    pictures["transformer_curves"] = figures.curves_figure(
        {q.upper(): folder("mg", q) for q in QUANTIZERS}, ("loss", "accuracy")
    )
    for quantizer in QUANTIZERS:
        best = min(sweeps[quantizer], key=lambda row: row["fd_efficientnet"])["guidance"]
        run = runs.load(
            folder("mg", quantizer), overrides={"sampling.guidance": best}
        )
        config = run.config
        names = inputs.open_split(config.data, "train").class_names
        labels_N = np.repeat(np.arange(len(names), dtype=np.int32), 12)
        images = sample.sample(run, labels_N)
        pictures[f"samples_{quantizer}"] = figures.samples_figure(
            images, labels_N, names, columns=5, tile=4
        )
    pictures["guidance"] = sweep_figure(sweeps)
    for name, figure in pictures.items():
        with open(os.path.join(out, f"{name}.png"), "wb") as file:
            file.write(html.png(figure))


def sweep_figure(sweeps: dict[str, list[dict]]) -> matplotlib.figure.Figure:
    """Distance of samples over guidance, a line a quantizer."""
    figure = matplotlib.figure.Figure((5.0, 3.2), layout="constrained")
    axis = figure.subplots()
    for quantizer, rows in sweeps.items():
        x, y = zip(*((r["guidance"], r["fd_efficientnet"]) for r in rows), strict=True)
        axis.plot(x, y, "o-", label=quantizer.upper())
    axis.set(xlabel="guidance α", ylabel="Fréchet distance, EfficientNet")
    axis.legend(frameon=False)
    return figure


def collect(workdir: str, out: str, seconds: dict[str, float]) -> str:
    """Copies what the runs wrote, and writes the tables made of it; returns the table's text."""
    workdirs = {}
    for quantizer in QUANTIZERS:
        folders = [os.path.join(workdir, f"{n}_{quantizer}") for n in ("tokenizer", "mg")]
        workdirs[quantizer.upper()] = folders
        for folder in folders:
            target = os.path.join(out, os.path.basename(folder))
            os.makedirs(target, exist_ok=True)
            for name in ("config.json", "results.json", "metrics.jsonl"):
                shutil.copy(os.path.join(folder, name), target)
    with open(os.path.join(out, "seconds.json"), "w") as file:
        json.dump(seconds, file, indent=2)
    text = report.comparison_table(workdirs).text()
    with open(os.path.join(out, "table.md"), "w") as file:
        file.write(text + "\n")
    return text


def main(argv) -> None:
    workdir, out = flags.FLAGS.workdir, flags.FLAGS.out
    os.makedirs(workdir, exist_ok=True)
    os.makedirs(out, exist_ok=True)
    with ThreadPoolExecutor(2 if flags.FLAGS.parallel else 1) as pool:
        jobs = [pool.submit(train, workdir, flags.FLAGS.data_dir, q, argv[1:]) for q in QUANTIZERS]
        seconds = {name: value for job in jobs for name, value in job.result().items()}
    print(collect(workdir, out, seconds))  # first: whatever stops the rest takes none of it
    sweeps = {q: sweep(workdir, out, q, flags.FLAGS.num_samples) for q in QUANTIZERS}
    draw(workdir, out, sweeps)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/fashion_mnist", "Folder of the runs.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_string("out", "experiments/results/fashion_mnist", "Folder of the results.")
    flags.DEFINE_bool("parallel", False, "Train FSQ and VQ at once, on a GPU each or sharing one.")
    flags.DEFINE_integer("num_samples", NUM_SAMPLES, "Samples of each setting in the sweep.")
    cli.run(main, takes_arguments=True)
