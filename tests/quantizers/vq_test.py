"""VQ layers against plain NumPy, their gradients, code splitting, and eight devices against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fsq_jax import quantizers
from fsq_jax.quantizers import entropy, running_codebook, vq
from tests import tiny
from tests.compiled import apply, init

K, D = 12, 5


def standardized(z):
    return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nearest(z, codebook):
    return ((z[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)


def perplexity(indices):
    share = np.bincount(indices, minlength=K) / len(indices)
    return np.exp(-sum(p * np.log(p) for p in share if p))


def inputs(seed=0, shape=(8, 3, 4, D)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mesh_of_eight():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("normalize", [False, True])
def test_vq_is_the_formula(normalize):
    module = vq.VectorQuantizer(K, D, normalize=normalize, entropy_temperature=0.3)
    z = inputs()
    params = init(module, z)
    got = jax.tree.map(np.asarray, apply(module, params, z, train=True))

    codebook = np.asarray(params["params"]["codebook"], np.float64)
    flat = z.reshape(-1, D).astype(np.float64)
    if normalize:
        codebook, flat = unit(codebook), unit(flat)
    indices = nearest(flat, codebook)
    error = ((codebook[indices] - flat) ** 2).mean()
    affinity = -((flat[:, None] - codebook[None]) ** 2).sum(-1) / 0.3
    p = np.exp(affinity - affinity.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    entropy = -(p * np.log(p)).sum(1).mean() + (mean * np.log(mean + 1e-5)).sum()

    np.testing.assert_array_equal(got.indices.ravel(), indices)
    np.testing.assert_allclose(got.codes.reshape(-1, D), codebook[indices], atol=1e-6)
    want = {"codebook_loss": error, "commitment_loss": error, "entropy_loss": entropy}
    want["perplexity"] = perplexity(indices)
    assert set(got.metrics) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(got.metrics[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(got.loss, 1.25 * error + 0.1 * entropy, rtol=1e-5)
    assert got.indices.dtype == jnp.int32 and got.loss.shape == ()
    back = apply(module, params, got.indices, method="indices_to_codes")
    np.testing.assert_allclose(back, got.codes, atol=1e-6)


def test_vq_gradients():
    module = vq.VectorQuantizer(K, D, entropy_weight=0.0)
    z = inputs(shape=(40, D))
    params = init(module, z)
    # Straight through: the decoder's gradient reaches z as it is, and never the codebook.
    weight = inputs(1, (40, D))
    to_params, to_z = jax.jit(
        jax.grad(lambda p, z: (module.apply(p, z).codes * weight).sum(), argnums=(0, 1))
    )(params, z)
    np.testing.assert_array_equal(to_z, weight)
    np.testing.assert_array_equal(to_params["params"]["codebook"], 0)
    # The loss pulls a word to its tokens, and a quarter as hard the tokens to their word.
    loss = jax.jit(jax.grad(lambda p, z: module.apply(p, z).loss, argnums=(0, 1)))
    to_params, to_z = loss(params, z)
    codebook = np.asarray(params["params"]["codebook"])
    error = codebook[nearest(z, codebook)] - z
    want = np.zeros((K, D))
    np.add.at(want, nearest(z, codebook), 2 * error / error.size)
    np.testing.assert_allclose(to_params["params"]["codebook"], want, atol=1e-6)
    np.testing.assert_allclose(to_z, -0.25 * 2 * error / error.size, atol=1e-6)


def test_entropy_loss_has_its_extremes():
    sure = 100.0 * (1 - np.eye(K))
    loss = jax.jit(lambda d: entropy.of_distances(d, 0.01))
    np.testing.assert_allclose(loss(sure), -np.log(K), atol=1e-3)
    np.testing.assert_allclose(loss(np.zeros((30, K))), 0, atol=1e-3)
    gradient = jax.jit(jax.grad(loss))(sure)
    assert np.isfinite(gradient).all()


def test_codebook_starts_like_maskgit():
    module = vq.VectorQuantizer(1024, 256)
    codebook = np.asarray(init(module, np.zeros((1, 256)))["params"]["codebook"])
    assert codebook.shape == (1024, 256)
    np.testing.assert_allclose([codebook.min(), codebook.max()], [-0.0541, 0.0541], atol=1e-4)
    np.testing.assert_allclose(codebook.std(), 0.0541 / np.sqrt(3), rtol=0.01)


def test_nothing_of_tokens_by_codes_by_channels():
    module = vq.VectorQuantizer(64, 32)
    z = np.zeros((128, 32), np.float32)
    params = init(module, z)
    text = str(jax.make_jaxpr(jax.grad(lambda p: module.apply(p, z).loss))(params))
    assert "f32[128,64]" in text and "[128,64,32]" not in text


@pytest.mark.parametrize("make", [vq.VectorQuantizer, vq.EMAVectorQuantizer])
def test_bfloat16_inputs_and_indices_outside(make):
    module = make(K, D)
    z = inputs().astype(jnp.bfloat16)
    variables = init(module, z)
    low, full = apply(module, variables, z), apply(module, variables, z.astype(np.float32))
    assert low.codes.dtype == jnp.float32
    np.testing.assert_array_equal(low.indices, full.indices)
    codes = apply(module, variables, np.array([-1, 0, K]), method="indices_to_codes")
    np.testing.assert_array_equal(np.isnan(codes)[:, 0], [True, False, True])


class Plain:
    """UViM's running codebook as loops over NumPy arrays."""

    def __init__(self, dictionary, counts, threshold):
        self.dictionary, self.counts = dictionary.astype(np.float64), counts.astype(np.float64)
        self.threshold = threshold

    def step(self, z, noise):
        z = standardized(z.reshape(-1, D).astype(np.float64))
        indices = nearest(z, unit(self.dictionary / self.counts[:, None]))
        self.counts *= 0.995
        self.dictionary *= 0.995
        for i, x in zip(indices, z, strict=True):
            self.counts[i] += 1
            self.dictionary[i] += x
        splits = 0
        while self.counts.min() < self.threshold and self.counts.max() >= 2 * self.threshold:
            idle, busy = self.counts.argmin(), self.counts.argmax()
            self.counts[[idle, busy]] = self.counts[busy] / 2
            half = self.dictionary[busy] / 2
            self.dictionary[busy], self.dictionary[idle] = half, half * noise
            splits += 1
        return indices, splits


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_ema_is_the_loop(threshold, monkeypatch):
    # Both perturb alike: coordinate d is multiplied by 1 + 0.001 sin d.
    noise = 1 + 0.001 * np.sin(np.arange(D))
    monkeypatch.setattr(
        running_codebook, "perturbation", lambda key, shape: jnp.array(noise, jnp.float32)
    )
    module = vq.EMAVectorQuantizer(K, D, split_threshold=threshold)
    state = init(module, inputs())
    plain = Plain(*(np.asarray(state["codebook_state"][n]) for n in ("dictionary", "counts")),
                  threshold)  # fmt: skip
    splits = 0
    update = jax.jit(
        lambda state, z: module.apply(
            state, z, train=True, mutable="codebook_state", rngs={"codebook": jax.random.key(0)}
        )
    )
    for step in range(60):
        z = inputs(step, (2, 3, D)) + np.arange(D)  # few tokens, all alike: words fall idle
        before, (got, state) = tiny.types(state), update(state, z)
        assert tiny.types(state) == before
        want, count = plain.step(z, noise)
        splits += count
        np.testing.assert_array_equal(np.ravel(got.indices), want)
        np.testing.assert_allclose(state["codebook_state"]["counts"], plain.counts, rtol=1e-4)
        np.testing.assert_allclose(
            state["codebook_state"]["dictionary"], plain.dictionary, rtol=1e-3, atol=1e-4
        )
    assert (splits > 0) == (threshold > 0)


