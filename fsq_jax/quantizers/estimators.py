"""What gradient a decoder's input passes back to the encoder's output, past the choice of a code.

Legend: N tokens  D channels.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp


def straight_through(z_ND: jax.Array, q_ND: jax.Array) -> jax.Array:
    """Returns q exactly; its gradient is handed to z as it is, and none to q."""
    return jax.lax.stop_gradient(q_ND) + (z_ND - jax.lax.stop_gradient(z_ND))


def rotation(z_ND: jax.Array, q_ND: jax.Array) -> jax.Array:
    """Returns q exactly; its gradient reaches z by way of `rotate`, and none reaches q."""
    return straight_through(rotate(z_ND, q_ND), q_ND)


def rotate(z_ND: jax.Array, q_ND: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Returns z, turned and stretched onto q by a linear map that takes no gradient itself.

    The rotation trick (Fifty et al., arXiv 2410.06424, section 4.2): with u = z / |z|, v = q / |q|
    and w = (u + v) / |u + v|, the rotation is R = I - 2 w w^T + 2 v u^T, times |q| / |z|. It turns
    within the plane of z and q, so that the angle between a gradient and the code stays that
    between the gradient and z. No D x D matrix is made.

    The same function as `rotate_to` of vector-quantize-pytorch 1.32, but where |z| is below
    `epsilon`: there nothing is stretched, where it would be by up to |q| / epsilon. The authors'
    ViT-VQGAN turns z / |z| and passes its gradient on, which has no part along z.
    """
    z_norm_N1, q_norm_N1 = (
        jnp.linalg.norm(jax.lax.stop_gradient(x), axis=1, keepdims=True) for x in (z_ND, q_ND)
    )
    u_ND, v_ND = (
        jax.lax.stop_gradient(x) / jnp.maximum(norm, epsilon)
        for x, norm in ((z_ND, z_norm_N1), (q_ND, q_norm_N1))
    )
    sum_ND = u_ND + v_ND
    w_ND = sum_ND / jnp.maximum(jnp.linalg.norm(sum_ND, axis=1, keepdims=True), epsilon)
    along_w_N1 = jnp.sum(z_ND * w_ND, axis=1, keepdims=True)
    along_u_N1 = jnp.sum(z_ND * u_ND, axis=1, keepdims=True)
    turned_ND = z_ND - 2 * along_w_N1 * w_ND + 2 * along_u_N1 * v_ND
    return turned_ND * jnp.where(
        z_norm_N1 < epsilon, 1.0, q_norm_N1 / jnp.maximum(z_norm_N1, epsilon)
    )


ESTIMATORS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "straight_through": straight_through,
    "rotation": rotation,
}
