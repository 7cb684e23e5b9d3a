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
from experiments.entries import Entry
from experiments.fig3_claims import BITS, CLAIMS, QUANTIZERS, STAGE_2, distance, of, reconstruction
from experiments.options import Options
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import html

REPEATED = (10, 14)  # where stage II is trained with every seed
SIZES = {"paper": BITS, "bench": BITS, "smoke": (4, 8)}


def runs(options: Options) -> list[Run]:
    """The tokenizers, and the transformers on them."""
    made = maskgit_runs.data_run(options)
    for bits in SIZES[options.scale]:
        for quantizer in QUANTIZERS:
            facts = maskgit_runs.codebook(quantizer, bits)
            stage_1 = [
                maskgit_runs.tokenizer(options, facts, seed) for seed in range(options.repeats())
            ]
            made += stage_1
            if bits in STAGE_2:
                seeds = options.repeats() if bits in REPEATED else 1
                made += [maskgit_runs.transformer(options, stage_1[0], s) for s in range(seeds)]
    return made


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
                (bits, value)
                for bits in BITS
                if (value := of(found, quantizer, bits, metric)) is not None
            ]
            if points:
                axis.errorbar(
                    [bits for bits, _ in points],
                    [v.mean for _, v in points],
                    yerr=[v.deviation or 0.0 for _, v in points],
                    fmt="o-",
                    capsize=2,
                    linewidth=1.4,
                    markersize=4,
                    label=quantizer.upper(),
                )
        guides(axis, metric)
        axis.set(title=title, xlabel="codebook size")
        axis.set_ylabel(tables.title(metric), fontsize=7)
        axis.set_xticks([4, 6, 8, 10, 12, 14, 16], [f"$2^{{{b}}}$" for b in range(4, 17, 2)])
        if axis.has_data():
            axis.legend(frameon=False)
        else:
            html.not_run(axis)
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


def paired(found: Sequence[Entry]) -> html.Table:
    """FSQ minus VQ at each size, of tokenizers with the same seed."""
    rows = {
        f"2^{bits}": [entries.select(found, quantizer=q, bits=bits) for q in QUANTIZERS]
        for bits in BITS
    }
    return tables.paired("FSQ minus VQ, same seed", rows, reconstruction(found))


SHOWN = (
    "codebook/usage",
    "codebook/used",
    "codebook/perplexity",
    "reconstruction/psnr",
    "reconstruction/ssim",
    "reconstruction/fd_efficientnet",
    "reconstruction/fid",
    "reconstruction/fd_random",
    "compression/bits_per_token",
    "sampling/fd_efficientnet",
    "sampling/fid",
    "sampling/fd_random",
    "sampling/precision_efficientnet",
    "sampling/recall_efficientnet",
)


def write(found: Sequence[Entry], out: str, options: Options) -> None:
    """Writes the figure, the curves, the tables and the claims of the entries to `out`.

    What runs drew is put together again only where they are at hand.
    """
    rows: Mapping[str, list[Entry]] = {
        f"{quantizer.upper()} 2^{bits}": entries.select(found, quantizer=quantizer, bits=bits)
        for bits in SIZES[options.scale]
        for quantizer in QUANTIZERS
    }
    tables.write(
        out,
        {
            "table": tables.by_group(rows, SHOWN),
            "table_paired": paired(found),
            "claims": claims.table(CLAIMS, found),
        },
        {
            "figure": figure(found),
            "curves_tokenizer": curves.figure(out, found, "tokenizer", "reconstruction"),
            "curves_transformer": curves.figure(out, found, "transformer", "loss"),
        }
        | pictures.reconstructions(options.workdir, found, (4, 8, 12, 16))
        | pictures.samples(options.workdir, found, STAGE_2),
    )


if __name__ == "__main__":
    launcher.program("fig3_tradeoff")
