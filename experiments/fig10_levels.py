"""Figure 10 of the paper: the number of levels at a fixed size of the codebook.

python -m experiments.fig10_levels --data_dir=DIR --per_gpu=4 --seconds=540
python -m experiments.fig10_levels --scale=paper --commands

About 2^10 and 2^12 codes, whose smallest level is 3, 4, 5 or 8: is "at least 5 levels" the right
rule? And section 3.3's question, whether further dense layers around FSQ help. Tokenizers with
each seed, a masked transformer on the first seed's.
"""

import dataclasses
import math
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments import claims, entries, launcher, maskgit_runs, tables
from experiments.claims import SIGNS_RULE, Claim, Finding
from experiments.entries import Entry
from experiments.fig3_claims import distance
from experiments.fig3_tradeoff import SHOWN
from experiments.options import Options
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import html

LEVELS = {
    10: ((3,) * 6, (4,) * 5, (8, 5, 5, 5), (16, 8, 8)),
    12: ((3,) * 8, (4,) * 6, (7, 5, 5, 5, 5), (8, 8, 8, 8)),
}
SMALLEST = (3, 4, 5, 8)
SIZES = {"paper": (10, 12), "bench": (10, 12), "smoke": (10,)}
SEEN = 0.05  # the smallest gain of dense layers, of the distance, that runs must be able to show
DENSE = {"levels": (8, 5, 5, 5), "layers": 2}


def runs(options: Options) -> list[Run]:
    """The tokenizers, one transformer on each of the first seed's, and those with dense layers."""
    made = maskgit_runs.data_run(options)
    for bits in SIZES[options.scale]:
        for levels in LEVELS[bits]:
            facts = maskgit_runs.codebook("fsq", bits, levels)
            stage_1 = [maskgit_runs.tokenizer(options, facts, s) for s in range(options.repeats())]
            made += [*stage_1, maskgit_runs.transformer(options, stage_1[0], 0)]
    facts = maskgit_runs.codebook("fsq", 10, DENSE["levels"]) | {"dense_layers": DENSE["layers"]}
    for seed in range(options.repeats()):
        changes = {"model.dense_layers": DENSE["layers"]}
        run = maskgit_runs.tokenizer(options, facts, seed, changes, f"_dense{DENSE['layers']}")
        made.append(dataclasses.replace(run, rank=run.rank + 20))  # after all that is drawn
    return made


def groups(found: Sequence[Entry], bits: int) -> dict[tuple[int, ...], list[Entry]]:
    """{levels: entries} at one size, without those with dense layers, few levels first."""
    made = {}
    for entry in entries.select(found, bits=bits):
        if "dense_layers" not in entry:
            made.setdefault(tuple(entry["levels"]), []).append(entry)
    return dict(sorted(made.items(), key=lambda pair: min(pair[0])))


def figure(found: Sequence[Entry]) -> Figure:
    """Four panels, a point for each choice of levels, coloured by the smallest level."""
    metrics = {
        "sampling distance": distance(found, "sampling"),
        "reconstruction distance": distance(found, "reconstruction"),
        "codebook usage": "codebook/usage",
        "bits per token": "compression/bits_per_token",
    }
    choices = [levels for bits in LEVELS for levels in LEVELS[bits]]
    names = [f"{'-'.join(map(str, levels))}\n{math.prod(levels):,} codes" for levels in choices]
    drawn, axes = html.panels(len(metrics), 2, (5.4, 3.6))
    colours = dict(zip(SMALLEST, colormaps["viridis"].resampled(len(SMALLEST)).colors, strict=True))
    for axis, (title, metric) in zip(axes, metrics.items(), strict=True):
        for bits in LEVELS:
            for levels, group in groups(found, bits).items():
                place = choices.index(levels)
                spread = entries.spread(entries.values(group, metric))
                if spread is None:
                    axis.text(
                        place,
                        0.03,
                        "not run",
                        rotation=90,
                        fontsize=7,
                        ha="center",
                        transform=axis.get_xaxis_transform(),
                    )
                    continue
                axis.errorbar(
                    place,
                    spread.mean,
                    yerr=spread.deviation or 0.0,
                    fmt="o",
                    capsize=3,
                    color=colours[min(levels)],
                    markersize=7,
                )
        axis.set_xticks(range(len(choices)), names, rotation=35, ha="right", fontsize=6)
        axis.set(title=title, xlim=(-0.5, len(choices) - 0.5))
        axis.set_ylabel(tables.title(metric), fontsize=7)
    for level, colour in colours.items():
        axes[0].plot([], [], "o", color=colour, label=f"smallest level {level}")
    axes[0].legend(frameon=False, fontsize=7)
    return drawn


