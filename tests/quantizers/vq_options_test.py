"""Options of the VQ layers: projection, rotation trick, means, reseeding, mistakes; and SimVQ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fsq_jax import quantizers
from fsq_jax.quantizers import running_codebook, simvq, vq
from tests.compiled import apply, init

K, D = 12, 5
LAYERS = (vq.VectorQuantizer, vq.EMAVectorQuantizer, simvq.SimVQ)


def inputs(seed=0, shape=(8, 3, D)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nearest(z, codebook):
    return ((z[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)


def reseeding(**more):
    options = dict(momentum=0.8, standardize=False, unit_words=False, split_threshold=0.0)
    return vq.EMAVectorQuantizer(K, D, **options, reseed_threshold=1.5, **more)


@pytest.mark.parametrize("make", LAYERS)
def test_codewords_of_fewer_channels(make):
    module = make(K, D, codebook_channels=2)
    z = inputs()
    variables = init(module, z)
    got = jax.tree.map(np.asarray, apply(module, variables, z))
    assert got.codes.shape == z.shape
    layers = variables["params"]
    assert layers["project_in"]["kernel"].shape == (D, 2)
    tokens = z.reshape(-1, D) @ np.asarray(layers["project_in"]["kernel"])
    if make is vq.EMAVectorQuantizer:
        tokens = np.asarray(jax.jit(vq.standardize)(tokens))
    words = np.asarray(apply(module, variables, method="codewords"))
    assert words.shape == (K, 2)
    np.testing.assert_array_equal(got.indices.ravel(), nearest(tokens, words))
    want = words[got.indices] @ np.asarray(layers["project_out"]["kernel"])
    np.testing.assert_allclose(got.codes, want, atol=1e-5)
    back = apply(module, variables, got.indices, method="indices_to_codes")
    np.testing.assert_allclose(back, got.codes, atol=1e-5)
    outside = apply(module, variables, np.array([-1, 0, K]), method="indices_to_codes")
    np.testing.assert_array_equal(np.isnan(outside)[:, 0], [True, False, True])


@pytest.mark.parametrize("make", LAYERS)
def test_the_rotation_trick_changes_the_gradient_to_z_alone(make):
    z, weight = inputs(), inputs(1)
    plain, rotating = make(K, D), make(K, D, gradient="rotation")
    variables = init(plain, z)

    def slope(module):
        def total(z):
            result = module.apply(variables, z)
            return (result.codes * weight).sum(), result

        return jax.jit(jax.grad(total, has_aux=True))(z)

    (straight, want), (turned, got) = slope(plain), slope(rotating)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert np.abs(np.subtract(turned, straight)).max() > 0.1


def test_simvq_is_the_formula():
    module = simvq.SimVQ(K, D)
    z = inputs()
    variables = init(module, z)
    linear = variables["params"]["linear"]
    frozen = np.asarray(variables["codebook_state"]["frozen"])
    codebook = frozen @ np.asarray(linear["kernel"]) + np.asarray(linear["bias"])
    flat = z.reshape(-1, D)
    indices = nearest(flat, codebook)

    def loss(params):
        result = module.apply({**variables, "params": params}, z, train=True)
        return result.loss, result

    gradient, got = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    got = jax.tree.map(np.asarray, got)
    np.testing.assert_array_equal(got.indices.ravel(), indices)
    np.testing.assert_allclose(got.codes.reshape(-1, D), codebook[indices], atol=1e-6)
    error = codebook[indices] - flat
    np.testing.assert_allclose(got.loss, 1.25 * (error**2).mean(), rtol=1e-5)
    want = frozen[indices].T @ (2 * error / error.size)
    np.testing.assert_allclose(gradient["linear"]["kernel"], want, atol=1e-6)
    np.testing.assert_allclose(
        gradient["linear"]["bias"], (2 * error / error.size).sum(0), atol=1e-6
    )
    assert "bias" not in init(module.clone(bias=False), z)["params"]["linear"]


def test_simvq_starts_as_its_authors_do():
    variables = init(simvq.SimVQ(1024, 64), np.zeros((1, 64)))
    np.testing.assert_allclose(np.std(variables["codebook_state"]["frozen"]), 64**-0.5, rtol=0.01)
    for values in variables["params"]["linear"].values():
        assert 0.115 < np.abs(values).max() <= 64**-0.5


def test_means_of_tokens_by_hand():
    """Words (1, 0) and (0, 4), one token a step each; momentum 1/2; tokens (3, 0) and (5, 0)."""
    module = vq.EMAVectorQuantizer(
        2, 2, momentum=0.5, standardize=False, unit_words=False, split_threshold=0.0
    )
    state = {"counts": np.full(2, 2.0), "dictionary": 2 * np.array([[1.0, 0], [0, 4.0]])}
    z = np.array([[3.0, 0], [5.0, 0]])
    got, after = apply(module, {vq.STATE: state}, z, train=True, mutable=vq.STATE)
    np.testing.assert_allclose(got.codes, [[1, 0], [1, 0]], atol=1e-4)
    words = apply(module, after, method="codewords")
    np.testing.assert_allclose(words, [[(1 + 8) / (1 + 2), 0], [0, 4]], rtol=1e-4)


def test_reseeding_replaces_words_that_few_chose():
    z = inputs()
    module = reseeding()
    state = init(module, z)
    draws = dict(train=True, mutable=vq.STATE, rngs={"codebook": jax.random.key(1)})
    got, after = apply(module, state, z, **draws)
    _, kept = apply(module.clone(reseed_threshold=0.0), state, z, **draws)
    few = np.asarray(kept[vq.STATE]["counts"]) < 1.5 / 0.2
    assert 0 < few.sum() < K
    words, before = (np.asarray(apply(module, s, method="codewords")) for s in (after, kept))
    np.testing.assert_allclose(words[~few], before[~few], rtol=1e-3)
    np.testing.assert_allclose(np.asarray(after[vq.STATE]["counts"])[few], 1.5 / 0.2)
    tokens = z.reshape(-1, D)
    seeds = nearest(words[few], tokens)
    np.testing.assert_allclose(words[few], tokens[seeds], rtol=1e-4)
    assert len(set(seeds)) == few.sum()  # no token twice
    again = apply(module, state, z, **draws | {"rngs": {"codebook": jax.random.key(2)}})[1]
    assert not np.array_equal(again[vq.STATE]["dictionary"], after[vq.STATE]["dictionary"])
    assert got.indices.shape == z.shape[:-1]


def test_words_without_a_seed_stay():
    state = {"counts": np.array([9.0, 1.0, 2.0]), "dictionary": np.array([[1.0], [2.0], [3.0]])}
    batch = {"seeds": np.array([[7.0], [8.0], [0.0]]), "seeded": np.array([1.0, 1.0, 0.0])}
    reseed = functools.partial(running_codebook.reseed, momentum=0.5, threshold=2.0)
    after = jax.jit(reseed)(state, batch)
    np.testing.assert_array_equal(after["counts"], [9, 4, 2])  # 4: two tokens a step
    np.testing.assert_array_equal(after["dictionary"], [[1], [32], [3]])


@pytest.mark.parametrize("num_codes", [K, 40])
def test_each_word_has_a_seed_of_its_own(num_codes):
    z = np.arange(24.0).reshape(8, 3, 1)
    draw = jax.jit(running_codebook.seeds, static_argnums=2)
    found = jax.tree.map(np.asarray, draw(z, np.ones(8, bool), num_codes, jax.random.key(0)))
    seeded = found["seeded"] == 1
    assert seeded.sum() == min(num_codes, 24)
    assert len(set(found["seeds"][seeded, 0])) == seeded.sum()
    np.testing.assert_array_equal(found["seeds"][~seeded], 0)


def step_in_parts(module, state, z, key, parts):
    """(what the calls of a step leave, the state after it)."""
    totals = None
    for part in range(parts):  # dealt in turn, as `optim.accumulate` does
        mine = slice(part, None, parts)
        place = quantizers.part_of_step(jnp.arange(len(z))[mine], len(z), key)
        variables = {vq.STATE: state, vq.PART: place[vq.PART]["quantizer"]}
        found = module.apply(variables, z[mine], train=True, mutable=vq.BATCH)[1][vq.BATCH]
        totals = found if totals is None else jax.tree.map(jnp.add, totals, found)
    return totals, module.after_step(state, totals, key)


@pytest.mark.parametrize(("parts", "devices"), [(4, 1), (1, 8), (4, 8)])
def test_a_reseeding_step_is_the_same_in_microbatches_and_on_eight_devices(parts, devices):
    if jax.device_count() < devices:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    module, z = reseeding(), inputs(shape=(32, 3, D))
    state = init(module, z)[vq.STATE]
    step = jax.jit(step_in_parts, static_argnums=(0, 4))
    want, after = step(module, state, z, jax.random.key(1), 1)
    assert 0 < (np.asarray(after["counts"]) == 1.5 / (1 - 0.8)).sum() < K  # some were reseeded
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(z, NamedSharding(mesh, P("data")))
    got, again = step(module, state, split, jax.random.key(1), parts)
    np.testing.assert_array_equal(got["seeds"], want["seeds"])
    np.testing.assert_array_equal(got["seeded"], np.ones(K))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, after)


def test_mistakes():
    with pytest.raises(ValueError, match="split_threshold=0.1 and reseed_threshold=2.0 exclude"):
        vq.EMAVectorQuantizer(K, D, reseed_threshold=2.0)
    with pytest.raises(ValueError, match="standardize=True and normalize=True exclude"):
        vq.EMAVectorQuantizer(K, D, normalize=True)
    with pytest.raises(ValueError, match="'rotatoin' is unknown.*'rotation'"):
        vq.VectorQuantizer(K, D, gradient="rotatoin")
    with pytest.raises(ValueError, match="codebook_channels=-1"):
        simvq.SimVQ(K, D, codebook_channels=-1)
    module, z = reseeding(), inputs()
    state = init(module, z)
    with pytest.raises(ValueError, match="quantizers.part_of_step"):
        apply(module, state, z, train=True, mutable=vq.BATCH)
    with pytest.raises(ValueError, match="reseed_threshold=0"):
        apply(module, state, z, train=True, mutable=vq.STATE)
