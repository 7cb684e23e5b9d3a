"""The training loss of a stage II on held-out images."""

from fsq_jax.evaluators.run import Run, masked_means


def evaluate(run: Run, limit: int = 0) -> tuple[dict[str, float], dict]:
    """validation/loss (nats a token) and validation/accuracy, as in training but for chance.

    Args:
      run: of a masked transformer or of a language model of codes.
      limit: held-out images; 0 for all.
    """
    means, count = masked_means(run.outputs("loss", limit=limit))
    values = {f"validation/{name}": value for name, value in means.items()}
    return values, {"split": run.eval_split, "num_images": count}
