"""Statistics of network features over sets of images, for Fréchet distances."""

from collections.abc import Mapping

import jax

from fsq_jax import sharding
from fsq_jax.evaluators.run import Run
from fsq_jax.metrics.frechet import FeatureStatistics, frechet_distance
from fsq_jax.pretrained.features import load_features


class FeatureNetwork:
    """A frozen network on the mesh, and the statistics of its features.

    Args:
      run: where it runs.
      name: a network of `pretrained.features`: "efficientnet" or "random".
    """

    def __init__(self, run: Run, name: str):
        apply_fn, variables, self.info = load_features(name)
        self._run, self._apply = run, jax.jit(apply_fn)
        self._variables = sharding.put(variables, sharding.replicated(run.mesh))
        self.metric = f"fd_{name}"

    def add(
        self,
        statistics: FeatureStatistics,
        batch: Mapping[str, jax.Array],
        images_BHWC: jax.Array,
    ) -> None:
        """Takes a batch's images, in [0, 1], into the statistics, but for those masked out."""
        features_BF = self._apply(self._variables, images_BHWC)
        statistics.update(*sharding.to_host((features_BF, batch["mask"])))

    def distance(
        self, statistics: FeatureStatistics, split: str, limit: int
    ) -> tuple[float, dict]:
        """(Fréchet distance to the real images of a split, its protocol); limit 0 for all."""
        reference = FeatureStatistics()
        for batch in map(self._run.put, self._run.batches(split, limit)):
            self.add(reference, batch, batch["image"])
        value = frechet_distance(
            statistics.mean, statistics.covariance, reference.mean, reference.covariance
        )
        return value, {
            "features": dict(self.info),
            "num_images": statistics.count,
            "reference": {"split": split, "num_images": reference.count},
        }
