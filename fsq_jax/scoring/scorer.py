"""FID and its relatives of any images, under a protocol, over all devices.

Legend: B images of a batch, H W height, width, C channels.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.features import efficientnet, inception_weights
from fsq_jax.features.inception import SPATIAL_FEATURES, to_uint8
from fsq_jax.features.network import Network, load_features
from fsq_jax.metrics import frechet, inception_score, kernel_distance, precision_recall
from fsq_jax.runtime import sharding
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import image_sets, reference_file
from fsq_jax.scoring.accumulator import Statistics
from fsq_jax.scoring.protocols import Protocol, as_record, differing

INCEPTION = ("inception", "inception-random")  # the latter untrained, for tests and benchmarks
NETWORKS = ("inception", "efficientnet", "random", "inception-random")


def check(network: str, weights: str = "") -> None:
    """Raises a UserError where there is no such network, or no weights for it."""
    if network not in NETWORKS:
        raise UserError(f"There are no features named {network!r}; choose one of {NETWORKS}.")
    if network == "inception":
        inception_weights.find_weights(weights or None)
    elif weights:
        raise UserError(f"{weights=} is for inception; {network} brings its own.")
    elif network == "efficientnet":
        efficientnet.find_weights()


class Scorer:
    """A network on a mesh with the protocol's metrics.

    Args:
      mesh: where it runs.
      protocol: what is measured, and how.
      weights: file of Inception's; "" for $FSQ_JAX_INCEPTION.

    Attributes:
      protocol: the same with the network's own facts filled in.
    """

    def __init__(self, mesh: jax.sharding.Mesh, protocol: Protocol, weights: str = ""):
        check(protocol.network, weights)
        network = _load(protocol, weights)
        # What a network calls its preparation: Inception's is the protocol's, others have one.
        self.protocol = protocol.replace(
            weights_sha256=network.weights_sha256, resize=network.input
        )
        self._mesh = mesh
        self._variables = sharding.put(network.variables, sharding.replicated(mesh))
        self._widths = {"pool": network.num_features}
        if protocol.spatial:
            self._widths["spatial"] = SPATIAL_FEATURES
        self._apply = jax.jit(self._outputs(network.apply))

    def _outputs(self, apply_fn):
        protocol = self.protocol

        def outputs(variables, images_BHWC):
            if images_BHWC.dtype != jnp.uint8 and protocol.rounding == "uint8":
                images_BHWC = _to_uint8_keeping_nan(images_BHWC)
            elif images_BHWC.dtype != jnp.uint8:
                images_BHWC = images_BHWC * 255
            images_BHWC = images_BHWC.astype(jnp.float32)
            if protocol.network not in INCEPTION:
                return {"pool": apply_fn(variables, images_BHWC / 255)}
            found = apply_fn(variables, images_BHWC)
            wanted = {"pool": found.pool_BF}
            if protocol.spatial:
                wanted["spatial"] = found.spatial_BF
            if protocol.inception_score:
                wanted["logits"] = found.logits_BV
            return wanted

        return outputs

    def empty(self, reference: bool = False) -> Statistics:
        """Of no images; a reference keeps no more features than its metrics read."""
        keep = {}
        if self.protocol.precision_recall or self.protocol.kernel_distance:
            keep["pool"] = 0
            if reference and not self.protocol.kernel_distance:
                keep["pool"] = self.protocol.precision_images
        if self.protocol.inception_score and not reference:
            keep["logits"] = 0
        return Statistics.empty(self._widths, keep)

    def add(self, seen: Statistics, images_BHWC: jax.Array, mask_B: jax.Array) -> Statistics:
        """With images on the mesh added, uint8 or float in [0, 1], but for those masked out."""
        return seen.add(self._apply(self._variables, images_BHWC), mask_B)

    def add_blocks(
        self, seen: Statistics, blocks_BHWC: Iterable[np.ndarray], batch_size: int
    ) -> Statistics:
        """With all images of blocks that every host has, `batch_size` at a time; none pending."""
        padded = sharding.padded(batch_size, self._mesh)
        rows = padded // jax.process_count()
        first = jax.process_index() * rows
        for block_BHWC in blocks_BHWC:
            padding = [(0, padded - len(block_BHWC))] + [(0, 0)] * 3
            batch = {"image": np.pad(block_BHWC, padding), "mask": np.arange(padded)}
            batch["mask"] = batch["mask"] < len(block_BHWC)
            own = {name: value[first : first + rows] for name, value in batch.items()}
            batch = sharding.put_batch(own, self._mesh)
            seen = self.add(seen, batch["image"], batch["mask"])
        return seen.flush()

    def load_reference(
        self,
        path: str,
        batch_size: int = 64,
        size: tuple[int, int] | None = None,
        transform: str = "",
    ) -> Statistics:
        """A reference's file of `fsq_jax.reference`, or of ADM's; its images give the features.

        Args:
          path: of the .npz.
          batch_size: images at once, over all devices.
          size: height and width of the images that are held against it, where they are to be equal.
          transform: how these were cropped, where it is known.

        Raises:
          UserError: where the file can't be read, or was measured otherwise.
        """
        saved = self.read_reference(path, size, transform)
        if "pool" not in self.empty(reference=True).keep or saved.statistics.keep:
            return saved.statistics
        images = image_sets.open_images(path)
        seen = self.empty(reference=True)
        seen = self.add_blocks(seen, images.blocks(batch_size), batch_size)
        return Statistics(
            saved.statistics.moments, seen.keep, seen.kept, (), saved.statistics.origin
        )

    def read_reference(
        self, path: str, size: tuple[int, int] | None = None, transform: str = ""
    ) -> reference_file.Saved:
        """What `load_reference` loads before it looks at any image; the same errors."""
        saved = reference_file.load(path)
        if size and saved.size and saved.size != tuple(size):
            raise UserError(
                f"{path} is of images of {saved.size[0]} x {saved.size[1]} pixels, not of "
                f"{size[0]} x {size[1]}."
            )
        theirs = saved.record.get("transform", transform)
        if transform and theirs != transform:
            raise UserError(f"{path} is of images with transform={theirs}, these have {transform}.")
        if saved.record:
            mine, theirs = (
                {"features": values.get("features", {})}
                for values in (as_record(self.protocol), saved.record)
            )
            if keys := differing(mine, theirs):
                listed = "; ".join(f"{k}: {a!r} here, {b!r} there" for k, (a, b) in keys.items())
                raise UserError(f"{path} is a reference of another protocol ({listed}).")
        for name, width in self._widths.items():
            there = saved.statistics.moments.get(name)
            if there is None:
                raise UserError(f"{path} has no statistics of the {name} features, for sFID.")
            if len(there.mean) != width:
                raise UserError(
                    f"{path} is of {len(there.mean)} {name} features, {self.protocol.network} has "
                    f"{width}."
                )
        keeps = "pool" in self.empty(reference=True).keep
        if keeps and not saved.statistics.keep and not saved.has_images:
            raise UserError(f"{path} has no images (arr_0), for precision and recall.")
        return saved

    def measure(self, samples: Statistics, reference: Statistics) -> dict[str, float]:
        """{metric: value} of all that the protocol asks for, but for what there are too few images
        for, which are logged; both sets are flushed first."""
        protocol, values = self.protocol, {}
        for name in self._widths:
            pair = samples.moments[name], reference.moments[name]
            values[self.metric("fid" if name == "pool" else "sfid")] = frechet.distance(*pair)
        for wanted, names, function in (
            (protocol.inception_score, ["inception_score"], self._inception_score),
            (protocol.precision_recall, ["precision", "recall"], self._precision_recall),
            (protocol.kernel_distance, ["kid"], self._kernel_distance),
        ):
            if not wanted:
                continue
            try:
                found = function(samples, reference)
            except UserError as error:  # too few images for this one, but not for the distance
                log(f"Left out: {' and '.join(map(self.metric, names))}. {error}")
            else:
                values |= zip(map(self.metric, names), found, strict=True)
        return values

    def _inception_score(self, samples: Statistics, reference: Statistics) -> tuple[float]:
        del reference
        cut = self.protocol.inception_score
        return inception_score.inception_score(samples.rows("logits"), cut)[:1]

    def _precision_recall(self, samples: Statistics, reference: Statistics) -> tuple[float, float]:
        some = reference.rows("pool")[: self.protocol.precision_images or None]
        return precision_recall.precision_recall(samples.rows("pool"), some, mesh=self._mesh)

    def _kernel_distance(self, samples: Statistics, reference: Statistics) -> tuple[float]:
        return kernel_distance.kernel_distance(
            samples.rows("pool"),
            reference.rows("pool"),
            mesh=self._mesh,
            subset_size=self._kernel_subset(samples, reference),
        )[:1]

    def _kernel_subset(self, samples: Statistics, reference: Statistics) -> int:
        """Images of one of KID's subsets: the protocol's, or all of the smaller set."""
        rows = (len(seen.rows("pool")) for seen in (samples, reference))
        return min(self.protocol.kernel_subset, *rows)

    def metric(self, name: str) -> str:
        """What a metric is called over this network: "fid" is Inception's alone."""
        network = self.protocol.network
        if network == "inception":
            return name
        return f"fd_{network}" if name == "fid" else f"{name}_{network}"

    def facts(self) -> dict:
        """What the statistics of a reference depend on, besides its images."""
        protocol, reference = self.protocol, self.empty(reference=True)
        return {
            "network": protocol.network,
            **as_record(protocol)["features"],
            "statistics": sorted(self._widths),
            "keep": dict(reference.keep),
        }

    def record(self, samples: Statistics, reference: Statistics, **facts) -> Mapping:
        """The protocol of a measurement; `facts`: fields of `Protocol` such as class_balance."""
        if self.protocol.kernel_distance:
            facts["kernel_subset"] = self._kernel_subset(samples, reference)
        return as_record(
            self.protocol.replace(num_samples=samples.count, reference=reference.origin, **facts)
        )


def _load(protocol: Protocol, weights: str) -> Network:
    if protocol.network not in INCEPTION:
        return load_features(protocol.network)
    options = dict(resize=protocol.resize, scaling=protocol.scaling, dtype=protocol.dtype)
    if protocol.network == "inception-random":
        return inception_weights.load_random(**options)
    return inception_weights.load(weights or None, **options)


def _to_uint8_keeping_nan(images_BHWC):
    """8 bits as floats, so that a NaN comes out as one and is refused, not as a black pixel."""
    return jnp.where(jnp.isnan(images_BHWC), jnp.nan, to_uint8(images_BHWC).astype(jnp.float32))
