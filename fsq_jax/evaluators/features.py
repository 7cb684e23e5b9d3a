"""Statistics of network features over sets of images, for Fréchet distances."""

from collections.abc import Mapping

import jax

from fsq_jax import sharding
from fsq_jax.evaluators.run import Run
from fsq_jax.metrics import frechet
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

    def no_images(self) -> frechet.Moments:
        """The moments to start from."""
        return frechet.Moments.empty(self.info["features"])

    def add(
        self, moments: frechet.Moments, batch: Mapping[str, jax.Array], images_BHWC: jax.Array
    ) -> frechet.Moments:
        """The moments with a batch's images, in [0, 1], added, but for those masked out."""
        features_BF = self._apply(self._variables, images_BHWC)
        return moments.update(*sharding.to_host((features_BF, batch["mask"])))

    def reference(self, split: str, limit: int) -> frechet.Moments:
        """The moments of the real images of a split; limit 0 for all."""
        moments = self.no_images()
        for batch in map(self._run.put, self._run.batches(split, limit)):
            moments = self.add(moments, batch, batch["image"])
        return moments

    def distance(
        self, moments: frechet.Moments, reference: frechet.Moments, split: str
    ) -> tuple[float, dict]:
        """(Fréchet distance to the reference, which is of that split; its protocol)."""
        return frechet.distance(moments, reference), {
            "features": dict(self.info),
            "num_images": moments.count,
            "reference": {"split": split, "num_images": reference.count},
        }
