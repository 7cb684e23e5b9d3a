"""How close samples of a masked transformer come to real images: FID and its relatives."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.runtime.progress import tracked
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import protocols
from fsq_jax.scoring.accumulator import Statistics


def balanced_labels(
    num_samples: int, num_classes: int, batch_size: int, rows: range
) -> Iterator[dict]:
    """This host's batches of labels: every class as often as any other (give or take one).

    Args:
      num_samples: in all.
      num_classes: the labels are below it.
      batch_size: samples of a batch over all hosts.
      rows: this host's rows of a batch; those from `batch_size` on are masked out.
    """
    row = np.array(rows)
    for start in range(0, num_samples, batch_size):
        index = start + row
        mask = (row < batch_size) & (index < num_samples)
        yield {"label": (index % num_classes).astype(np.int32), "mask": mask}


def balance(num_samples: int, num_classes: int) -> str:
    """How many samples a class has, in words: "50 of each of 1000 classes"."""
    least, rest = divmod(num_samples, num_classes)
    each = f"{least} or {least + 1}" if rest else f"{least}"
    return f"{each} of each of {num_classes} classes"


def samples(predictor: Predictor, num_samples: int) -> Iterator[tuple[dict, dict]]:
    """(batch of labels, sampled "image" and "tokens"), on the mesh."""
    key = jax.random.key(predictor.seed)
    labels = list(
        balanced_labels(
            num_samples, predictor.facts.num_classes, predictor.batch_size, predictor.own_rows
        )
    )
    for i, batch in enumerate(tracked(labels, "  samples", predictor.batch_size)):
        batch = predictor.put(batch)
        yield batch, predictor.predict["sample"](predictor.state, batch, jax.random.fold_in(key, i))


def sample_moments(predictor: Predictor, network: RunScorer, num_samples: int) -> Statistics:
    """Statistics of the features of `num_samples` samples, balanced over the classes."""
    moments = network.no_images()
    for batch, outputs in samples(predictor, num_samples):
        moments = network.add(moments, batch, outputs["image"])
    return moments


def check(arguments: Mapping) -> int:
    """How many samples are to be drawn; a UserError where neither config nor protocol says."""
    protocol = arguments.get("protocol", "adm")
    num_samples = arguments.get("num_samples", 0) or protocols.named(protocol).num_samples
    if num_samples < 2:
        raise UserError(
            f"evals.generation.num_samples={num_samples} must be 2 or more: protocol {protocol} "
            "takes any number of samples."
        )
    return num_samples


def evaluate(
    predictor: Predictor,
    features: str,
    num_samples: int = 0,
    reference_split: str = "train",
    reference_limit: int = 0,
    reference: str = "",
    protocol: str = "adm",
    weights: str = "",
    published_reference: str = "",
) -> tuple[dict[str, float], dict]:
    """sampling/fid, sfid, inception_score, precision, recall of samples, as many of each class.

    What is measured, and how, is the protocol's; over other features than Inception's these are
    sampling/fd_FEATURES, precision_FEATURES and recall_FEATURES.

    Args:
      predictor: a masked transformer's run.
      features: the network, see `evaluators.features`.
      num_samples: images to sample; 0 for as many as the protocol asks for.
      reference_split: real images that they are held against (the paper's: "train").
      reference_limit: how many of them; 0 for all.
      reference: file of them, in place of a split: ADM's, or one of `fsq_jax.reference`.
      protocol: a name of `protocols.NAMED`.
      weights: file of Inception's; "" for $FSQ_JAX_INCEPTION.
      published_reference: name of the file that published numbers are against; over Inception's
        features, metrics against another reference are called fid_own_reference and so on.
    """
    num_samples = check({"num_samples": num_samples, "protocol": protocol})
    network = RunScorer(predictor, features, protocol, weights, every_metric=True)
    real = network.reference(reference_split, reference_limit, reference)
    values, record = network.measure(
        sample_moments(predictor, network, num_samples),
        real,
        published_reference,
        sampling=dict(predictor.facts.sampling),
        seed=predictor.seed,
        class_balance=balance(num_samples, predictor.facts.num_classes),
    )
    record |= {"stage_1": predictor.facts.stage_1}
    return {f"sampling/{name}": value for name, value in values.items()}, record
