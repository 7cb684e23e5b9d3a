"""Batches for training, without end and resumable at any of them, and for evaluation.

A batch holds one host's rows of a global batch, as NumPy arrays:

    image  float32 [B,H,W,3] in [0, 1]      (tokens int32 [B,L] from a token cache)
    label  int32 [B]
    mask   bool [B], False where the last evaluation batch is filled up
    and the features that were asked for (depth [B,H,W], segments [B,H,W,2])
    skipped bool [B], with skip_damaged in training: True for a row in a damaged record's place

The order of the records depends on the seed alone, and what a transform draws on the seed and the
position in that order: never on the number of hosts, threads or workers. That is why the state of
training is one number, the batches given so far.

With `skip_damaged` a damaged record is named once and left out: in training another one takes its
place, drawn from the damaged one's number alone, and in evaluation its row is masked. A record that
can't be read now (`UnreadError`) still ends the run: what is skipped must not depend on when.

Workers are processes started afresh ("spawn"): a script needs `if __name__ == "__main__":`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from fsq_jax.data.checked_records import DAMAGED, CheckedRecords, Skipped
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.decode import RecordError
from fsq_jax.data.transforms import MAPS, Transform
from fsq_jax.runtime.user_error import UserError

Batch = dict[str, np.ndarray]

_ENDLESS = 2**50  # records of training, more than any run sees
_MAX_THREADS = 2  # Python's lock lets few of them work at once; workers are for more


def train_batches(
    source: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    prefetch: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    features: Sequence[str] = (),
    skip_damaged: bool = False,
) -> "TrainBatches":
    """Endless batches of `batch_size` (over all hosts) from a source, from batch `start` on.

    Each epoch visits every record once in an order of its own; batches run across the ends of
    epochs. `prefetch` batches are made ahead in threads, by each of `workers` processes if there
    are any. Host `process_index` gets `batch_size / process_count` rows of each global batch.

    Raises UserError when the sizes don't fit, and RecordError (a UserError) from `next` for a
    record that cannot be read; with `skip_damaged`, where those in its place can't be, either.
    """
    rows = _rows_per_host(batch_size, process_index, process_count)
    read = CheckedRecords(source, tuple(features), skip_damaged)
    records = grain.MapDataset.source(read).seed(seed)
    # Grain's own endless length can't be rounded to whole batches in its floats.
    records = records.shuffle().repeat(max(1, _ENDLESS // len(source)))
    records = records.random_map(_Transformed(transform, tuple(features)))
    batches = records[process_index::process_count].batch(rows)
    return TrainBatches(batches, start, workers, prefetch, Skipped(read))


class TrainBatches(Iterator[Batch]):
    """Iterator of `train_batches`. Its state, {"position": batches given}, fits any other of the
    same source, batch size and seed, whatever its workers. `close` ends the workers."""

    def __init__(
        self,
        batches: grain.MapDataset,
        start: int,
        workers: int,
        prefetch: int,
        skipped: Skipped,
    ):
        self._batches, self._workers, self._prefetch = batches, workers, prefetch
        self._position, self._iterator, self._skipped = start, None, skipped

    def __next__(self) -> Batch:
        if self._iterator is None:  # opened at the first batch: a restore comes before it
            self._iterator = _open(self._batches[self._position :], self._workers, self._prefetch)
        batch = _next(self._iterator)
        self._position += 1
        if (damaged := batch.pop(DAMAGED, None)) is not None:
            batch["skipped"] = self._skipped.named(damaged)
        return batch

    def get_state(self) -> dict[str, int]:
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Ends threads and workers; the next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def eval_batches(
    source: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    rows: int = 0,
    limit: int | None = None,
    workers: int = 0,
    prefetch: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    features: Sequence[str] = (),
    skip_damaged: bool = False,
) -> "EvalBatches":
    """Batches of the first `limit` records (all by default) in their order, each exactly once.

    Each batch has `batch_size` of them, and is filled up to `rows` (as many, by default) with
    copies whose mask is False, as is the last one. Every host gets the same number of batches;
    host h the h-th block of rows of each. Iterate over the result as often as needed; `len` is
    the number of batches. Raises as `train_batches` does.
    """
    if not 1 <= batch_size <= (rows or batch_size):
        raise UserError(f"{batch_size=} must be at least 1, and no more than {rows=}.")
    rows = _rows_per_host(rows or batch_size, process_index, process_count)
    length = len(source) if limit is None else min(limit, len(source))
    if length < 1:
        raise UserError(f"There is no record to evaluate: {limit=}, {len(source)=}.")
    read = CheckedRecords(source, tuple(features), skip_damaged)
    padded = _Padded(
        records=read,
        transformed=_Transformed(transform, tuple(features)),
        length=length,
        rows=rows,
        first_row=process_index * rows,
        batch_size=batch_size,
    )
    batches = grain.MapDataset.source(padded).batch(rows)
    return EvalBatches(batches, workers, prefetch, Skipped(read))


class EvalBatches:
    """The batches of `eval_batches`; each iteration begins at the first."""

    def __init__(self, batches: grain.MapDataset, workers: int, prefetch: int, skipped: Skipped):
        self._batches, self._workers, self._prefetch = batches, workers, prefetch
        self._skipped = skipped

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        iterator = _open(self._batches, self._workers, self._prefetch)
        try:
            for _ in range(len(self)):
                batch = _next(iterator)
                if (damaged := batch.pop(DAMAGED, None)) is not None:
                    batch["mask"] = batch["mask"] & ~self._skipped.named(damaged)
                yield batch
        finally:
            iterator.close()


def _rows_per_host(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise UserError(f"There is no host {process_index=} of {process_count=}.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"{batch_size=} is not a multiple of {process_count=} hosts.")
    return batch_size // process_count


def _open(batches: grain.MapDataset, workers: int, prefetch: int) -> grain.DatasetIterator:
    """Starts the threads or workers that make batches ahead; they come in order all the same."""
    if workers < 0 or prefetch < 1:
        raise UserError(f"Needs workers >= 0 and prefetch >= 1, not {workers=}, {prefetch=}.")
    threads = 1 if workers else min(prefetch, _MAX_THREADS)
    made = batches.to_iter_dataset(grain.ReadOptions(threads, prefetch))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads its own; a notebook or a test parses none
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch)
        made = made.mp_prefetch(options, worker_init_fn=_start_worker)
    return iter(made)


def _start_worker(index: int, count: int) -> None:
    """One worker is one thread: OpenCV would start one for each core in each worker."""
    cv2.setNumThreads(1)


def _next(iterator: grain.DatasetIterator) -> Batch:
    try:
        return next(iterator)
    except RecordError as error:
        iterator.close()
        message = str(error)
    raise RecordError(message)  # without the frames of threads and workers, which tell nothing


@dataclasses.dataclass(frozen=True)
class _Transformed:
    """A record to a row of a batch: transformed, and reduced to what batches carry."""

    transform: Transform
    features: tuple[str, ...]

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        unused = set(MAPS) - {"image", *self.features}  # not worth a crop
        damaged = {DAMAGED: np.int64(record[DAMAGED])} if DAMAGED in record else {}
        record = {n: value for n, value in record.items() if n not in unused and n != DAMAGED}
        record = self.transform(record, rng)
        kept = [name for name in ("image", "tokens", *self.features) if name in record]
        row = {name: np.ascontiguousarray(record[name]) for name in kept}
        return row | {"label": np.int32(record["label"]), "mask": np.bool_(True)} | damaged


@dataclasses.dataclass(frozen=True)
class _Padded:
    """One host's rows of the global evaluation batches, one after the other."""

    records: CheckedRecords
    transformed: _Transformed
    length: int
    rows: int
    first_row: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.length // self.batch_size) * self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(index, self.rows)
        row += self.first_row
        position = batch * self.batch_size + row
        within = row < self.batch_size and position < self.length
        record = self.records[min(position, self.length - 1)]
        # A transform for evaluation draws nothing; one that does is the same on any host.
        row = self.transformed(record, np.random.default_rng(position))
        return row | {"mask": np.bool_(within)}
