"""How much of the codebook a stage I uses over the whole held-out set (section 4.2)."""

import functools

import jax
import numpy as np

from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.metrics import codebook
from fsq_jax.runtime import sharding


def count_codes(predictor: Predictor, split: str = "", limit: int = 0) -> np.ndarray:
    """How often each code occurs in a split, int64 [codebook_size]."""
    count = jax.jit(functools.partial(codebook.count, codebook_size=predictor.facts.codebook_size))
    total = np.zeros(predictor.facts.codebook_size, np.int64)
    for batch, outputs in predictor.outputs("indices", split, limit):
        total += sharding.to_host(count(outputs["indices"], mask=batch["mask"]))
    return total


def count_codes_by_class(predictor: Predictor, num_classes: int) -> np.ndarray:
    """How often each code occurs in the held-out images of each class, int64 [classes, codes]."""
    counts = np.zeros((num_classes, predictor.facts.codebook_size), np.int64)
    for batch, outputs in predictor.outputs("indices"):
        mask, labels, indices = sharding.to_host(
            (batch["mask"], batch["label"], outputs["indices"])
        )
        flat = indices.reshape(len(indices), -1)[mask]
        np.add.at(counts, (labels[mask][:, None], flat), 1)
    return counts


def evaluate(predictor: Predictor, limit: int = 0) -> tuple[dict[str, float], dict]:
    """codebook/usage and codebook/perplexity, with FSQ each level's share in the protocol.

    Args:
      predictor: one of a stage that predicts "indices": a tokenizer, or either of UViM's.
      limit: images to encode; 0 for all, which is what the paper's definition asks for.
    """
    counts = count_codes(predictor, limit=limit)
    values = {
        "codebook/usage": codebook.usage(counts),
        "codebook/perplexity": codebook.perplexity(counts),
        "codebook/used": int((counts > 0).sum()),
    }
    protocol = {
        "codebook_size": len(counts),
        "split": predictor.eval_split,
        "num_tokens": int(counts.sum()),
    }
    if predictor.facts.levels:
        histograms = codebook.level_histograms(counts, predictor.facts.levels)
        protocol["level_histograms"] = [[int(v) for v in h] for h in histograms]
    return values, protocol
