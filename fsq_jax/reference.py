"""Builds a reference for FID: statistics of real images, and some of them, in a file like ADM's.

python -m fsq_jax.reference --data=tfds:imagenet2012 --size=256 --out=ref.npz
python -m fsq_jax.reference --data=folder:PATH --size=64 --split=train[:5000] --features=random \
    --out=ref.npz

The .npz holds mu and sigma (and mu_s and sigma_s, for sFID), their count, arr_0: uint8 images for
precision and recall, and `protocol`, which says as JSON how all of it was measured.
"""

import jax
import numpy as np
from absl import flags

from fsq_jax.data import pipeline, transforms
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime import cli, outputs, sharding
from fsq_jax.runtime.progress import tracked
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import protocols
from fsq_jax.scoring.accumulator import Statistics
from fsq_jax.scoring.scorer import NETWORKS, Scorer


class Subset:
    """The images that a reference keeps: of all classes alike, or the first ones.

    Args:
      num_images: how many; fewer where there are no more.
      num_classes: a class is kept that often at most; 1 keeps the first images of any class.
    """

    def __init__(self, num_images: int, num_classes: int):
        self._left, self._num_classes = num_images, num_classes
        self._quota = np.full(num_classes, -(-num_images // num_classes))
        self._kept = []

    def choose(self, labels_B: np.ndarray, mask_B: np.ndarray) -> list[int]:
        """The rows of a batch that are to be kept."""
        rows = []
        for row in np.flatnonzero(mask_B):
            label = labels_B[row] if self._num_classes > 1 else 0
            if self._left and self._quota[label]:
                self._left -= 1
                self._quota[label] -= 1
                rows.append(int(row))
        return rows

    def keep(self, images_BHWC: np.ndarray) -> None:
        """Takes chosen images, in [0, 1]."""
        self._kept.append((images_BHWC * 255 + 0.5).astype(np.uint8))

    def images(self) -> np.ndarray | None:
        """uint8 [N,H,W,3]; None where none were to be kept."""
        return np.concatenate(self._kept) if self._kept else None


def build(
    data: str,
    size: int,
    out: str,
    protocol: protocols.Protocol,
    *,
    split: str = "train",
    data_dir: str = "",
    images: int = 10_000,
    first: bool = False,
    weights: str = "",
    batch_size: int = 128,
    workers: int = 0,
    transform: str = "adm",
) -> str:
    """Writes the reference of a data set's images; returns what was written, as a sentence.

    Args:
      data: "tfds:NAME", "folder:PATH" or "scenes".
      size: side in pixels of the images.
      out: the .npz to write.
      protocol: whose network's features they are.
      split: of the data, such as "train[:10000]".
      data_dir: where TFDS keeps its data sets.
      images: how many are kept, for precision and recall.
      first: keep the first ones, not as many of each class.
      weights: file of Inception's; "" for $FSQ_JAX_INCEPTION.
      batch_size: over all devices.
      workers: processes that read; 0 for none.
      transform: how images get that size, a name of `data.transforms.KINDS`: that of the runs which
        are to be held against the reference (`data.transform`).

    Raises:
      UserError: for data that isn't there, or fewer than two images.
    """
    outputs.check_file(out)
    mesh = sharding.make_mesh()
    # The metrics that need more than moments are measured later, on the images.
    scorer = Scorer(
        mesh,
        protocol.replace(inception_score="", precision_recall=False, kernel_distance=False),
        weights,
    )
    source = open_dataset(data, split, size, data_dir)
    if len(source) < 2:
        raise UserError(f"A reference needs at least 2 images; {data} {split} has {len(source)}.")
    subset = Subset(images, 1 if first else source.num_classes)
    plain = transforms.evaluation(size, transform)
    seen = gather(scorer, mesh, source, plain, subset, batch_size, workers)
    kept = subset.images()
    which = f"{0 if kept is None else len(kept)} {'first' if first else 'balanced'}"
    split = source.split + split[len(split.partition("[")[0]) :]  # by the data's own name
    seen = seen.with_source(data, split=split, subset=which)
    if jax.process_index() == 0:
        record = scorer.record(seen, seen, class_balance="data")
        seen.save(out, {**record, "size": size, "transform": transform}, kept)
    return (
        f"{out}: statistics of {seen.count} images of {data} {split} at {size} pixels, and {which} "
        "of the images"
    )


def gather(
    scorer: Scorer,
    mesh: jax.sharding.Mesh,
    source: Dataset,
    transform: transforms.Transform,
    subset: Subset,
    batch_size: int,
    workers: int,
) -> Statistics:
    """The statistics of all images of a source, of which `subset` gets its share."""
    batches = pipeline.eval_batches(
        source,
        transform,
        batch_size=batch_size,
        workers=workers,
        rows=sharding.padded(batch_size, mesh),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    seen = scorer.empty()
    for batch in tracked(batches, "reference", batch_size):
        put = sharding.put_batch(batch, mesh)
        seen = scorer.add(seen, put["image"], put["mask"])
        if rows := subset.choose(*sharding.to_host((put["label"], put["mask"]))):
            subset.keep(sharding.to_host(put["image"])[rows])
    return seen.flush()


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    sharding.initialize_distributed()
    print(
        build(
            options.data,
            options.size,
            options.out,
            protocols.named(options.protocol).over(options.features),
            split=options.split,
            data_dir=options.data_dir,
            images=options.images,
            first=options.first,
            weights=options.weights,
            batch_size=options.batch_size,
            workers=options.workers,
            transform=options.transform,
        )
    )


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "tfds:NAME, folder:PATH or scenes.", required=True)
    flags.DEFINE_integer("size", None, "Side of the images in pixels.", 1, required=True)
    flags.DEFINE_string("out", None, "The .npz to write.", required=True)
    flags.DEFINE_enum(
        "transform",
        "adm",
        transforms.KINDS,
        "How images get that size; a run whose data.transform is another refuses the file.",
    )
    flags.DEFINE_string("split", "train", "Of the data, such as train[:10000].")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_integer("images", 10_000, "How many images are kept, for precision and recall.", 0)
    flags.DEFINE_bool("first", False, "Keep the first images, not as many of each class.")
    flags.DEFINE_string("protocol", "adm", f"One of {', '.join(protocols.NAMED)}.")
    flags.DEFINE_enum("features", "inception", NETWORKS, "The network.")
    flags.DEFINE_string("weights", "", "File of Inception's weights; $FSQ_JAX_INCEPTION if not.")
    flags.DEFINE_integer("batch_size", 128, "Over all devices.", 1)
    flags.DEFINE_integer("workers", 0, "Processes that read the data.", 0)
    cli.run(main)
