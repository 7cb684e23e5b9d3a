"""Labels are drawn alike wherever they are: colours of a fixed range, segments with outlines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.tasks import drawing

draw = jax.jit(drawing.draw, static_argnums=0)


def test_images_stay_as_they_are():
    images = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    np.testing.assert_array_equal(draw("image", images), images)


def test_depth_has_one_colour_in_every_picture():
    depth = jnp.array([[[1.0, 5.0], [9.0, 25.0]], [[5.0, 5.0], [2.0, 8.0]]])
    drawn = np.asarray(draw("depth", depth))
    assert drawn.shape == (2, 2, 2, 3) and drawn.min() >= 0 and drawn.max() <= 1
    np.testing.assert_array_equal(drawn[0, 0, 1], drawn[1, 0, 0])
    luma = drawn @ np.array([0.3, 0.6, 0.1])
    assert luma[0, 0, 0] > luma[0, 0, 1] > luma[0, 1, 0]  # near is bright
    furthest = jax.jit(drawing.draw_depth)(jnp.full((1, 1, 1), 10.0))
    np.testing.assert_array_equal(drawn[0, 1, 1], furthest[0, 0, 0])


def test_missing_depth_is_black():
    drawn = draw("depth", jnp.array([[[0.0, 0.01]]]))
    assert (drawn[0, 0, 0] == 0).all() and (drawn[0, 0, 1] > 0).any()


def test_segments_have_a_colour_each_and_dark_outlines():
    segments = np.zeros((1, 6, 6, 2), np.int32)
    segments[:, :, 3:] = (3, 1)  # the right half is one thing
    segments[:, 3:, 3:, 1] = 2  # whose lower half is another
    drawn = np.asarray(draw("segments", segments))
    assert (drawn[0, :, :3] == 0).all()  # void
    upper, lower = drawn[0, 0, 5], drawn[0, 5, 5]
    assert (upper > 0).any() and (upper != lower).any()
    np.testing.assert_allclose(upper / upper.max(), lower / lower.max(), rtol=1e-5)  # one class
    assert (drawn[0, 2, 3:].max(-1) < 0.3 * upper.max()).all()  # the line between the two
    np.testing.assert_array_equal(drawn[0, :2, 3:], np.broadcast_to(upper, (2, 3, 3)))


@pytest.mark.parametrize(
    "name, shape, dtype",
    [
        ("depth", (1, 4, 4), np.float32),
        ("segments", (1, 4, 4, 2), np.int32),
    ],
)
def test_drawing_can_be_compiled(name, shape, dtype):
    values = np.random.default_rng(0).integers(0, 8, shape).astype(dtype)
    np.testing.assert_allclose(draw(name, values), drawing.draw(name, values), atol=1e-6)
