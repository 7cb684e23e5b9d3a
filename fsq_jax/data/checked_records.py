"""The records of a data set as training and evaluation read them: whole, or named as damaged."""

import dataclasses
from typing import Any

import numpy as np

from fsq_jax.data import checks
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.decode import RecordError, UnreadError
from fsq_jax.runtime.progress import log

DAMAGED = "damaged"  # in a record: the number of the one it stands for, -1 where it is whole
_OTHERS = 8  # records that are tried in the place of a damaged one


@dataclasses.dataclass(frozen=True)
class CheckedRecords:
    """A source whose records are checked to hold what is asked for, damaged ones replaced."""

    source: Dataset
    features: tuple[str, ...]
    skip_damaged: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.skip_damaged:
            return self.read(index)
        try:
            return self.read(index) | {DAMAGED: -1}
        except UnreadError:
            raise
        except RecordError as error:
            return self._another(index, error) | {DAMAGED: index}

    def _another(self, index: int, error: RecordError) -> dict[str, Any]:
        """A record in a damaged one's place: the same one in every epoch, process and start."""
        for other in np.random.default_rng(index).integers(len(self), size=_OTHERS):
            try:
                return self.read(int(other))
            except UnreadError:
                raise
            except RecordError:
                continue
        raise RecordError(f"{error} Nor can any of {_OTHERS} others be read in its place.")

    def read(self, index: int) -> dict[str, Any]:
        """Record `index`; raises RecordError where it is damaged."""
        return checks.checked_record(self.source, index, self.features)


class Skipped:
    """Names each damaged record once."""

    def __init__(self, records: CheckedRecords):
        self._records, self._known = records, set()

    def named(self, damaged_B: np.ndarray) -> np.ndarray:
        """bool [B], the rows of damaged records; says on stderr what is wrong with new ones."""
        for index in sorted({int(i) for i in damaged_B if i >= 0} - self._known):
            self._known.add(index)
            try:
                self._records.read(index)
            except RecordError as error:
                log(f"{error} It is skipped, as data.skip_damaged says.", every_host=True)
        return damaged_B >= 0
