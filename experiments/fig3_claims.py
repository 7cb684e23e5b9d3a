"""What the paper says of its Figure 3, and the rules that decide it."""

from collections.abc import Sequence

from experiments import claims, entries
from experiments.claims import SIGNS_RULE, Claim, Finding
from experiments.entries import Entry

BITS = (4, 6, 8, 9, 10, 11, 12, 14, 16)
STAGE_2 = (8, 10, 12, 14, 16)
QUANTIZERS = ("fsq", "vq")


def of(found: Sequence[Entry], quantizer: str, bits: int, metric: str) -> entries.Spread | None:
    """Mean and deviation of a metric over the seeds of one size."""
    return entries.spread(
        entries.values(entries.select(found, quantizer=quantizer, bits=bits), metric)
    )


def distance(found: Sequence[Entry], kind: str) -> str:
    """The name of the Fréchet distance that was measured, such as "sampling/fd_efficientnet"."""
    names = {name for e in found for name in e if name.startswith((f"{kind}/fd_", f"{kind}/fid"))}
    return min(names, default=f"{kind}/fid")


def reconstruction(found: Sequence[Entry]) -> tuple[str, ...]:
    """The metrics of reconstructions, the distance first."""
    return distance(found, "reconstruction"), "reconstruction/psnr", "reconstruction/ssim"


def compared(
    found: Sequence[Entry], metric: str, sizes: Sequence[int]
) -> tuple[dict[int, int], str]:
    """({bits: -1 where FSQ's mean is lower, 1 where higher, 0}, the means as text).

    A size at which one of the two was not run is in the text, and undecided; {} where all are.
    """
    groups = [entries.select(found, quantizer=q, bits=b) for q in QUANTIZERS for b in BITS]
    deviation = claims.largest_deviation(groups, metric)
    signs, texts, pairs = {}, [], 0
    for bits in sizes:
        ours, theirs = (of(found, q, bits, metric) for q in QUANTIZERS)
        signs[bits] = claims.compare(ours, theirs, deviation)
        texts.append(f"2^{bits}: FSQ {claims.text(ours)}, VQ {claims.text(theirs)}")
        pairs += ours is not None and theirs is not None
    return (signs if pairs else {}), "; ".join(texts)


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
    signs = [
        claims.compare(means[b], means[a], deviation)
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]
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
    share = {
        (q, b): m
        for q in QUANTIZERS
        for b in BITS
        if (m := of(found, q, b, "codebook/usage")) is not None
    }
    needed = [("vq", 12), ("vq", 14), ("vq", 16), ("fsq", 14)]
    if any(key not in share for key in needed):
        return Finding(claims.NOT_RUN)
    text = "; ".join(
        f"2^{b}: FSQ {share['fsq', b].text('{:.1%}')}, VQ {share['vq', b].text('{:.1%}')}"
        for b in BITS
        if ("fsq", b) in share and ("vq", b) in share
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
    text = "; ".join(f"2^{b}: {claims.text(of(found, 'fsq', b, metric))}" for b in STAGE_2)
    if None in (small, middle, large):
        return Finding(claims.NOT_RUN, text)
    first, then = small.mean - middle.mean, middle.mean - large.mean
    if first <= 0:
        return Finding(claims.REFUTED, text)
    if then > first / 2:
        return Finding(claims.REFUTED, text)
    return Finding(claims.CONFIRMED if then <= first / 4 else claims.OPEN, text)


CLAIMS = (
    Claim(
        "FSQ's reconstructions improve with every doubling of the codebook (5.1, Figure 3a)",
        "confirmed: the mean distance falls from each size to the next, at least half of the times "
        "by more than twice the standard error; refuted: it once rises by more than that",
        improves,
    ),
    Claim(
        "In reconstruction VQ is better at small codebooks (below about 2^9), FSQ at large ones "
        "(5.1, Figure 3a)",
        f"2^9 left out; {SIGNS_RULE}",
        crossing,
    ),
    Claim(
        "VQ uses less than half of a large codebook, FSQ nearly all of 2^14 (5.1, Figure 3c)",
        "confirmed: VQ's usage below 50 % at 2^12, 2^14 and 2^16, FSQ's at least 90 % up to 2^14; "
        "refuted: VQ's at least 50 % at 2^16, or FSQ's below 50 % at 2^14",
        usage,
    ),
    Claim(
        "FSQ's tokens cost more bits than VQ's (5.1, Figure 3d)",
        f"higher; {SIGNS_RULE}",
        cost,
    ),
    Claim(
        "Samples are better with FSQ past 2^10 (5.1, Figure 3b)",
        f"a smaller distance at 2^12, 2^14, 2^16; {SIGNS_RULE}",
        sampling,
    ),
    Claim(
        "FSQ's samples stop improving at about 2^12 (5.1, Figure 3b)",
        "confirmed: the mean distance falls by at most a quarter as much from 2^12 to 2^16 as from "
        "2^8 to 2^12; refuted: by more than half as much, or not from 2^8 to 2^12",
        saturates,
    ),
)
