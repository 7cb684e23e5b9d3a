"""How a number was measured, as data: two numbers of different protocols are not set side by side.

The same images get another FID from every tool: another resize, other rounding, another reference.
`NAMED` holds what each tool does; a measurement fills in what it was run on, and what a result is
recorded with is `as_record` of that.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from fsq_jax.runtime.user_error import UserError

# What belongs to the thing that is measured, not to how: the model, its sampler and its seed, what
# it was trained on, and the machine. Anything else has to agree for two numbers to be compared.
OWN = frozenset(
    {
        "stage_1",
        "sampling",
        "seed",
        "train_split",
        "codebook_size",
        "level_histograms",
        "device",
        "jax",
        "python",
        "samples",
    }
)


@dataclasses.dataclass(frozen=True)
class Reference:
    """The real images that others are held against.

    Attributes:
      name: the data, or the file's name.
      split: of the data; "" for a file.
      num_images: how many; 0 where a file doesn't say (ADM's don't).
      sha256: of a file; "" for statistics that were computed here, whose last bits depend on the
        device, and which name, split and number identify.
      subset: which of them precision and recall see, such as "first 10000"; "" for all.
    """

    name: str = ""
    split: str = ""
    num_images: int = 0
    sha256: str = ""
    subset: str = ""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What decides the value of FID and its relatives.

    Attributes:
      name: of the protocol.
      network: the features, a name of `pretrained.features`.
      weights_sha256: of the network's weights.
      resize: to the network's input: one of `models.resizing.METHODS`, or what another network
        does.
      scaling: of the input, see `models.inception.prepare`.
      dtype: of the network.
      rounding: "uint8": images go through 8 bits, as files do; "none".
      spatial: whether sFID is measured, over the first 7 channels of mixed_6/conv.
      inception_score: how images are cut into blocks, one of `metrics.inception_score.CUTS`; ""
        where it is not measured.
      precision_recall: whether improved precision and recall are measured (k = 3).
      precision_images: how many of the reference's images precision and recall see; 0 for all.
      kernel_distance: whether KID is measured.
      kernel_subset: images of each of its subsets; of smaller sets, all of the smaller one.
      num_samples: that were measured; in a named protocol, that it asks for, 0 for any number.
      reference: what they were held against.
      class_balance: "equal", "data" (as a data set has them), or "" where it is not known.
      seed: of the samples, where they were drawn here.
      sampling: the sampler's settings, where there was one.
    """

    name: str
    network: str = "inception"
    weights_sha256: str = ""
    resize: str = "tf1"
    scaling: str = "128"
    dtype: str = "float32"
    rounding: str = "uint8"
    spatial: bool = False
    inception_score: str = ""
    precision_recall: bool = False
    precision_images: int = 0
    kernel_distance: bool = False
    kernel_subset: int = 1_000
    num_samples: int = 0
    reference: Reference = Reference()
    class_balance: str = ""
    seed: int = 0
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def replace(self, **changes) -> "Protocol":
        """The protocol with other values."""
        return dataclasses.replace(self, **changes)

    def over(self, network: str) -> "Protocol":
        """The protocol over another network's features, without what only Inception has."""
        if network in ("inception", "inception-random"):
            return self.replace(network=network)
        return self.replace(
            network=network, spatial=False, inception_score="", resize="", scaling=""
        )


NAMED = {
    protocol.name: protocol
    for protocol in (
        # Dhariwal & Nichol's TensorFlow suite, in which the FSQ paper reports.
        Protocol(
            "adm",
            spatial=True,
            inception_score="blocks",
            precision_recall=True,
            precision_images=10_000,
            num_samples=50_000,
        ),
        Protocol(
            "torch-fidelity",
            inception_score="shuffled",
            precision_recall=True,
            kernel_distance=True,
        ),
        Protocol("clean-fid", resize="bicubic-pil", kernel_distance=True),
        Protocol("pytorch-fid", resize="bilinear", scaling="127.5"),
        # FID-5k of colorization: ColTran's, which UViM reports.
        Protocol("coltran", num_samples=5_000),
    )
}


def named(name: str) -> Protocol:
    """The protocol of that name; a UserError with all names where there is none."""
    if name not in NAMED:
        raise UserError(f"There is no protocol {name!r}; choose one of {', '.join(NAMED)}.")
    return NAMED[name]


def as_record(protocol: Protocol) -> dict[str, Any]:
    """The protocol as JSON takes it, what belongs together in one place."""
    values = dataclasses.asdict(protocol)
    features = {
        "name": values.pop("network"),
        "weights_sha256": values.pop("weights_sha256"),
        "input": values.pop("resize"),
        "scaling": values.pop("scaling"),
        "dtype": values.pop("dtype"),
        "rounding": values.pop("rounding"),
    }
    if values["kernel_subset"] == Protocol.kernel_subset:  # older records say nothing of it
        del values["kernel_subset"]
    values = {"protocol": values.pop("name"), "features": features} | values
    values["num_images"] = values.pop("num_samples")
    values["sampling"] = dict(protocol.sampling)
    return values


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple]:
    """{dotted key: (first's value, second's)} of all that keeps two results from being compared.

    Args:
      first: the protocol that a result was recorded with.
      second: another one's. Keys of OWN may differ; what one has and the other lacks is different.
    """
    first, second = flat(first), flat(second)
    keys = [*first, *(key for key in second if key not in first)]
    return {
        key: (first.get(key), second.get(key))
        for key in keys
        if key.split(".")[0] not in OWN and first.get(key) != second.get(key)
    }


def check_comparable(metric: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises a UserError with the keys that differ, unless all of a metric's numbers compare.

    Args:
      metric: its name, for the message.
      records: {what was measured: the protocol that its number is recorded with}.
    """
    (first, reference), *others = records.items()
    for name, protocol in others:
        if keys := differing(reference, protocol):
            listed = "; ".join(f"{key}: {a!r} and {b!r}" for key, (a, b) in keys.items())
            raise UserError(
                f"{metric} of {first} and of {name} can't be compared, they were measured "
                f"differently ({listed})."
            )


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": value} of nested mappings; tuples as lists, which is how JSON gives them back."""
    leaves = traverse_util.flatten_dict(dict(values), sep=".")
    return {name: list(v) if isinstance(v, tuple) else v for name, v in leaves.items()}
