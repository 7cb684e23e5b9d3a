"""Figure 3 of the paper: what a larger codebook brings FSQ and VQ, from 2^4 to 2^16 codes.

python -m experiments.fig3_tradeoff --data_dir=DIR --per_gpu=4 --seconds=540
python -m experiments.fig3_tradeoff --scale=paper --commands

Four panels as in the paper: reconstruction distance, sampling distance, codebook usage and
compression cost; mean and deviation over seeds. A tokenizer is trained for each size, quantizer
and seed; on the first seed's a masked transformer at 2^8, 2^10, 2^12, 2^14 and 2^16, with all seeds
at 2^10 and 2^14. Bench: Fashion-MNIST at 32 px, EfficientNet's features.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from experiments import claims, curves, entries, launcher, maskgit_runs, pictures, tables
from experiments.claims import SIGNS_RULE, Claim, Finding
from experiments.entries import Entry
from experiments.options import Options
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import html

BITS = (4, 6, 8, 9, 10, 11, 12, 14, 16)
STAGE_2 = (8, 10, 12, 14, 16)
REPEATED = (10, 14)  # where stage II is trained with every seed
SIZES = {"paper": BITS, "bench": BITS, "smoke": (4, 8)}
QUANTIZERS = ("fsq", "vq")


def runs(options: Options) -> list[Run]:
    """The tokenizers, and the transformers on them."""
    made = maskgit_runs.data_run(options)
    for bits in SIZES[options.scale]:
        for quantizer in QUANTIZERS:
            facts = maskgit_runs.codes(quantizer, bits)
            stage_1 = [
                maskgit_runs.tokenizer(options, facts, seed) for seed in range(options.seeds)
            ]
            made += stage_1
            if bits in STAGE_2:
                seeds = options.seeds if bits in REPEATED else 1
                made += [maskgit_runs.transformer(options, stage_1[0], s) for s in range(seeds)]
    return made


def of(found: Sequence[Entry], quantizer: str, bits: int, metric: str) -> entries.Spread | None:
    """Mean and deviation of a metric over the seeds of one size."""
    return entries.spread(
        entries.values(entries.select(found, quantizer=quantizer, bits=bits), metric)
    )


def distance(found: Sequence[Entry], kind: str) -> str:
    """The name of the Fréchet distance that was measured, such as "sampling/fd_efficientnet"."""
    names = {name for e in found for name in e if name.startswith((f"{kind}/fd_", f"{kind}/fid"))}
    return min(names, default=f"{kind}/fid")


def panels(found: Sequence[Entry]) -> dict[str, str]:
    """{title: metric} of the figure's four panels and of two more."""
    reconstruction, sampling = distance(found, "reconstruction"), distance(found, "sampling")
    return {
        "a) reconstruction distance": reconstruction,
        "b) sampling distance": sampling,
        "c) codes used": "codebook/used",
        "d) compression cost, bits per token": "compression/bits_per_token",
        "reconstruction PSNR, dB": "reconstruction/psnr",
        "reconstruction SSIM": "reconstruction/ssim",
    }


def figure(found: Sequence[Entry]) -> Figure:
    """The paper's four panels, and PSNR and SSIM, over the size of the codebook."""
    named = panels(found)
    drawn, axes = html.panels(len(named), 3, (4.2, 3.2))
    for axis, (title, metric) in zip(axes, named.items(), strict=True):
        for quantizer in QUANTIZERS:
            points = [
                (bits, value) for bits in BITS
                if (value := of(found, quantizer, bits, metric)) is not None
            ]
            if points:
                axis.errorbar(
                    [bits for bits, _ in points], [v.mean for _, v in points],
                    yerr=[v.deviation or 0.0 for _, v in points],
                    fmt="o-", capsize=2, linewidth=1.4, markersize=4, label=quantizer.upper(),
                )
        guides(axis, metric)
        axis.set(title=title, xlabel="codebook size")
        axis.set_ylabel(tables.title(metric), fontsize=7)
        axis.set_xticks([4, 6, 8, 10, 12, 14, 16], [f"$2^{{{b}}}$" for b in range(4, 17, 2)])
        if axis.has_data():
            axis.legend(frameon=False)
        else:
            axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes)
    return drawn


def guides(axis, metric: str) -> None:
    """The lines that the paper draws: all codes and half of them, uniform tokens."""
    grey = dict(color="0.6", linewidth=0.9)
    if metric == "codebook/used":
        axis.plot(BITS, [2**b for b in BITS], "--", label="all", **grey)
        axis.plot(BITS, [2**b / 2 for b in BITS], ":", label="half", **grey)
        axis.set_yscale("log", base=2)
    if metric == "compression/bits_per_token":
        axis.plot(BITS, BITS, "--", label="uniform", **grey)


