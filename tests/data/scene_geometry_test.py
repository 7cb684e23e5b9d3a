"""Rays meet each solid on its surface, from outside, with a normal that faces the ray."""

import numpy as np
import pytest

from fsq_jax.data import scene_geometry
from fsq_jax.data.scene_geometry import KINDS, Solid


def _inside(kind, p):
    """The solid as an inequality: an independent definition of each shape."""
    x, y, z = p
    around = np.hypot(x, z)
    ring, tube = scene_geometry._TORUS
    radius, half = scene_geometry._CONE
    return {
        "sphere": x * x + y * y + z * z < 1,
        "box": np.abs(p).max(axis=0) < scene_geometry._BOX,
        "cylinder": (around < scene_geometry._CYLINDER[0])
        & (np.abs(y) < scene_geometry._CYLINDER[1]),
        "cone": (np.abs(y) < half) & (around < radius * (half - y) / (2 * half)),
        "torus": np.hypot(np.hypot(x, y) - ring, z) < tube,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_first_hit_agrees_with_dense_sampling(kind):
    rng = np.random.default_rng(0)
    solid = Solid(kind, (0.3, 1.0, -0.2), 0.8, 0.7)
    o = np.array([[0.5], [2.0], [-4.0]], np.float32)
    target = np.array([[0.3], [1.0], [-0.2]]) + rng.uniform(-0.9, 0.9, (3, 600))
    d = (target - o).astype(np.float32)
    t = solid.intersect(o, d)
    steps = np.linspace(0.3, 2.0, 3000)
    inside = np.stack(
        [_inside(kind, solid.to_local(o + step * d, is_point=True)) for step in steps]
    )
    hit, first = inside.any(axis=0), steps[inside.argmax(axis=0)]
    assert 0.2 < hit.mean() < 0.95
    assert (np.isfinite(t) == hit).mean() > 0.97  # they may differ on the outline
    both = np.isfinite(t) & hit
    assert np.percentile(np.abs(t[both] - first[both]), 97) < 0.01
    normal = solid.normal((o + t * d)[:, both])
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=0.03)
    assert ((normal * d[:, both]).sum(axis=0) < 0.05).mean() > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_met_behind_the_origin_or_far_to_the_side(kind):
    solid = Solid(kind, (0.0, 1.0, 0.0), 1.0, 0.0)
    o = np.array([[0.1], [1.1], [-5.0]], np.float32)
    assert np.isinf(solid.intersect(o, np.array([[0.01], [0.02], [-1.0]], np.float32))).all()
    assert np.isinf(solid.intersect(o, np.array([[1.0], [0.3], [1.0]], np.float32))).all()
