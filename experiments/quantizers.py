"""The quantizers of the field under one protocol: Figure 3's trade-off, for each of them.

python -m experiments.quantizers --data_dir=DIR --per_gpu=4 --seconds=540

One tokenizer's architecture, data, optimiser and length for all (`experiments.maskgit_runs`); each
method with its authors' loss weights, and a few others at 2^10 codes where a method depends on
them. A tokenizer for each method, size and seed (FSQ's and VQ's are Figure 3's own); on the first
seed's a masked transformer with each seed, at 2^10 and 2^14.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments import claims, entries, launcher, maskgit_runs, tables
from experiments.entries import Entry
from experiments.fig3_claims import distance, reconstruction
from experiments.fig3_tradeoff import SHOWN, guides
from experiments.options import Options
from experiments.quantizers_claims import BITS, CLAIMS, group, spreads
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import html
from fsq_jax.reports.spread import rank_correlation

STAGE_2 = (10, 14)
SIZES = {"paper": BITS, "bench": BITS, "smoke": (8,)}
# Two equal stages of a residual quantizer that make about 2^bits codes.
STAGES = {8: (4, 4), 10: (8, 4), 12: (8, 8), 14: (5, 5, 5), 16: (8, 8, 4)}
SWEPT = 10  # bits, where other weights are tried
# Beside results.json: entries of tokenizers whose weights were averaged over 1,000 of 3,000 steps,
# before `maskgit_runs.TOKENIZER` said 100, and of transformers on them.
LONG_AVERAGE = "long_average.json"
# Entries of tokenizers that were trained several times with one seed, one for each training.
TRAINED_AGAIN = "trained_again.json"


@dataclass(frozen=True)
class Method:
    """A quantizer as its authors use it.

    Attributes:
      quantizer: its name in `fsq_jax.quantizers`.
      changes: {argument of the quantizer: value} over the config's.
      swept: {argument: values} that are tried besides, one at a time.
      scalar: whether it has no list of codewords; solid lines in the figure.
    """

    quantizer: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    swept: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    scalar: bool = False


TOKENS = 128 * 8 * 8  # of a step at scale=bench
METHODS = {
    "fsq": Method("fsq", scalar=True),
    "fsq_noise": Method("fsq", {"noise": 0.5}, scalar=True),
    "residual_fsq": Method("residual_fsq", scalar=True),
    "residual_fsq_layer_norm": Method("residual_fsq", {"scaling": "layer_norm"}, scalar=True),
    "lfq": Method("lfq", swept={"entropy_weight": (0.01, 1.0)}, scalar=True),
    "bsq": Method("bsq", swept={"entropy_weight": (0.01, 1.0)}, scalar=True),
    "vq": Method("vq"),  # MaskGIT's
    "vq_cosine": Method("vq", {"normalize": True}),  # MAGVIT's option of it
    # LlamaGen's (arXiv 2406.06525), after ViT-VQGAN.
    "vq_projected": Method(
        "vq", {"codebook_channels": 8, "normalize": True, "entropy_weight": 0.0}
    ),
    # VQGAN's of arXiv 2410.06424.
    "vq_rotation": Method("vq", {"gradient": "rotation", "entropy_weight": 0.0}),
    "vq_ema": Method("vq_ema"),  # UViM's
    # Running means as vector-quantize-pytorch has them by default. Its threshold of 2 tokens a step
    # would have all words of a large codebook replaced in every step: see `tokenizer`.
    "vq_reseed": Method(
        "vq_ema",
        {
            "standardize": False,
            "unit_words": False,
            "momentum": 0.8,
            "commitment_weight": 1.0,
            "split_threshold": 0.0,
        },
    ),
    "simvq": Method("simvq"),
}


def codebook(method: str, bits: int) -> dict:
    """The facts of a method's codebook of about 2**bits codes."""
    quantizer = METHODS[method].quantizer
    residual = {"levels": STAGES[bits], "stages": 2} if quantizer == "residual_fsq" else {}
    return maskgit_runs.codebook(quantizer, bits, **residual) | {"method": method}


