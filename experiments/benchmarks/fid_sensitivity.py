"""What FID depends on besides the images: one pair of sets under one change at a time, as JSON.

python -m experiments.benchmarks.fid_sensitivity --data=tfds:fashion_mnist --data_dir=... \
    --count=10000 --out=experiments/results/evaluation/sensitivity.json

The pair: the first images of the test split against as many of the training split, the former
stained with noise, as samples are no copies of their data. Changed are the resize and the scaling
of the input, the dtype of the network (TF32 is a GPU's: "not run" elsewhere), the rounding of the
samples to 8 bits, and the number of samples. Weights: --weights, $FSQ_JAX_INCEPTION, or random ones
(--weights=random), whose distances are no FID but react in the same way.
"""

import functools
import json
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from fsq_jax.data.open import open_dataset
from fsq_jax.features import inception_weights, resizing
from fsq_jax.features.inception import SIZE, to_uint8
from fsq_jax.metrics import frechet
from fsq_jax.runtime.files import write_json

BASE = dict(resize="tf1", scaling="128", dtype="float32", rounding="uint8")
CHANGES = (
    {},
    {"resize": "bilinear"},
    {"resize": "bilinear", "scaling": "127.5"},
    {"resize": "bicubic-pil"},
    {"scaling": "127.5"},
    {"dtype": "tf32"},
    {"dtype": "bfloat16"},
    {"rounding": "none"},
)


def load_images(split: str) -> np.ndarray:
    """Images float32 [N,H,W,3] in [0, 1] of a split."""
    spec = f"{split}[:{flags.FLAGS.count}]"
    source = open_dataset(flags.FLAGS.data, spec, 32, flags.FLAGS.data_dir)
    return np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32) / 255


@functools.cache
def network(dtype: str, scaling: str):
    """(apply, variables, weights) of images at the size of the network: resizes share it."""
    options = dict(dtype=dtype, scaling=scaling, resize="none")
    if flags.FLAGS.weights == "random":
        loaded = inception_weights.load_random(**options)
    else:
        loaded = inception_weights.load(flags.FLAGS.weights or None, **options)
    weights = {"name": loaded.name, "weights_sha256": loaded.weights_sha256}
    extract = jax.jit(lambda variables, images: loaded.apply(variables, images).pool_BF)
    return extract, loaded.variables, weights


def features(images: np.ndarray, rounding: str, resize: str, **options) -> np.ndarray:
    """pool_3 of the images, [N,2048]."""
    extract, variables, _ = network(**options)
    batches = []
    for start in range(0, len(images), flags.FLAGS.batch):
        batch = jnp.asarray(images[start : start + flags.FLAGS.batch])
        batch = to_uint8(batch) if rounding == "uint8" else batch * 255
        batch = resizing.resize(batch, SIZE, resize)
        batches.append(np.asarray(extract(variables, batch)))
    return np.concatenate(batches)


def moments(rows_NF: np.ndarray) -> frechet.Moments:
    return frechet.Moments.empty(rows_NF.shape[1]).update(rows_NF)


def runnable(dtype: str) -> bool:
    """Whether this device has the dtype: the CPU would compute float32 in the place of TF32."""
    return dtype != "tf32" or jax.default_backend() == "gpu"


def rows(samples: np.ndarray, reference: np.ndarray) -> Iterator[dict]:
    """One row per change: the distance, beside that with the reference left as it is in BASE."""
    base = None
    for change in CHANGES:
        options = BASE | change
        if not runnable(options["dtype"]):
            yield {"change": change, "not_run": "TF32 needs a GPU"}
            continue
        ours = features(samples, **options)
        theirs = moments(features(reference, **options | {"rounding": "uint8"}))
        row = {"change": change, "distance": frechet.distance(moments(ours), theirs)}
        if base is None:
            base = (ours, theirs)
        else:  # what happens to whom takes features of one tool and statistics of another
            row["against_the_unchanged_reference"] = frechet.distance(moments(ours), base[1])
        yield row
    ours, theirs = base
    for count in (len(ours) // divisor for divisor in (2, 5, 10, 20)):
        if count < 2:  # which has no covariance
            continue
        yield {
            "change": {"num_samples": count},
            "distance": frechet.distance(moments(ours[:count]), theirs),
        }


def main(argv) -> None:
    del argv
    begin = time.perf_counter()
    rng = np.random.default_rng(0)
    samples, reference = load_images("test"), load_images("train")
    noise = rng.standard_normal(samples.shape, np.float32)
    samples = np.clip(samples + flags.FLAGS.noise * noise, 0, 1)
    result = {
        "samples": f"{flags.FLAGS.data} test[:{len(samples)}], noise of {flags.FLAGS.noise}",
        "reference": f"{flags.FLAGS.data} train[:{len(reference)}]",
        "weights": network(BASE["dtype"], BASE["scaling"])[2],
        "base": BASE,
        "num_images": len(samples),
        "rows": [],
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    for row in rows(samples, reference):
        print(json.dumps(row), flush=True)
        result["rows"].append(row)
        result["seconds"] = time.perf_counter() - begin
        if flags.FLAGS.out:  # as it stands, so that a run that is cut off leaves what it had
            write_json(flags.FLAGS.out, result)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_string("data", "tfds:fashion_mnist", "Data set with splits train and test.")
    flags.DEFINE_integer("count", 10_000, "Images of each set.")
    flags.DEFINE_integer("batch", 250, "Images of a batch.")
    flags.DEFINE_float("noise", 0.02, "Deviation of the noise on the test split's images.")
    flags.DEFINE_string("weights", "random", 'File of weights, "" to look it up, "random".')
    flags.DEFINE_string("out", "", "JSON file to write.")
    app.run(main)
