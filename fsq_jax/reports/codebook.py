"""WORKDIR/codebook/index.html: which codes a tokenizer uses, how often, and for which classes.

Legend: C classes, K codes.
"""

import glob
import math
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fsq_jax.evaluators import codebook as evaluator
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.metrics import codebook
from fsq_jax.reports import html
from fsq_jax.runtime import checkpoint
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.workdir import load_results
from fsq_jax.scoring import protocols

_LISTED = 500  # dead codes that are named
_CLASSES = 50  # rows of the table of classes


def write(predictor: Predictor) -> str:
    """Writes the page of a tokenizer's run; returns its path.

    Args:
      predictor: a tokenizer's, whose held-out images are encoded.
    """
    names = predictor.dataset(predictor.eval_split).class_names
    counts_CK = evaluator.count_codes_by_class(predictor, len(names))
    path = os.path.join(predictor.workdir, "codebook", "index.html")
    if jax.process_index() == 0:
        with written_whole(path) as file:
            file.write(page(counts_CK, names, predictor, bits_of_models(predictor)))
        log(f"{path}")
    return path


def bits_of_models(predictor: Predictor) -> dict[str, float]:
    """{workdir: bits per token} of the transformers beside this run that were trained on its codes.

    They are known by the fingerprint of the tokenizer's weights, which their results carry.
    """
    state = predictor.state
    own = checkpoint.fingerprint({"params": state.ema_params, **state.model_state})
    beside = os.path.join(os.path.dirname(os.path.abspath(predictor.workdir)), "*", "results.json")
    bits = {}
    for file in sorted(glob.glob(beside)):
        workdir = os.path.dirname(file)
        result = load_results(workdir).get("compression/bits_per_token")
        if result and result["protocol"].get("stage_1") == own:
            bits[os.path.basename(workdir)] = result["value"]
    return bits


def page(
    counts_CK: np.ndarray,
    class_names: Sequence[str],
    predictor: Predictor,
    bits: Mapping[str, float],
) -> str:
    """The page as HTML.

    Args:
      counts_CK: how often each code occurs in each class.
      class_names: C names.
      predictor: that was counted.
      bits: {a model of the tokens: bits per token}.
    """
    counts_K, levels = counts_CK.sum(axis=0), tuple(predictor.facts.levels)
    name = "FSQ" if levels else "codebook"
    measured = dict(predictor.protocol) | {
        "step": predictor.step,
        "split": predictor.eval_split,
        "num_tokens": int(counts_K.sum()),
    }
    rows = [(key, str(value)) for key, value in protocols.flat(measured).items()]
    return html.page(
        f"Codes of {predictor.workdir}",
        {
            "In short": [summary_table(counts_K, levels, bits)],
            "Frequencies": [html.codes_figure({name: counts_K}, levels, name)],
            "Dead codes": [dead_codes(counts_K)],
            "Classes": [classes_table(counts_CK, class_names)],
            "How it was measured": [html.Table(("", ""), rows)],
        },
    )


def summary_table(
    counts_K: np.ndarray, levels: Sequence[int], bits: Mapping[str, float]
) -> html.Table:
    """Usage, perplexity and bits per token: as stored, by frequency alone, and by each model."""
    size, used = len(counts_K), int((counts_K > 0).sum())
    perplexity = codebook.perplexity(counts_K)
    rows = [
        ("codes", f"{size}" + (f" ({' x '.join(map(str, levels))})" if levels else "")),
        ("usage", f"{codebook.usage(counts_K):.2%} ({used} of {size})"),
        ("dead", f"{1 - codebook.usage(counts_K):.2%} ({size - used})"),
        ("perplexity", f"{perplexity:.1f} ({perplexity / size:.1%} of the codes)"),
        ("most frequent code", f"{counts_K.argmax()} ({counts_K.max() / counts_K.sum():.2%})"),
        ("bits per token, all codes alike", f"{math.log2(size):.3f}"),
        ("bits per token, entropy of the frequencies", f"{math.log2(perplexity):.3f}"),
    ]
    rows += [
        (f"bits per token, transformer {name}", f"{value:.3f}") for name, value in bits.items()
    ]
    if not bits:
        rows.append(("bits per token, transformer", "not run"))
    return html.Table(("", ""), rows)


def dead_codes(counts_K: np.ndarray) -> str:
    """Which codes never occur, as a sentence."""
    dead = np.flatnonzero(counts_K == 0)
    if not len(dead):
        return "Every code occurs."
    listed = ", ".join(map(str, dead[:_LISTED]))
    more = f", and {len(dead) - _LISTED} more" if len(dead) > _LISTED else ""
    return f"{len(dead)} of {len(counts_K)} codes never occur: {listed}{more}."


def classes_table(counts_CK: np.ndarray, class_names: Sequence[str]) -> html.Table:
    """How each class uses the codes, from the narrowest use to the widest."""
    seen = np.flatnonzero(counts_CK.sum(axis=1)).tolist()
    perplexity = {c: codebook.perplexity(counts_CK[c]) for c in seen}
    order = sorted(seen, key=lambda c: perplexity[c])
    caption = f"{len(seen)} of {len(class_names)} classes occur"
    if len(order) > _CLASSES:
        order = order[: _CLASSES // 2] + order[-_CLASSES // 2 :]
        caption += f"; shown are the {_CLASSES // 2} narrowest and the {_CLASSES // 2} widest"
    rows = [
        (
            class_names[c],
            f"{counts_CK[c].sum()}",
            f"{codebook.usage(counts_CK[c]):.1%}",
            f"{perplexity[c]:.1f}",
            f"{counts_CK[c].argmax()}",
        )
        for c in order
    ]
    return html.Table(
        ("class", "tokens", "usage", "perplexity", "most frequent code"), rows, caption
    )
