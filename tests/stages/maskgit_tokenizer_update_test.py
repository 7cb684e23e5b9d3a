"""Updates of a tokenizer and its critic against a float64 reference, all losses switched on."""

import jax
import numpy as np
import optax
import pytest

from fsq_jax import stages
from fsq_jax.features.network import Network
from tests import tiny
from tests.stages import reference_optim, reference_tokenizer
from tests.stages import reference_steps as steps

BATCH, STEPS = 4, 10
NETWORKS = {"tokenizer": 1e-2, "discriminator": 2e-2}  # and their learning rates
WEIGHTS = {
    "reconstruction": 2.0,
    "perceptual": 0.5,
    "adversarial": 0.7,
    "lecam": 0.3,
    "commitment": 0.4,
    "entropy": 0.05,
    "r1": 3.0 * 2,  # every second step, and as much stronger
}


def features(variables, images):
    """In place of a network that takes minutes to compile."""
    return images.mean((1, 2)) * variables["scale"] + images[:, 3, 5] ** 2


def make_config():
    config = tiny.tokenizer(
        {
            "model.filters": 4,
            "model.num_res_blocks": 1,
            "model.num_groups": 2,
            "model.channel_multipliers": (1, 2),
            "model.shortcut": "output",
            "discriminator.max_width": 6,
            "quantizer.channels": 3,
            "ema_decay": 0.75,
            "steps": STEPS,
            "optim.learning_rate": NETWORKS["tokenizer"],
            "optim.b1": 0.5,
            "optim.b2": 0.9,
            "optim.weight_decay": 0.2,
            "optim.clip_norm": 0.4,
            "optim.schedule": "cosine",
            "discriminator_optim.learning_rate": NETWORKS["discriminator"],
            "loss.reconstruction": 2.0,
            "loss.perceptual": 0.5,
            "loss.adversarial": 0.7,
            "loss.r1": 3.0,
            "loss.r1_every": 2,
            "loss.lecam": 0.3,
            "loss.lecam_decay": 0.6,
            "quantizer.commitment_weight": 0.4,
            "quantizer.entropy_weight": 0.05,
        },
        "vq",
    )
    return config


@pytest.fixture(scope="module")
def made():
    """(first state, steps done, the reference's [(params, grads, values, LeCam's means)])."""
    frozen = {"scale": np.float32(3.0)}
    stage = stages.make(make_config(), perceptual=Network(features, frozen, "mean"))
    batch = {"image": np.random.default_rng(1).random((BATCH, 8, 8, 3), np.float32)}
    state = steps.first_state(stage, batch).replace(frozen=frozen)
    reference = steps.in_float64(
        reference_tokenizer.make_losses(WEIGHTS, lambda x: features({"scale": 3.0}, x))
    )
    with pytest.MonkeyPatch.context() as patch:
        done = steps.run(stage, state, batch, steps.Draws(patch))
        params = {name: steps.flat(state.params[name]) for name in NETWORKS}
        adam = {name: reference_optim.AdamW(0.5, 0.9, 0.2, 0.4) for name in NETWORKS}
        means, results = np.zeros(2), []
        for step in range(len(done)):
            grads, values = reference(
                {name: steps.nested(p) for name, p in params.items()},
                batch["image"],
                *means,
                float(step % 2 == 0),
            )
            grads = {name: steps.flat(g) for name, g in grads.items()}
            rate = reference_optim.cosine(step, STEPS)
            params = {
                name: adam[name].update(params[name], grads[name], NETWORKS[name] * rate)
                for name in NETWORKS
            }
            means = 0.6 * means + 0.4 * np.array([values["real_logit"], values["fake_logit"]])
            results.append((params, grads, values, means))
        averaged = jax.device_get(
            jax.jit(stage.predict["reconstruct"])(done[-1][0], batch, None)["reconstruction"]
        )
        averages = steps.nested(steps.flat(done[-1][0].ema_params))
        codes = jax.jit(
            lambda p, x: reference_tokenizer.decoder(
                reference_tokenizer.vector_quantized(
                    reference_tokenizer.encoder(x, p["encoder"]), p["quantizer"]["codebook"], 0, 0
                )[0],
                p["decoder"],
            )
        )(averages, batch["image"])
    return state, done, results, averaged, np.clip(codes, 0, 1)


def test_losses_one_by_one(made):
    _, done, results, _, _ = made
    for step, ((_, metrics, _), (_, grads, values, _)) in enumerate(
        zip(done, results, strict=True)
    ):
        tolerance = 1e-4 if step == 0 else 1e-2
        for name, value in values.items():
            if name not in ("generator", "critic"):
                assert metrics[name] == pytest.approx(value, rel=tolerance, abs=1e-5), (step, name)
        assert (metrics["r1"] > 0) == (step != 1)
        total = values["generator"] + values["critic"]
        assert metrics["loss"] == pytest.approx(total, rel=tolerance), step
        for name, g in grads.items():
            norm = np.sqrt(sum((leaf**2).sum() for leaf in g.values()))
            assert metrics[f"{name}_gradient_norm"] == pytest.approx(norm, rel=tolerance), name
            assert norm > 0.4  # so that it was clipped


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients(made, network):
    _, done, results, _, _ = made
    ours = steps.flat(optax.tree_utils.tree_get(done[0][0].opt_state[network], "mu"))
    grads = reference_optim.clipped(results[0][1][network], 0.4)
    steps.assert_gradients(ours, {name: (1 - 0.5) * g for name, g in grads.items()})


@pytest.mark.parametrize("network", NETWORKS)
def test_parameters_after_one_and_three_steps(made, network):
    _, done, results, _, _ = made
    for step, most in ((0, 0.0), (2, 0.03)):
        params, grads, *_ = results[step]
        ours = steps.flat(done[step][0].params[network])
        steps.assert_params(ours, params[network], grads[network], NETWORKS[network], most)


def test_averages_follow_at_once(made):
    state, done, results, _, _ = made
    average = steps.flat(state.ema_params)
    for (after, _, _), (_, _, _, means) in zip(done, results, strict=True):
        params = steps.flat(after.params["tokenizer"])
        average = {name: 0.75 * x + 0.25 * params[name] for name, x in average.items()}
        for name, leaf in steps.flat(after.ema_params).items():
            np.testing.assert_allclose(leaf, average[name], rtol=1e-5, atol=1e-6)
        lecam = after.train_only["lecam"]
        np.testing.assert_allclose([lecam.real, lecam.fake], means, rtol=1e-2)
    assert int(done[-1][0].step) == 3


def test_reconstructions_are_of_the_averages(made):
    _, _, _, ours, theirs = made
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
