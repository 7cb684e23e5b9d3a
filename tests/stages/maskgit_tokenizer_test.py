"""Stage I: each network feels its own loss alone, with every quantizer and every option."""

import functools

import jax
import numpy as np
import pytest

from fsq_jax.features.network import Network
from fsq_jax.runs import frozen as runs_frozen
from fsq_jax.runs.frozen import make_stage
from tests import tiny

BATCH = {"image": np.random.default_rng(0).random((4, 8, 8, 3), np.float32)}


@functools.cache
def first_state(quantizer, has_critic, critic_waits):
    """No other option of these tests has a say in it."""
    loss = {"loss.adversarial": float(has_critic), "loss.discriminator_start": int(critic_waits)}
    return tiny.first_state(make_stage(tiny.tokenizer(loss, quantizer)), BATCH)


def start(config):
    """(stage, state, compiled update)."""
    stage, loss = make_stage(config), config.loss
    state = first_state(config.quantizer.name, loss.adversarial > 0, loss.discriminator_start > 0)
    return stage, state.replace(frozen=stage.frozen), jax.jit(stage.update)


def run(config, num_steps=1):
    """(state after, metrics of each step)."""
    _, state, update = start(config)
    metrics = []
    for _ in range(num_steps):
        state, values = update(state, BATCH, jax.random.key(0))
        metrics.append({name: float(value) for name, value in values.items()})
    return state, metrics


@pytest.fixture(scope="module")
def trained():
    """One step with the default losses."""
    return run(tiny.tokenizer())


def equal(ours, theirs, atol=0.0):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.allclose(a, b, rtol=1e-5, atol=atol) for a, b in pairs)


def moments(state, name):
    """Adam's second moments: the squared gradient of the first step, and unlike it not a sign."""
    return jax.tree.map(np.sqrt, state.opt_state[name][0].nu)


def test_the_discriminator_feels_only_its_own_loss(trained):
    other, _ = run(tiny.tokenizer({"loss.adversarial": 5.0, "loss.reconstruction": 2.0}))
    assert equal(moments(other, "discriminator"), moments(trained[0], "discriminator"), 1e-6)
    assert not equal(moments(other, "tokenizer"), moments(trained[0], "tokenizer"), 1e-3)


def test_the_tokenizer_feels_only_its_own_loss(trained):
    other, metrics = run(tiny.tokenizer({"loss.r1_every": 4, "loss.lecam": 3.0}))
    assert equal(moments(other, "tokenizer"), moments(trained[0], "tokenizer"), 1e-6)
    assert not equal(moments(other, "discriminator"), moments(trained[0], "discriminator"), 1e-3)
    # R1 is as much stronger as it is rarer.
    np.testing.assert_allclose(metrics[0]["r1"], 4 * trained[1][0]["r1"], rtol=1e-4)


LATE = {
    "loss.adversarial_start": 4,
    "loss.discriminator_start": 3,
    "loss.r1_every": 2,
    "loss.lecam": 0.1,
    "loss.lecam_decay": 0.5,
}


@pytest.fixture(scope="module")
def late():
    """(state before, state after, metrics) of five steps whose sides start late."""
    _, state, update = start(tiny.tokenizer(LATE))
    steps = []
    for _ in range(5):
        before, (state, values) = state, update(state, BATCH, jax.random.key(0))
        steps.append((before, state, values))
    return steps


def test_sides_that_have_not_started_stay_where_they_are(late):
    norms, r1, lecam = [], [], []
    for step, (before, state, values) in enumerate(late):
        assert equal(before.params["discriminator"], state.params["discriminator"]) == (step < 3)
        norms.append(float(values["discriminator_gradient_norm"]))
        r1.append(float(values["r1"]))
        lecam.append(state.train_only["lecam"])
        # The generator's loss counts from step 4 on; the critic's from step 3.
        values = {name: float(value) for name, value in values.items()}
        expected = values["reconstruction"] + 0.1 * (step >= 4) * values["adversarial"]
        critic = values["discriminator"] + values["r1"] + 0.1 * values["lecam"]
        expected += critic if step >= 3 else 0
        np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(
            lecam[-1].real,
            0.5 * (lecam[-2].real if step else 0) + 0.5 * values["real_logit"],
            rtol=1e-5,
        )
    assert norms[:3] == [0, 0, 0] and min(norms[3:]) > 0
    assert min(r1[::2]) > 0 and r1[1::2] == [0, 0]  # every second step
    assert int(state.step) == 5


