"""What Table 2 of the paper claims of UViM, held against our runs."""

from collections.abc import Sequence

from experiments import claims, entries
from experiments.claims import SIGNS_RULE, Claim, Finding
from experiments.entries import Entry

TASKS = ("depth", "panoptic", "colorization")
VARIANTS = {
    "fsq": "FSQ",
    "vq": "VQ",
    "vq_no_splitting": "VQ without splitting",
    "fsq_no_context": "FSQ without context",
    "vq_no_context": "VQ without context",
}


def metric_of(found: Sequence[Entry], task: str) -> str:
    """The metric that the paper reports of a task, or what stands for it here."""
    if task != "colorization":
        return {"depth": "depth/rmse", "panoptic": "panoptic/pq"}[task]
    names = {name for e in found for name in e if name.startswith("colorization/f")}
    return min(names, default="colorization/fid5k")


def against(found: Sequence[Entry], task: str, a: str, b: str) -> tuple[int, str] | None:
    """(1 where variant a is worse than b in stage II, -1 better, 0 undecided; the numbers)."""
    metric = metric_of(found, task)
    of_task = entries.select(found, task=task, stage="lm")
    groups = [entries.select(of_task, variant=name) for name in (a, b)]
    spreads = [entries.spread(entries.values(group, metric)) for group in groups]
    if None in spreads:
        return None
    sign = claims.compare(*spreads, claims.largest_deviation(groups, metric))
    text = ", ".join(
        f"{VARIANTS[name]} {spread.text()}" for name, spread in zip((a, b), spreads, strict=True)
    )
    return (-sign if task == "panoptic" else sign), f"{task}: {text}"


def colour(found: Sequence[Entry]) -> Finding:
    """FSQ against VQ on each task: worse on colour alone?"""
    judged = {task: against(found, task, "fsq", "vq") for task in TASKS}
    if judged["colorization"] is None:
        return Finding(claims.NOT_RUN)
    text = "; ".join(result[1] for result in judged.values() if result)
    sign = judged["colorization"][0]
    others = [result[0] for task, result in judged.items() if task != "colorization" and result]
    if sign < 0:
        return Finding(claims.REFUTED, text)
    return Finding(claims.CONFIRMED if sign > 0 and 1 not in others else claims.OPEN, text)


def collapse(found: Sequence[Entry]) -> Finding:
    """Usage of VQ with and without splitting, on depth."""
    shares = {
        e["variant"]: e["codebook/usage"]
        for e in entries.select(found, task="depth", stage="base")
        if "codebook/usage" in e
    }
    if not {"vq", "vq_no_splitting"} <= set(shares):
        return Finding(claims.NOT_RUN)
    text = f"VQ {shares['vq']:.2%}, without splitting {shares['vq_no_splitting']:.2%}"
    if shares["vq"] <= shares["vq_no_splitting"]:
        return Finding(claims.REFUTED, text)
    small = shares["vq_no_splitting"] < 0.05 and shares["vq"] > 10 * shares["vq_no_splitting"]
    return Finding(claims.CONFIRMED if small else claims.OPEN, text)


def context(found: Sequence[Entry]) -> Finding:
    """What FSQ and VQ lose on panoptic segmentation without context."""
    results = [against(found, "panoptic", q, f"{q}_no_context") for q in ("fsq", "vq")]
    if None in results:
        return Finding(claims.NOT_RUN)
    losses = []
    for quantizer in ("fsq", "vq"):
        spreads = [
            entries.spread(
                entries.values(
                    entries.select(found, task="panoptic", stage="lm", variant=variant),
                    "panoptic/pq",
                )
            )
            for variant in (quantizer, f"{quantizer}_no_context")
        ]
        known = [s.deviation for s in spreads if s.deviation is not None]
        errors = None if len(known) < 2 else sum(d**2 for d in known) ** 0.5
        losses.append(
            entries.Spread(spreads[0].mean - spreads[1].mean, errors, min(s.count for s in spreads))
        )
    text = f"PQ lost: FSQ {losses[0].text()}, VQ {losses[1].text()}"
    return claims.by_signs([claims.compare(*losses, None)], -1, text)


CLAIMS = (
    Claim(
        "FSQ comes close to VQ on depth and segments, and loses on colour (5.3, Table 2)",
        "confirmed: worse on colour by more than twice the standard error, and not on the others; "
        "refuted: better on colour by more than that",
        colour,
    ),
    Claim(
        "Without codebook splitting VQ collapses (5.3, Table 2: 0.78 % of the codes)",
        "confirmed: below 5 % of the codes, and less than a tenth of what is used with splitting; "
        "refuted: no less than with splitting",
        collapse,
    ),
    Claim(
        "Without context FSQ loses less than VQ (5.3, Table 2: 3.0 and 4.4 PQ)",
        f"a smaller loss of PQ; {SIGNS_RULE}",
        context,
    ),
)
