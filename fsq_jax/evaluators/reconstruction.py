"""How well a tokenizer reconstructs held-out images: PSNR, SSIM, FID."""

import jax

from fsq_jax.evaluators.masked_means import masked_means
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.metrics.image_quality import psnr, ssim


def evaluate(
    predictor: Predictor,
    features: str,
    reference_split: str = "train",
    reference_limit: int = 0,
    limit: int = 0,
    reference: str = "",
    protocol: str = "adm",
    weights: str = "",
    published_reference: str = "",
) -> tuple[dict[str, float], dict]:
    """reconstruction/psnr (dB), reconstruction/ssim, reconstruction/fid (or fd_FEATURES).

    Args:
      predictor: a tokenizer's run.
      features: network of the Fréchet distance, see `evaluators.features`; "" for none.
      reference_split: real images that reconstructions are held against (the paper's: "train").
      reference_limit: how many of them; 0 for all.
      limit: held-out images to reconstruct; 0 for all.
      reference: file of real images, in place of a split: ADM's, or one of `fsq_jax.reference`.
      protocol: how FID is measured, a name of `protocols.NAMED`.
      weights: file of Inception's; "" for $FSQ_JAX_INCEPTION.
      published_reference: name of the file that published numbers are against; over Inception's
        features, metrics against another reference are called fid_own_reference and so on.
    """
    quality = jax.jit(
        lambda images, reconstructions: {
            "reconstruction/psnr": psnr(images, reconstructions),
            "reconstruction/ssim": ssim(images, reconstructions),
        }
    )
    network = RunScorer(predictor, features, protocol, weights) if features else None
    seen = network.no_images() if network else None

    def measured():
        nonlocal seen
        for batch, outputs in predictor.outputs("reconstruct", limit=limit):
            if network and seen:
                seen = network.add(seen, batch, outputs["reconstruction"])
            yield batch, quality(batch["image"], outputs["reconstruction"])

    values, count = masked_means(measured())
    record = {"split": predictor.eval_split, "num_images": count}
    if network and seen:
        real = network.reference(reference_split, reference_limit, reference)
        distances, more = network.measure(
            seen, real, published_reference, seed=predictor.seed, class_balance="data"
        )
        values |= {f"reconstruction/{name}": value for name, value in distances.items()}
        record |= more
    return values, record