def compared(
    found: Sequence[Entry], metric: str, sizes: Sequence[int]
) -> tuple[dict[int, int], str]:
    """({bits: -1 where FSQ's mean is lower, 1 where higher, 0}, the means as text).

    A size at which one of the two was not run is in the text, and undecided; {} where all are.
    """
    groups = [
        entries.select(found, quantizer=q, bits=b) for q in QUANTIZERS for b in BITS
    ]
    deviation = claims.largest_deviation(groups, metric)
    signs, texts, pairs = {}, [], 0
    for bits in sizes:
        ours, theirs = (of(found, q, bits, metric) for q in QUANTIZERS)
        signs[bits] = claims.compare(ours, theirs, deviation)
        texts.append(f"2^{bits}: FSQ {claims.text(ours)}, VQ {claims.text(theirs)}")
        pairs += ours is not None and theirs is not None
    return (signs if pairs else {}), "; ".join(texts)


def paired(found: Sequence[Entry]) -> html.Table:
    """FSQ minus VQ at each size, of tokenizers with the same seed: mean and deviation over seeds.

    A seed decides the order of the data and the first weights of all that the two have in common,
    so that a part of what it does to a distance is the same in both.
    """
    metrics = (distance(found, "reconstruction"), "reconstruction/psnr", "reconstruction/ssim")
    rows = []
    for bits in BITS:
        cells = []
        for metric in metrics:
            by_seed = [
                {e["seed"]: e[metric] for e in
                 entries.select(found, quantizer=q, bits=bits, stage="tokenizer") if metric in e}
                for q in QUANTIZERS
            ]
            both = sorted(set(by_seed[0]) & set(by_seed[1]))
            spread = entries.spread([by_seed[0][s] - by_seed[1][s] for s in both])
            cells.append(claims.text(spread))
        rows.append((f"2^{bits}", *cells))
    return html.Table(("FSQ minus VQ, same seed", *map(tables.title, metrics)), rows)


def improves(found: Sequence[Entry]) -> Finding:
    """FSQ's reconstruction distance from each size to the next."""
    metric = distance(found, "reconstruction")
    means = {b: m for b in BITS if (m := of(found, "fsq", b, metric)) is not None}
    deviation = claims.largest_deviation(
        [entries.select(found, quantizer="fsq", bits=b) for b in BITS], metric
    )
    sizes = list(means)
    if len(sizes) < 2:
        return Finding(claims.NOT_RUN)
    signs = [claims.compare(means[b], means[a], deviation)
             for a, b in zip(sizes, sizes[1:], strict=False)]
    falling = all(means[b].mean < means[a].mean for a, b in zip(sizes, sizes[1:], strict=False))
    falling = falling and 2 * signs.count(-1) >= len(signs)
    text = "; ".join(f"2^{bits}: {mean.text()}" for bits, mean in means.items())
    if 1 in signs:
        return Finding(claims.REFUTED, text)
    return Finding(claims.CONFIRMED if falling else claims.OPEN, text)


def crossing(found: Sequence[Entry]) -> Finding:
    """Reconstruction: VQ ahead at 2^4 to 2^8, FSQ from 2^10 on."""
    signs, text = compared(found, distance(found, "reconstruction"), BITS)
    oriented = [sign if bits < 9 else -sign for bits, sign in signs.items() if bits != 9]
    return claims.by_signs(oriented, 1, text)


def usage(found: Sequence[Entry]) -> Finding:
    """The share of codes in use at the large sizes."""
    share = {(q, b): m for q in QUANTIZERS for b in BITS
             if (m := of(found, q, b, "codebook/usage")) is not None}
    needed = [("vq", 12), ("vq", 14), ("vq", 16), ("fsq", 14)]
    if any(key not in share for key in needed):
        return Finding(claims.NOT_RUN)
    text = "; ".join(
        f"2^{b}: FSQ {share['fsq', b].text('{:.1%}')}, VQ {share['vq', b].text('{:.1%}')}"
        for b in BITS if ("fsq", b) in share and ("vq", b) in share
    )
    ours = min(m.mean for (q, b), m in share.items() if q == "fsq" and b <= 14)
    if ours >= 0.9 and all(share["vq", b].mean < 0.5 for b in (12, 14, 16)):
        return Finding(claims.CONFIRMED, text)
    if share["vq", 16].mean >= 0.5 or share["fsq", 14].mean < 0.5:
        return Finding(claims.REFUTED, text)
    return Finding(claims.OPEN, text)


