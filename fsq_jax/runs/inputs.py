"""A config's data: which records a run reads, how they are transformed, its batches."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fsq_jax import tasks
from fsq_jax.data import checks, pipeline, token_cache, transforms
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.open import open_dataset


def open_split(data: Mapping, split: str, features: Sequence[str] = ()) -> Dataset:
    """A split of the data set of `config.data`; a cache keeps `features`, too."""
    return open_dataset(
        data["source"],
        split,
        data["size"],
        data_dir=data["data_dir"],
        cache=data["cache"],
        features=features,
    )


def features(config) -> tuple[str, ...]:
    """What batches carry besides images and labels: what the task is trained on."""
    return tasks.make(**config.task).features if "task" in config else ()


def wanted(config) -> checks.Wanted:
    """What a run of this config needs of its data, besides images."""
    task = config.get("task", {})
    return checks.Wanted(
        features=features(config),
        num_classes=config.get("num_classes", 0),
        depths=(task.get("min_depth", 0.0), task.get("max_depth", float("inf"))),
        num_semantics=task.get("num_semantics", 0),
        things="panoptic" in config.evals,
        skip_damaged=config.data.get("skip_damaged", False),
    )


def transforms_of(config) -> tuple[transforms.Transform, transforms.Transform]:
    """(the transform of training, that of evaluation), as `config.data` says."""
    data, kind = config.data, config.data.transform
    augment = transforms.augment(data.size, data.min_area, data.aspect, data.flip, kind)
    return augment, transforms.evaluation(data.size, kind)


def train_batches(config) -> pipeline.TrainBatches:
    """This host's training batches, from the first one on."""
    dataset, transform, names = _training(config)
    return pipeline.train_batches(
        dataset,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        features=names,
        skip_damaged=config.data.get("skip_damaged", False),
    )


def _training(config) -> tuple[Dataset, transforms.Transform, tuple[str, ...]]:
    """(data set, transform, features) that training reads: of images, of a token cache, of both."""
    data, names = config.data, features(config)
    augment, plain = transforms_of(config)
    if not config.get("token_cache"):
        return open_split(data, data.train_split, names), augment, names
    tokens = open_dataset(f"tokens:{config.token_cache}", "train", data.size)
    if "task" not in config:
        return tokens, token_cache.sample_token_view, ()
    source = token_cache.paired(open_split(data, data.train_split), tokens)
    views = dict(seed=tokens.meta["seed"], views=tokens.meta["views"])
    return source, token_cache.sample_image_and_tokens(augment, plain, **views), ()


def eval_dataset(config, split: str) -> Dataset:
    """The records of a split, as they are before any transform, held against the config.

    "train" and "eval" stand for the data's own two splits; `data.eval_crop` is all that is seen
    of the latter's.

    Raises:
      UserError: where they aren't what a run of this config reads, see `data.checks`.
    """
    dataset = open_split(config.data, split_name(config, split), features(config))
    if split == "eval" and config.data.eval_crop:
        dataset = dataset.mapped(transforms.crop_to(config.data.eval_crop))
    checks.check_dataset(dataset, wanted(config))
    return dataset


def split_name(config, split: str) -> str:
    """The data's name of a split: of "train" and "eval", and otherwise the same."""
    return {"train": config.data.train_split, "eval": config.data.eval_split}.get(split, split)


def eval_batches(
    config,
    dataset: Dataset,
    limit: int = 0,
    transform: transforms.Transform | None = None,
    rows: int = 0,
) -> pipeline.EvalBatches:
    """This host's batches of records of `eval_dataset`, each once, as it is (no augmentation).

    `transform` takes the place of the config's own; batches are filled up to `rows` over all hosts
    and masked.
    """
    return pipeline.eval_batches(
        dataset,
        transform or transforms_of(config)[1],
        batch_size=config.eval_batch_size,
        rows=rows,
        limit=limit or None,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        features=features(config),
        skip_damaged=config.data.get("skip_damaged", False),
    )


def preview_batch(config, mesh: jax.sharding.Mesh, num_images: int = 32) -> dict[str, np.ndarray]:
    """The held-out images that previews show, spread over the split, the same at every step; this
    host's rows of them."""
    plain = config.copy_and_resolve_references()
    plain.data.workers = 0  # for one batch they would not be worth their start
    dataset = eval_dataset(config, "eval")
    num_images = min(num_images, config.eval_batch_size, len(dataset))
    num_images = max(1, num_images // mesh.size) * mesh.size  # no copies, if it can be
    plain.eval_batch_size = num_images
    return next(iter(eval_batches(plain, dataset.spread(num_images))))
