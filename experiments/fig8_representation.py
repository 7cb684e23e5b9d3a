"""Figures 8 and 9 of the paper (A.3): does a code stand for something to be seen?

python -m experiments.fig8_representation --per_gpu=2
python -m experiments.representation --workdir=tokenizer_imagenet256_checkpoint --out=OUT

Codes drawn at random, one code alone, and two images stitched in code space, for FSQ and VQ side by
side. Bench: tokenizers of 2^10 codes and 16 x 16 tokens on the embedded scenes at 128 px; the
second command does the same with a published tokenizer's file.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments import claims, entries, launcher, maskgit_runs, table2_uvim, tables
from experiments.claims import Claim, Finding
from experiments.entries import Entry
from experiments.options import Options
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import html

QUANTIZERS = ("fsq", "vq")
BITS = {"paper": 10, "bench": 10, "smoke": 8}
PICTURES = ("soup", "constant", "stitched")
SCENES = {
    "model.channel_multipliers": (1, 1, 2, 2),
    "model.filters": 48,
    "model.num_groups": 12,
    "batch_size": 64,
    "eval_batch_size": 50,
    "data.size": 128,
    "data.eval_split": "validation",
    "data.workers": 2,
}


def runs(options: Options) -> list[Run]:
    """A tokenizer of each quantizer, and the study of each."""
    made = table2_uvim.data_run(options)
    seeds = range(options.repeats(1))
    for quantizer, seed in itertools.product(QUANTIZERS, seeds):
        facts = maskgit_runs.codebook(quantizer, BITS[options.scale])
        stage_1 = _tokenizer(options, facts, made[:1], seed)
        name = f"representation_of_{stage_1.name}"
        path = os.path.join(options.workdir, name)
        command = (
            "-m",
            "experiments.representation",
            f"--workdir={os.path.join(options.workdir, stage_1.name, stage_1.weights)}",
            f"--out={path}",
            f"--references={options.workdir}",
            f"--num={20 if options.scale == 'smoke' else 1_000}",
        )
        files = [(f"{picture}.png", command) for picture in PICTURES]
        study = Run(
            name,
            (*files, (entries.SEVERAL, command)),
            dict(stage_1.facts) | {"stage": "study"},
            needs=(stage_1.name, *stage_1.needs),
            rank=25,
        )
        made += [stage_1, study]
    return made


def _tokenizer(options: Options, facts: dict, data: Sequence[Run], seed: int) -> Run:
    if options.scale == "paper":
        return maskgit_runs.tokenizer(options, facts, seed, suffix="_256px", pixels=256)
    if options.scale == "smoke":
        return maskgit_runs.tokenizer(options, facts, seed)
    source = f"arrays:{os.path.join(options.workdir, table2_uvim.DATA)}"
    changes = SCENES | {"data.source": source}
    run = maskgit_runs.tokenizer(options, facts, seed, changes, suffix="_scenes128")
    run = dataclasses.replace(run, rank=run.rank - 5, places=2)  # the longest, with the most pixels
    return maskgit_runs.on_data(run, data, "scenes")


def picture(out: str, found: Sequence[Entry], name: str) -> Figure:
    """One of the study's pictures, a panel per quantizer."""
    drawn, axes = html.panels(len(QUANTIZERS), 2, (6.0, 3.2))
    for axis, quantizer in zip(axes, QUANTIZERS, strict=True):
        group = entries.select(found, quantizer=quantizer, stage="study")
        path = os.path.join(out, "runs", group[0]["run"], f"{name}.png") if group else ""
        if os.path.exists(path):
            axis.imshow(np.asarray(Image.open(path)), interpolation="nearest")
        else:
            html.not_run(axis)
        axis.set_title(quantizer.upper())
        html.bare(axis)
    return drawn


def measured(found: Sequence[Entry], quantizer: str) -> Mapping[str, float]:
    """What the studies of a quantizer measured, means over seeds; nothing where there is none."""
    group = entries.select(found, quantizer=quantizer, stage="study")
    names = dict.fromkeys(n for e in group for n in e if "/" in n)
    return {name: float(np.mean(entries.values(group, name))) for name in names}


def soup(found: Sequence[Entry]) -> Finding:
    """How far images of codes at random are from real ones, beside reconstructions."""
    studies = [measured(found, q) for q in QUANTIZERS]
    if not all(studies):
        return Finding(claims.NOT_RUN)
    ratios, texts = [], []
    for quantizer, entry in zip(QUANTIZERS, studies, strict=True):
        name = next(name for name in entry if name.startswith("soup/")).removeprefix("soup/")
        values = entry[f"soup/{name}"], entry[f"reconstruction/{name}"]
        ratios.append(values[0] / values[1])
        texts.append(f"{quantizer.upper()}: {values[0]:.3g} against {values[1]:.3g}")
    verdict = claims.CONFIRMED if min(ratios) >= 2 else claims.OPEN
    return Finding(claims.REFUTED if max(ratios) <= 1.2 else verdict, "; ".join(texts))


def blend(found: Sequence[Entry]) -> Finding:
    """The seam of stitched codes beside that of glued pixels."""
    studies = [measured(found, q) for q in QUANTIZERS]
    if not all(studies):
        return Finding(claims.NOT_RUN)
    shares, texts = [], []
    for quantizer, entry in zip(QUANTIZERS, studies, strict=True):
        glued, decoded = entry["seam/glued_pixels"], entry["seam/stitched_codes"]
        shares.append((decoded - 1) / max(glued - 1, 1e-9))
        texts.append(f"{quantizer.upper()}: {decoded:.2f} decoded, {glued:.2f} glued")
    verdict = claims.CONFIRMED if max(shares) <= 0.75 else claims.OPEN
    return Finding(claims.REFUTED if min(shares) >= 1 else verdict, "; ".join(texts))


CLAIMS = (
    Claim(
        "Codes drawn at random decode to a soup of patches, for FSQ as for VQ (A.3, Figure 8)",
        "confirmed: for both the Fréchet distance of such images to real ones is at least twice "
        "that of reconstructions; refuted: for both at most 1.2 times",
        soup,
    ),
    Claim(
        "Both decoders blend the seam of two images stitched in code space (A.3, Figure 9)",
        "the step across the seam over that across other rows, less 1: confirmed where it is for "
        "both at most three quarters of that of glued pixels; refuted where for both it is no "
        "smaller",
        blend,
    ),
)


def write(found: Sequence[Entry], out: str, options: Options) -> None:
    """Writes the pictures side by side, the measurements and the claims to `out`."""
    del options
    studies = {q.upper(): entries.select(found, quantizer=q, stage="study") for q in QUANTIZERS}
    names = sorted({n for g in studies.values() for e in g for n in e if "/" in n})
    tables.write(
        out,
        {"table": tables.by_group(studies, names), "claims": claims.table(CLAIMS, found)},
        {name: picture(out, found, name) for name in PICTURES},
    )


if __name__ == "__main__":
    launcher.program("fig8_representation")
