"""A config's data, opened and checked against the config before training or evaluation."""

from collections.abc import Iterator

from fsq_jax.data import checks
from fsq_jax.runs import inputs
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import protocols


def check_data(config) -> None:
    """Resolves what the data decides (num_classes, task.num_semantics: 0 stands for as many as it
    has), and looks at the records that a run of this config will train on and be measured on.

    Raises:
      UserError: where the data isn't there, isn't of the config's classes, sizes and units, or has
        too few records for what `config.evals` measures.
    """
    train = inputs.open_split(config.data, config.data.train_split)
    if config.get("num_classes") == 0:
        config.num_classes = train.num_classes
    if config.get("task", {}).get("num_semantics") == 0:
        config.task.num_semantics = checks.num_semantics(train)
    wanted, opened = inputs.wanted(config), {config.data.train_split: train}
    checks.check_dataset(train, wanted)
    for split, least, purpose in _splits(config):
        name = inputs.split_name(config, split)
        if name not in opened or split == "eval":
            opened[name] = inputs.eval_dataset(config, split)  # which looks at its records
        source, limit = opened[name], _limit(config, purpose, split)
        found = min(len(source), limit or len(source))
        if found < least:
            raise UserError(
                f"{purpose} needs {least} images or more of {source.name} {name}; there are "
                f"{found}{f' with its limit of {limit}' if limit else ''}."
            )


def _splits(config) -> Iterator[tuple[str, int, str]]:
    """(split, images that it must have, what needs them) of all that evaluation reads."""
    yield "eval", 1, "data.eval_split"
    for name, arguments in config.evals.items():
        if not arguments.get("features"):
            continue
        least = _least_images(arguments, every_metric=name == "generation")
        if name != "generation":
            yield "eval", least, f"evals.{name}"
        elif 0 < arguments.get("num_samples", 0) < least:
            raise UserError(
                f"evals.{name} needs num_samples of {least} or more, not {arguments.num_samples}."
            )
        if arguments.get("reference_split") and not arguments.get("reference"):
            yield arguments.reference_split, least, f"evals.{name}.reference_split"


def _least_images(arguments, every_metric: bool) -> int:
    """How many images a protocol's metrics need: a covariance, neighbours."""
    protocol = protocols.named(arguments.get("protocol", "adm")).over(arguments.features)
    if not every_metric:
        return 2
    return max(2, 4 * protocol.precision_recall)  # KID's subsets get smaller with the set


def _limit(config, purpose: str, split: str) -> int:
    """How many records of a split are read at most; 0 for all."""
    name = purpose.split(".")[1]
    arguments = config.evals.get(name, {})
    own = arguments.get("limit" if split == "eval" else "reference_limit", 0)
    return own or config.data.eval_limit
