"""A small instance of every quantizer in its variants, for the tests of what all have in common."""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from fsq_jax import quantizers
from fsq_jax.quantizers import fsq, residual_fsq


def _same(z):
    return z


@dataclasses.dataclass(frozen=True)
class Case:
    """What a test must know of a quantizer.

    Attributes:
      name: of `quantizers.QUANTIZERS`.
      options: for `quantizers.make`.
      follows: z -> what the codes' gradient is that of; None where it can't be said in a line.
      latents: code -> a z that is sent to it; None where some indices are no z's, and codes may be
        equal.
      smooth: options with which the gradient of the loss is its slope, and nothing is stopped:
        {"z" or "params": options}; {} where the loss is 0.
    """

    name: str
    options: Mapping
    follows: Callable | None = _same
    latents: Callable | None = _same
    smooth: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)

    def make(self, **options):
        return quantizers.make(self.name, **{**self.options, **options})


LEVELS, SIX = (5, 4, 3), (3, 4, 2, 3, 4, 2)
LOOK_UP = dict(codebook_size=12, channels=4)
RESEED = dict(standardize=False, unit_words=False, split_threshold=0.0, reseed_threshold=1.0)
LEARNED = {"z": dict(codebook_weight=0.0), "params": dict(commitment_weight=0.0)}


def _fsq_latents(levels):
    half = np.array(fsq.half_widths(levels))
    radius = (np.array(levels) - 1) / 2
    shift = np.array([np.arctanh(0.5 / r / 0.999) if r % 1 and r > 0.5 else 0 for r in radius])
    inside = lambda codes: jnp.clip((codes * half + radius % 1) / radius, -0.99, 0.99)  # noqa: E731
    return lambda codes: jnp.arctanh(inside(codes)) - shift


def _bound(levels):
    return lambda z: fsq.bound(z, levels) / np.array(fsq.half_widths(levels), np.float32)


def _unclamp(levels):
    limit = np.array([n / (n - 1) for n in levels])
    return lambda codes: jnp.arctanh(codes / limit) * limit


def _unit(z):
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def _sphere(z):
    return _unit(z) / z.shape[-1] ** 0.5


CASES = {
    "fsq": Case("fsq", dict(levels=LEVELS), _bound(LEVELS), _fsq_latents(LEVELS)),
    "fsq_noise": Case("fsq", dict(levels=LEVELS, noise=0.5), _bound(LEVELS), _fsq_latents(LEVELS)),
    "grouped_fsq": Case(
        "grouped_fsq", dict(levels=SIX[:3], num_groups=2), _bound(SIX), _fsq_latents(SIX)
    ),
    "residual_fsq": Case(
        "residual_fsq",
        dict(levels=LEVELS, num_stages=2),
        lambda z: residual_fsq.soft_clamp(z, LEVELS),
        _unclamp(LEVELS),
    ),
    "residual_fsq_layer_norm": Case(
        "residual_fsq", dict(levels=LEVELS, num_stages=2, scaling="layer_norm"), None, None
    ),
    "residual_fsq_learned": Case(
        "residual_fsq", dict(levels=LEVELS, num_stages=2, scaling="learned"), None, None
    ),
    "lfq": Case("lfq", dict(codebook_size=32), smooth={"z": dict(entropy_temperature=0.5)}),
    "bsq": Case("bsq", dict(codebook_size=32), _sphere, smooth={"z": dict(commitment_weight=1.0)}),
    "vq": Case(
        "vq", LOOK_UP, smooth={of: o | dict(entropy_temperature=0.5) for of, o in LEARNED.items()}
    ),
    "vq_ema": Case(
        "vq_ema",
        LOOK_UP | dict(standardize=False, split_threshold=0.0),
        smooth={"z": dict(commitment_weight=1.0)},
    ),
    "vq_cosine": Case("vq", LOOK_UP | dict(normalize=True), _unit),
    "vq_projected": Case(
        "vq", LOOK_UP | dict(codebook_channels=3, gradient="rotation"), None, None
    ),
    "vq_reseed": Case("vq_ema", LOOK_UP | RESEED),
    "simvq": Case("simvq", LOOK_UP, smooth=LEARNED),
}
