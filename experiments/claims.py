"""What the paper claims, what we measured, and whether the one confirms the other.

A claim's rule stands in its text before anything is measured. Two means differ where they are
further apart than twice the standard error of their difference. Of a single run the deviation is
taken to be the largest that the same metric has among repeated runs of the experiment; where none
was repeated, nothing is decided.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.entries import Entry, Spread, spread, values
from fsq_jax.reports import html

CONFIRMED, REFUTED, OPEN, NOT_RUN = "confirmed", "refuted", "not decided", "not run"


@dataclass(frozen=True)
class Finding:
    """A verdict and the numbers behind it, as text."""

    verdict: str
    measured: str = ""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the rule that decides it, and what applies the rule.

    Attributes:
      paper: the claim, with its section or figure.
      rule: what counts as confirmed and as refuted.
      judge: entries of the experiment -> finding.
    """

    paper: str
    rule: str
    judge: Callable[[Sequence[Entry]], Finding]


def text(spread: Spread | None) -> str:
    """Mean and deviation in words; "not run" of None."""
    return NOT_RUN if spread is None else spread.text()


def table(claims: Sequence[Claim], found: Sequence[Entry]) -> html.Table:
    """One row per claim: the claim, our measurement, the verdict, the rule."""
    rows = []
    for claim in claims:
        finding = claim.judge(found)
        rows.append((claim.paper, finding.measured or "–", finding.verdict, claim.rule))
    return html.Table(("the paper's claim", "measured", "verdict", "rule"), rows)


def largest_deviation(groups: Sequence[Sequence[Entry]], metric: str) -> float | None:
    """The largest deviation of a metric among groups of repeated runs, if there are any."""
    spreads = [spread(values(group, metric)) for group in groups]
    known = [s.deviation for s in spreads if s is not None and s.deviation is not None]
    return max(known) if known else None


def compare(a: Spread | None, b: Spread | None, deviation: float | None) -> int:
    """-1 where a's mean is lower than b's by more than the rule asks for, 1 where higher, else 0.

    Args:
      a, b: the two; None of what was not run.
      deviation: that of a single run, where only one was made.
    """
    if a is None or b is None:
        return 0
    deviations = [deviation if s.deviation is None else s.deviation for s in (a, b)]
    if None in deviations:
        return 0
    error = math.sqrt(sum(d**2 / s.count for d, s in zip(deviations, (a, b), strict=True)))
    difference = a.mean - b.mean
    return 0 if abs(difference) <= 2 * error else int(math.copysign(1, difference))


def by_signs(signs: Sequence[int], expected: int, measured: str) -> Finding:
    """The verdict of several comparisons that should all come out alike.

    Confirmed: at least half of them come out as expected and none the other way. Refuted: more
    come out the other way than as expected.
    """
    if not signs:
        return Finding(NOT_RUN)
    right, wrong = signs.count(expected), signs.count(-expected)
    if wrong > right:
        return Finding(REFUTED, measured)
    if not wrong and 2 * right >= len(signs):
        return Finding(CONFIRMED, measured)
    return Finding(OPEN, measured)


SIGNS_RULE = (
    "confirmed: at least half of the comparisons come out so by more than twice the standard "
    "error and none the other way; refuted: more come out the other way than so"
)
