"""How close colours that were given to grey images come to the true ones, and to real images."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fsq_jax.data import transforms
from fsq_jax.data.dataset import Dataset
from fsq_jax.evaluators.image_choice import choose
from fsq_jax.evaluators.masked_means import masked_means
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.metrics.frechet import Moments
from fsq_jax.metrics.image_quality import psnr
from fsq_jax.runtime.user_error import UserError

_FRECHET_SIZE = 256  # ColTran's: larger pictures shrink to it


def check(arguments: Mapping, size: int) -> None:
    """Raises a UserError where the Fréchet distance of pictures of `size` pixels can't be taken."""
    features = arguments.get("features", "")
    if features and not arguments.get("reference_split"):
        raise UserError(f"evals.colorization over features={features!r} needs a reference_split.")
    if features and size > _FRECHET_SIZE and size % _FRECHET_SIZE:
        raise UserError(
            f"Pictures of {size} pixels can't be averaged to {_FRECHET_SIZE}, for the Fréchet "
            "distance of colorization."
        )


def evaluate(
    predictor: Predictor,
    features: str = "",
    num_images: int = 5_000,
    reference_split: str = "",
    reference_limit: int = 5_000,
    limit: int = 0,
    names: str = "",
    reference_names: str = "",
    weights: str = "",
) -> tuple[dict[str, float], dict]:
    """colorization/psnr (dB) of whole pictures, squashed, and a Fréchet distance:
    colorization/fid5k over Inception's features, colorization/fd_FEATURES over others.

    The distance follows ColTran (`_distance`). The paper's is of images 0 to 5,000 of the
    validation set against 10,000 to 15,000, counted in the order in which TFDS reads its files,
    see `data.file_names`.

    Args:
      predictor: one whose "prediction" has "image" [B,H,W,3] in [0, 1].
      features: network of the Fréchet distance, a name of `scoring.scorer.NETWORKS`; "" for none.
      num_images: how many pictures the distance is of, from the first that TFDS reads (of other
        data, the first); 0 for the whole split.
      reference_split: real images that they are held against, "validation[10000:15000]", counted
        in the same order.
      reference_limit: how many of them; 0 for all.
      limit: held-out images that PSNR is of; 0 for all.
      names: file that lists the images to colour, in place of the first `num_images`.
      reference_names: file that lists the real images, in place of a part of `reference_split`.
      weights: file of Inception's; "" for $FSQ_JAX_INCEPTION.

    Raises:
      UserError: the data has no such images, or a list is not as long as it has to be.
    """
    size = predictor.protocol["size"]
    check({"features": features, "reference_split": reference_split}, size)
    compared = jax.jit(lambda images, colours: {"colorization/psnr": psnr(images, colours)})
    values, count = masked_means(
        (batch, compared(batch["image"], outputs["image"]))
        for batch, outputs in predictor.outputs("prediction", limit=limit)
    )
    protocol = {"split": predictor.eval_split, "psnr_num_images": count}
    if not features:
        return values, protocol
    chosen, of_chosen = choose(predictor, predictor.eval_split, num_images, names)
    real, of_real = choose(predictor, reference_split, reference_limit, reference_names)
    network = RunScorer(predictor, features, "coltran", weights)
    distance, record = _distance(predictor, network, chosen, real, reference_split)
    name = "fid5k" if features == "inception" else network.metric
    values[f"colorization/{name}"] = distance
    return values, protocol | record | {"images": of_chosen, "reference_images": of_real}


def _distance(
    predictor: Predictor, network: RunScorer, chosen: Dataset, real: Dataset, split: str
) -> tuple[float, dict]:
    """The Fréchet distance of coloured pictures to real ones, as ColTran takes it, its protocol.

    Both are cropped to the square in the middle; colours are predicted at the run's size, then
    averaged to 256 x 256 pixels where they are larger and rounded to 8 bits. Pixels are scaled as
    in training, where ColTran's code has 128 for 127.5.
    """
    size = predictor.protocol["size"]
    small = min(size, _FRECHET_SIZE)
    coloured = _coloured(predictor, network, chosen, size)
    reference = _real(predictor, network, real, small)
    distance, record = network.distance(coloured, reference, split)
    return distance, record | {"crop": "centre square", "distance_size": small, "rounded": True}


def _coloured(predictor: Predictor, network: RunScorer, chosen: Dataset, size: int) -> Moments:
    """Moments of the features of pictures that the run has coloured."""
    finish = jax.jit(lambda images: _eight_bits(_shrink(images, max(1, size // _FRECHET_SIZE))))
    moments = network.no_images()
    square = transforms.coltran(size)
    for batch, outputs in predictor.outputs("prediction", chosen, len(chosen), square):
        moments = network.add(moments, batch, finish(outputs["image"]))
    return moments


def _real(predictor: Predictor, network: RunScorer, chosen: Dataset, size: int) -> Moments:
    """Moments of the features of real images; they are in 8 bits from the start."""
    moments = network.no_images()
    batches = predictor.batches(chosen, len(chosen), transforms.coltran(size))
    for batch in map(predictor.put, batches):
        moments = network.add(moments, batch, batch["image"])
    return moments


def _shrink(images_BHWC: jax.Array, factor: int) -> jax.Array:
    """Means over blocks of factor x factor pixels."""
    batch, height, width, channels = images_BHWC.shape
    blocks = (batch, height // factor, factor, width // factor, factor, channels)
    return images_BHWC.reshape(blocks).mean(axis=(2, 4))


def _eight_bits(images_BHWC: jax.Array) -> jax.Array:
    return jnp.round(jnp.clip(images_BHWC, 0, 1) * 255) / 255
