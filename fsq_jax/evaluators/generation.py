"""How close samples of a masked transformer come to real images: a Fréchet distance."""

from collections.abc import Iterator

import jax
import numpy as np

from fsq_jax.evaluators.features import FeatureNetwork
from fsq_jax.evaluators.run import Run
from fsq_jax.metrics.frechet import Moments


def balanced_labels(num_samples: int, num_classes: int, batch_size: int) -> Iterator[dict]:
    """This host's batches of labels: every class as often as any other (give or take one)."""
    rows = batch_size // jax.process_count()
    for start in range(0, num_samples, batch_size):
        index = start + jax.process_index() * rows + np.arange(rows)
        yield {"label": (index % num_classes).astype(np.int32), "mask": index < num_samples}


def samples(run: Run, num_samples: int) -> Iterator[tuple[dict, dict]]:
    """(batch of labels, sampled "image" and "tokens"), on the mesh."""
    key = jax.random.key(run.seed)
    labels = balanced_labels(num_samples, run.info["num_classes"], run.batch_size)
    for i, batch in enumerate(labels):
        batch = run.put(batch)
        yield batch, run.predict["sample"](run.state, batch, jax.random.fold_in(key, i))


def sample_moments(run: Run, network: FeatureNetwork, num_samples: int) -> Moments:
    """Moments of the features of `num_samples` samples, balanced over the classes."""
    moments = network.no_images()
    for batch, outputs in samples(run, num_samples):
        moments = network.add(moments, batch, outputs["image"])
    return moments


def evaluate(
    run: Run, features: str, num_samples: int, reference_split: str, reference_limit: int = 0
) -> tuple[dict[str, float], dict]:
    """sampling/fd_FEATURES of `num_samples` images, as many of each class.

    Args:
      run: a masked transformer's run.
      features: network of the Fréchet distance, see `pretrained.features`.
      num_samples: images to sample.
      reference_split: real images that they are held against (the paper's: "train").
      reference_limit: how many of them; 0 for all.
    """
    network = FeatureNetwork(run, features)
    value, protocol = network.distance(
        sample_moments(run, network, num_samples),
        network.reference(reference_split, reference_limit),
        reference_split,
    )
    protocol |= {
        "tokenizer": run.info["tokenizer"], "sampling": run.info["sampling"],
        "class_balance": "equal", "seed": run.seed,
    }
    return {f"sampling/{network.metric}": value}, protocol