def few_are_worse(found: Sequence[Entry], metric: str) -> Finding:
    """Each choice with a level below 5 against each of the same size without."""
    every = [group for bits in LEVELS for group in groups(found, bits).values()]
    deviation = claims.largest_deviation(every, metric)
    signs, texts = [], []
    for bits in LEVELS:
        spreads = {
            levels: entries.spread(entries.values(group, metric))
            for levels, group in groups(found, bits).items()
        }
        texts += [
            "-".join(map(str, levels)) + " " + claims.text(s) for levels, s in spreads.items()
        ]
        few = [spread for levels, spread in spreads.items() if min(levels) < 5]
        many = [spread for levels, spread in spreads.items() if min(levels) >= 5]
        signs += [claims.compare(a, b, deviation) for a in few for b in many if a or b]
    return claims.by_signs(signs, 1, "; ".join(texts))


def dense_help(found: Sequence[Entry]) -> Finding:
    """[8,5,5,5] with and without further dense layers, in reconstruction."""
    metric = distance(found, "reconstruction")
    plain = entries.values(groups(found, 10).get(DENSE["levels"], []), metric)
    dense = entries.values(entries.select(found, dense_layers=DENSE["layers"]), metric)
    if not plain or not dense:
        return Finding(claims.NOT_RUN)
    a, b = entries.spread(dense), entries.spread(plain)
    text = f"with {DENSE['layers']} more layers {a.text()}, without {b.text()}"
    if a.deviation is None or b.deviation is None:
        return Finding(claims.OPEN, text)
    if claims.compare(a, b, None) < 0:
        return Finding(claims.REFUTED, text)
    error = math.sqrt(a.deviation**2 / a.count + b.deviation**2 / b.count)
    return Finding(claims.CONFIRMED if 2 * error <= SEEN * b.mean else claims.OPEN, text)


CLAIMS = (
    Claim(
        "A level below 5 is worse: samples (A.4.1, Figure 10)",
        f"a larger distance at the same size, each choice against each; {SIGNS_RULE}",
        lambda found: few_are_worse(found, distance(found, "sampling")),
    ),
    Claim(
        "A level below 5 is worse: reconstructions (not claimed; measured beside it)",
        f"a larger distance at the same size, each choice against each; {SIGNS_RULE}",
        lambda found: few_are_worse(found, distance(found, "reconstruction")),
    ),
    Claim(
        "Further dense layers around FSQ do not help (3.3)",
        "refuted: the reconstruction distance falls by more than twice the standard error; "
        f"confirmed: it does not, and twice that error is at most {SEEN:.0%} of the distance, so "
        "that a gain would have been seen",
        dense_help,
    ),
)


def write(found: Sequence[Entry], out: str, options: Options) -> None:
    """Writes the figure, the table and the claims of the entries to `out`."""
    rows = {}
    for bits in SIZES[options.scale]:
        for levels, group in groups(found, bits).items():
            rows[f"2^{bits}: [{','.join(map(str, levels))}]"] = group
    rows[f"2^10: [8,5,5,5], {DENSE['layers']} dense layers"] = entries.select(
        found, dense_layers=DENSE["layers"]
    )
    tables.write(
        out,
        {"table": tables.by_group(rows, SHOWN), "claims": claims.table(CLAIMS, found)},
        {"figure": figure(found)},
    )


if __name__ == "__main__":
    launcher.program("fig10_levels")
