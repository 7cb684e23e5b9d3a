"""Mean and deviation of a few runs that differ in their seed alone."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a few runs; deviation None of a single one."""

    mean: float
    deviation: float | None
    count: int

    def text(self, form: str = "{:.3g}") -> str:
        if self.deviation is None:
            return form.format(self.mean)
        return f"{form.format(self.mean)} ± {form.format(self.deviation)}"


def spread(numbers: Sequence[float]) -> Spread | None:
    """Mean and deviation; None of no numbers."""
    if not numbers:
        return None
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), deviation, len(numbers))


def pooled(groups: Sequence[Sequence[float]]) -> float | None:
    """The sample deviation within groups, sqrt(sum (n - 1) variance / sum (n - 1)); None where no
    group has two numbers."""
    several = [group for group in groups if len(group) > 1]
    if not several:
        return None
    squares = sum((len(group) - 1) * statistics.variance(group) for group in several)
    return math.sqrt(squares / sum(len(group) - 1 for group in several))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, in [-1, 1], of numbers none of which is there twice."""
    x, y = (np.argsort(np.argsort(numbers)) for numbers in (first, second))
    return float(np.corrcoef(x, y)[0, 1])
