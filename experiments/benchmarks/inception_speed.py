"""Times Inception's features, FID of many samples, and precision and recall; JSON lines.

python -m experiments.benchmarks.inception_speed --out=experiments/results/evaluation/speed.jsonl

Each measurement is a process of its own. Features: fsq_jax in float32, TF32 and bfloat16, and
torch-fidelity in float32 and TF32, as it is and compiled, at several batch sizes, uint8 images on
the device already; with torch-fidelity absent its lines say "not run". End to end: FID of random
uint8 images on the host against statistics that are there, features and host's share included.
Images are noise and weights random: neither changes what is computed. --smoke tries it all out at
sizes for a CPU.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from experiments.benchmarks import apart

VARIANTS = (
    ("fsq_jax", "float32"),
    ("fsq_jax", "tf32"),
    ("fsq_jax", "bfloat16"),
    ("torch-fidelity", "float32"),
    ("torch-fidelity", "tf32"),
    ("torch-fidelity compiled", "float32"),
    ("torch-fidelity compiled", "tf32"),
)
TOOLS = tuple(dict.fromkeys(tool for tool, _ in VARIANTS))
DTYPES = ("float32", "tf32", "bfloat16")
KINDS = ("features", "fid", "precision_recall")
SMOKE = dict(side=32, samples=6, reference=10, seconds=0.1)


def plan(
    batches: Sequence[int],
    kinds: Sequence[str] = KINDS,
    dtypes: Sequence[str] = DTYPES,
    tools: Sequence[str] = TOOLS,
    smoke: bool = False,
    **sizes,
) -> list[dict]:
    """All measurements, in the order in which they are made; `sizes` as in `SMOKE`."""
    if smoke:
        batches, sizes = [2], SMOKE
    features = [
        dict(kind="features", tool=tool, dtype=dtype, batch=batch, **sizes)
        for tool, dtype in VARIANTS
        for batch in batches
        if not (smoke and "compiled" in tool)  # which takes minutes on a CPU
    ]
    whole = [
        dict(kind="fid", tool="fsq_jax", dtype=dtype, batch=batches[-1], **sizes)
        for dtype in DTYPES
    ]
    whole.append(dict(kind="precision_recall", tool="fsq_jax", dtype="float32", **sizes))
    return [
        one
        for one in features + whole
        if one["kind"] in kinds and one["tool"] in tools and one["dtype"] in dtypes
    ]


def noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def timed(call, seconds: float) -> dict:
    """Seconds of `call`, which waits for its result: the median of as many as fit."""
    begin = time.perf_counter()
    call()
    first = time.perf_counter() - begin
    call()
    taken = []
    while sum(taken) < seconds or len(taken) < 3:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return {
        "first_seconds": first,
        "call_ms": 1e3 * statistics.median(taken),
        "call_ms_range": [1e3 * min(taken), 1e3 * max(taken)],
    }


def our_features(one: dict) -> dict:
    """images/s of the 2,048 features and the logits, by fsq_jax."""
    import jax

    from fsq_jax.features import inception_weights

    network = inception_weights.load_random(dtype=one["dtype"])
    apply, variables = network.apply, network.variables
    compiled = jax.jit(lambda v, x: (lambda f: (f.pool_BF, f.logits_BV))(apply(v, x)))
    images = jax.device_put(noise(one["batch"], one["side"]))
    times = timed(lambda: jax.block_until_ready(compiled(variables, images)), one["seconds"])
    memory = jax.local_devices()[0].memory_stats() or {}
    return times | {
        "images_per_second": 1e3 * one["batch"] / times["call_ms"],
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def their_features(one: dict) -> dict:
    """images/s of the same features by torch-fidelity; {"not_run"} where it is not installed."""
    from experiments.benchmarks import torch_side

    try:
        torch = torch_side.import_torch(tf32=one["dtype"] == "tf32")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            network = torch_side.torch_fidelity_network(os.path.join(folder, "w.pth"), device)
        torch_side.import_torch(tf32=one["dtype"] == "tf32")  # which loading weights switched off
    except ImportError as error:
        return {"not_run": str(error)}
    torch.backends.cudnn.benchmark = True
    if one["tool"].endswith("compiled"):
        network = torch.compile(network)
    images = torch.from_numpy(noise(one["batch"], one["side"]).transpose(0, 3, 1, 2).copy())
    images = images.to(device)

    def call():
        with torch.no_grad():
            network(images)
        if device == "cuda":
            torch.cuda.synchronize()

    times = timed(call, one["seconds"])
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return times | {
        "images_per_second": 1e3 * one["batch"] / times["call_ms"],
        "peak_gib": peak / 2**30,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def whole_fid(one: dict) -> dict:
    """Seconds of the FID of samples that lie on the host as uint8, and its parts."""
    import jax

    from fsq_jax.features import inception_weights
    from fsq_jax.metrics import frechet

    network = inception_weights.load_random(dtype=one["dtype"])
    apply, variables = network.apply, network.variables
    compiled = jax.jit(lambda v, x: apply(v, x).pool_BF)
    some = noise(2 * one["batch"], one["side"])
    rng = np.random.default_rng(1)
    reference = frechet.Moments.empty(2048).update(rng.normal(size=(3_000, 2048)))
    compiled(variables, some[: one["batch"]]).block_until_ready()
    begin = time.perf_counter()
    features, moments = [], frechet.Moments.empty(2048)
    for start in range(0, one["samples"], one["batch"]):
        first = (start // one["batch"]) % 2 * one["batch"]
        rows = min(one["batch"], one["samples"] - start)
        batch = jax.device_put(some[first : first + one["batch"]])
        features.append((compiled(variables, batch), rows))
        if len(features) > 4:  # a few batches ahead, and no more: they wait in the device's memory
            jax.block_until_ready(features[-4][0])
    rows_NF = np.concatenate([np.asarray(f)[:rows] for f, rows in features])
    extracted = time.perf_counter()
    for start in range(0, len(rows_NF), 8_192):
        moments = moments.update(rows_NF[start : start + 8_192])
    gathered = time.perf_counter()
    value = frechet.distance(moments, reference)
    end = time.perf_counter()
    return {
        "seconds": end - begin,
        "features_seconds": extracted - begin,
        "moments_seconds": gathered - extracted,
        "distance_seconds": end - gathered,
        "count": len(rows_NF),
        "finite": bool(np.isfinite(value)),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def whole_precision_recall(one: dict) -> dict:
    """Seconds of precision and recall of made-up features on the host."""
    import jax

    from fsq_jax.metrics.precision_recall import precision_recall

    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((n, 2048), np.float32) for n in (one["samples"], one["reference"])]
    seconds = []
    for _ in range(2):  # the first one compiles
        begin = time.perf_counter()
        values = precision_recall(*sets)
        seconds.append(time.perf_counter() - begin)
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "first_seconds": seconds[0],
        "seconds": seconds[1],
        "values": values,
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def measure(one: dict) -> dict:
    """What a measurement of `plan` comes to."""
    if one["kind"] == "features":
        return our_features(one) if one["tool"] == "fsq_jax" else their_features(one)
    return {"fid": whole_fid, "precision_recall": whole_precision_recall}[one["kind"]](one)


def run_apart(one: dict) -> dict:
    """`measure` in a process of its own; {"error": ...} where it fails or takes too long."""
    # The GPU's memory is torch's alone, where it is torch that is measured.
    environment = {} if one["tool"] == "fsq_jax" else {"JAX_PLATFORMS": "cpu"}
    arguments = [f"--one={json.dumps(one)}"]
    return apart.run("inception_speed", arguments, flags.FLAGS.timeout, environment)


def main(argv) -> None:
    del argv
    if flags.FLAGS.one:
        print(json.dumps(measure(json.loads(flags.FLAGS.one))))
        return
    if flags.FLAGS.out:
        os.makedirs(os.path.dirname(flags.FLAGS.out) or ".", exist_ok=True)
    values = {name: getattr(flags.FLAGS, name) for name in SMOKE}
    batches = [int(batch) for batch in flags.FLAGS.batches]
    chosen = (flags.FLAGS.only, flags.FLAGS.dtypes, flags.FLAGS.tools)
    for one in plan(batches, *chosen, flags.FLAGS.smoke, **values):
        apart.record(one | run_apart(one), flags.FLAGS.out)


if __name__ == "__main__":
    flags.DEFINE_string("out", "", "File that takes one JSON line per measurement.")
    flags.DEFINE_integer("side", 256, "Side of the images in pixels.")
    flags.DEFINE_list("batches", ["64", "128", "256", "512"], "Batch sizes.")
    flags.DEFINE_integer("samples", 50_000, "Samples of the end-to-end measurements.")
    flags.DEFINE_integer("reference", 10_000, "Real images of precision and recall.")
    flags.DEFINE_float("seconds", 4.0, "How long features are timed for.")
    flags.DEFINE_integer("timeout", 240, "Seconds after which a measurement is given up.")
    flags.DEFINE_bool("smoke", False, "Tiny sizes.")
    flags.DEFINE_list("only", list(KINDS), "Kinds to measure.")
    flags.DEFINE_list("dtypes", list(DTYPES), "Types to compute in.")
    flags.DEFINE_list("tools", list(TOOLS), "Implementations.")
    flags.DEFINE_string("one", "", "A measurement as JSON, made in this process.")
    app.run(main)
