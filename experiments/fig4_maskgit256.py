"""Figure 4 of the paper: MaskGIT with FSQ and VQ at 256 px, and what guidance brings each.

python -m experiments.fig4_maskgit256 --data_dir=DIR --per_gpu=4 --seconds=540
python -m experiments.fig4_maskgit256 --scale=paper --commands

The table of the best guidance of each quantizer with its usage, and the two lower panels: precision
over recall, and the distance over guidance. Bench: the 2^10 codes of Figure 3's runs, all seeds of
stage II, guidance up to 1.
"""

import os
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments import claims, entries, launcher, maskgit_runs, tables
from experiments.claims import Claim, Finding
from experiments.entries import Entry
from experiments.fig3_claims import distance
from experiments.options import Options
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import html

QUANTIZERS = ("fsq", "vq")
GUIDANCE = {
    "paper": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25),
    "bench": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0),
    "smoke": (0.0, 1.0),
}
BITS = {"paper": 10, "bench": 10, "smoke": 8}
PAPER = {  # guidance, FID, precision, recall, usage
    "fsq": "α = 0.2: FID 4.534, precision 0.864, recall 0.453, usage 100 %",
    "vq": "α = 0.1: FID 4.509, precision 0.860, recall 0.465, usage 81 %",
}


def runs(options: Options) -> list[Run]:
    """Both stages of each quantizer, and the sweeps of stage II's runs."""
    made = maskgit_runs.data_run(options)
    suffix, pixels = ("_256px", 256) if options.scale == "paper" else ("", 128)
    seeds = options.repeats(1 if options.scale == "paper" else 3)
    for quantizer in QUANTIZERS:
        facts = maskgit_runs.codebook(quantizer, BITS[options.scale])
        stage_1 = maskgit_runs.tokenizer(options, facts, 0, suffix=suffix, pixels=pixels)
        made.append(stage_1)
        for seed in range(seeds):
            stage_2 = maskgit_runs.transformer(options, stage_1, seed, pixels)
            made += [stage_2, _sweep(options, stage_1, stage_2)]
    return made


def _sweep(options: Options, stage_1: Run, stage_2: Run) -> Run:
    name = f"sweep_of_{stage_2.name}"
    weights = [os.path.join(options.workdir, run.name, run.weights) for run in (stage_2, stage_1)]
    out = os.path.join(options.workdir, name, entries.SEVERAL)
    command = (
        "-m",
        "experiments.guidance",
        f"--workdir={weights[0]}",
        f"--stage_1={weights[1]}",
        "--guidance=" + ",".join(map(str, GUIDANCE[options.scale])),
        f"--out={out}",
        f"--references={options.workdir}",
    )
    facts = dict(stage_2.facts) | {"stage": "sweep", "stage_2": stage_2.name}
    return Run(
        name,
        ((entries.SEVERAL, command),),
        facts,
        needs=(stage_2.name, stage_1.name, *stage_1.needs),
        rank=25,
    )


def at(found: Sequence[Entry], quantizer: str, strength: float, metric: str):
    """Mean and deviation of a metric at one strength of guidance, over seeds."""
    group = entries.select(found, quantizer=quantizer, stage="sweep", guidance=strength)
    return entries.spread(entries.values(group, metric))


def strengths(found: Sequence[Entry], quantizer: str) -> list[float]:
    """The strengths of guidance that were measured."""
    group = entries.select(found, quantizer=quantizer, stage="sweep")
    return sorted({entry["guidance"] for entry in group})


def best(found: Sequence[Entry], quantizer: str) -> float | None:
    """The strength with the smallest mean distance."""
    metric = distance(found, "sampling")
    known = [s for s in strengths(found, quantizer) if at(found, quantizer, s, metric)]
    return min(known, key=lambda s: at(found, quantizer, s, metric).mean, default=None)


def sampled(found: Sequence[Entry]) -> list[str]:
    """The metrics of samples that were measured, distances first."""
    names = {
        name
        for e in entries.select(found, stage="sweep")
        for name in e
        if name.startswith("sampling/")
    }
    return sorted(names, key=lambda name: (not name.startswith("sampling/f"), name))


def table(found: Sequence[Entry]) -> html.Table:
    """One row per quantizer: its best guidance, all metrics there, usage, the paper's row."""
    metrics, rows = sampled(found), []
    for quantizer in QUANTIZERS:
        strength = best(found, quantizer)
        used = entries.spread(
            entries.values(
                entries.select(found, quantizer=quantizer, stage="tokenizer"), "codebook/usage"
            )
        )
        cells = [
            at(found, quantizer, strength, metric).text()
            for metric in metrics
            if strength is not None
        ]
        rows.append(
            (
                quantizer.upper(),
                "not run" if strength is None else f"{strength:g}",
                *(cells or ["not run"] * len(metrics)),
                used.text("{:.1%}") if used else "not run",
                PAPER[quantizer],
            )
        )
    return html.Table(
        ("", "best α", *map(tables.title, metrics), "codebook usage", "paper, 256 px"), rows
    )


