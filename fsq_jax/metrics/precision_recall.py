"""Improved precision and recall (Kynkaanniemi et al. 2019) of samples against real images.

Around each point lies a ball that reaches to its k-th nearest neighbour in its own set, the point
itself not counted. Precision is the share of samples inside any ball of the reference, recall the
share of the reference inside any ball of the samples. Distances are float32, computed in blocks of
rows: memory grows with the number of points, not with its square. ADM's suite takes 10,000 real
images and all samples; torch-fidelity takes all of both. The formula is the same.

Legend: N queries  M points  B rows of a block  F features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fsq_jax.runtime import sharding
from fsq_jax.runtime.user_error import UserError

_EPS = 4e-6  # what rounding leaves of a zero distance, beside the squared norms


def precision_recall(
    samples_NF: np.ndarray,
    reference_MF: np.ndarray,
    *,
    k: int = 3,
    block: int = 2_048,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    """Returns (precision, recall), both from 0 to 1.

    Args:
      samples_NF, reference_MF: features on the host, the same in every process.
      k: the neighbour that a ball reaches to.
      block: rows whose distances to all points are in memory at once, over all devices:
        block x 50,000 x 4 bytes, a few times over.
      mesh: the devices that a block's rows are spread over; all of them by default.

    Raises UserError for fewer than k + 1 points, other shapes, and values that are not finite.
    """
    sets = [np.asarray(features) for features in (samples_NF, reference_MF)]
    for name, features in zip(("samples", "reference"), sets, strict=True):
        if features.ndim != 2 or len(features) <= k:
            raise UserError(
                f"Precision and recall with {k=} need at least {k + 1} rows of features, not "
                f"{features.shape} ({name})."
            )
        if not np.isfinite(features).all():
            raise UserError(f"The features of the {name} have NaN or infinity.")
    if sets[0].shape[1] != sets[1].shape[1]:
        widths = " and of ".join(str(s.shape[1]) for s in sets)
        raise UserError(f"Features of {widths} dimensions can't be compared.")
    # Distances do not change, but |x|^2 - 2xy + |y|^2 loses fewer digits about the mean.
    centre_F = sets[1].mean(axis=0, dtype=np.float64)
    samples, reference = (_Points((x - centre_F).astype(np.float32), block, mesh) for x in sets)
    precision = samples.inside(reference, reference.radii(k))
    recall = reference.inside(samples, samples.radii(k))
    return float(precision.mean()), float(recall.mean())


class _Points:
    """A set on the devices, all of it on each, and its rows in blocks."""

    def __init__(self, features_NF: np.ndarray, block: int, mesh: Mesh | None):
        self._mesh = mesh or sharding.make_mesh()
        # A multiple of the devices, and no larger than the set.
        rows = min(block, len(features_NF))
        self._rows = -(-rows // self._mesh.size) * self._mesh.size
        self._features_NF = features_NF
        self.everywhere = sharding.put(features_NF, sharding.replicated(self._mesh))

    def _over_blocks(self, function, *arguments) -> np.ndarray:
        """`function(block, index of its first row, *arguments)` of all rows, [N]."""
        results, split = [], sharding.split_batch(self._mesh)
        for start in range(0, len(self._features_NF), self._rows):
            rows = self._features_NF[start : start + self._rows]
            padded = np.pad(rows, ((0, self._rows - len(rows)), (0, 0)))
            block = sharding.put(padded, split)
            results.append((function(block, np.int32(start), *arguments), len(rows)))
        return np.concatenate([sharding.to_host(result)[:rows] for result, rows in results])

    def radii(self, k: int) -> np.ndarray:
        """Squared distance of each point to its k-th neighbour among the others: float32 [N]."""
        return self._over_blocks(functools.partial(_radii, k=k), self.everywhere)

    def inside(self, centres: "_Points", radii_M: np.ndarray) -> np.ndarray:
        """Whether each point lies in (or on) any ball about a centre: bool [N]."""
        radii_M = sharding.put(radii_M, sharding.replicated(self._mesh))
        return self._over_blocks(_inside, centres.everywhere, radii_M)


def _squared_distances(x_BF, y_MF):
    product_BM = jnp.dot(x_BF, y_MF.T, precision=jax.lax.Precision.HIGHEST)
    norms_BM = (x_BF**2).sum(axis=1)[:, None] + (y_MF**2).sum(axis=1)
    squared_BM = norms_BM - 2 * product_BM
    return jnp.where(squared_BM > _EPS * norms_BM, squared_BM, 0)  # equal points: exactly 0


@functools.partial(jax.jit, static_argnames="k")
def _radii(x_BF, first, points_MF, k):
    index_M = jnp.arange(len(points_MF))
    itself_BM = (first + jnp.arange(len(x_BF)))[:, None] == index_M
    squared_BM = jnp.where(itself_BM, jnp.inf, _squared_distances(x_BF, points_MF))
    # k times the nearest, which is then taken away: a sort of each row would take far longer.
    for _ in range(k - 1):
        nearest_B = squared_BM.argmin(axis=1)
        squared_BM = jnp.where(index_M == nearest_B[:, None], jnp.inf, squared_BM)
    return squared_BM.min(axis=1)


@jax.jit
def _inside(x_BF, first, centres_MF, radii_M):
    del first
    return (_squared_distances(x_BF, centres_MF) <= radii_M).any(axis=1)
