"""Configs: resolved before a run starts, and changed by dotted keys."""

import ast
from collections.abc import Iterable, Mapping
from math import inf

import ml_collections
from flax import traverse_util

from fsq_jax import evaluators
from fsq_jax.runs import data_checks
from fsq_jax.runtime import sharding, wandb_writer
from fsq_jax.runtime.user_error import UserError, did_you_mean
from fsq_jax.stages import model_values

# The least and the largest that a value may be, where nothing that reads it looks.
RANGES = {
    **dict.fromkeys(
        ("steps", "log_every", "preview_every", "checkpoint_every", "batch_size", "accumulate"),
        (1, inf),
    ),
    **dict.fromkeys(("eval_batch_size", "loss.r1_every", "discriminator.max_width"), (1, inf)),
    **dict.fromkeys(
        (
            "seed",
            "optim.learning_rate",
            "optim.weight_decay",
            "optim.warmup_steps",
            "optim.clip_norm",
            "discriminator_optim.learning_rate",
            "data.eval_limit",
            "sampling.choice_temperature",
        ),
        (0, inf),
    ),
    **dict.fromkeys(
        (
            "ema_decay",
            "optim.b1",
            "optim.b2",
            "loss.lecam_decay",
            "label_dropping",
            "masking.label_smoothing",
        ),
        (0, 1),
    ),
    "sampling.num_steps": (1, inf),
}


def resolve_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy in which what the data decides stands as a number (num_classes, task.num_semantics),
    held against its data, see `data_checks`.

    Raises:
      UserError: where a run of this config could only fail later.
    """
    config = config.copy_and_resolve_references()
    check_ranges(config)
    model_values.check(config.model)
    evaluators.check(config.evals)
    evaluators.check_best(config.best)
    wandb_writer.check(config.get("wandb", {}))
    if not config.idle_devices:
        sharding.check_batch_size(config.batch_size, config.accumulate)
    sharding.most_devices(config.batch_size, config.accumulate)
    data_checks.check_data(config)
    return config


def check_ranges(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for a value beyond its range, with the range."""
    flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for name, (low, high) in RANGES.items():
        if not low <= flat.get(name, low) <= high:  # which NaN is not, either
            upper = f", and {high:g} at most" if high < inf else ""
            raise UserError(f"{name}={flat[name]} must be at least {low:g}{upper}.")


def override_config(config: ml_collections.ConfigDict, overrides: Mapping) -> None:
    """Overrides values of a config by {dotted key: value}; it must have all these keys."""
    known = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for name, value in overrides.items():
        if name not in known:
            raise UserError(f"The config has no {name!r}{did_you_mean(name, known)}")
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError:
            raise UserError(
                f"{name}={value!r} is not of type {type(known[name]).__name__}, as "
                f"{known[name]!r} is."
            ) from None


def parse_overrides(assignments: Iterable[str]) -> dict:
    """{dotted key: value} of "KEY=VALUE" strings; a value is read as a Python literal if it can."""
    overrides = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"{assignment!r} is not of the form KEY=VALUE.")
        try:
            overrides[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            overrides[name] = text  # the last three: of {[]: 1}, and of a thousand brackets
    return overrides


def data_overrides(source: str, data_dir: str, size: int) -> dict:
    """Overrides for what is given of the flags --data, --data_dir and --size."""
    given = {"data.source": source, "data.data_dir": data_dir, "data.size": size}
    return {name: value for name, value in given.items() if value}
