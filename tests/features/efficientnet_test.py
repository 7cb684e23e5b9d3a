import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.features.efficientnet import EfficientNetLite0, prepare


def test_shapes_and_parameter_count():
    module = EfficientNetLite0()
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    (maps, logits), variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert maps.shape == (2, 7, 7, 1280) and logits.shape == (2, 1000)
    # 4,652,008 in torch, less one of the two vectors of each of its 49 normalisations.
    total = sum(np.prod(a.shape) for a in jax.tree.leaves(variables))
    norms = sum(a.shape[-1] for a in jax.tree.leaves(variables["params"]) if a.ndim == 4)
    assert total == 4_652_008 - norms


def test_prepare_maps_grey_levels_as_the_weights_expect():
    images = np.stack([np.full((8, 8, 3), v / 255, np.float32) for v in (0, 127, 255)])
    prepared = prepare(images)
    assert prepared.shape == (3, 224, 224, 3)
    np.testing.assert_allclose(prepared[:, 100, 100, 0], [-127 / 128, 0, 1], atol=1e-6)
