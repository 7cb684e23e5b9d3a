"""Times a UViM pair of full size, from files in the published format: image to tokens to depth.

python -m experiments.benchmarks.pretrained_uvim --out=pretrained_uvim.jsonl --batches=1,8,64
python -m experiments.benchmarks.pretrained_uvim --smoke

The weights are random, written as .npz and read back by the loaders; sizes are UViM's at 512 px, in
float32. One JSON line per batch size: seconds to load each file, to compile, to write 256 tokens
with a cache and to decode them to logits, and the peak of the process's memory.
"""

import os
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.benchmarks import apart
from experiments.benchmarks.random_arrays import random_variables
from fsq_jax.formats import weights_file
from fsq_jax.models.uvim_base import LabelAutoencoder
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.pretrained.uvim import load_uvim_base, load_uvim_lm
from fsq_jax.quantizers.vq import EMAVectorQuantizer


def networks(smoke: bool) -> tuple[LabelAutoencoder, CodeLanguageModel, int]:
    """UViM's two networks for depth and the size of their images, or tiny ones."""
    if smoke:
        small = dict(patch=4, width=16, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_dim=32)
        base = LabelAutoencoder(
            EMAVectorQuantizer(codebook_size=8, channels=16), {"depth": 8}, code_side=2, **small
        )
        return base, CodeLanguageModel(vocab_size=9, num_tokens=4, **small), 16
    base = LabelAutoencoder(EMAVectorQuantizer(codebook_size=4096, channels=768), {"depth": 256})
    return base, CodeLanguageModel(vocab_size=4097), 512


def write(folder: str, base, lm, size: int) -> dict[str, str]:
    """Writes both networks with random weights; {name: path}."""
    image = jnp.zeros((1, size, size, 3))
    patches = (size // base.patch) ** 2
    labels = {"depth": jnp.zeros((1, patches, base.patch**2), jnp.int32)}
    inputs = {"base": (base, labels, image), "lm": (lm, image, jnp.zeros((1, lm.num_tokens), int))}
    paths = {}
    for name, (model, *arguments) in inputs.items():
        paths[name] = os.path.join(folder, f"{name}.npz")
        weights_file.write_npz(paths[name], random_variables(model, *arguments))
    return paths


def timed(call, repeats: int) -> tuple[float, float]:
    """(seconds of the first call, which compiles; the median of the others)."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return seconds[0], statistics.median(seconds[1:])


def measure(base, lm, size: int, batch: int, repeats: int) -> dict:
    """What a batch of images takes, to tokens and on to logits."""
    images = jax.random.uniform(jax.random.key(0), (batch, size, size, 3), minval=-1.0)
    compile_decode, seconds = timed(lambda: lm.decode(images), repeats)
    indices = lm.decode(images)
    compile_logits, logits = timed(lambda: base.decode(indices, images), repeats)
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "batch_size": batch,
        "size": size,
        "tokens": lm.model.num_tokens,
        "code_seconds": seconds,
        "logits_seconds": logits,
        "images_per_second": batch / (seconds + logits),
        "first_call_seconds": [compile_decode, compile_logits],
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
    }


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    *models, size = networks(options.smoke)
    with tempfile.TemporaryDirectory() as folder:
        paths = write(folder, *models, size)
        begin = time.perf_counter()
        base = load_uvim_base(paths["base"])
        middle = time.perf_counter()
        lm = load_uvim_lm(paths["lm"])
        device |= {
            "load_base_seconds": middle - begin,
            "load_lm_seconds": time.perf_counter() - middle,
        }
        for batch in map(int, options.batches):
            line = measure(base, lm, size, batch, options.repeats) | device
            apart.record(line, options.out)


if __name__ == "__main__":
    flags.DEFINE_string("out", "", "File that takes one JSON line per batch size.")
    flags.DEFINE_bool("smoke", False, "Tiny networks, for a CPU.")
    flags.DEFINE_list("batches", ["1", "8", "64"], "Sizes of a batch.")
    flags.DEFINE_integer("repeats", 3, "Batches that are timed.", lower_bound=1)
    app.run(main)
