"""How close colours that were given to grey images come to the true ones, and to real images."""

import jax
import jax.numpy as jnp

from fsq_jax.data import transforms
from fsq_jax.evaluators.masked_means import masked_means
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.metrics.frechet import Moments
from fsq_jax.metrics.image_quality import psnr
from fsq_jax.runtime.user_error import UserError

_FRECHET_SIZE = 256  # ColTran's: larger pictures shrink to it


def evaluate(
    predictor: Predictor,
    features: str = "",
    num_images: int = 5_000,
    reference_split: str = "",
    reference_limit: int = 5_000,
    limit: int = 0,
) -> tuple[dict[str, float], dict]:
    """colorization/psnr (dB) of whole pictures, squashed, and a Fréchet distance:
    colorization/fid5k over Inception's features, colorization/fd_FEATURES over others.

    The distance follows ColTran: the first `num_images` of the held-out split against other real
    ones, both cropped to the square in the middle; colours are predicted at the run's size, then
    averaged to 256 x 256 pixels where they are larger and rounded to 8 bits. The paper's is of
    5,000 against records 10,000 to 15,000 of the validation set, in the order in which TFDS reads
    its shards: `data` decides in which order they come here. Pixels are scaled as in training,
    where ColTran's code has 128 for 127.5.

    Args:
      predictor: one whose "prediction" has "image" [B,H,W,3] in [0, 1].
      features: network of the Fréchet distance, see `pretrained.features`; "" for none.
      num_images: how many pictures the distance is of; 0 for the whole split.
      reference_split: real images that they are held against, "validation[10000:15000]".
      reference_limit: how many of them; 0 for all.
      limit: held-out images that PSNR is of; 0 for all.
    """
    compared = jax.jit(lambda images, colours: {"colorization/psnr": psnr(images, colours)})
    values, count = masked_means(
        (batch, compared(batch["image"], outputs["image"]))
        for batch, outputs in predictor.outputs("prediction", limit=limit)
    )
    protocol = {"split": predictor.eval_split, "psnr_num_images": count}
    if not features:
        return values, protocol
    if not reference_split:
        raise UserError(f"A distance over the features of {features!r} needs a reference_split.")
    network = RunScorer(predictor, features, "coltran")
    size = predictor.protocol["size"]
    name = "fid5k" if features == "inception" else network.metric
    values[f"colorization/{name}"], frechet = network.distance(
        _coloured(predictor, network, num_images, size),
        _real(predictor, network, reference_split, reference_limit, min(size, _FRECHET_SIZE)),
        reference_split,
    )
    return values, protocol | frechet | {
        "crop": "centre square", "distance_size": min(size, _FRECHET_SIZE), "rounded": True,
    }


def _coloured(predictor: Predictor, network: RunScorer, limit: int, size: int) -> Moments:
    """Moments of the features of pictures that the run has coloured."""
    if size > _FRECHET_SIZE and size % _FRECHET_SIZE:
        raise UserError(f"Pictures of {size} pixels can't be averaged to {_FRECHET_SIZE}.")
    finish = jax.jit(lambda images: _eight_bits(_shrink(images, max(1, size // _FRECHET_SIZE))))
    moments = network.no_images()
    square = transforms.coltran(size)
    for batch, outputs in predictor.outputs("prediction", limit=limit, transform=square):
        moments = network.add(moments, batch, finish(outputs["image"]))
    return moments


def _real(predictor: Predictor, network: RunScorer, split: str, limit: int, size: int) -> Moments:
    """Moments of the features of real images; they are in 8 bits from the start."""
    moments = network.no_images()
    for batch in map(predictor.put, predictor.batches(split, limit, transforms.coltran(size))):
        moments = network.add(moments, batch, batch["image"])
    return moments


def _shrink(images_BHWC: jax.Array, factor: int) -> jax.Array:
    """Means over blocks of factor x factor pixels."""
    batch, height, width, channels = images_BHWC.shape
    blocks = (batch, height // factor, factor, width // factor, factor, channels)
    return images_BHWC.reshape(blocks).mean(axis=(2, 4))


def _eight_bits(images_BHWC: jax.Array) -> jax.Array:
    return jnp.round(jnp.clip(images_BHWC, 0, 1) * 255) / 255
