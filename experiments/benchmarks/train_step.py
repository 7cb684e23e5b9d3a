"""Times the train step of any config on random data, one process per variant.

python -m experiments.benchmarks.train_step --out=speed.jsonl \
    "configs/maskgit_tokenizer.py:scale=paper,dtype=bfloat16 accumulate=8" \
    "configs/maskgit_transformer.py:scale=paper,dtype=bfloat16 --tokens" \
    "configs/uvim_base.py:scale=paper,task=panoptic,dtype=bfloat16 batch_size=32"

A variant is a config, then KEY=VALUE over it; with --tokens the batch holds tokens rather than
what they are made of, as from a token cache. The step is the one that fsq_jax.train runs, with the
optimiser, the moving averages and the frozen network (its weights random). A variant that fails is
recorded with its error, and the next one runs. Seconds are medians over blocks of steps; FLOPs are
those that XLA counts in the program with no recomputation; the peak of memory is the process's own.
With --kernels a line also lists the GPU's kernels in one step, what each takes in all, and where
the GPU waits for the next, or with --traced=3 of three steps, and so between steps, too; with
--collectives, what a step sends between the devices; with --losses=3, the losses of the first three
steps.
"""

import importlib.util
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P

from experiments.benchmarks import apart, collectives, kernels
from experiments.benchmarks.random_arrays import random_like
from fsq_jax import describe, stages
from fsq_jax.runs import costs, inputs, startup
from fsq_jax.runs.config import override_config, parse_overrides
from fsq_jax.runtime import batch_random_init, cli, sharding

_OUT = flags.DEFINE_string("out", "", "File that takes one JSON line per variant.")
_BLOCKS = flags.DEFINE_integer("blocks", 4, "Blocks of steps that are timed.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of a block.")
_TIMEOUT = flags.DEFINE_integer("timeout", 240, "Seconds after which a variant is given up.")
_TIME = flags.DEFINE_bool("time", True, "Time the step.")
_FLOPS = flags.DEFINE_bool("flops", True, "Count a step's FLOPs, on the CPU, after it was timed.")
_COLLECTIVES = flags.DEFINE_bool("collectives", False, "Count what devices send each other.")
_LOSSES = flags.DEFINE_integer("losses", 0, "First steps whose losses are listed.", lower_bound=0)
_KERNELS = flags.DEFINE_bool("kernels", False, "List the kernels of a step or a batch, and gaps.")
_TRACED = flags.DEFINE_integer("traced", 1, "Steps whose kernels are listed.", lower_bound=1)
_ONE = flags.DEFINE_bool("one", False, "Measure the one variant given, in this process.")


def load_config(variant: str):
    """(config, whether the batch holds tokens) of a variant."""
    name, *changes = variant.split()
    path, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    tokens = "--tokens" in changes
    overrides = parse_overrides(c for c in changes if c != "--tokens")
    override_config(config, overrides)
    return describe.with_classes(config), tokens


