"""What the size of the groups over which VQ's entropy loss is taken does to the codebook's usage.

python -m experiments.entropy_groups --data_dir=DIR

MaskGIT takes the entropy of the mean choice over one device's examples, and the number of its
devices is not known. Groups of 8, of 32 and of all examples of a batch, at 2^10 and 2^14 codes. At
scale=bench a small network and a short training, which a CPU does in an hour.
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
# Over the settings of scale=bench: no discriminator, and so few steps since usage settles early.
SMALL = {
    "model.filters": 16,
    "model.num_groups": 8,
    "model.dtype": "float32",
    "quantizer.channels": 16,
    "loss.adversarial": 0.0,
    "optim.learning_rate": 1e-3,
    "optim.warmup_steps": 20,
    "ema_decay": 0.9,
    "batch_size": 64,
    "log_every": 10,
    "checkpoint_every": 50,
    "data.eval_limit": 1_000,
    "evals.reconstruction.features": "",
}
STEPS = {10: 200, 14: 120}
SIXTEEN_TOKENS = {14: {"model.channel_multipliers": (1, 1, 2, 2)}}  # of an image; 64 at 2^10


def runs(options: Options) -> list[Run]:
    """VQ tokenizers with each size of group; at scale=paper those of all are Figure 3's own."""
    made = maskgit_runs.data_run(options)
    for bits in BITS[options.scale]:
        facts = maskgit_runs.codebook("vq", bits) | {"scale": options.scale}
        own, suffix = (_small(bits), "_small") if options.scale == "bench" else ({}, "")
        for seed in range(options.repeats(2)):
            for group in (0, *GROUPS[options.scale]):
                grouped = {"quantizer.entropy_group": group} if group else {}
                run = maskgit_runs.tokenizer(
                    options,
                    facts | ({"entropy_group": group} if group else {}),
                    seed,
                    own | grouped,
                    suffix + (f"_group{group}" if group else ""),
                )
                made.append(dataclasses.replace(run, rank=run.rank + 20))  # after the figures'
    return made


def _small(bits: int) -> dict:
    """What a tokenizer of scale=bench has in place of Figure 3's settings."""
    once = ("steps", "preview_every", "evals.codebook.every", "evals.reconstruction.every")
    return SMALL | SIXTEEN_TOKENS.get(bits, {}) | dict.fromkeys(once, STEPS[bits])


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
