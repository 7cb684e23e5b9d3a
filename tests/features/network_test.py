import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.features import efficientnet
from fsq_jax.features.network import load_features, load_perceptual, perceptual_shapes
from fsq_jax.metrics.losses import perceptual_distance

INPUTS = runpy.run_path(str(Path(__file__).parent / "reference" / "inputs.py"))


def have_efficientnet():
    try:
        return efficientnet.find_weights()
    except ValueError as error:
        pytest.skip(str(error))


def test_random_features_are_the_same_everywhere():
    network = load_features("random")
    images = INPUTS["photo_like"](2, 32)
    features = jax.jit(network.apply)(network.variables, images)
    assert features.shape == (2, network.num_features) == (2, 480)
    assert network.weights_sha256.startswith("d4ca9530ae8789cd")
    expected = [
        [0.20218669, 0.15229993, 0.4953531, 0.0810037],
        [0.18105152, 0.17773479, 0.5516773, -0.09929764],
    ]
    np.testing.assert_allclose(features[:, [0, 1, 100, 479]], expected, atol=1e-5)


def test_random_features_tell_images_apart():
    network = load_features("random")
    images = INPUTS["photo_like"](2, 32)
    features = jax.jit(network.apply)(network.variables, np.concatenate([images, 1 - images]))
    for i in range(4):
        assert np.delete(np.abs(features - features[i]).max(-1), i).min() > 0.1


def test_efficientnet_features():
    have_efficientnet()
    network = load_features("efficientnet")
    features = jax.jit(network.apply)(network.variables, INPUTS["photo_like"](2, 64))
    assert features.shape == (2, 1280) and features.dtype == jnp.float32
    assert len(network.weights_sha256) == 64


@pytest.mark.parametrize("name", ["efficientnet", "resnet50"])
def test_perceptual_distance_has_a_gradient(name, tmp_path):
    path = None
    if name == "resnet50":
        path = tmp_path / "resnet.npz"
        np.savez(path, **INPUTS["resnet_state_dict"]())
    else:
        have_efficientnet()
    network = load_perceptual(name, path)
    apply, variables = network.apply, network.variables
    assert network.name == name
    images = INPUTS["photo_like"](2, 32)

    def distance(x):
        values = perceptual_distance(apply(variables, images), apply(variables, x))
        assert values.shape == (2,)
        return values.sum()

    value, gradient = jax.jit(jax.value_and_grad(distance))(images[::-1])
    assert value > 0 and np.abs(gradient).max() > 0


def test_perceptual_shapes_are_those_of_the_weights():
    have_efficientnet()
    variables = load_perceptual("efficientnet").variables
    shapes = perceptual_shapes("efficientnet").variables
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.parametrize(
    "load,name,path,message",
    [
        (load_perceptual, "resnet50", None, "needs the path of its weights"),
        (load_perceptual, "vgg", None, "'vgg'; there are"),
        (load_features, "inception5", None, "'inception5'; there are"),
        (load_features, "random", "x.pth", "read no file: x.pth"),
        (load_features, "efficientnet", "nowhere.pth", "no file of weights at nowhere.pth"),
    ],
)
def test_refuses(load, name, path, message):
    with pytest.raises(ValueError, match=message):
        load(name, path)