def tokenizer(options: Options, method: str, bits: int, seed: int, **swept) -> Run:
    """A method's tokenizer, or one with another value of an argument."""
    changes = {**METHODS[method].changes, **swept}
    facts = codebook(method, bits) | ({"swept": dict(swept)} if swept else {})
    if method == "vq_reseed":  # a quarter of what a word gets where all are used alike
        changes["reseed_threshold"] = min(2.0, TOKENS / facts["size"] / 4)
    if method == "residual_fsq_layer_norm" and options.scale == "bench":
        # Its running statistics go over as many steps as averaged weights, as in the config.
        changes["momentum"] = maskgit_runs.TOKENIZER["ema_decay"]
    suffix = "" if method == METHODS[method].quantizer else f"_{method}"
    suffix += "".join(f"_{name}-{value}" for name, value in swept.items())
    changes = {f"quantizer.{name}": value for name, value in changes.items()}
    return maskgit_runs.tokenizer(options, facts, seed, changes, suffix)


def runs(options: Options) -> list[Run]:
    """All tokenizers and transformers, a whole seed of all methods before the next."""
    made = maskgit_runs.data_run(options)
    for bits in SIZES[options.scale]:
        for method in METHODS:
            stage_1 = [tokenizer(options, method, bits, s) for s in range(options.repeats())]
            made += [dataclasses.replace(run, rank=10 * s) for s, run in enumerate(stage_1, 1)]
            if bits in STAGE_2:
                transformers = [
                    maskgit_runs.transformer(options, stage_1[0], seed)
                    for seed in range(options.repeats())
                ]
                made += [
                    dataclasses.replace(run, rank=10 * s + 2)
                    for s, run in enumerate(transformers, 1)
                ]
            if bits == SWEPT:
                made += [
                    dataclasses.replace(
                        tokenizer(options, method, bits, 0, **{name: value}), rank=11
                    )
                    for name, values in METHODS[method].swept.items()
                    for value in values
                ]
    return made


def look(method: str) -> dict[str, Any]:
    """What a method has in common in all figures, as arguments of errorbar."""
    colour = colormaps["tab20"].colors[list(METHODS).index(method)]
    return {"color": colour, "label": method.replace("_", " "), "capsize": 2}


def figure(found: Sequence[Entry]) -> Figure:
    """Usage, PSNR, distance and bits per token over the size of the codebook, a line per method."""
    panels = {
        "codes used": "codebook/used",
        "reconstruction PSNR, dB": "reconstruction/psnr",
        "reconstruction distance": distance(found, "reconstruction"),
        "bits per token": "compression/bits_per_token",
    }
    drawn, axes = html.panels(len(panels), 2, (5.8, 4.0))
    for axis, (title, metric) in zip(axes, panels.items(), strict=True):
        for name, method in METHODS.items():
            if means := spreads(found, name, metric):
                axis.errorbar(
                    list(means),
                    [mean.mean for mean in means.values()],
                    yerr=[mean.deviation or 0.0 for mean in means.values()],
                    fmt="o-" if method.scalar else "s--",
                    linewidth=1.3,
                    markersize=3.5,
                    **look(name),
                )
        guides(axis, metric)
        axis.set(title=title, xlabel="codebook size", xlim=(BITS[0] - 0.5, BITS[-1] + 0.5))
        axis.set_ylabel(tables.title(metric), fontsize=7)
        axis.set_xticks(BITS, [f"$2^{{{bits}}}$" for bits in BITS])
        if not axis.has_data():
            html.not_run(axis)
    axes[0].legend(frameon=False, fontsize=7, ncols=2)
    return drawn


