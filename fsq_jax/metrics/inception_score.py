"""Inception Score (Salimans et al. 2016): exp of the mean KL of p(class | image) to p(class).

Tools differ in how they cut the images into blocks, each of which gets a score; the mean over
blocks is what they report. Probabilities are softmaxes of the logits without the classifier's bias.

Legend: N images  B images of a batch  V classes  S blocks.
"""

import dataclasses

import numpy as np

from fsq_jax.runtime.user_error import UserError

CUTS = ("blocks", "shuffled")


def consecutive_blocks(num_images: int, size: int = 5_000) -> np.ndarray:
    """Returns the block of each image as ADM cuts them, in their order: int64 [N].

    The last block has what is left, and counts as much as any other.
    """
    return np.arange(num_images) // size


def shuffled_blocks(num_images: int, num_blocks: int = 10, seed: int = 2020) -> np.ndarray:
    """Returns the block of each image as torch-fidelity cuts them, after shuffling: int64 [N]."""
    ends_S = np.arange(1, num_blocks + 1) * num_images // num_blocks
    block_N = np.empty(num_images, int)
    # RandomState, whose permutation of a seed stays what it is.
    order_N = np.random.RandomState(seed).permutation(num_images)
    block_N[order_N] = np.searchsorted(ends_S, np.arange(num_images), side="right")
    return block_N


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What the score of each block needs, over any number of batches and hosts, in float64.

    count_S: images of a block. probability_SV: sum of their probabilities. negative_entropy_S: sum
    of p log p over images and classes.
    """

    count_S: np.ndarray
    probability_SV: np.ndarray
    negative_entropy_S: np.ndarray

    @classmethod
    def empty(cls, num_blocks: int, num_classes: int = 1_008) -> "Blocks":
        """Returns blocks without images."""
        return cls(
            np.zeros(num_blocks, int), np.zeros((num_blocks, num_classes)), np.zeros(num_blocks)
        )

    def update(
        self, logits_BV: np.ndarray, block_B: np.ndarray, mask_B: np.ndarray | None = None
    ) -> "Blocks":
        """Returns the blocks with a batch added, without the rows where the mask is False.

        Raises UserError for logits of another shape or that are not finite.
        """
        logits_BV, block_B = np.asarray(logits_BV, np.float64), np.asarray(block_B)
        if logits_BV.ndim != 2 or logits_BV.shape[1] != self.probability_SV.shape[1]:
            raise UserError(
                f"Logits of shape {logits_BV.shape} do not fit "
                f"[images, {self.probability_SV.shape[1]}]."
            )
        if mask_B is not None:
            logits_BV, block_B = logits_BV[mask_B], block_B[mask_B]
        if bad := int((~np.isfinite(logits_BV)).any(axis=1).sum()):
            raise UserError(f"{bad} of {len(logits_BV)} rows of logits have NaN or infinity.")
        logits_BV = logits_BV - logits_BV.max(axis=1, keepdims=True, initial=-np.inf)
        log_p_BV = logits_BV - np.log(np.exp(logits_BV).sum(axis=1, keepdims=True))
        p_BV = np.exp(log_p_BV)
        count_S, probability_SV = self.count_S.copy(), self.probability_SV.copy()
        negative_entropy_S = self.negative_entropy_S.copy()
        for block in np.unique(block_B):
            rows_B = block_B == block
            count_S[block] += rows_B.sum()
            probability_SV[block] += p_BV[rows_B].sum(axis=0)
            negative_entropy_S[block] += (p_BV[rows_B] * log_p_BV[rows_B]).sum()
        return Blocks(count_S, probability_SV, negative_entropy_S)

    def merge(self, other: "Blocks") -> "Blocks":
        """Returns the blocks with the images of both."""
        return Blocks(
            self.count_S + other.count_S,
            self.probability_SV + other.probability_SV,
            self.negative_entropy_S + other.negative_entropy_S,
        )

    @property
    def scores_S(self) -> np.ndarray:
        """The score of each block, 1 to V; raises UserError where a block has no images."""
        if not self.count_S.all():
            raise UserError(
                f"An Inception Score of {len(self.count_S)} blocks needs images in each; there are "
                f"{self.count_S.sum()} in all."
            )
        mean_SV = self.probability_SV / self.count_S[:, None]
        log_mean_SV = np.log(np.where(mean_SV > 0, mean_SV, 1))
        # mean of sum p (log p - log q), where q is the mean of p
        kl_S = self.negative_entropy_S / self.count_S - (mean_SV * log_mean_SV).sum(axis=1)
        return np.exp(kl_S)


def inception_score(logits_NV: np.ndarray, cut: str = "blocks") -> tuple[float, float]:
    """Returns (mean, deviation) of the scores over blocks.

    cut: "blocks" for ADM's consecutive 5,000; "shuffled" for torch-fidelity's 10 splits.
    Raises UserError for no images, fewer than splits, logits that are not finite, another cut.
    """
    if cut not in CUTS:
        raise UserError(f"There is no cut {cut!r} into blocks; choose one of {CUTS}.")
    logits_NV = np.asarray(logits_NV)
    cutter = consecutive_blocks if cut == "blocks" else shuffled_blocks
    block_N = cutter(len(logits_NV))
    num_blocks = block_N.max(initial=0) + 1 if cut == "blocks" else 10
    blocks = Blocks.empty(num_blocks, logits_NV.shape[1])
    for start in range(0, len(logits_NV), 2_048):  # float64 of all would be large
        part = slice(start, start + 2_048)
        blocks = blocks.update(logits_NV[part], block_N[part])
    return float(blocks.scores_S.mean()), float(blocks.scores_S.std())