def test_ema_result():
    module = vq.EMAVectorQuantizer(K, D, commitment_weight=0.25)
    z = inputs()
    state = jax.jit(lambda: module.init(jax.random.key(0), z, train=True))()
    np.testing.assert_array_equal(state["codebook_state"]["counts"], np.ones(K))  # not updated
    got = jax.tree.map(np.asarray, apply(module, state, z))
    codebook = unit(np.asarray(state["codebook_state"]["dictionary"]))
    flat = standardized(z.reshape(-1, D))
    indices = nearest(flat, codebook)
    np.testing.assert_array_equal(got.indices.ravel(), indices)
    np.testing.assert_allclose(got.codes.reshape(-1, D), codebook[indices], atol=1e-6)
    error = ((codebook[indices] - flat) ** 2).mean()
    counts = np.bincount(indices, minlength=K)
    want = {"commitment_loss": error, "perplexity": perplexity(indices)}
    want |= {"unused": (counts == 0).mean(), "max_share": counts.max() / len(indices)}
    assert set(got.metrics) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(got.metrics[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(got.loss, 0.25 * error, rtol=1e-5)
    # Straight through to z, by way of the standardisation.
    weight = inputs(1, z.shape)
    to_z = jax.jit(jax.grad(lambda z: (module.apply(state, z).codes * weight).sum()))(z)
    standardize = lambda z: vq.standardize(z.reshape(-1, D))  # noqa: E731
    (want,) = jax.jit(lambda z: jax.vjp(standardize, z)[1](weight.reshape(-1, D)))(z)
    np.testing.assert_allclose(to_z, want, atol=1e-6)


def test_ema_updates_in_training_only_and_repeats_itself():
    module = vq.EMAVectorQuantizer(K, D, split_threshold=6.0)
    z = inputs()
    state = init(module, z)
    draws = dict(train=True, mutable="codebook_state")
    first, again, other = (
        apply(module, state, z, **draws, rngs={"codebook": jax.random.key(seed)})[1]
        for seed in (1, 1, 2)
    )
    as_arrays = [np.asarray(s["codebook_state"]["dictionary"]) for s in (first, again, other)]
    np.testing.assert_array_equal(as_arrays[0], as_arrays[1])
    assert (as_arrays[0] != as_arrays[2]).any()
    _, kept = apply(module, state, z, train=False, mutable="codebook_state")
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, state))
    apply(module, state, z, train=True)  # frozen: no collection to write, no key needed
    with pytest.raises(ValueError, match="split_threshold=0"):
        apply(module, state, z, **draws)
    apply(module.clone(split_threshold=0.0), state, z, **draws)