def random_batch(config, stage, tokens: bool, size: int = 0) -> dict[str, np.ndarray]:
    """A batch of noise: images, what the task's labels are, and classes; or tokens, with --tokens.

    `size` is that of the batch, by default the config's.
    """
    rng = np.random.default_rng(0)
    shape = (size or config.batch_size, config.data.size, config.data.size)
    label = rng.integers(0, max(1, stage.facts.num_classes), shape[0]).astype(np.int32)
    noise = {
        "image": lambda: rng.random((*shape, 3), np.float32),
        "depth": lambda: rng.uniform(0.5, 9.5, shape).astype(np.float32),
        "segments": lambda: rng.integers(0, 8, (*shape, 2)).astype(np.int32),
    }
    if not tokens:
        wanted = ("image", *inputs.features(config))
        return {name: noise[name]() for name in wanted} | {"label": label}
    length = (config.data.size // stage.facts.downsampling) ** 2
    tokens = rng.integers(0, stage.facts.codebook_size, (shape[0], length)).astype(np.int32)
    image = {"image": noise["image"]()} if config.stage == "uvim_lm" else {}  # which it reads, too
    return image | {"tokens": tokens, "label": label}


def measure(variant: str) -> dict:
    """What a variant reaches: ms per step, images/s, GiB, seconds of init and of compilation.

    On all devices, of several processes where they have found each other.
    """
    config, tokens = load_config(variant)
    stage = stages.make(config, **stages.frozen_shapes(config))
    mesh = sharding.make_mesh()
    batch = random_batch(config, stage, tokens)
    own = config.batch_size // jax.process_count()
    rows = slice(jax.process_index() * own, (jax.process_index() + 1) * own)
    batch = sharding.put_batch({name: values[rows] for name, values in batch.items()}, mesh)
    key = jax.random.key(config.seed)
    shapes = startup.abstract_state(config, stage, batch)
    shardings = sharding.state_shardings(shapes, mesh, fsdp=config.fsdp)
    begin = time.perf_counter()
    state = jax.jit(batch_random_init.batch_random_init(stage.init), out_shardings=shardings)(
        key, batch
    )
    jax.block_until_ready(state)
    init_seconds = time.perf_counter() - begin
    frozen = sharding.state_shardings(stage.frozen, mesh, fsdp=config.fsdp)
    state = state.replace(frozen=sharding.put(random_like(stage.frozen), frozen))
    begin = time.perf_counter()
    update = startup.compiled_update(config, stage, mesh, shardings.replace(frozen=frozen))
    update = update.lower(state, batch, key).compile()
    compile_seconds = time.perf_counter() - begin
    apart.wait_for_turn()
    losses = []
    for _ in range(max(2, _LOSSES.value)):
        state, metrics = update(state, batch, key)
        losses.append(metrics["loss"])
    losses = [float(loss) for loss in losses]
    seconds = []
    for _ in range(_BLOCKS.value):
        begin = time.perf_counter()
        for _ in range(_STEPS.value):
            state, metrics = update(state, batch, key)
        jax.block_until_ready(metrics)
        seconds.append((time.perf_counter() - begin) / _STEPS.value)
    step = statistics.median(seconds)
    memory = [device.memory_stats() or {} for device in jax.local_devices()]
    result = {
        "step_ms": 1e3 * step,
        "step_ms_range": [1e3 * min(seconds), 1e3 * max(seconds)],
        "images_per_second": config.batch_size / step,
        "batch_size": config.batch_size,
        "peak_gib": max(m.get("peak_bytes_in_use", 0) for m in memory) / 2**30,
        "init_seconds": init_seconds,
        "compile_seconds": compile_seconds,
        "loss": float(metrics["loss"]),
    }
    if _LOSSES.value:
        result["losses"] = losses[: _LOSSES.value]
    if _COLLECTIVES.value:
        result["collectives"] = collectives.of_program(update.as_text(), mesh.size)
    if _KERNELS.value:

        def steps():
            nonlocal state
            for _ in range(_TRACED.value):
                state, metrics = update(state, batch, key)
            return metrics

        result |= {"traced": _TRACED.value} | kernels.traced(steps)
    return result


def count_flops(variant: str) -> float:
    """FLOPs of a variant's step. To be called on the CPU: XLA counts none of a GPU's programs."""
    config, tokens = load_config(variant)
    batch = random_batch(config, stages.make(config, **stages.frozen_shapes(config)), tokens)
    return costs.training_flops(config, jax.eval_shape(lambda: batch))


def measure_ceilings() -> dict:
    """What the device reaches at best: TFLOP/s of a bfloat16 matrix product, TB/s of a copy; of
    several devices also GB/s of collectives, on the bus: as NCCL's own tests count them, bytes of
    the whole array, `bus_mib` large, times 2 (n - 1) / n for an all-reduce and (n - 1) / n for the
    others."""
    apart.wait_for_turn()
    large = jax.default_backend() == "gpu"
    n = 8192 if large else 512
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in (0, 1))
    x = jnp.ones((2**28 if large else 2**20,), jnp.float32)
    found = {
        "matmul_tflops": 2 * n**3 / _seconds(jax.jit(jnp.matmul), a, b) / 1e12,
        "copy_tb_per_second": 2 * x.nbytes / _seconds(jax.jit(lambda x: x + 1), x) / 1e12,
    }
    if jax.device_count() > 1:
        elements = 2 ** (28 if large else 18)
        found["bus_mib"] = 2 * elements / 2**20
        found["bus_gb_per_second"] = _links(sharding.make_mesh(), elements)
    return found


def _links(mesh: jax.sharding.Mesh, elements: int) -> dict[str, float]:
    """GB/s of collectives of so many bfloat16 elements on the bus."""
    split, whole, n = P("data"), P(), mesh.size
    found = {}
    for name, function, copies, outputs, share in (
        ("all-reduce", lambda x: jax.lax.psum(x, "data"), n, split, 2),
        ("all-gather", lambda x: jax.lax.all_gather(x, "data", tiled=True), 1, whole, 1),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "data", tiled=True), n, split, 1),
    ):
        parts = sharding.split_batch(mesh)
        x = jnp.ones((copies * elements,), jnp.bfloat16, device=parts)
        # Whether what is gathered is the same everywhere is not for it to find out.
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=split, out_specs=outputs, check_vma=False
        )
        found[name] = share * (n - 1) / n * 2 * elements / _seconds(jax.jit(mapped), x) / 1e9
    return found


def _seconds(function, *arguments, repeats: int = 20) -> float:
    """Of a call, once results have memory: as many calls again go before those that are timed."""
    for _ in range(2):
        begin = time.perf_counter()
        for _ in range(repeats):
            out = function(*arguments)
        jax.block_until_ready(out)
    return (time.perf_counter() - begin) / repeats


def main(argv) -> None:
    variants = apart.variants(argv[1:], _ONE.value)
    if _ONE.value:
        sharding.initialize_distributed()
        result = measure_ceilings() if variants[0] == "ceilings" else measure(variants[0])
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        print(json.dumps(result | device))
        return
    jax.config.update("jax_platforms", "cpu")  # the device is for the processes of the variants
    for variant in variants:
        options = ["--one", f"--blocks={_BLOCKS.value}", f"--steps={_STEPS.value}", variant]
        options += ["--kernels", f"--traced={_TRACED.value}"] if _KERNELS.value else []
        result = {"variant": variant}
        if _TIME.value:
            result |= apart.run("train_step", options, _TIMEOUT.value)
        if _FLOPS.value and "error" not in result:
            flops = count_flops(variant)
            result["tflop_per_step"] = flops / 1e12
            if _TIME.value:
                result["tflops"] = flops / result["step_ms"] / 1e9
        apart.record(result, _OUT.value)


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
