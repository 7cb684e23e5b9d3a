"""Which of a run's checkpoints is the best one, in this process and after a restart."""

import dataclasses
import math
import os
from collections.abc import Sequence

from fsq_jax.runtime import manifest


@dataclasses.dataclass
class Best:
    """A preservation policy of Orbax: keeps the checkpoint whose metric is the best.

    A checkpoint without the metric is never the best.

    sign: 1 where more is better, -1 where less is.
    """

    name: str
    sign: int
    directory: str

    def should_preserve(self, checkpoints: Sequence, *, context) -> Sequence[bool]:
        del context
        values = [self._value(info) for info in checkpoints]
        best = max(values, default=-math.inf)
        last = max((i for i, v in enumerate(values) if v == best), default=-1)
        return [i == last and best > -math.inf for i in range(len(values))]

    def _value(self, info) -> float:
        """The metric of a checkpoint, of this process or of one before it."""
        metrics = info.metrics
        if metrics is None:
            metrics = manifest.metrics(os.path.join(self.directory, str(info.step)))
        value = metrics.get(self.name, math.nan)
        known = isinstance(value, (int, float)) and math.isfinite(value)
        return self.sign * float(value) if known else -math.inf