def cost(found: Sequence[Entry]) -> Finding:
    """Bits per token of FSQ and VQ at each size."""
    signs, text = compared(found, "compression/bits_per_token", STAGE_2)
    return claims.by_signs(list(signs.values()), 1, text)


def sampling(found: Sequence[Entry]) -> Finding:
    """Sampling distance of FSQ and VQ past 2^10."""
    signs, text = compared(found, distance(found, "sampling"), (12, 14, 16))
    return claims.by_signs(list(signs.values()), -1, text)


def saturates(found: Sequence[Entry]) -> Finding:
    """FSQ's sampling distance: what 2^8 to 2^12 brings, and what 2^12 to 2^16 still does."""
    metric = distance(found, "sampling")
    small, middle, large = (of(found, "fsq", b, metric) for b in (8, 12, 16))
    if None in (small, middle, large):
        return Finding(claims.NOT_RUN)
    first, then = small.mean - middle.mean, middle.mean - large.mean
    text = "; ".join(f"2^{b}: {of(found, 'fsq', b, metric).text()}" for b in (8, 12, 16))
    if first <= 0:
        return Finding(claims.REFUTED, text)
    if then > first / 2:
        return Finding(claims.REFUTED, text)
    return Finding(claims.CONFIRMED if then <= first / 4 else claims.OPEN, text)


CLAIMS = (
    Claim(
        "FSQ's reconstructions improve with every doubling of the codebook (5.1, Figure 3a)",
        "confirmed: the mean distance falls from each size to the next, at least half of the times "
        "by more than twice the standard error; refuted: it once rises by more than that", improves,
    ),
    Claim(
        "In reconstruction VQ is better at small codebooks (below about 2^9), FSQ at large ones "
        "(5.1, Figure 3a)", f"2^9 left out; {SIGNS_RULE}", crossing,
    ),
    Claim(
        "VQ uses less than half of a large codebook, FSQ nearly all of 2^14 (5.1, Figure 3c)",
        "confirmed: VQ's usage below 50 % at 2^12, 2^14 and 2^16, FSQ's at least 90 % up to 2^14; "
        "refuted: VQ's at least 50 % at 2^16, or FSQ's below 50 % at 2^14", usage,
    ),
    Claim(
        "FSQ's tokens cost more bits than VQ's (5.1, Figure 3d)", f"higher; {SIGNS_RULE}", cost,
    ),
    Claim(
        "Samples are better with FSQ past 2^10 (5.1, Figure 3b)",
        f"a smaller distance at 2^12, 2^14, 2^16; {SIGNS_RULE}", sampling,
    ),
    Claim(
        "FSQ's samples stop improving at about 2^12 (5.1, Figure 3b)",
        "confirmed: the mean distance falls by at most a quarter as much from 2^12 to 2^16 as from "
        "2^8 to 2^12; refuted: by more than half as much, or not from 2^8 to 2^12", saturates,
    ),
)
SHOWN = (
    "codebook/usage", "codebook/used", "codebook/perplexity", "reconstruction/psnr",
    "reconstruction/ssim", "reconstruction/fd_efficientnet", "reconstruction/fid",
    "reconstruction/fd_random", "compression/bits_per_token", "sampling/fd_efficientnet",
    "sampling/fid", "sampling/fd_random", "sampling/precision_efficientnet",
    "sampling/recall_efficientnet",
)


def write(found: Sequence[Entry], out: str, options: Options) -> None:
    """Writes the figure, the curves, the tables and the claims of the entries to `out`.

    What runs drew is put together again only where they are at hand.
    """
    rows: Mapping[str, list[Entry]] = {
        f"{quantizer.upper()} 2^{bits}": entries.select(found, quantizer=quantizer, bits=bits)
        for bits in SIZES[options.scale] for quantizer in QUANTIZERS
    }
    tables.write(
        out,
        {"table": tables.by_group(rows, SHOWN), "table_paired": paired(found),
         "claims": claims.table(CLAIMS, found)}
        | pictures.background(options.workdir, found, distance(found, "reconstruction")),
        {
            "figure": figure(found),
            "curves_tokenizer": curves.figure(out, found, "tokenizer", "reconstruction"),
            "curves_transformer": curves.figure(out, found, "transformer", "loss"),
        } | pictures.reconstructions(options.workdir, found, (4, 8, 12, 16))
        | pictures.samples(options.workdir, found, STAGE_2),
    )


if __name__ == "__main__":
    launcher.program("fig3_tradeoff")
