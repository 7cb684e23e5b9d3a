"""Frechet distance between two sets of features, as in FID, on the host in float64.

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

`Moments` gathers mean and covariance over any number of batches, hosts and ragged ends.

Legend: B rows of a batch  F features.
"""

import dataclasses

import numpy as np

from fsq_jax.runtime.user_error import UserError

# Statistics that were saved in float32 have eigenvalues below zero of 1e-7 of the largest.
_ROOT_ERROR = 1e-5


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and scatter of the rows seen so far; `update` and `merge` return new ones.

    count: number of rows. mean: float64 [F]. scatter: float64 [F, F], the sum of (x - mean)
    (x - mean)^T. Kept about the mean and merged by Chan's formula, so that a mean that is large
    beside the spread costs no digits.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, num_features: int) -> "Moments":
        """Returns the moments of no rows."""
        return cls(0, np.zeros(num_features), np.zeros((num_features, num_features)))

    def update(self, features_BF: np.ndarray, mask_B: np.ndarray | None = None) -> "Moments":
        """Returns the moments with a batch added, without the rows where the mask is False.

        Raises UserError for another number of features and for rows that are not finite.
        """
        features_BF = np.asarray(features_BF, np.float64)
        if features_BF.ndim != 2 or features_BF.shape[1] != len(self.mean):
            raise UserError(
                f"Features of shape {features_BF.shape} do not fit [rows, {len(self.mean)}]."
            )
        if mask_B is not None:
            features_BF = features_BF[np.asarray(mask_B, bool)]
        if not len(features_BF):
            return self
        if bad := int((~np.isfinite(features_BF)).any(axis=1).sum()):
            raise UserError(f"{bad} of {len(features_BF)} rows of features have NaN or infinity.")
        mean = features_BF.mean(axis=0)
        centred_BF = features_BF - mean
        return self.merge(Moments(len(features_BF), mean, centred_BF.T @ centred_BF))

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of the rows of both."""
        _check_dimensions(len(self.mean), len(other.mean))
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, float64 [F, F]; raises UserError for fewer than 2 rows."""
        if self.count < 2:
            raise UserError(f"A covariance needs at least 2 rows of features, not {self.count}.")
        return self.scatter / (self.count - 1)


def distance(first: Moments, second: Moments) -> float:
    """Returns the Frechet distance of two sets of features, see `frechet_distance`."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def frechet_distance(
    mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray
) -> float:
    """Returns the squared Frechet distance of two Gaussians, at least 0 and always finite.

    The trace of (S1^1/2 S2 S1^1/2)^1/2 is the sum of the singular values of R1^T R2 for any roots
    S = R R^T. Roots come from symmetric eigenproblems, so that covariances of any rank will do (a
    general matrix root fails on singular ones), and the singular values, unlike eigenvalues of the
    product, lose no digits to a second square root.
    Each root is checked against its covariance.
    Raises UserError for values that are not finite, for shapes that differ, and for a matrix that
    is no covariance: one whose root, multiplied out, is off by more than 1e-5 of its norm.
    """
    _check_dimensions(len(mean1), len(mean2))
    for mean, covariance in ((mean1, covariance1), (mean2, covariance2)):
        if covariance.shape != (len(mean), len(mean)):
            raise UserError(
                f"A mean of {len(mean)} features needs a square covariance of as many, not "
                f"{covariance.shape}."
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError("A mean or covariance has NaN or infinity.")
    root1, root2 = _root(covariance1), _root(covariance2)
    cross = np.linalg.svd(root1.T @ root2, compute_uv=False).sum()
    difference = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    squared = difference @ difference + np.trace(covariance1) + np.trace(covariance2) - 2 * cross
    return float(max(squared, 0.0))  # rounding can leave -1e-12 for equal sets


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns R [F, rank] with R R^T = covariance; drops what rounding leaves of a zero."""
    covariance = np.asarray(covariance, np.float64)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    keep = values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps
    root = vectors[:, keep] * np.sqrt(values[keep])
    error, norm = np.linalg.norm(root @ root.T - covariance), np.linalg.norm(covariance)
    if error > _ROOT_ERROR * norm:
        raise UserError(
            f"The root of a covariance is off by {error / norm:.2g} of its norm: the matrix is not "
            f"symmetric, or has negative eigenvalues (down to {values.min():.2g}, the largest is "
            f"{values.max():.2g})."
        )
    return root


def _check_dimensions(first: int, second: int) -> None:
    if first != second:
        raise UserError(f"Features of {first} and of {second} dimensions can't be compared.")
