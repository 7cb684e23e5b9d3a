"""Times sampling with a MaskGIT pair of full size, from files in the published format.

python -m experiments.benchmarks.pretrained --out=pretrained.jsonl
python -m experiments.benchmarks.pretrained --smoke

The weights are random, written as flax msgpack and read back by the loaders; sizes, steps and
batch are MaskGIT's own at 256 px. One JSON line per compute dtype of the transformer: seconds to
load each file and to put both on the device, seconds to compile, images per second (median over
batches), and the peak of the process's memory on the device. With --smoke everything is tiny.
"""

import os
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks import apart
from experiments.benchmarks.random_arrays import random_variables
from fsq_jax import runs
from fsq_jax.formats import weights_file
from fsq_jax.models.maskgit_tokenizer import Tokenizer
from fsq_jax.models.maskgit_transformer import MaskedTransformer
from fsq_jax.pretrained.maskgit import load_maskgit_tokenizer, load_maskgit_transformer
from fsq_jax.quantizers.vq import VectorQuantizer


def networks(smoke: bool) -> tuple[Tokenizer, MaskedTransformer]:
    """MaskGIT's two networks at 256 px, or tiny ones at 32 px."""
    if smoke:
        tokenizer = Tokenizer(
            VectorQuantizer(codebook_size=16, channels=8),
            filters=32,
            channel_multipliers=(1, 1, 2),
            num_res_blocks=1,
        )
        sizes = dict(width=32, depth=2, num_heads=2, mlp_dim=64)
        return tokenizer, MaskedTransformer(vocab_size=16 + 5 + 1, num_positions=65, **sizes)
    tokenizer = Tokenizer(VectorQuantizer(codebook_size=1024, channels=256))
    return tokenizer, MaskedTransformer(vocab_size=2025, num_positions=257)


def write_random(model, path: str, *inputs) -> int:
    """Writes random weights of a model as MaskGIT's msgpack; returns how many there are."""
    params = random_variables(model, *inputs)["params"]
    weights_file.write_msgpack(path, params)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def load_times(paths: dict[str, str], codebook_size: int) -> dict[str, float]:
    """Seconds that each loader takes, until its weights are on the device."""
    seconds = {}
    loaders = {
        "tokenizer": load_maskgit_tokenizer,
        "transformer": lambda path: load_maskgit_transformer(path, codebook_size),
    }
    for name, load in loaders.items():
        begin = time.perf_counter()
        jax.block_until_ready(load(paths[name]).variables)
        seconds[f"load_{name}_seconds"] = time.perf_counter() - begin
    return seconds


def measure(
    paths: dict[str, str], dtype: str, batch_size: int, num_steps: int, batches: int
) -> dict:
    """What sampling with the pair reaches, with the transformer's activations in `dtype`."""
    begin = time.perf_counter()
    run = runs.load(
        paths["transformer"],
        paths["tokenizer"],
        overrides={
            "eval_batch_size": batch_size,
            "model.dtype": dtype,
            "sampling.num_steps": num_steps,
        },
    )
    config = run.config
    jax.block_until_ready(run.state.ema_params)
    assemble_seconds = time.perf_counter() - begin
    labels = np.arange(batch_size) % config.num_classes
    batch = run.put({"label": labels.astype(np.int32)})
    key = jax.random.key(0)
    begin = time.perf_counter()
    sample = run.predict["sample"].lower(run.state, batch, key).compile()
    compile_seconds = time.perf_counter() - begin
    jax.block_until_ready(sample(run.state, batch, key))
    seconds = []
    for i in range(batches):
        begin = time.perf_counter()
        jax.block_until_ready(sample(run.state, batch, jax.random.fold_in(key, i)))
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "dtype": dtype,
        "batch_size": batch_size,
        "num_steps": config.sampling.num_steps,
        "size": config.data.size,
        "assemble_seconds": assemble_seconds,
        "compile_seconds": compile_seconds,
        "batch_seconds": median,
        "batch_seconds_range": [min(seconds), max(seconds)],
        "images_per_second": batch_size / median,
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
    }


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    tokenizer, transformer = networks(options.smoke)
    batch_size = jax.device_count() if options.smoke else options.batch_size
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: os.path.join(folder, name) for name in ("tokenizer", "transformer")}
        side = tokenizer.downsampling
        counts = {
            "tokenizer_parameters": write_random(
                tokenizer, paths["tokenizer"], jnp.zeros((1, side, side, 3))
            ),
            "transformer_parameters": write_random(
                transformer,
                paths["transformer"],
                jnp.zeros((1, transformer.num_positions), jnp.int32),
            ),
        }
        sizes = {f"{name}_bytes": os.path.getsize(path) for name, path in paths.items()}
        loads = load_times(paths, tokenizer.quantizer.codebook_size)
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        for dtype in ("bfloat16", "float32"):  # the smaller first: the peak is the process's
            line = measure(paths, dtype, batch_size, options.num_steps, options.batches)
            line |= counts | sizes | loads | device
            apart.record(line, options.out)


if __name__ == "__main__":
    flags.DEFINE_string("out", "", "File that takes one JSON line per dtype.")
    flags.DEFINE_bool("smoke", False, "Tiny networks and batches, for a CPU.")
    flags.DEFINE_integer("batch_size", 64, "Images that are sampled at once.")
    flags.DEFINE_integer("num_steps", 12, "Decoding steps.")
    flags.DEFINE_integer("batches", 5, "Batches that are timed.")
    app.run(main)
