"""How well a tokenizer reconstructs held-out images: PSNR, SSIM, Fréchet distance."""

import jax

from fsq_jax.evaluators.features import FeatureNetwork
from fsq_jax.evaluators.run import Run, masked_means
from fsq_jax.metrics.image_quality import psnr, ssim


def evaluate(
    run: Run, features: str, reference_split: str, reference_limit: int = 0, limit: int = 0
) -> tuple[dict[str, float], dict]:
    """reconstruction/psnr (dB), reconstruction/ssim, reconstruction/fd_FEATURES.

    Args:
      run: a tokenizer's run.
      features: network of the Fréchet distance, see `pretrained.features`; "" for none.
      reference_split: real images that reconstructions are held against (the paper's: "train").
      reference_limit: how many of them; 0 for all.
      limit: held-out images to reconstruct; 0 for all.
    """
    quality = jax.jit(lambda images, reconstructions: {
        "reconstruction/psnr": psnr(images, reconstructions),
        "reconstruction/ssim": ssim(images, reconstructions),
    })
    network = FeatureNetwork(run, features) if features else None
    moments = network.no_images() if network else None

    def measured():
        nonlocal moments
        for batch, outputs in run.outputs("reconstruct", limit=limit):
            if network:
                moments = network.add(moments, batch, outputs["reconstruction"])
            yield batch, quality(batch["image"], outputs["reconstruction"])

    values, count = masked_means(measured())
    protocol = {"split": run.eval_split, "num_images": count}
    if network:
        name = f"reconstruction/{network.metric}"
        values[name], frechet = network.distance(
            moments, network.reference(reference_split, reference_limit), reference_split
        )
        protocol |= frechet
    return values, protocol
