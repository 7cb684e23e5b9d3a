"""What the quantizers' own papers say of them, and the rules that decide it in this protocol."""

from collections.abc import Sequence

from experiments import claims, entries
from experiments.claims import SIGNS_RULE, Claim, Finding
from experiments.entries import Entry
from experiments.fig3_claims import distance

BITS = (8, 10, 12, 14, 16)
ALL = 0.99  # the share of codes in use that counts as all of them


def group(found: Sequence[Entry], method: str, bits: int) -> list[Entry]:
    """A method's entries at one size, with its authors' weights, but for tokenizers of seeds that
    another method still lacks at this size: a seed may move the distances of all methods alike.
    """
    at_size = [e for e in entries.select(found, bits=bits) if "swept" not in e]
    seeds: dict[str, set[int]] = {}
    for entry in entries.select(at_size, stage="tokenizer"):
        seeds.setdefault(entry["method"], set()).add(entry["seed"])
    common = set.intersection(*seeds.values()) if seeds else set()
    own = entries.select(at_size, method=method)
    return [e for e in own if e["stage"] != "tokenizer" or e["seed"] in common]


def spreads(found: Sequence[Entry], method: str, metric: str) -> dict[int, entries.Spread]:
    """{bits: mean and deviation over seeds} of the sizes that were run."""
    made = {b: entries.spread(entries.values(group(found, method, b), metric)) for b in BITS}
    return {bits: spread for bits, spread in made.items() if spread is not None}


def deviation(found: Sequence[Entry], metric: str) -> float | None:
    """The largest deviation of a metric over seeds, among all methods and sizes."""
    methods = {e["method"] for e in found}
    return claims.largest_deviation([group(found, m, b) for m in methods for b in BITS], metric)


def against(found, method: str, other: str, metric: str, expected: int, least: int = 8) -> Finding:
    """A method and another at each size from 2^least on; `expected` as of `claims.compare`.

    A size at which one of the two was not run is undecided.
    """
    ours, theirs = spreads(found, method, metric), spreads(found, other, metric)
    sizes = [b for b in BITS if b >= least]
    single = deviation(found, metric)
    signs = [claims.compare(ours.get(b), theirs.get(b), single) for b in sizes]
    both = [b for b in sizes if b in ours and b in theirs]
    text = "; ".join(f"2^{b}: {ours[b].text()} against {theirs[b].text()}" for b in both)
    groups = [(group(found, method, b), group(found, other, b)) for b in both]
    if pairs := [d for pair in groups for d in entries.differences(*pair, metric)]:
        so = sum(expected * difference > 0 for difference in pairs)
        text += f"; as claimed in {so} of {len(pairs)} pairs of one size and seed"
    return claims.by_signs(signs if both else [], expected, text)


def closer(found: Sequence[Entry], method: str, other: str) -> Finding:
    """Whether a method's reconstructions are nearer than another's, by distance."""
    return against(found, method, other, distance(found, "reconstruction"), -1)


def grows(found: Sequence[Entry], method: str) -> Finding:
    """A method's reconstruction distance from each size to the next."""
    metric = distance(found, "reconstruction")
    means, single = spreads(found, method, metric), deviation(found, metric)
    pairs = zip(BITS, BITS[1:], strict=False)
    signs = [claims.compare(means.get(large), means.get(small), single) for small, large in pairs]
    text = "; ".join(f"2^{bits}: {mean.text()}" for bits, mean in means.items())
    return claims.by_signs(signs if len(means) > 1 else [], -1, text)


def uses_all(found: Sequence[Entry], method: str) -> Finding:
    """The share of a method's codes in use at each size."""
    means = spreads(found, method, "codebook/usage")
    text = "; ".join(f"2^{bits}: {mean.text('{:.1%}')}" for bits, mean in means.items())
    if set(means) != set(BITS):
        return Finding(claims.NOT_RUN, text)
    if all(mean.mean >= ALL for mean in means.values()):
        return Finding(claims.CONFIRMED, text)
    return Finding(claims.REFUTED if means[BITS[-1]].mean < 0.5 else claims.OPEN, text)


_CLOSER = f"a smaller reconstruction distance at each size; {SIGNS_RULE}"
_MORE = f"a larger share of codes in use at each size from 2^10 on; {SIGNS_RULE}"

CLAIMS = (
    Claim(
        "LFQ's reconstructions get better with every larger vocabulary (2310.05737, section 3.1)",
        f"a smaller distance from each size to the next; {SIGNS_RULE}",
        lambda found: grows(found, "lfq"),
    ),
    Claim(
        "BSQ reconstructs better than LFQ (2406.07548, section 5)",
        _CLOSER,
        lambda found: closer(found, "bsq", "lfq"),
    ),
    Claim(
        "SimVQ uses all of its codebook at any size (2411.02038, Table 1)",
        f"confirmed: at least {ALL:.0%} at every size; refuted: less than half at 2^16",
        lambda found: uses_all(found, "simvq"),
    ),
    Claim("SimVQ reconstructs better than VQ (same)", _CLOSER, lambda f: closer(f, "simvq", "vq")),
    Claim(
        "Unit vectors (cosine distance) use more codes than VQ (2110.04627, section 3.2)",
        _MORE,
        lambda found: against(found, "vq_cosine", "vq", "codebook/usage", 1, 10),
    ),
    Claim(
        "A look-up in few dimensions uses more codes than VQ (same)",
        _MORE,
        lambda found: against(found, "vq_projected", "vq", "codebook/usage", 1, 10),
    ),
    Claim(
        "The rotation trick reconstructs better than straight-through (2410.06424, section 5)",
        _CLOSER,
        lambda found: closer(found, "vq_rotation", "vq"),
    ),
    Claim(
        "The rotation trick uses more codes than straight-through (same)",
        _MORE,
        lambda found: against(found, "vq_rotation", "vq", "codebook/usage", 1, 10),
    ),
    Claim(
        "Reseeding idle codes uses more codes than splitting them (not claimed; measured)",
        _MORE,
        lambda found: against(found, "vq_reseed", "vq_ema", "codebook/usage", 1, 10),
    ),
    Claim(
        "An invertible layer norm makes residual FSQ better (2508.15860, section 4)",
        _CLOSER,
        lambda found: closer(found, "residual_fsq_layer_norm", "residual_fsq"),
    ),
    Claim(
        "Noise in training makes FSQ's reconstructions better (not claimed; measured)",
        _CLOSER,
        lambda found: closer(found, "fsq_noise", "fsq"),
    ),
    Claim(
        "FSQ, without losses or tricks, reconstructs better than SimVQ (not claimed; measured)",
        _CLOSER,
        lambda found: closer(found, "fsq", "simvq"),
    ),
)
