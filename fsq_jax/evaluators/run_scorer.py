"""FID and its relatives inside a run: its data's statistics, kept on disk beside its workdir."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from fsq_jax.data.pipeline import EvalBatches
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.runtime import outputs
from fsq_jax.runtime.files import alone
from fsq_jax.runtime.progress import log, tracked
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import protocols, reference_file
from fsq_jax.scoring.accumulator import Statistics
from fsq_jax.scoring.scorer import Scorer, check


def check_evals(evals: Mapping[str, Mapping]) -> None:
    """Raises a UserError where an evaluator's network, protocol or reference isn't there.

    Training calls it before its first step: an evaluation that can't be made must not come to
    light after the last.
    """
    for name, arguments in evals.items():
        if not arguments.get("features"):
            continue
        try:
            protocols.named(arguments.get("protocol", "adm"))
            check(arguments["features"], arguments.get("weights", ""))
        except ValueError as error:
            others = f"--config.evals.{name}.features=efficientnet"
            raise UserError(f"evals.{name}: {error} ({others} needs no file.)") from None
        path, published = (arguments.get(n, "") for n in ("reference", "published_reference"))
        if path:
            try:
                reference_file.load(path)
            except ValueError as error:
                raise UserError(f"evals.{name}: {error}") from None
        elif published and arguments["features"] == "inception":
            log(
                f"evals.{name} has no reference={published}, against which published numbers are; "
                f"what is measured against the data's own is called {OWN_REFERENCE.format('fid')}."
            )


# What a metric is called that is not against the reference of published numbers.
OWN_REFERENCE = "{}_own_reference"
_NO_REFERENCE = ("inception_score",)  # which sees no real images


def check_reference(
    arguments: Mapping, every_metric: bool, mesh: Mesh, size: int, transform: str
) -> None:
    """Raises a UserError where a reference's file isn't of an evaluator's protocol, or of images
    of this size and transform."""
    protocol = _wanted(arguments["features"], arguments.get("protocol", "adm"), every_metric)
    scorer = Scorer(mesh, protocol, arguments.get("weights", ""))
    scorer.read_reference(arguments["reference"], (size, size), transform)


def _wanted(network: str, protocol: str, every_metric: bool) -> protocols.Protocol:
    """The protocol over a network's features, of the Fréchet distance alone or of all it has."""
    wanted = protocols.named(protocol).over(network)
    if every_metric:
        return wanted
    return wanted.replace(
        spatial=False,
        inception_score="",
        precision_recall=False,
        precision_images=0,
        kernel_distance=False,
    )


