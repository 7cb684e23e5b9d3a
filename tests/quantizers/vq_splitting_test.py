"""UViM's code splitting on a case that is worked by hand, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.quantizers import vq


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("threshold", [0.6, 0.0])
def test_a_split_by_hand(devices, threshold):
    """Words (1, 0) and (0, 1), counts 1; momentum 1/2; eight tokens (2, 0), all of word 0.

    Counts are 1/2 + 8 = 8.5 and 0.5, sums (1/2 + 16, 0) and (0, 1/2). The idle word counts less
    than 0.6, so both get 4.25 and (8.25, 0), the idle one times its noise. On eight devices each
    has one token, and must count all.
    """
    if jax.device_count() < devices:
        pytest.skip(f"needs {devices} devices, there are {jax.device_count()}")
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    z = jax.device_put(jnp.tile(jnp.array([[2.0, 0.0]]), (8, 1)), sharding)
    module = vq.EMAVectorQuantizer(2, 2, momentum=0.5, standardize=False, split_threshold=threshold)
    state = {"codebook_state": {"dictionary": jnp.eye(2), "counts": jnp.ones(2)}}
    apply = jax.jit(
        functools.partial(
            module.apply, train=True, mutable="codebook_state", rngs={"codebook": jax.random.key(0)}
        )
    )
    got, state = apply(state, z)
    np.testing.assert_array_equal(got.indices, np.zeros(8))
    counts, dictionary = (state["codebook_state"][name] for name in ("counts", "dictionary"))
    if threshold:
        np.testing.assert_allclose(counts, [4.25, 4.25])
        np.testing.assert_allclose(dictionary[0], [8.25, 0])
        assert dictionary[1, 1] == 0 and abs(dictionary[1, 0] / 8.25 - 1) <= 0.00101
        assert dictionary[1, 0] != 8.25
    else:
        np.testing.assert_allclose(counts, [8.5, 0.5])
        np.testing.assert_allclose(dictionary, [[16.5, 0], [0, 0.5]])