def test_splitting_ends_and_conserves():
    rng = np.random.default_rng(0)
    counts, sums = np.full(64, 1e-6), rng.normal(size=(64, D))
    counts[3] = 50.0
    split = jax.jit(running_codebook.split_idle_words)
    got_counts, got_sums = map(np.asarray, split(counts, sums, jax.random.key(0), 0.1))
    assert got_counts.min() >= 0.1
    np.testing.assert_allclose(got_counts.sum(), 50.0, rtol=1e-5)
    words = got_sums / got_counts[:, None]
    ratio = words / (sums[3] / 50.0)
    assert (np.abs(ratio - 1) < 0.008).all() and len(np.unique(words[:, 0])) == 64
    # Too little to go round: it stops rather than turns for ever.
    got_counts, _ = split(np.full((64,), 1e-3), sums, jax.random.key(0), 0.1)
    np.testing.assert_allclose(got_counts, 1e-3)


def test_idle_words_do_not_fade_to_nothing():
    module = vq.EMAVectorQuantizer(K, D, momentum=0.1, split_threshold=0)
    z = np.broadcast_to(np.arange(D, dtype=np.float32), (4, D))
    state = start = init(module, z)
    for _ in range(60):
        got, state = apply(module, state, z, train=True, mutable="codebook_state")
    words = [unit(np.asarray(s["codebook_state"]["dictionary"])) for s in (start, state)]
    got = jax.tree.map(np.asarray, got)
    idle = np.arange(K) != got.indices[0]
    np.testing.assert_allclose(words[1][idle], words[0][idle], rtol=1e-4)
    np.testing.assert_allclose(got.codes[0], unit(standardized(z[0])), atol=1e-5)


