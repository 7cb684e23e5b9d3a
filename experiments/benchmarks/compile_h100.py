"""Compiles train steps for H100s that need not be here: whether they do, what memory they take.

python -m experiments.benchmarks.compile_h100 --gpus=1,2 --out=compiled.jsonl \
    "configs/maskgit_transformer.py:scale=paper,dtype=bfloat16 fsdp=True --tokens" \
    "configs/uvim_lm.py:scale=paper,dtype=bfloat16 batch_size=32 fsdp=True --tokens"

A variant is as in `train_step`. Needs JAX's CUDA plugin and minutes of a CPU for each. One JSON
line per variant and number of GPUs: peak_gib of each GPU and state_gib, its part of weights and
optimiser, what the GPUs send each other in a step (`collectives`), and how much of it the host can
queue in advance (`operations`); or the error. Nothing is tried out on the way, so that XLA may
choose other kernels than on a GPU, and other workspaces.
"""

import json
import time

import jax
from absl import flags

from experiments.benchmarks import apart, collectives, operations, train_step
from fsq_jax import stages
from fsq_jax.runs import costs
from fsq_jax.runtime import absent_gpus, cli

_GPUS = flags.DEFINE_list("gpus", ["1", "2"], "Numbers of GPUs.")


def measure(variant: str, gpus: int) -> dict:
    """What the compiled step of a variant takes on each of so many GPUs."""
    config, tokens = train_step.load_config(variant)
    stage = stages.make(config, **stages.frozen_shapes(config))
    batch = jax.eval_shape(lambda: train_step.random_batch(config, stage, tokens))
    begin = time.perf_counter()
    compiled = costs.compile_step(config, batch, absent_gpus.h100(gpus))
    seconds = time.perf_counter() - begin
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return {
        "peak_gib": costs.peak_bytes(compiled) / 2**30,
        "state_gib": memory.argument_size_in_bytes / 2**30,
        "compile_seconds": seconds,
        "collectives": collectives.of_program(text, gpus),
        **operations.of_program(text),
    }


def main(argv) -> None:
    options = flags.FLAGS
    variants = apart.variants(argv[1:], options.one)
    if options.one:
        print(json.dumps(measure(variants[0], int(_GPUS.value[0])) | {"jax": jax.__version__}))
        return
    for variant in variants:
        for gpus in _GPUS.value:
            result = {"variant": variant, "gpus": int(gpus)}
            arguments = ["--one", f"--gpus={gpus}", variant]
            cpu = {"JAX_PLATFORMS": "cpu"}
            result |= apart.run("compile_h100", arguments, options.timeout, cpu)
            apart.record(result, options.out)


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
