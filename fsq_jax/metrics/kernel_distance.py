"""Kernel distance of two sets of features, KID (Binkowski et al. 2018): an unbiased squared MMD.

The kernel is (x y / F + 1)^3; the estimate is the mean over random subsets of both sets. It may
come out below zero, for sets that are alike.

Legend: S subsets computed at once  N rows of a subset  F features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fsq_jax.runtime import sharding
from fsq_jax.runtime.user_error import UserError


def kernel_distance(
    first_NF: np.ndarray,
    second_NF: np.ndarray,
    *,
    num_subsets: int = 100,
    subset_size: int = 1_000,
    seed: int = 2020,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    """Returns (mean, deviation) of the squared MMD over subsets, drawn as torch-fidelity does.

    Args:
      first_NF, second_NF: features on the host, the same in every process.
      num_subsets, subset_size: of subsets, each drawn without replacement.
      seed: of NumPy's RandomState, which draws of the first set and of the second in turn.
      mesh: the devices that subsets are spread over; all of them by default.

    Raises UserError for sets smaller than a subset, other shapes, and values that are not finite.
    """
    sets = [np.asarray(features, np.float32) for features in (first_NF, second_NF)]
    for features in sets:
        if features.ndim != 2 or len(features) < subset_size or subset_size < 2:
            raise UserError(
                f"KID is a mean over subsets of 2 images or more, here of {subset_size}; one of "
                f"the two sets has features of shape {features.shape}."
            )
        if not np.isfinite(features).all():
            raise UserError("Features have NaN or infinity.")
    if sets[0].shape[1] != sets[1].shape[1]:
        widths = " and of ".join(str(s.shape[1]) for s in sets)
        raise UserError(f"Features of {widths} dimensions can't be compared.")
    rng = np.random.RandomState(seed)
    chosen = [
        [rng.choice(len(features), subset_size, replace=False) for features in sets]
        for _ in range(num_subsets)
    ]
    mesh = mesh or sharding.make_mesh()
    split = sharding.split_batch(mesh)
    estimates = []
    for start in range(0, num_subsets, mesh.size):
        some = chosen[start : start + mesh.size]
        some += some[:1] * (mesh.size - len(some))  # padding
        pair = (
            sharding.put(np.stack([x[pick[i]] for pick in some]), split) for i, x in enumerate(sets)
        )
        estimates.append(_squared_mmd(*map(np.float64, sharding.to_host(_kernel_sums(*pair)))))
    estimates = np.concatenate(estimates)[:num_subsets]
    return float(estimates.mean()), float(estimates.std())


@jax.jit
def _kernel_sums(x_SNF, y_SNF):
    """Row sums [S,N] of (kernel - c) within x and within y without the diagonal, and between them.

    c, the mean between the sets, drops out of the distance; without it sums of numbers that are
    nearly equal would leave few digits of their differences.
    """
    product = functools.partial(jnp.einsum, "snf,smf->snm", precision=jax.lax.Precision.HIGHEST)
    kernels = [
        (product(a, b) / a.shape[-1] + 1) ** 3
        for a, b in ((x_SNF, x_SNF), (y_SNF, y_SNF), (x_SNF, y_SNF))
    ]
    centre = kernels[2].mean(axis=(1, 2), keepdims=True)
    same = jnp.eye(x_SNF.shape[1], dtype=bool)
    within = [jnp.where(same, 0, kernel - centre).sum(axis=2) for kernel in kernels[:2]]
    return *within, (kernels[2] - centre).sum(axis=2)


def _squared_mmd(xx_SN, yy_SN, xy_SN):
    n = xx_SN.shape[1]
    within = (xx_SN + yy_SN).sum(axis=1) / (n * (n - 1))
    return within - 2 * xy_SN.sum(axis=1) / n**2
