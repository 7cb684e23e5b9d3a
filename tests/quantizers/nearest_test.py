"""Look-ups and entropies in blocks of codes are those of the whole; sums over sorted tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fsq_jax.quantizers import entropy, nearest, vq
from fsq_jax.runtime.sharding import make_mesh

N, K, D = 48, 40, 6


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    z, codebook = (rng.normal(size=(n, D)).astype(np.float32) for n in (N, K))
    codebook[17] = codebook[3]  # equally near: the lower index
    z[:4] = codebook[[3, 17, 5, 39]]
    return z, codebook


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 codes: two whole ones, and a third that is filled up."""
    monkeypatch.setattr(nearest, "MAX_ELEMENTS", N * 16)
    assert nearest.block_size(N, K) == 16 and not nearest.is_whole(jnp.zeros(N), K)


def test_blocks_are_as_large_as_fit():
    assert nearest.block_size(8192, 8192) == 8192
    assert nearest.block_size(8192, 2**18) == 8192
    assert nearest.block_size(5000, 2**18) == 8192  # of 13,421 that fit, for even blocks
    assert nearest.block_size(2**27, 4) == 1


def test_a_look_up_in_blocks_is_the_look_up(small_blocks):
    z, codebook = arrays()
    indices = jax.jit(nearest.nearest)(z, codebook)
    distances = ((z[:, None] - codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(indices, distances.argmin(1))
    assert indices.dtype == jnp.int32 and indices[1] == 3
    np.testing.assert_array_equal(jax.jit(nearest.look_up)(codebook, indices), codebook[indices])
    counts = jax.jit(nearest.counts, static_argnums=1)(indices, K)
    np.testing.assert_array_equal(counts, np.bincount(indices, minlength=K))
    want = np.zeros((K, D))
    np.add.at(want, np.asarray(indices), z)
    sums = jax.jit(nearest.sums, static_argnums=2)(z, indices, K)
    np.testing.assert_allclose(sums, want, atol=1e-5)
    # The gradient of the look-up is such a sum.
    weight = arrays(1)[0]
    gradient = jax.jit(jax.grad(lambda c: (nearest.look_up(c, indices) * weight).sum()))(codebook)
    want = np.zeros((K, D))
    np.add.at(want, np.asarray(indices), weight)
    np.testing.assert_allclose(gradient, want, atol=1e-5)


@pytest.mark.parametrize("chosen", [[0], [K - 1], range(K)])
def test_sums_of_few_and_of_all_codes(chosen, small_blocks):
    indices = np.resize(np.array(chosen), N)[::-1].astype(np.int32)
    sums = jax.jit(nearest.sums, static_argnums=2)(np.ones((N, 1), np.float32), indices, K)
    np.testing.assert_array_equal(sums[:, 0], np.bincount(indices, minlength=K))


@pytest.mark.parametrize(("groups", "temperature"), [(1, 0.01), (4, 1.0)])
def test_the_entropy_in_blocks_is_the_entropy(groups, temperature, small_blocks):
    z, codebook = arrays()

    def whole(z, codebook):
        distances = nearest.squared_distances(z, codebook)
        return entropy.of_distances(distances, temperature, groups, examples=8)

    def in_blocks(z, codebook):
        return entropy.loss(z, codebook, temperature, groups, 8)

    want, want_gradients = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(z, codebook)
    got, got_gradients = jax.jit(jax.value_and_grad(in_blocks, argnums=(0, 1)))(z, codebook)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(got_gradients, want_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    text = str(jax.make_jaxpr(jax.grad(in_blocks, argnums=(0, 1)))(z, codebook))
    assert f"f32[{N},16]" in text  # a block, and not all of them, stacked or in a row
    assert not any(shape in text for shape in (f"[{N},{K}]", f"[3,{N},16]", f"[{N},48]"))


@pytest.mark.parametrize("elements", [N * K, N * 16], ids=["whole", "in_blocks"])
def test_far_from_all_words_the_entropy_has_the_gradient_of_float64(elements, monkeypatch):
    # As in training with a large codebook: |z|^2 is 5,000 and words are short, so that rounding
    # |z|^2 / temperature alone would change a choice by several percent, and the gradient by more.
    rng = np.random.default_rng(0)
    z, codebook = rng.normal(size=(N, D)), 0.1 * rng.normal(size=(K, D))
    z *= 70 / np.linalg.norm(z, axis=1, keepdims=True)
    module = vq.VectorQuantizer(K, D, codebook_weight=0.0, commitment_weight=0.0)

    def gradients(z, codebook):
        def loss(z, codebook):
            return module.apply({"params": {"codebook": codebook}}, z, train=True).loss

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(z, codebook)

    def plain(z, codebook):
        distances = ((z[:, None] - codebook) ** 2).sum(axis=2)
        return module.entropy_weight * entropy.of_distances(distances, module.entropy_temperature)

    with jax.enable_x64(True):
        want = jax.grad(plain, argnums=(0, 1))(jnp.asarray(z), jnp.asarray(codebook))
    monkeypatch.setattr(nearest, "MAX_ELEMENTS", elements)
    got = gradients(z.astype(np.float32), codebook.astype(np.float32))
    for a, b in zip(got, want, strict=True):
        assert np.linalg.norm(a - np.asarray(b)) < 2e-3 * np.linalg.norm(b)


@pytest.mark.parametrize("make", [vq.VectorQuantizer, vq.EMAVectorQuantizer])
def test_a_quantizer_of_blocks_is_the_quantizer(make, monkeypatch):
    z, _ = arrays()
    module = make(K, D)
    variables = jax.jit(module.init)(jax.random.key(0), z)

    def step(variables, z):
        def loss(variables, z):
            result, state = module.apply(variables, z, train=True, mutable=[vq.BATCH])
            return result.loss + (result.codes * jnp.arange(D)).sum(), (result, state)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, z)

    whole = jax.jit(step)(variables, z)
    monkeypatch.setattr(nearest, "MAX_ELEMENTS", N * 8)
    in_blocks = jax.jit(lambda *args: step(*args))(variables, z)
    np.testing.assert_array_equal(whole[1][0].indices, in_blocks[1][0].indices)
    np.testing.assert_array_equal(whole[1][0].codes, in_blocks[1][0].codes)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole, in_blocks
    )


def test_blocks_on_eight_devices(small_blocks, monkeypatch):
    mesh = make_mesh()
    assert mesh.size == 8
    z, codebook = arrays()

    def losses(z, codebook):
        indices = nearest.nearest(z, codebook)
        error = ((nearest.look_up(codebook, indices) - z) ** 2).mean()
        return error + entropy.loss(z, codebook, 0.3), indices

    def step(z, codebook):
        return jax.value_and_grad(losses, argnums=(0, 1), has_aux=True)(z, codebook)

    one = jax.jit(step)(z, codebook)
    split, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    arguments = jax.device_put(z, split), jax.device_put(codebook, everywhere)
    # What fits on each of the devices is made whole there, and no device sorts anything.
    assert "sort(" not in jax.jit(step).lower(*arguments).compile().as_text()
    monkeypatch.setattr(nearest, "MAX_ELEMENTS", N // 8 * 16)
    eight = jax.jit(lambda *args: step(*args)).lower(*arguments).compile()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), one, eight(*arguments)
    )
    text = eight.as_text()
    assert "sort(" in text and "all-gather" not in text  # no device has all tokens
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))):
        arguments = jax.device_put(z, P("data")), jax.device_put(codebook, P())
        explicit = jax.jit(lambda *args: step(*args)).lower(*arguments).compile()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5),
            one,
            explicit(*arguments),
        )
    assert "sort(" in explicit.as_text() and "all-gather" not in explicit.as_text()


def test_a_device_of_a_shard_map_has_its_part_already(small_blocks):
    mesh = make_mesh()
    (z, codebook), parts = arrays(), P("data")
    indices = jax.jit(nearest.nearest)(z, codebook)

    def of_a_device(z, indices):
        return jax.lax.psum(nearest.sums(z, indices, K), "data")

    together = jax.shard_map(of_a_device, mesh=mesh, in_specs=(parts, parts), out_specs=P())
    rows = [np.tile(x, (8, *(1,) * (x.ndim - 1))) for x in (z, np.asarray(indices))]
    once = jax.jit(nearest.sums, static_argnums=2)(z, indices, K)
    np.testing.assert_allclose(jax.jit(together)(*rows), 8 * once, atol=1e-4)
