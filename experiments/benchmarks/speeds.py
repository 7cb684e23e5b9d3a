"""Measures all speeds that the README reports, each in its own process, one at a time per GPU.

python -m experiments.benchmarks.speeds --out=experiments/results/speed/h100 --seconds=540

What is in --out already is not measured again, so that a machine that is lent for minutes can be
used in several goes; the longest come first. Nothing is begun that would not end within --seconds.
With several GPUs as many measurements run at once, each on its own.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

from absl import app, flags

from fsq_jax.launcher import gpus

_FULL = "scale=paper,dtype=bfloat16"
_PLAIN = "model.attention_dropout=0.0 model.dropout=0.0 --tokens"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A benchmark's command, its name (and file), and the seconds that it may take."""

    name: str
    module: str
    arguments: tuple[str, ...]
    seconds: int


def step(name: str, variant: str, seconds: int) -> Measurement:
    """A training step of full size, timed alone; `--notime` counts the FLOPs on any CPU."""
    arguments = ("--noflops", "--steps=2", "--blocks=2", f"--timeout={seconds - 15}", variant)
    return Measurement(name, "train_step", arguments, seconds)


MEASUREMENTS = (
    step("uvim_lm_step", f"configs/uvim_lm.py:{_FULL},task=depth batch_size=128 accumulate=4", 300),
    Measurement("decode", "decode", ("--repeats=3", f"configs/uvim_lm.py:{_FULL}"), 220),
    step(
        "tokenizer_step",
        f"configs/maskgit_tokenizer.py:{_FULL} accumulate=16 perceptual.name=resnet50",
        240,
    ),
    step(
        "uvim_base_step",
        f"configs/uvim_base.py:{_FULL},task=depth,quantizer=vq_ema batch_size=256 accumulate=16",
        160,
    ),
    Measurement(
        "inception",
        "inception_speed",
        (
            "--only=features",
            "--batches=256",
            "--tools=fsq_jax,torch-fidelity",
            "--timeout=60",
        ),
        150,
    ),
    Measurement("pretrained_uvim", "pretrained_uvim", (), 180),
    Measurement(
        "inception_fid",
        "inception_speed",
        (
            "--only=fid,precision_recall",
            "--batches=256",
            "--dtypes=float32,tf32",
            "--timeout=120",
        ),
        240,
    ),
    Measurement("pretrained", "pretrained", (), 120),
    step("transformer_step", f"configs/maskgit_transformer.py:{_FULL} --tokens", 130),
    step("transformer_step_no_dropout", f"configs/maskgit_transformer.py:{_FULL} {_PLAIN}", 130),
    step(
        "transformer_step_8_heads",  # which is what other implementations were timed with
        f"configs/maskgit_transformer.py:{_FULL} model.num_heads=8 {_PLAIN}",
        130,
    ),
    step("ceilings", "ceilings", 45),
)


def run(command: list[str], seconds: int, log, environment) -> int | str:
    """Exit status of a command; it is ended, with all that it started, after so many seconds."""
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env=environment, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "out of time"


def measure(measurement: Measurement, out: str, gpu: str) -> str:
    """Runs one; what it wrote is kept under its name only if it came to its end."""
    partial, final = (os.path.join(out, f"{measurement.name}.{x}") for x in ("partial", "jsonl"))
    if os.path.exists(partial):
        os.remove(partial)
    environment = os.environ | gpus.environment(gpu, share=1)
    begin = time.monotonic()
    with open(os.path.join(out, f"{measurement.name}.log"), "w") as log:
        command = [
            sys.executable,
            "-m",
            f"experiments.benchmarks.{measurement.module}",
            *measurement.arguments,
            f"--out={partial}",
        ]
        code = run(command, measurement.seconds, log, environment)
    if code == 0 and os.path.exists(partial):
        with open(partial) as file:
            if '"error"' not in file.read():
                os.replace(partial, final)
    return f"{measurement.name}: {code} after {time.monotonic() - begin:.0f} s"


def main(argv) -> None:
    del argv
    out, end = flags.FLAGS.out, time.monotonic() + flags.FLAGS.seconds
    os.makedirs(out, exist_ok=True)
    waiting = [m for m in MEASUREMENTS if not os.path.exists(os.path.join(out, f"{m.name}.jsonl"))]
    lock = threading.Lock()

    def work(gpu: str) -> None:
        while True:
            with lock:
                left = end - time.monotonic()
                chosen = next((m for m in waiting if m.seconds <= left), None)
                if chosen is None:
                    return
                waiting.remove(chosen)
            print(measure(chosen, out, gpu), flush=True)

    threads = [threading.Thread(target=work, args=(gpu,)) for gpu in gpus.visible() or [""]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if waiting:
        print("not begun:", ", ".join(m.name for m in waiting))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)
    flags.DEFINE_integer("seconds", 540, "Time for all of them.", lower_bound=1)
    app.run(main)