def test_a_step_in_microbatches_is_the_step():
    """Each fades once, splits once, and its microbatches all look up the same words."""
    module, z, key = vq.EMAVectorQuantizer(K, D, split_threshold=3.0), inputs(), jax.random.key(1)
    state = init(module, z)
    _, whole = apply(module, state, z, train=True, mutable=vq.BATCH)
    parts = [
        apply(module, state, part, train=True, mutable=vq.BATCH)[1][vq.BATCH]
        for part in np.split(z, 4)
    ]
    added = jax.tree.map(lambda *values: sum(map(np.asarray, values)), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), added, whole[vq.BATCH])
    assert added["counts"].sum() == z.size / D
    after = jax.tree.map(np.asarray, jax.jit(module.after_step)(state[vq.STATE], added, key))
    faded = 0.995 * np.asarray(state[vq.STATE]["counts"]) + added["counts"]
    assert faded.min() < 3 < after["counts"].min()  # so that some were split
    unsplit = module.clone(split_threshold=0.0)
    _, at_once = apply(unsplit, state, z, train=True, mutable=vq.STATE)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.jit(unsplit.after_step)(state[vq.STATE], added, None),
        at_once[vq.STATE],
    )


@pytest.mark.parametrize("make", [vq.VectorQuantizer, vq.EMAVectorQuantizer])
def test_eight_devices_are_one(make):
    mesh = mesh_of_eight()
    module = make(K, D) if make is vq.VectorQuantizer else make(K, D, split_threshold=3.0)
    z = inputs(shape=(16, 3, D))
    variables = init(module, z)

    def step(variables, z):
        def loss(variables, z):
            result, state = module.apply(
                variables, z, train=True, mutable="codebook_state", rngs={"codebook": key}
            )
            return result.loss + (result.codes**2).sum(), (result, state)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, z)

    key = jax.random.key(1)
    one = jax.jit(step)(variables, z)
    everywhere, by_example = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    eight = jax.jit(step)(jax.device_put(variables, everywhere), jax.device_put(z, by_example))
    assert len(eight[1][0].codes.sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), one, eight)


def test_make():
    assert quantizers.make("fsq", levels=(8, 5)).codebook_size == 40
    assert quantizers.make("vq", codebook_size=8, channels=2).channels == 2
    assert isinstance(quantizers.make("vq_ema", codebook_size=8, channels=2), vq.EMAVectorQuantizer)
    with pytest.raises(ValueError, match="did you mean 'vq_ema'"):
        quantizers.make("vqema")


@pytest.mark.parametrize("make", [vq.VectorQuantizer, vq.EMAVectorQuantizer])
def test_mistakes(make):
    for sizes in [(1, 4), (0, 4), (8, 0)]:
        with pytest.raises(ValueError, match=f"codebook_size={sizes[0]}, channels={sizes[1]}"):
            make(*sizes)
    with pytest.raises(ValueError, match=r"\(2, 4\), must be channels=5"):
        init(make(K, D), np.zeros((2, 4)))


def test_the_entropy_of_groups_is_that_of_devices():
    """MaskGIT: each device takes the loss over its own tokens, and gradients are averaged."""
    z = inputs(shape=(8, 3, D))
    whole = vq.VectorQuantizer(K, D, entropy_temperature=0.3)
    params = init(whole, z)

    def loss(group, examples):
        module = whole.clone(entropy_group=group)
        return float(apply(module, params, z[examples], train=True).metrics["entropy_loss"])

    everything = slice(None)
    for group in (2, 4):
        devices = [loss(0, slice(start, None, 8 // group)) for start in range(8 // group)]
        np.testing.assert_allclose(loss(group, everything), np.mean(devices), rtol=1e-5)
        assert loss(group, everything) > loss(0, everything) + 1e-3  # fewer tokens, less entropy
    np.testing.assert_allclose(loss(8, everything), loss(0, everything), rtol=1e-6)
    # In microbatches that are dealt in turn the groups are the same.
    parts = [loss(2, slice(i, None, 4)) for i in range(4)]
    np.testing.assert_allclose(np.mean(parts), loss(2, everything), rtol=1e-5)
    with pytest.raises(ValueError, match="entropy_group=3 doesn.t divide the 8 examples"):
        loss(3, everything)
    apply(whole.clone(entropy_group=3), params, z)  # of an evaluation nothing is trained