def figure(found: Sequence[Entry]) -> Figure:
    """Precision over recall, and the distance over guidance: a line per quantizer."""
    drawn, axes = html.panels(2, 2, (4.8, 3.4))
    metric = distance(found, "sampling")
    named = {
        kind: next((m for m in sampled(found) if kind in m), "") for kind in ("precision", "recall")
    }
    for quantizer in QUANTIZERS:
        known = strengths(found, quantizer)
        if not known:
            continue
        pairs = [[at(found, quantizer, s, named[kind]) for s in known] for kind in named]
        if None not in pairs[0] + pairs[1]:
            axes[0].plot(
                [r.mean for r in pairs[1]],
                [p.mean for p in pairs[0]],
                "o-",
                label=quantizer.upper(),
                markersize=4,
            )
            axes[0].annotate("α = 0", (pairs[1][0].mean, pairs[0][0].mean), fontsize=8)
        spreads = [at(found, quantizer, s, metric) for s in known]
        axes[1].errorbar(
            known,
            [s.mean for s in spreads],
            yerr=[s.deviation or 0.0 for s in spreads],
            fmt="o-",
            capsize=2,
            markersize=4,
            label=quantizer.upper(),
        )
    axes[0].set(xlabel="recall", ylabel="precision")
    axes[0].locator_params(axis="x", nbins=5)
    axes[1].set(xlabel="guidance α")
    axes[1].set_ylabel(tables.title(metric), fontsize=8)
    for axis in axes:
        if axis.has_data():
            axis.legend(frameon=False)
        else:
            html.not_run(axis)
    return drawn


def on_par(found: Sequence[Entry]) -> Finding:
    """The distances of FSQ and VQ, each at its best guidance."""
    metric = distance(found, "sampling")
    spreads = [
        at(found, q, s, metric) if (s := best(found, q)) is not None else None for q in QUANTIZERS
    ]
    if None in spreads:
        return Finding(claims.NOT_RUN)
    text = ", ".join(f"{q.upper()} {s.text()}" for q, s in zip(QUANTIZERS, spreads, strict=True))
    gap = spreads[0].mean / spreads[1].mean - 1
    text += f" ({gap:+.1%})"
    if abs(gap) <= 0.05:
        return Finding(claims.CONFIRMED, text)
    sign = claims.compare(*spreads, deviation(found, metric))
    return Finding(claims.REFUTED if sign else claims.OPEN, text)


def deviation(found: Sequence[Entry], metric: str) -> float | None:
    """That of a single run: the largest among runs repeated at one strength."""
    return claims.largest_deviation(
        [
            entries.select(found, quantizer=q, stage="sweep", guidance=s)
            for q in QUANTIZERS
            for s in strengths(found, q)
        ],
        metric,
    )


def more_guidance(found: Sequence[Entry]) -> Finding:
    """The best guidance of FSQ and of VQ."""
    fsq, vq = (best(found, q) for q in QUANTIZERS)
    if fsq is None or vq is None:
        return Finding(claims.NOT_RUN)
    metric = distance(found, "sampling")
    pairs = [[at(found, q, s, metric) for s in (fsq, vq)] for q in QUANTIZERS]
    text = f"FSQ {fsq:g}, VQ {vq:g}"
    if not any(claims.compare(a, b, deviation(found, metric)) for a, b in pairs if a and b):
        return Finding(claims.OPEN, text)
    return Finding(claims.CONFIRMED if fsq > vq else claims.REFUTED, text)


CLAIMS = (
    Claim(
        "With 2^10 codes FSQ's samples are on par with VQ's, each at its best guidance (5.2, "
        "Figure 4: FID 4.53 and 4.51)",
        "confirmed: the distances differ by 5 % at most; refuted: by more, and by more than twice "
        "the standard error",
        on_par,
    ),
    Claim(
        "FSQ's best guidance is stronger than VQ's (Figure 4: 0.2 and 0.1)",
        "confirmed: larger; refuted: smaller; not decided where neither's distance at the two "
        "strengths differs by more than twice the standard error",
        more_guidance,
    ),
)


def write(found: Sequence[Entry], out: str, options: Options) -> None:
    """Writes the table, the panels and the claims of the entries to `out`."""
    del options
    tables.write(
        out,
        {"table": table(found), "claims": claims.table(CLAIMS, found)},
        {"figure": figure(found)},
    )


if __name__ == "__main__":
    launcher.program("fig4_maskgit256")
