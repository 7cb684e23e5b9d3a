"""Trains from JPEG files, is preempted, and goes on on another number of devices.

python -m experiments.benchmarks.preempted --devices=1,2 --out=preempted.jsonl

Scenes are written as JPEG files into a folder, and `python -m fsq_jax.train` trains a tokenizer
(Frechet distances aside all of scale=bench, 64 px, float32) on the first number of devices. In the
middle it gets SIGTERM, and the same command ends the run on the second number. Meanwhile another
one, undisturbed, trains on the first number of devices, the last ones of the machine. The line has
the step that it stopped at, and how far the losses are from the undisturbed run's.
"""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import app, flags
from PIL import Image

from configs import maskgit_tokenizer
from experiments.benchmarks import apart
from fsq_jax.data.open import open_dataset
from fsq_jax.launcher import gpus
from fsq_jax.runtime.metric_writer import read_metrics
from fsq_jax.runtime.workdir import save_config


def write_jpegs(folder: pathlib.Path, count: int, size: int) -> str:
    """The first training scenes as JPEG files, a sub-folder per class; the data's name."""
    dataset = open_dataset("scenes", "train", size)
    for number in range(count):
        record = dataset[number]
        path = folder / dataset.class_names[record["label"]].replace(" ", "_") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(record["image"]).save(path, quality=92)
    return f"folder:{folder}"


def write_config(folder: pathlib.Path, data: str, smoke: bool) -> pathlib.Path:
    """A config file of the training."""
    scale, size = ("smoke", 16) if smoke else ("bench", 64)
    config = maskgit_tokenizer.get_config(f"scale={scale},size={size},data={data},dtype=float32")
    steps = 12 if smoke else 300
    config.update(
        steps=steps,
        batch_size=16 if smoke else 64,
        log_every=1,
        preview_every=steps,
        checkpoint_every=steps // 3,
    )
    config.evals = dict(codebook=dict(every=steps))
    config.data.update(train_split="train", eval_split="validation", workers=0 if smoke else 4)
    config.loss.adversarial_start = steps // 3  # on both sides of it something is trained
    save_config(str(folder), config)
    file = folder / "config.py"
    file.write_text(
        "from fsq_jax.runtime.workdir import load_config\n\n\n"
        f"def get_config():\n    return load_config({str(folder)!r})\n"
    )
    return file


class Run:
    """A training of a config in a workdir."""

    def __init__(self, config: pathlib.Path, workdir: pathlib.Path, devices: Sequence[int]):
        self.workdir = workdir
        program = [sys.executable, "-m", "fsq_jax.train"]
        self._said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*program, f"--config={config}", f"--workdir={workdir}"],
            env=os.environ | apart.seeing(devices, gpus.visible()),
            stdout=self._said,
            stderr=self._said,
        )

    def losses(self) -> dict[int, float]:
        """{step: loss} so far."""
        if not (self.workdir / "metrics.jsonl").exists():
            return {}
        lines = read_metrics(str(self.workdir), "train")
        return {line["step"]: line["loss"] for line in lines}

    def finish(self) -> str:
        """What it said; raises RuntimeError with the end of that unless it ended well."""
        status = self.process.wait()
        self._said.seek(0)
        said = self._said.read()
        self._said.close()
        if status:
            raise RuntimeError(f"{self.workdir.name} ended with {status}: {said.strip()[-250:]}")
        return said


def measure(devices: Sequence[int], smoke: bool) -> dict:
    """What became of the losses; `devices`: how many before the preemption and after it."""
    before, after = devices
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        data = write_jpegs(folder / "images", 64 if smoke else 512, 32 if smoke else 80)
        config = write_config(folder, data, smoke)
        last = range(max(devices))[-before:]
        runs = [Run(config, folder / "undisturbed", last)]
        try:
            runs.append(Run(config, folder / "preempted", range(before)))
            steps = 6 if smoke else 150
            while len(runs[1].losses()) < steps and runs[1].process.poll() is None:
                time.sleep(0.05)
            runs[1].process.send_signal(signal.SIGTERM)
            runs[1].finish()
            stopped = max(runs[1].losses())
            runs.append(Run(config, folder / "preempted", range(after)))
            said = runs[2].finish()
            runs[0].finish()
            result = compare(runs[0].losses(), runs[2].losses(), stopped)
        finally:
            for run in runs:
                run.process.kill()
                run.process.wait()
    going_on = f"Going on from step {stopped}" in said
    return {"devices": list(devices), "stopped_at": stopped, "went_on_there": going_on} | result


def compare(undisturbed: dict[int, float], preempted: dict[int, float], stopped: int) -> dict:
    """Relative differences of the losses of two runs, {step: loss}, one stopped after a step."""
    if undisturbed.keys() != preempted.keys():
        return {"error": f"the steps differ: {len(undisturbed)} and {len(preempted)}"}
    differences = {s: abs(preempted[s] / loss - 1) for s, loss in undisturbed.items()}
    tail = sorted(undisturbed)[-max(1, len(undisturbed) // 6) :]
    return {
        "steps": len(undisturbed),
        "difference_before": max(d for s, d in differences.items() if s <= stopped),
        "difference_at_once": max(d for s, d in differences.items() if 0 < s - stopped <= 3),
        "difference_after": max(d for s, d in differences.items() if s > stopped),
        "last_losses": [statistics.fmean(run[s] for s in tail) for run in (undisturbed, preempted)],
    }


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    devices = [int(number) for number in options.devices]
    if options.one:
        print(json.dumps(measure(devices, options.smoke)))
        return
    arguments = ["--one", f"--devices={','.join(options.devices)}"]
    arguments += ["--smoke"] if options.smoke else []
    apart.record(apart.run("preempted", arguments, options.timeout), options.out)


if __name__ == "__main__":
    flags.DEFINE_list("devices", ["1", "2"], "How many before the preemption, and after it.")
    flags.DEFINE_bool("smoke", False, "Try it out at a size for a CPU.")
    flags.DEFINE_bool("one", False, "Measure in this process.")
    flags.DEFINE_integer("timeout", 300, "Seconds after which it is given up.")
    flags.DEFINE_string("out", "", "File that takes the line.")
    app.run(main)
