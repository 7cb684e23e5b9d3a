"""How well a masked transformer models held-out tokens: bits per token, and its training loss."""

from fsq_jax.evaluators import validation
from fsq_jax.evaluators.masked_means import masked_means
from fsq_jax.evaluators.predictor import Predictor


def evaluate(predictor: Predictor, limit: int = 0) -> tuple[dict[str, float], dict]:
    """compression/bits_per_token, validation/loss (nats) and validation/accuracy.

    Bits are the ideal code length under M2T's deterministic masking schedule, which is the paper's
    measure of how hard tokens are to model (section 4.2). Loss and accuracy are those of training,
    on masks drawn once from the run's seed.

    Args:
      predictor: a masked transformer's run.
      limit: held-out images; 0 for all.
    """
    means, count = masked_means(predictor.outputs("bits", limit=limit))
    losses, _ = validation.evaluate(predictor, limit)
    values = {"compression/bits_per_token": means["bits"] / means["num_tokens"]} | losses
    return values, {
        "split": predictor.eval_split,
        "num_images": count,
        "stage_1": predictor.facts.stage_1,
        "schedule": f"m2t, {min(12, predictor.facts.grid**2)} steps, alpha 2.2",
    }
