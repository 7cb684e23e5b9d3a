"""The rotation trick: the map is a rotation, the value the codeword, the gradient the map's."""

import jax
import numpy as np
import pytest

from fsq_jax.quantizers import estimators

N, D = 7, 5


def pairs(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(N, D)).astype(np.float32) for _ in range(2)]


def matrices(z, q):
    """The rotations of the paper's section 4.2 as two reflections, [N, D, D], in float64."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    u, v = unit(z.astype(np.float64)), unit(q.astype(np.float64))
    reflect = lambda w: np.eye(D) - 2 * w[:, :, None] * w[:, None, :]  # noqa: E731
    return reflect(unit(u + v)) @ reflect(u)


def test_the_map_is_a_rotation_onto_the_code():
    z, q = pairs()
    jacobian = jax.jit(jax.jacfwd(lambda z: estimators.rotate(z, q)))(z)
    own = np.stack([jacobian[i, :, i] for i in range(N)])
    scale = np.linalg.norm(q, axis=1) / np.linalg.norm(z, axis=1)
    rotations = own / scale[:, None, None]
    np.testing.assert_allclose(rotations, matrices(z, q), atol=1e-5)
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), [np.eye(D)] * N, atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-5)
    np.testing.assert_allclose(estimators.rotate(z, q), q, atol=1e-5)


@pytest.mark.parametrize("name", estimators.ESTIMATORS)
def test_values_are_the_codewords_and_gradients_are_z_s(name):
    z, q = pairs()
    weight = pairs(1)[0]
    estimator = estimators.ESTIMATORS[name]
    value, (to_z, to_q) = jax.jit(
        jax.value_and_grad(lambda z, q: (estimator(z, q) * weight).sum(), argnums=(0, 1))
    )(z, q)
    np.testing.assert_array_equal(jax.jit(estimator)(z, q), q)
    np.testing.assert_allclose(value, (q * weight).sum(), rtol=1e-5)
    np.testing.assert_array_equal(to_q, 0)
    want = weight
    if name == "rotation":
        scale = np.linalg.norm(q, axis=1) / np.linalg.norm(z, axis=1)
        want = scale[:, None] * np.einsum("nij,ni->nj", matrices(z, q), weight)
        # Between gradient and token the angle is that between the decoder's gradient and the code.
        np.testing.assert_allclose((to_z * z).sum(1), (weight * q).sum(1), rtol=1e-4)
    np.testing.assert_allclose(to_z, want, rtol=1e-4, atol=1e-5)


def test_tokens_that_have_no_direction_or_the_opposite_one():
    z, q = pairs()
    z[0], z[1], q[2], z[3] = 0, -q[1], 0, q[3]
    weight = pairs(1)[0]
    gradient = jax.jit(jax.grad(lambda z: (estimators.rotation(z, q) * weight).sum()))(z)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(jax.jit(estimators.rotation)(z, q), q)
    np.testing.assert_allclose(gradient[3], weight[3], rtol=1e-5)  # onto itself
    assert np.abs(gradient[0]).max() < 10  # nothing is divided by the length 0