class RunScorer:
    """A frozen network on a run's mesh, the statistics of its features, and what they say.

    Args:
      predictor: where it runs.
      name: a network: "inception", whose distance is FID, "efficientnet" or "random".
      protocol: how it is measured, a name of `protocols.NAMED`.
      weights: file of Inception's; "" for $FSQ_JAX_INCEPTION.
      every_metric: all that the protocol has; otherwise the Fréchet distance alone.

    Attributes:
      metric: what the Fréchet distance is called: "fid", "fd_random".
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        protocol: str = "adm",
        weights: str = "",
        every_metric: bool = False,
    ):
        wanted = _wanted(name, protocol, every_metric)
        self._predictor, self._scorer = predictor, Scorer(predictor.mesh, wanted, weights)
        self.metric = self._scorer.metric("fid")

    def no_images(self) -> Statistics:
        """The statistics to start from."""
        return self._scorer.empty()

    def add(
        self, moments: Statistics, batch: Mapping[str, jax.Array], images_BHWC: jax.Array
    ) -> Statistics:
        """The statistics with a batch's images, in [0, 1], added, but for those masked out."""
        return self._scorer.add(moments, images_BHWC, batch["mask"])

    def reference(self, split: str, limit: int, path: str = "") -> Statistics:
        """The statistics of the real images of a split; limit 0 for all.

        They are read from the file at `path` where one is given, and otherwise computed once: runs
        that are neighbours find them in the folder references/ beside their workdirs.
        """
        if path:
            size, transform = (self._predictor.protocol[name] for name in ("size", "transform"))
            rows = self._predictor.batch_size
            return self._scorer.load_reference(path, rows, (size, size), transform)
        origin = protocols.Reference(self._predictor.protocol.get("data", ""), self._split(split))
        batches = self._predictor.batches(split, limit)
        file = self._file(origin, limit, len(batches))
        if file and not os.path.exists(file):
            try:
                outputs.check_folder(os.path.dirname(file))
            except UserError as error:  # the statistics are computed, and not kept
                log(str(error))
                file = ""
        # Neighbours that come to their evaluations together compute them once.
        with alone(file) if file else contextlib.nullcontext():
            if file and os.path.exists(file):
                return self._scorer.load_reference(file)
            return self._compute_reference(origin, batches, file)

    def _compute_reference(
        self, origin: protocols.Reference, batches: EvalBatches, file: str
    ) -> Statistics:
        """The statistics of all images of these batches, saved in a file unless it is ""."""
        if file:
            log(f"Statistics of {origin.name} {origin.split}, for {file} …")
        seen = self._scorer.empty(reference=True)
        rows = self._predictor.batch_size
        for batch in map(self._predictor.put, tracked(batches, "  real images", rows)):
            seen = self.add(seen, batch, batch["image"])
        kept = seen.keep.get("pool", 0)
        seen = seen.flush().with_source(
            origin.name, split=origin.split, subset=f"first {kept}" if kept else ""
        )
        if file and jax.process_index() == 0:
            seen.save(file, self._scorer.record(seen, seen))
        return seen

    def _split(self, split: str) -> str:
        """The data's name of "train" and "eval"."""
        return self._predictor.protocol.get(f"{split}_split", split)

    def _file(self, origin: protocols.Reference, limit: int, num_batches: int) -> str:
        """Where a split's statistics are kept; "" where the run has no workdir."""
        if not self._predictor.workdir:
            return ""
        facts = self._scorer.facts() | {
            "data": origin.name,
            "split": origin.split,
            "limit": limit,
            "size": self._predictor.protocol.get("size"),
            "transform": self._predictor.protocol.get("transform"),
            # Of a folder to which images were added: another number of batches.
            "batches": [num_batches, self._predictor.batch_size],
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        beside = os.path.dirname(os.path.abspath(self._predictor.workdir))
        return os.path.join(beside, "references", f"{facts['network']}_{key}.npz")

    def distance(
        self, moments: Statistics, reference: Statistics, split: str
    ) -> tuple[float, dict]:
        """(Fréchet distance to the reference, its protocol).

        Args:
          moments: what is measured.
          reference: real images, from `reference`, or added one by one.
          split: that they are of.

        Raises:
          UserError: where the reference says that it is of another split.
        """
        split = self._split(split)
        if reference.origin == protocols.Reference():
            data = self._predictor.protocol.get("data", "")
            reference = reference.flush().with_source(data, split=split)
        elif reference.origin.split != split:
            raise UserError(f"The reference is of {reference.origin.split!r}, not {split!r}.")
        values, record = self.measure(moments, reference, seed=self._predictor.seed)
        return values[self.metric], record

    def measure(
        self, samples: Statistics, reference: Statistics, published_reference: str = "", **facts
    ) -> tuple[dict[str, float], dict]:
        """({metric: value} of all that is measured, its protocol with these facts).

        Where published numbers are against a file, `published_reference`, "fid" and its relatives
        are those against that file; against another reference they are "fid_own_reference".
        """
        samples, reference = samples.flush(), reference.flush()
        record = self._scorer.record(samples, reference, **facts)
        values = self._scorer.measure(samples, reference)
        if self.metric == "fid" and published_reference not in ("", reference.origin.name):
            values = {
                name if name in _NO_REFERENCE else OWN_REFERENCE.format(name): value
                for name, value in values.items()
            }
        return values, dict(record)
