"""What is kept of a set of images: moments of features, and the features that metrics need one by
one.

Legend: B rows of a batch, N rows in all, F features, H W image height, width.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fsq_jax.metrics.frechet import Moments
from fsq_jax.runtime import sharding
from fsq_jax.runtime.files import written_whole
from fsq_jax.scoring.protocols import Reference

_BLOCK = 2_048  # rows that are taken into the moments at once, rather than batch by batch
_SUFFIX = {"pool": "", "spatial": "_s"}  # of mu and sigma in files, as ADM's have them


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of images seen so far; `add` returns new ones.

    Attributes:
      moments: of "pool" features, and of "spatial" ones where sFID is measured.
      keep: {"pool" or "logits": how many rows are kept as they are, 0 for all}.
      kept: those rows, in blocks [B,F].
      pending: (outputs, mask) of batches that are not in the moments yet, and may be on their way
        on a device: they are waited for a block at a time, while it works on the next.
      origin: which images they are of.
    """

    moments: Mapping[str, Moments]
    keep: Mapping[str, int]
    kept: Mapping[str, tuple[np.ndarray, ...]]
    pending: tuple[tuple[Mapping[str, Any], Any], ...] = ()
    origin: Reference = Reference()

    @classmethod
    def empty(cls, widths: Mapping[str, int], keep: Mapping[str, int]) -> "Statistics":
        """Of no images; `widths`: {"pool" or "spatial": number of features}."""
        moments = {name: Moments.empty(width) for name, width in widths.items()}
        return cls(moments, dict(keep), {name: () for name in keep})

    @property
    def count(self) -> int:
        return self.flush().moments["pool"].count

    def add(self, outputs: Mapping[str, Any], mask_B: Any) -> "Statistics":
        """With a batch of a network's outputs [B,F] added, but for the rows masked out."""
        more = dataclasses.replace(self, pending=(*self.pending, (dict(outputs), mask_B)))
        waiting = sum(len(mask_B) for _, mask_B in more.pending)
        return more.flush(len(more.pending) // 2) if waiting >= 2 * _BLOCK else more

    def flush(self, leave: int = 0) -> "Statistics":
        """The same with nothing pending, but for the last `leave` batches."""
        if len(self.pending) <= leave:
            return self
        end = len(self.pending) - leave
        batches = [
            {name: np.asarray(values)[mask_B] for name, values in outputs.items()}
            for outputs, mask_B in sharding.to_host(self.pending[:end])
        ]
        rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        moments = {name: seen.update(rows[name]) for name, seen in self.moments.items()}
        kept = {}
        for name, limit in self.keep.items():
            room = limit - sum(map(len, self.kept[name])) if limit else len(rows[name])
            kept[name] = self.kept[name] + ((rows[name][:room],) if room > 0 else ())
        return dataclasses.replace(self, moments=moments, kept=kept, pending=self.pending[end:])

    def with_source(self, name: str, **more) -> "Statistics":
        """The same, with where these images are from; `more`: fields of `Reference`."""
        return dataclasses.replace(self, origin=Reference(name, num_images=self.count, **more))

    def rows(self, name: str) -> np.ndarray:
        """The rows of "pool" or "logits" that were kept [N,F]."""
        return np.concatenate(self.flush().kept[name])

    def save(
        self, path: str | os.PathLike, record: Mapping, images_NHWC: np.ndarray | None = None
    ) -> None:
        """Writes an npz with ADM's names, and how it was measured as JSON (`protocol`).

        With images [N,H,W,3] these are `arr_0`, as in ADM's files; without, features that were kept
        are `features`.
        """
        arrays = {"count": self.count, "protocol": json.dumps(record)}
        for name, moments in self.flush().moments.items():
            arrays[f"mu{_SUFFIX[name]}"] = moments.mean
            arrays[f"sigma{_SUFFIX[name]}"] = moments.covariance
        if images_NHWC is not None:
            arrays["arr_0"] = images_NHWC
        elif "pool" in self.keep:
            arrays["features"] = self.rows("pool")
        with written_whole(path, "wb") as file:
            np.savez(file, **arrays)
