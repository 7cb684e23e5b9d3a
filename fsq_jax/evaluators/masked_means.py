"""Means of per-example values over a whole split."""

from collections.abc import Iterable, Mapping

import jax

from fsq_jax.runtime import sharding
from fsq_jax.runtime.user_error import UserError


def masked_means(
    batches: Iterable[tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]]],
) -> tuple[dict[str, float], int]:
    """Means over all examples of values [B], one per example, and how many examples there were.

    Args:
      batches: pairs (batch with "mask" [B], {name: values [B]}). Sums are taken on the device and
        divided once, here, so that padding and the number of hosts change nothing.

    Raises:
      UserError: all examples are masked: with `data.skip_damaged`, each is damaged.
    """
    totals, count = {}, 0
    for batch, values_B in batches:
        sums = sharding.to_host(_masked_sums(dict(values_B), batch["mask"]))
        count += int(sums.pop("count"))
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    if not count:
        raise UserError("Not one of the images to evaluate can be read.")
    return {name: total / count for name, total in totals.items()}, count


@jax.jit
def _masked_sums(values_B, mask_B):
    # where, not a product: a padding row may hold anything, NaN included.
    sums = {k: jax.numpy.where(mask_B, v, 0).sum() for k, v in values_B.items()}
    return sums | {"count": mask_B.sum()}