def samples_figure(found: Sequence[Entry]) -> Figure:
    """What is sampled over what is reconstructed, by distance: one panel per size of stage II, with
    the rank correlation of the methods' means."""
    names = [distance(found, kind) for kind in ("reconstruction", "sampling")]
    drawn, axes = html.panels(len(STAGE_2), 2, (5.8, 4.4))
    for axis, bits in zip(axes, STAGE_2, strict=True):
        means = []
        for name, method in METHODS.items():
            x, y = (spreads(found, name, metric).get(bits) for metric in names)
            if x and y:
                means.append((x.mean, y.mean))
                axis.errorbar(
                    x.mean,
                    y.mean,
                    xerr=x.deviation or 0.0,
                    yerr=y.deviation or 0.0,
                    fmt="o" if method.scalar else "s",
                    markersize=5,
                    **look(name),
                )
        title = f"$2^{{{bits}}}$ codes"
        if len(means) > 1:
            title += f", rank correlation {rank_correlation(*zip(*means, strict=True)):.2f}"
        axis.set(title=title)
        axis.set_xlabel(tables.title(names[0]), fontsize=7)
        axis.set_ylabel(tables.title(names[1]), fontsize=7)
        if not axis.has_data():
            html.not_run(axis)
    if axes[0].has_data():
        axes[0].legend(frameon=False, fontsize=7, ncols=2)
    return drawn


def write(found: Sequence[Entry], out: str, options: Options) -> None:
    """Writes the figures, tables of tokenizers and of transformers, and the claims to `out`."""
    stages = {stage: entries.select(found, stage=stage) for stage in ("tokenizer", "transformer")}
    keys = [(method, bits) for bits in SIZES[options.scale] for method in METHODS]
    tokenizers = {key: group(stages["tokenizer"], *key) for key in keys}
    transformers = {key: group(stages["transformer"], *key) for key in keys if key[1] in STAGE_2}
    beside_fsq = {
        key: (made, tokenizers["fsq", key[1]])
        for key, made in tokenizers.items()
        if key[0] != "fsq"
    }
    swept = {}
    for entry in (e for e in found if "swept" in e):
        values = ", ".join(f"{name}={value}" for name, value in entry["swept"].items())
        swept.setdefault(f"{entry['method']} 2^{entry['bits']}: {values}", []).append(entry)
    metrics = reconstruction(found)
    written = {
        "table": tables.by_group(labelled(tokenizers), SHOWN),
        "table_paired": tables.paired("minus FSQ, same seed", labelled(beside_fsq), metrics),
        "table_transformers": tables.by_group(labelled(transformers), SHOWN),
        "table_swept": tables.by_group(swept, SHOWN),
        "claims": claims.table(CLAIMS, found),
    }
    longer = entries.read(out, LONG_AVERAGE)
    before = {stage: entries.select(longer, stage=stage) for stage in stages}
    sampled = [m for m in SHOWN if any(m in e for e in before["transformer"])]
    others = {
        "table_averages": averages(tokenizers, before["tokenizer"], metrics),
        "table_averages_transformers": averages(transformers, before["transformer"], sampled),
        "table_again": again(tokenizers, entries.read(out, TRAINED_AGAIN), metrics),
    }
    written |= {name: table for name, table in others.items() if table.rows}
    figures = {"figure": figure(found), "figure_samples": samples_figure(found)}
    tables.write(out, written, figures)


Groups = Mapping[tuple[str, int], Sequence[Entry]]  # by method and bits


def averages(groups: Groups, longer: Sequence[Entry], metrics: Sequence[str]) -> html.Table:
    """What an average of the weights over fewer steps does to metrics, by method and size."""
    pairs = {k: (made, other) for k, made in groups.items() if (other := group(longer, *k))}
    return tables.paired("100 steps minus 1,000, same seed", labelled(pairs), metrics)


def again(groups: Groups, trainings: Sequence[Entry], metrics: Sequence[str]) -> html.Table:
    """How much metrics deviate over trainings of one seed, and over the same tokenizers' seeds."""
    repeated = {key: made for key in groups if (made := group(trainings, *key))}
    kinds = {
        "trainings of one seed": repeated.values(),
        "seeds": [groups[key] for key in repeated],
    }
    rows = kinds if repeated else {}
    return tables.deviations(f"deviation, {len(repeated)} tokenizers", rows, metrics)


def labelled(groups: Mapping[tuple[str, int], Any]) -> dict[str, Any]:
    """{(method, bits): group} by the names of rows."""
    return {f"{method} 2^{bits}": made for (method, bits), made in groups.items()}


if __name__ == "__main__":
    launcher.program("quantizers")
