"""Trained weights with all that is needed to predict and to measure: what evaluators are given."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from fsq_jax.data.dataset import Dataset
from fsq_jax.data.pipeline import EvalBatches
from fsq_jax.data.transforms import Transform
from fsq_jax.runtime import sharding
from fsq_jax.runtime.progress import tracked
from fsq_jax.stages.stage import Stage, StageFacts, TrainState


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained state, its compiled functions and its data; `runs.load` makes one of any path.

    Attributes:
      config: of the run, or inferred from a published file.
      stage: what the state is of.
      predict: the stage's functions, compiled: name -> (state, batch, key) -> arrays.
      state: a `TrainState` on the mesh.
      batches: (split, limit, transform) -> the records of a split, each once, as padded NumPy
        batches with "mask"; limit 0 is no limit, and transform None the run's own for evaluation.
        In place of a split, a data set: records chosen from what `dataset` gives.
      dataset: split -> the records that `batches` are made of, at their own size: row r of
        batch i is record i * batch_size + r.
      mesh: where batches go.
      protocol: what every result is recorded with.
      seed: of all that is drawn in an evaluation.
      step: updates that the state has seen.
      workdir: the run's folder, beside which statistics of its data are kept; "" for a file.
    """

    config: ml_collections.ConfigDict
    stage: Stage
    predict: Mapping[str, Callable]
    state: TrainState
    batches: Callable[..., EvalBatches]
    dataset: Callable[[str], Dataset]
    mesh: jax.sharding.Mesh
    protocol: Mapping[str, Any]
    seed: int
    step: int
    workdir: str = ""

    eval_split = "eval"  # the split that is held out, by the name that `batches` takes

    @property
    def facts(self) -> StageFacts:
        """What is recorded of the stage, such as the size of the codebook."""
        return self.stage.facts

    @property
    def batch_size(self) -> int:
        """Examples of an evaluation batch over all hosts."""
        return self.config.eval_batch_size

    @property
    def rows(self) -> int:
        """Rows of an evaluation batch over all hosts: filled up so that the devices divide it."""
        return sharding.padded(self.batch_size, self.mesh)

    @property
    def own_rows(self) -> range:
        """This host's of them."""
        rows = self.rows // jax.process_count()
        return range(jax.process_index() * rows, (jax.process_index() + 1) * rows)

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The batch on the mesh, from this host's rows of it."""
        return sharding.put_batch(dict(batch), self.mesh)

    def outputs(
        self,
        name: str,
        split: str | Dataset = "",
        limit: int = 0,
        transform: Transform | None = None,
    ) -> Iterator[tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
        """(batch, outputs of `predict[name]`), both on the mesh, over a split (the held-out one)
        or records chosen from one."""
        key = jax.random.key(self.seed)
        split = self.eval_split if split == "" else split
        batches = self.batches(split, limit, transform)
        for i, batch in enumerate(tracked(batches, f"  {name}", self.batch_size)):
            batch = self.put(batch)
            yield batch, self.predict[name](self.state, batch, jax.random.fold_in(key, i))

    def predictions(
        self, name: str, limit: int = 0
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """(outputs of `predict[name]` for one example, its record as `dataset` has it), on the
        host, for all of the held-out split: what is measured at a record's own size."""
        dataset = self.dataset(self.eval_split)
        for i, (batch, outputs) in enumerate(self.outputs(name, limit=limit)):
            mask_B, outputs = sharding.to_host((batch["mask"], outputs))
            for row in np.flatnonzero(mask_B):
                record = dataset[i * self.batch_size + int(row)]
                yield {key: value[row] for key, value in outputs.items()}, record
