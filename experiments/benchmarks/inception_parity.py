"""Holds features and metrics against torch-fidelity and pytorch-fid, on the same random weights.

python -m experiments.benchmarks.inception_parity --data=tfds:fashion_mnist --data_dir=... \
    --out=experiments/results/evaluation/parity.json

Two sets of real images, the first of the training and of the test split, go through both networks
in float32. Features are kept in --work, so that a run that was stopped goes on; --only=torch or
--only=jax fills that folder and compares nothing. Needs torch, torch-fidelity and pytorch-fid.
"""

import json
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from experiments.benchmarks import torch_side
from fsq_jax.data.open import open_dataset
from fsq_jax.features import inception_weights
from fsq_jax.features.resizing import resize
from fsq_jax.metrics import frechet
from fsq_jax.metrics.inception_score import inception_score
from fsq_jax.metrics.kernel_distance import kernel_distance
from fsq_jax.metrics.precision_recall import precision_recall
from fsq_jax.runtime.files import write_json

SPLITS = ("train", "test")


def load_images(split: str) -> np.ndarray:
    """uint8 images [N,H,W,3] of a split."""
    spec = f"{split}[:{flags.FLAGS.count}]"
    source = open_dataset(flags.FLAGS.data, spec, 32, flags.FLAGS.data_dir)
    return np.stack([source[i]["image"] for i in range(len(source))])


def kept(work: Path, side: str, split: str, apply, images) -> dict[str, np.ndarray]:
    """{"pool", "logits"} of the images, batch by batch, from the folder where it has them."""
    parts = []
    for start in range(0, len(images), flags.FLAGS.batch):
        path = work / f"{side}-{split}-{start}.npz"
        if not path.exists():
            np.savez(path, **apply(images[start : start + flags.FLAGS.batch]))
        with np.load(path) as file:
            parts.append(dict(file))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ours(**options):
    """Images to {"pool", "logits"} by fsq_jax."""
    network = inception_weights.load_random(**options)
    apply, variables = jax.jit(network.apply), network.variables

    def extract(images):
        features = apply(variables, images)
        return {"pool": np.asarray(features.pool_BF), "logits": np.asarray(features.logits_BV)}

    return extract


def difference(got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """Errors of features relative to the largest one and to each."""
    error = np.abs(got.astype(np.float64) - want)
    return {
        "max_error_over_max": float(error.max() / np.abs(want).max()),
        "norm_of_error_over_norm": float(np.linalg.norm(error) / np.linalg.norm(want)),
        "max_error_over_own": float((error / np.abs(want).clip(1e-3)).max()),
    }


def our_metrics(first: dict, second: dict) -> dict[str, float]:
    """FID, KID, precision and recall of two sets and the first one's Inception Score."""
    moments = [frechet.Moments.empty(2048).update(s["pool"]) for s in (first, second)]
    score = inception_score(first["logits"], "shuffled")
    pools = first["pool"], second["pool"]
    kid = kernel_distance(*pools, subset_size=min(1000, *map(len, pools)))
    precision, recall = precision_recall(*pools)
    return {
        "fid": frechet.distance(*moments),
        "inception_score": score[0],
        "inception_score_deviation": score[1],
        "kid": kid[0],
        "kid_deviation": kid[1],
        "precision": precision,
        "recall": recall,
    }


def compare_metrics(got: dict, want: dict) -> dict:
    """Both sides and |got - want| / |want| of each metric."""
    return {
        name: {
            "fsq_jax": got[name],
            "torch_fidelity": want[name],
            "relative_error": abs(got[name] - want[name]) / max(abs(want[name]), 1e-12),
        }
        for name in want
    }


def clean_fid_resize(images: np.ndarray) -> float:
    """Largest difference to PIL's bicubic of float channels, in units of 0 to 255."""
    got = np.asarray(resize(images, 299, "bicubic-pil"))
    want = (
        np.stack(
            [
                [
                    np.asarray(Image.fromarray(x[..., c].astype(np.float32)).resize((299, 299), 3))
                    for c in range(3)
                ]
                for x in images
            ]
        )
        .transpose(0, 2, 3, 1)
        .clip(0, 255)
    )
    return float(np.abs(got - want).max())


def compare(work: Path) -> dict:
    """All that is written."""
    sets = {split: load_images(split) for split in SPLITS}
    weights = str(work / "random.pth")
    sides = {
        "torch": torch_side.torch_fidelity(weights),
        "jax": ours(),
    }
    begin = time.perf_counter()
    features = {
        side: [kept(work, side, split, apply, sets[split]) for split in SPLITS]
        for side, apply in sides.items()
        if flags.FLAGS.only in ("", side)
    }
    if flags.FLAGS.only:
        return {"seconds": time.perf_counter() - begin}
    few = sets["test"][: flags.FLAGS.few]
    pytorch_fid = difference(
        ours(resize="bilinear", scaling="127.5")(few)["pool"],
        torch_side.pytorch_fid(weights)(few),
    )
    return {
        "images": f"{flags.FLAGS.data} train[:{flags.FLAGS.count}] and test[:{flags.FLAGS.count}], "
        f"{'x'.join(map(str, few.shape[1:]))}",
        "weights": {"name": inception_weights.RANDOM, "sha256": inception_weights.RANDOM_SHA256},
        "features": {
            name: difference(
                *(np.concatenate([s[name] for s in features[side]]) for side in ("jax", "torch"))
            )
            for name in ("pool", "logits")
        },
        "metrics": compare_metrics(
            our_metrics(*features["jax"]), torch_side.torch_fidelity_metrics(*features["torch"])
        ),
        "pytorch_fid_features": {"images": len(few), **pytorch_fid},
        "clean_fid_resize_error_of_255": clean_fid_resize(few),
        "versions": torch_side.versions()
        | {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "machine": platform.machine(),
        },
    }


def main(argv) -> None:
    del argv
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(flags.FLAGS.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        result = compare(work)
    print(json.dumps(result, indent=2))
    if flags.FLAGS.out:
        write_json(flags.FLAGS.out, result)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_string("data", "tfds:fashion_mnist", "Data set with splits train and test.")
    flags.DEFINE_integer("count", 2000, "Images of each set.")
    flags.DEFINE_integer("batch", 50, "Images of a batch.")
    flags.DEFINE_integer("few", 50, "Images that the two other resizes are compared on.")
    flags.DEFINE_string("work", "", "Folder that keeps features; a temporary one by default.")
    flags.DEFINE_enum("only", "", ["", "torch", "jax"], "Extract the features of one side.")
    flags.DEFINE_string("out", "", "JSON file to write.")
    app.run(main)
