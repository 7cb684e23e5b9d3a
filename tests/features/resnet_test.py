import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.features.resnet import ResNet, prepare


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_shapes_and_parameter_count_of_resnet50(stride_in):
    module = ResNet(stride_in=stride_in)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    (maps, logits), variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert maps.shape == (2, 7, 7, 2048) and logits.shape == (2, 1000)
    # 25,557,032 in torch, less one of the two vectors of each normalisation.
    total = sum(np.prod(a.shape) for a in jax.tree.leaves(variables))
    norms = sum(a.shape[-1] for a in jax.tree.leaves(variables["params"]) if a.ndim == 4)
    assert total == 25_557_032 - norms


def test_prepare_centres_the_mean_colour():
    images = np.tile(np.array([0.485, 0.456, 0.406], np.float32), (1, 300, 300, 1))
    np.testing.assert_allclose(prepare(images), np.zeros((1, 224, 224, 3)), atol=1e-4)


def test_refuses_an_unknown_stride():
    with pytest.raises(ValueError, match="2x2"):
        ResNet(stride_in="2x2").init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
