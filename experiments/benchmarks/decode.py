"""Times sampling on random weights: UViM's cached decoding, MaskGIT's parallel one.

python -m experiments.benchmarks.decode --out=decode.jsonl --batches=1,8,64 \
    configs/uvim_lm.py:scale=paper,dtype=bfloat16 \
    configs/maskgit_transformer.py:scale=paper,dtype=bfloat16

A variant is a config, then KEY=VALUE over it ("sampling.num_steps=8"). Each is compiled and timed
for each batch size, in a process of its own: from images to all tokens of a label (UViM), from
classes to images (MaskGIT). Seconds are medians; the peak of memory is the process's own. With
--kernels a line also lists the GPU's kernels in one batch, what each takes in all, and where the
GPU waits for the next.
"""

import json
import statistics
import time

import jax
from absl import flags

from experiments.benchmarks import apart, kernels, train_step
from experiments.benchmarks.random_arrays import random_like
from fsq_jax import stages
from fsq_jax.runs import startup
from fsq_jax.runtime import cli, sharding
from fsq_jax.runtime.compiler import compiler_options

_BATCHES = flags.DEFINE_list("batches", ["1", "8", "64"], "Sizes of a batch.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Batches that are timed.", lower_bound=1)


def measure(variant: str, size: int) -> dict:
    """What sampling of a batch takes: ms, images/s, tokens/s, GiB, seconds of compilation."""
    config, _ = train_step.load_config(variant)
    stage = stages.make(config, **stages.frozen_shapes(config))
    # One device's batch: a mesh of one, whatever there is.
    batch = sharding.put_batch(
        train_step.random_batch(config, stage, tokens=False, size=size), sharding.make_mesh(1)
    )
    key = jax.random.key(config.seed)
    shapes = startup.abstract_state(config, stage, batch)
    # Sampling reads the averaged weights alone: neither the others nor the optimiser's are made.
    weights = {"ema_params": shapes.ema_params, "frozen": stage.frozen}
    state = shapes.replace(
        params=None, opt_state=None, step=0, **jax.device_put(random_like(weights))
    )
    begin = time.perf_counter()
    sample = jax.jit(stage.predict["sample"], compiler_options=compiler_options())
    sample = sample.lower(state, batch, key).compile()
    compile_seconds = time.perf_counter() - begin
    jax.block_until_ready(sample(state, batch, key))
    seconds = []
    for i in range(_REPEATS.value):
        begin = time.perf_counter()
        jax.block_until_ready(sample(state, batch, jax.random.fold_in(key, i)))
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    tokens = (config.data.size // stage.facts.downsampling) ** 2
    memory = jax.local_devices()[0].memory_stats() or {}
    result = {
        "batch_ms": 1e3 * median,
        "batch_ms_range": [1e3 * min(seconds), 1e3 * max(seconds)],
        "images_per_second": size / median,
        "tokens_per_second": size * tokens / median,
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
        "compile_seconds": compile_seconds,
    }
    if flags.FLAGS.kernels:
        result |= kernels.traced(lambda: sample(state, batch, key))
    return result


def main(argv) -> None:
    options = flags.FLAGS
    variants = apart.variants(argv[1:], options.one)
    if options.one:
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        print(json.dumps(measure(variants[0], int(_BATCHES.value[0])) | device))
        return
    for variant in variants:
        for size in _BATCHES.value:
            arguments = ["--one", f"--batches={size}", f"--repeats={_REPEATS.value}", variant]
            arguments += ["--kernels"] if options.kernels else []
            result = {"variant": variant, "batch_size": int(size)}
            result |= apart.run("decode", arguments, options.timeout)
            apart.record(result, options.out)


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
