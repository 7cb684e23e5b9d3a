"""Seconds in which XLA compiles the initial values of a model, by ways to draw them.

python -m experiments.benchmarks.init_compile --out=experiments/results/speed/init_compile.jsonl \
    [--h100]

Writes one JSON line for each model and way: what `batch_random_init` buys, beside what needs no
code of ours. Nothing is drawn. With --h100 XLA compiles for that GPU, which need not be here. On a
busy machine the processor's seconds say more than the clock's.
"""

import time

import jax
from absl import app, flags

from configs import maskgit_tokenizer, maskgit_transformer, uvim_lm
from experiments.benchmarks import apart
from fsq_jax import describe, stages
from fsq_jax.runtime import absent_gpus
from fsq_jax.runtime.batch_random_init import batch_random_init
from fsq_jax.stages.blank import blank_batch

_OUT = flags.DEFINE_string("out", "", "File that takes one JSON line per model and way.")
_H100 = flags.DEFINE_bool("h100", False, "Compile for an H100; by default for this machine.")
MODELS = {
    "maskgit_transformer": lambda: maskgit_transformer.get_config("scale=paper"),
    "maskgit_tokenizer": lambda: maskgit_tokenizer.get_config("scale=paper"),
    "uvim_lm": lambda: uvim_lm.get_config("scale=paper,encoder=none"),
}
# How keys draw, whether draws are batched, and what the compiler is asked to leave out.
WAYS = {
    "as it is": ("threefry2x32", False, {}),
    "batch_random_init": ("threefry2x32", True, {}),
    "rbg": ("rbg", False, {}),
    "least effort": ("threefry2x32", False, {"exec_time_optimization_effort": -1.0}),
    "no optimization": (
        "threefry2x32",
        False,
        {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
    ),
}


def placed(shapes, device):
    """Shapes of arrays on a device that need not be there."""
    place = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def measure(stage, batch, way: str, device) -> dict[str, float]:
    """Seconds of tracing and of compilation of a stage's initial state, and the processor's."""
    impl, batched, options = WAYS[way]
    key = placed(jax.eval_shape(lambda: jax.random.key(0, impl=impl)), device)
    init = batch_random_init(stage.init) if batched else stage.init
    start, cpu = time.perf_counter(), time.process_time()
    lowered = jax.jit(init, compiler_options=options).lower(key, placed(batch, device))
    traced = time.perf_counter()
    lowered.compile()
    return {
        "trace_seconds": round(traced - start, 2),
        "compile_seconds": round(time.perf_counter() - traced, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def main(argv):
    del argv
    (device,) = absent_gpus.h100() if _H100.value else jax.devices()[:1]
    for model, get_config in MODELS.items():
        config = describe.with_classes(get_config())
        stage = stages.make(config, **stages.frozen_shapes(config))
        batch = blank_batch(config, 8)
        for way in WAYS:
            line = {"model": model, "way": way} | measure(stage, batch, way, device)
            line |= {"device": device.device_kind, "jax": jax.__version__}
            apart.record(line, _OUT.value)


if __name__ == "__main__":
    app.run(main)
