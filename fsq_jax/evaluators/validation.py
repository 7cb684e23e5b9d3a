"""The training loss of a stage II on held-out images."""

from fsq_jax.evaluators.masked_means import masked_means
from fsq_jax.evaluators.predictor import Predictor


def evaluate(predictor: Predictor, limit: int = 0) -> tuple[dict[str, float], dict]:
    """validation/loss (nats per token) and validation/accuracy, as in training but for chance.

    Args:
      predictor: of a masked transformer or of a language model of tokens.
      limit: held-out images; 0 for all.
    """
    means, count = masked_means(predictor.outputs("loss", limit=limit))
    values = {f"validation/{name}": value for name, value in means.items()}
    return values, {"split": predictor.eval_split, "num_images": count}
