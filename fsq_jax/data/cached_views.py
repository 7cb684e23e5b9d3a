"""Images beside the tokens that a cache holds of them: for models that read both.

The cache's view v of record i is the image as a transform makes it from a generator of (seed + v,
i): made again here, it is the very image that was encoded.

Legend: V views (crops, flips) of an image, L tokens of a view.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from fsq_jax.data import transforms
from fsq_jax.data.dataset import Dataset
from fsq_jax.runtime.user_error import UserError


def view(augment: transforms.Transform, plain: transforms.Transform, seed: int, number: int,
         views: int) -> transforms.Transform:
    """The transform of a cache's view: as in training, or, where it is the only one, as it is."""
    return plain if views == 1 else transforms.reseeded(augment, seed + number)


def paired(images: Dataset, tokens: Dataset) -> Dataset:
    """The records of `images` with "tokens_VL" of the cache, and "record", their position.

    Raises UserError where the two are not of the same length.
    """
    if len(images) != len(tokens):
        raise UserError(
            f"{tokens.name} holds the tokens of {len(tokens)} records, but {images.name} "
            f"{images.split} has {len(images)}."
        )
    return dataclasses.replace(images, records=_Paired(images, tokens), start=0, stop=len(images))


def random_view(augment: transforms.Transform, plain: transforms.Transform, seed: int,
                views: int) -> transforms.Transform:
    """A record of `paired` as one of its views, drawn at random: "image" and "tokens" [L]."""
    each = tuple(view(augment, plain, seed, number, views) for number in range(views))
    return functools.partial(_random_view, each)


def _random_view(each, record, rng):
    number = int(rng.integers(len(each)))
    tokens_L = record["tokens_VL"][number]
    # The generator that `eval_batches` gave the encoder for this record.
    made = each[number](record, np.random.default_rng(record["record"]))
    return {"image": made["image"], "label": made["label"], "tokens": tokens_L}


@dataclasses.dataclass(frozen=True)
class _Paired:
    images: Dataset
    tokens: Dataset

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.tokens[index]
        return self.images[index] | {"tokens_VL": tokens["tokens_VL"], "record": index}
