"""What is measured on a checkpoint, by the names that `config.evals` gives."""

import inspect
from collections.abc import Mapping

from jax.sharding import Mesh
from ml_collections import ConfigDict

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
from fsq_jax.runtime.user_error import UserError, did_you_mean
from fsq_jax.stages.stage import Stage

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


# The functions that a stage which an evaluator measures has.
_NEEDS = {
    "codebook": {"indices"},
    "reconstruction": {"reconstruct"},
    "compression": {"bits", "loss"},
    "generation": {"sample", "tokens"},
    "validation": {"loss"},
    **{task: {"prediction"} for task in ("depth", "colorization", "panoptic")},
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
    for name, arguments in evals.items():
        if not isinstance(arguments, Mapping | ConfigDict) or "every" not in arguments:
            raise UserError(f"evals.{name} doesn't say how often: every=0 is at the end only.")
        every = arguments["every"]
        if type(every) is not int or every < 0:
            raise UserError(f"evals.{name}.every={every!r} must be a number of steps, 0 or more.")
        try:
            inspect.signature(EVALUATORS[name]).bind(None, **_own(arguments))
        except TypeError as error:
            raise UserError(f"evals.{name}: {error}.") from None
    run_scorer.check_evals(evals)


def check_best(metric: str) -> None:
    """Raises a UserError for a metric, as `config.best` names it, that no evaluator has; "": none.

    What an evaluator's metrics begin with is its name, but for the samples of "generation".
    """
    known = {"sampling", *EVALUATORS} - {"generation"}
    start, separator, _ = metric.partition("/")
    if metric and not (separator and start in known):
        raise UserError(f"best={metric!r} is no evaluator's metric{did_you_mean(start, known)}")


def check_stage(
    evals: Mapping[str, Mapping], stage: Stage, mesh: Mesh, data: Mapping, task: str = ""
) -> None:
    """Raises a UserError for what an evaluator would otherwise refuse only after training.

    Args:
      evals: `config.evals`.
      stage: what is trained.
      mesh: its devices.
      data: `config.data`, of which are the images' size and transform.
      task: of UViM's stages, which have an evaluator of that name.
    """
    fitting = sorted(
        name
        for name, needs in _NEEDS.items()
        if needs <= set(stage.predict) and (name == task or needs != {"prediction"})
    )
    for name, arguments in evals.items():
        if name not in fitting:
            raise UserError(
                f"evals.{name} can't measure what this stage does; it is evaluated by "
                f"{', '.join(fitting)}."
            )
        if name == "generation":
            generation.check(arguments)
        if name == "colorization":
            colorization.check(arguments, data["size"])
        if arguments.get("reference"):
            every_metric = name == "generation"
            run_scorer.check_reference(
                arguments, every_metric, mesh, data["size"], data["transform"]
            )


def _own(arguments: Mapping) -> dict:
    """An evaluator's own arguments."""
    return {name: value for name, value in arguments.items() if name != "every"}


def evaluate(
    evals: Mapping[str, Mapping], predictor: Predictor, step: int | None = None
) -> dict[str, dict]:
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
        if step is not None and not _is_due(arguments["every"], step):
            continue
        values, protocol = EVALUATORS[name](predictor, **_own(arguments))
        for metric, value in values.items():
            results[metric] = {
                "value": value,
                "protocol": predictor.protocol | protocol,
                "step": predictor.step,
            }
    return results
