"""What is measured on a checkpoint, by the names that `config.evals` gives."""

from collections.abc import Mapping

from fsq_jax.evaluators import (
    codebook,
    colorization,
    compression,
    depth,
    generation,
    panoptic,
    reconstruction,
    run_scorer,
    validation,
)
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.runtime.user_error import UserError

EVALUATORS = {
    "codebook": codebook.evaluate,
    "reconstruction": reconstruction.evaluate,
    "compression": compression.evaluate,
    "generation": generation.evaluate,
    "depth": depth.evaluate,
    "colorization": colorization.evaluate,
    "panoptic": panoptic.evaluate,
    "validation": validation.evaluate,
}


def due(evals: Mapping[str, Mapping], step: int) -> bool:
    """Whether any evaluator is to run at this step."""
    return any(_is_due(arguments["every"], step) for arguments in evals.values())


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def check(evals: Mapping[str, Mapping]) -> None:
    """Raises a UserError for an evaluator that there isn't, or that lacks what it needs."""
    unknown = sorted(set(evals) - set(EVALUATORS))
    if unknown:
        raise UserError(f"Evaluators {unknown} are unknown; there are {sorted(EVALUATORS)}.")
    run_scorer.check_evals(evals)


def evaluate(evals: Mapping[str, Mapping], predictor: Predictor, step: int | None = None) -> dict[str, dict]:
    """{metric: {"value", "protocol", "step"}} of the evaluators that are due.

    Args:
      evals: `config.evals`: name -> {"every": steps between two evaluations (0: only at the end),
        other arguments}.
      predictor: what is evaluated.
      step: evaluates only what is due at this step; None evaluates all.

    Raises:
      UserError: for an evaluator that there isn't, before anything is computed.
    """
    check(evals)
    results = {}
    for name, arguments in evals.items():
        arguments = dict(arguments)
        every = arguments.pop("every")
        if step is not None and not _is_due(every, step):
            continue
        values, protocol = EVALUATORS[name](predictor, **arguments)
        for metric, value in values.items():
            results[metric] = {
                "value": value, "protocol": predictor.protocol | protocol, "step": predictor.step
            }
    return results
