"""What the size of the groups over which VQ's entropy loss is taken does to the codebook's usage.

python -m experiments.entropy_groups --data_dir=DIR --per_gpu=4 --seconds=540

MaskGIT takes the entropy of the mean choice over one device's examples, and the number of its
devices is not known. Groups of 8, of 32 and of all examples of a batch, at 2^10 and 2^14 codes.
"""

import dataclasses
from collections.abc import Sequence

from experiments import claims, entries, launcher, maskgit_runs, tables
from experiments.claims import Claim, Finding
from experiments.entries import Entry
from experiments.fig3_tradeoff import SHOWN
from experiments.options import Options
from fsq_jax.launcher.plan import Run

BITS = {"paper": (10, 14), "bench": (10, 14), "smoke": (4,)}
GROUPS = {"paper": (8, 32), "bench": (8, 32), "smoke": (4,)}  # and all


def runs(options: Options) -> list[Run]:
    """VQ tokenizers with each size of group; those of all examples are Figure 3's own."""
    made = maskgit_runs.data_run(options)
    for bits in BITS[options.scale]:
        facts = maskgit_runs.codebook("vq", bits)
        for seed in range(options.seeds):
            made.append(maskgit_runs.tokenizer(options, facts, seed))
            for group in GROUPS[options.scale]:
                run = maskgit_runs.tokenizer(
                    options,
                    facts | {"entropy_group": group},
                    seed,
                    {"quantizer.entropy_group": group},
                    f"_group{group}",
                )
                made.append(dataclasses.replace(run, rank=run.rank + 20))  # after the figures'
    return made


def rows(found: Sequence[Entry], bits: int) -> dict[str, list[Entry]]:
    """{group: entries} at one size, small groups first, all examples last."""
    made = {}
    for entry in entries.select(found, bits=bits):
        made.setdefault(entry.get("entropy_group", 0), []).append(entry)
    ordered = sorted(made, key=lambda group: group or 10**9)
    return {f"2^{bits}, groups of {group or 'all'}": made[group] for group in ordered}


def matters(found: Sequence[Entry]) -> Finding:
    """Usage with the smallest groups against usage with all examples, at each size."""
    signs, texts = [], []
    for bits in sorted({e["bits"] for e in found}):
        spreads = {
            name: spread
            for name, group in rows(found, bits).items()
            if (spread := entries.spread(entries.values(group, "codebook/usage"))) is not None
        }
        texts += [f"{name}: {spread.text('{:.1%}')}" for name, spread in spreads.items()]
        deviation = claims.largest_deviation(list(rows(found, bits).values()), "codebook/usage")
        if len(spreads) > 1:
            smallest, *_, every = spreads.values()
            signs.append(claims.compare(smallest, every, deviation))
    if not signs:
        return Finding(claims.NOT_RUN)
    different = any(signs)
    return Finding(claims.CONFIRMED if different else claims.OPEN, "; ".join(texts))


CLAIMS = (
    Claim(
        "The size of the group changes how much of the codebook is used (not in the paper: "
        "MaskGIT's code takes the mean over one device's examples)",
        "confirmed: usage differs between the smallest groups and all examples by more than twice "
        "the standard error at one size or more; otherwise not decided",
        matters,
    ),
)


def write(found: Sequence[Entry], out: str, options: Options) -> None:
    """Writes the table and the finding of the entries to `out`."""
    made = {}
    for bits in BITS[options.scale]:
        made |= rows(found, bits)
    tables.write(
        out, {"table": tables.by_group(made, SHOWN), "claims": claims.table(CLAIMS, found)}, {}
    )


if __name__ == "__main__":
    launcher.program("entropy_groups")
