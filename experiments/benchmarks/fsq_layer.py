"""Times the FSQ layer, forward and backward with indices, beside vector-quantize-pytorch's.

python -m experiments.benchmarks.fsq_layer --out=fsq_layer.jsonl

Each measurement walks through 16 arrays of 1,048,576 float32 vectors, more than a cache holds:
codes, indices and the gradient are written for each. The peer needs torch and the package
vector-quantize-pytorch, and is timed as it is and compiled; without them its lines say "not run".
"""

import statistics
import time

import jax
from absl import app, flags

from experiments.benchmarks import apart
from fsq_jax import LEVELS, codes_to_indices, quantize

_OUT = flags.DEFINE_string("out", "", "File that takes one JSON line per measurement.")
_VECTORS = flags.DEFINE_integer("vectors", 2**20, "Vectors of an array.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Walks that the median is of.")
_ARRAYS = 16
_SIZES = (2**10, 2**16)


def bytes_moved(num_vectors: int, channels: int) -> int:
    """What any implementation must read (z, gradient of codes) and write (codes, gradient of z,
    int32 indices)."""
    return num_vectors * 4 * (4 * channels + 1)


def time_ours(levels: tuple[int, ...], num_vectors: int) -> list[float]:
    """Seconds per array of each walk."""

    def step(carry, arrays):
        z, gradient = arrays
        codes, pull = jax.vjp(lambda z: quantize(z, levels), z)
        return carry, (codes, codes_to_indices(codes, levels), pull(gradient)[0])

    shape = (_ARRAYS, num_vectors, len(levels))
    z, gradient = (jax.random.normal(jax.random.key(i), shape) for i in (0, 1))
    walk = jax.jit(lambda z, gradient: jax.lax.scan(step, 0, (z, gradient))[1])
    jax.block_until_ready(walk(z, gradient))
    seconds = []
    for _ in range(_REPEATS.value):
        begin = time.perf_counter()
        jax.block_until_ready(walk(z, gradient))
        seconds.append((time.perf_counter() - begin) / _ARRAYS)
    return seconds


def time_peer(levels: tuple[int, ...], num_vectors: int, compiled: bool) -> list[float]:
    """The same of vector-quantize-pytorch on torch's device."""
    import torch
    from vector_quantize_pytorch import FSQ

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = FSQ(list(levels)).to(device)
    call = torch.compile(layer, mode="max-autotune") if compiled else layer
    shape = (1, num_vectors, len(levels))
    arrays = [torch.randn(shape, device=device, requires_grad=True) for _ in range(_ARRAYS)]
    gradient = torch.randn(shape, device=device)

    def walk():
        for z in arrays:
            z.grad = None
            codes, _ = call(z)
            codes.backward(gradient)
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        walk()
    seconds = []
    for _ in range(_REPEATS.value):
        begin = time.perf_counter()
        walk()
        seconds.append((time.perf_counter() - begin) / _ARRAYS)
    return seconds


def measure(name: str, levels: tuple[int, ...]) -> dict:
    """One line: microseconds per array, and the bandwidth that they stand for."""
    num_vectors = _VECTORS.value
    line = {"implementation": name, "levels": levels, "vectors": num_vectors}
    try:
        seconds = {
            "fsq_jax": lambda: time_ours(levels, num_vectors),
            "vector-quantize-pytorch": lambda: time_peer(levels, num_vectors, False),
            "vector-quantize-pytorch, compiled": lambda: time_peer(levels, num_vectors, True),
        }[name]()
    except ImportError as error:
        return line | {"microseconds": "not run", "error": str(error)}
    median = statistics.median(seconds)
    return line | {
        "microseconds": 1e6 * median,
        "microseconds_range": [1e6 * min(seconds), 1e6 * max(seconds)],
        "tb_per_second": bytes_moved(num_vectors, len(levels)) / median / 1e12,
    }


def main(argv) -> None:
    del argv
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for size in _SIZES:
        for name in ("fsq_jax", "vector-quantize-pytorch", "vector-quantize-pytorch, compiled"):
            apart.record(measure(name, LEVELS[size]) | device, _OUT.value)


if __name__ == "__main__":
    app.run(main)