def test_a_critic_wakes_with_a_step_of_the_usual_length(late):
    before, state, _ = late[3]
    change = jax.tree.map(
        lambda old, new: np.abs(np.subtract(new, old)).max(),
        before.params["discriminator"],
        state.params["discriminator"],
    )
    # Adam's first step is the learning rate, whatever the gradient; with zeros counted it is not.
    longest = max(jax.tree.leaves(change))
    rate = tiny.tokenizer(LATE).discriminator_optim.learning_rate
    np.testing.assert_allclose(longest, rate, rtol=0.02)


@pytest.mark.parametrize("quantizer", ["fsq", "vq", "vq_ema"])
def test_every_quantizer_learns_one_batch(quantizer):
    config = tiny.tokenizer({"loss.adversarial": 0.0, "optim.learning_rate": 1e-3}, quantizer)
    config.optim.b1 = 0.9
    stage, state, update = start(config)
    assert set(state.params) == {"tokenizer"} and "lecam" not in state.model_state
    begin, first = state, None
    for _ in range(15):
        state, values = update(state, BATCH, jax.random.key(0))
        first = first or values
    assert values["reconstruction"] < 0.9 * first["reconstruction"]
    assert not equal(begin.params, state.params)
    assert tiny.types(begin) == tiny.types(state)
    assert bool(jax.tree.leaves(state.model_state)) == (quantizer == "vq_ema")
    if quantizer == "vq_ema":
        assert not equal(begin.model_state, state.model_state)

    @jax.jit
    def predicted(state):
        names = ("reconstruct", "indices", "preview")
        found = {name: stage.predict[name](state, BATCH, None) for name in names}
        tokens = {"tokens": found["reconstruct"]["indices"].reshape(4, 16)}
        return found | {"decode": stage.predict["decode"](state, tokens, None)}

    predict = jax.tree.map(np.asarray, predicted(state))
    reconstruction = predict["reconstruct"]["reconstruction"]
    assert reconstruction.shape == (4, 8, 8, 3)
    assert reconstruction.min() >= 0 and reconstruction.max() <= 1
    indices = predict["reconstruct"]["indices"]
    assert indices.shape == (4, 4, 4) and indices.max() < stage.facts.codebook_size
    np.testing.assert_array_equal(predict["indices"]["indices"], indices)
    np.testing.assert_allclose(predict["decode"]["image"], reconstruction, atol=1e-5)
    pairs = predict["preview"]["reconstruction"]
    np.testing.assert_array_equal(pairs[::2], BATCH["image"])
    np.testing.assert_array_equal(pairs[1::2], reconstruction)


def test_averaged_weights_follow(trained):
    _, begin, _ = start(tiny.tokenizer())
    state = trained[0]
    expected = jax.tree.map(
        lambda old, new: 0.999 * np.asarray(old) + 0.001 * np.asarray(new),
        begin.params["tokenizer"],
        state.params["tokenizer"],
    )
    assert equal(state.ema_params, expected, 1e-7)


def test_perceptual_loss_reads_frozen_features(monkeypatch):
    def features(frozen, images):  # in place of a network that takes minutes to compile
        return images.mean((1, 2)) * frozen["scale"]

    frozen = {"scale": np.float32(3.0)}
    network = Network(features, frozen, "mean")
    monkeypatch.setattr(runs_frozen, "load_perceptual", lambda **_: network)
    config = tiny.tokenizer({"loss.perceptual": 0.5, "loss.adversarial": 0.0})
    _, state, update = start(config)
    after, values = update(state, BATCH, jax.random.key(0))
    assert values["perceptual"] > 0
    np.testing.assert_allclose(
        values["loss"], values["reconstruction"] + 0.5 * values["perceptual"], rtol=1e-5
    )
    assert after.frozen["scale"] == 3
    without, _ = run(tiny.tokenizer({"loss.adversarial": 0.0}))
    assert not equal(moments(after, "tokenizer"), moments(without, "tokenizer"), 1e-4)


def test_unknown_stages_are_refused():
    config = tiny.tokenizer()
    config.stage = "uvim"
    with pytest.raises(ValueError, match="stage='uvim' is unknown; did you mean 'uvim_"):
        make_stage(config)
