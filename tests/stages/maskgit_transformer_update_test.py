"""Updates of the masked transformer against a float64 reference, with the draws of each step."""

import jax
import numpy as np
import optax
import pytest

from tests import tiny
from tests.stages import reference_optim, reference_transformer
from tests.stages import reference_steps as steps

CODES, CLASSES, TOKENS, BATCH = 12, 3, 16, 16
MASK = CODES + CLASSES
RATES = (0.25, 0.5)  # of dropout on activations and on attention
CHANGES = {
    "num_classes": CLASSES,
    "model.dropout": RATES[0],
    "model.attention_dropout": RATES[1],
    "label_dropping": 0.5,
    "masking.label_smoothing": 0.2,
    "masking.min_ratio": 0.5,
    "masking.schedule": "linear",
    "steps": 10,
    "ema_decay": 0.75,
    "optim.learning_rate": 1e-2,
    "optim.b1": 0.8,
    "optim.b2": 0.9,
    "optim.weight_decay": 0.5,
    "optim.clip_norm": 0.1,
    "optim.schedule": "cosine",
}


def reference(name):
    loss = reference_transformer.make_loss(CODES, MASK, 0.2, RATES)
    return steps.in_float64({"gradients": jax.grad(loss, has_aux=True), "loss": loss}[name])


@pytest.fixture(scope="module")
def made():
    """(stage, first state, batch, the steps done, the loss predicted, its draws)."""
    config = tiny.transformer("", CHANGES)
    stage_1 = tiny.tokenizer()
    config.stage_1.model, config.stage_1.quantizer = stage_1.model, stage_1.quantizer
    rng = np.random.default_rng(3)
    batch = {
        "tokens": rng.integers(0, CODES, (BATCH, TOKENS)).astype(np.int32),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
    }
    stage = tiny.stage_of_shapes(config)
    state = steps.first_state(stage, batch)
    with pytest.MonkeyPatch.context() as patch:
        draws = steps.Draws(patch)
        done = steps.run(stage, state, batch, draws)
        averaged = done[-1][0]
        predicted = jax.device_get(
            jax.jit(stage.predict["loss"])(averaged, batch, jax.random.key(8))
        )
        yield state, batch, done, predicted, draws.take()


def inputs_of(batch, draws):
    """(class tokens, mask, kept) that a step drew."""
    by_name = {name: [d for d in draws if d[0] == name] for name in {d[0] for d in draws}}
    ((_, _, _, dropped_B),) = by_name["bernoulli"]
    ((_, _, _, mask_BL),) = by_name["random_mask"]
    class_B = np.where(dropped_B, MASK, batch["label"] + CODES)
    return class_B, mask_BL, [d[3] for d in by_name["keep_mask"]]


@pytest.fixture(scope="module")
def expected(made):
    """[(parameters, gradients, values)] of the reference after each step, with the same draws."""
    state, batch, done, _, _ = made
    params, adam = steps.flat(state.params), reference_optim.AdamW(0.8, 0.9, 0.5, 0.1)
    gradients, results = reference("gradients"), []
    for step, (_, _, draws) in enumerate(done):
        grads, values = gradients(steps.nested(params), batch["tokens"], *inputs_of(batch, draws))
        grads = steps.flat(grads)
        params = adam.update(params, grads, 1e-2 * reference_optim.cosine(step, 10))
        results.append((params, grads, values))
    return results


def test_loss_accuracy_and_gradients(made, expected):
    _, _, done, _, _ = made
    for step, ((_, metrics, _), (_, grads, values)) in enumerate(zip(done, expected, strict=True)):
        # Parameters that differ by rounding may give one token another likeliest code.
        tokens = {"loss": 0.0, "accuracy": 0.03 if step else 0.0}
        for name, value in values.items():
            close = pytest.approx(value.mean(), rel=1e-3 if step else 1e-4, abs=tokens[name])
            assert metrics[name] == close, name
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=2e-3 if step else 1e-4)
        assert norm > 0.2  # so that it was clipped
    ours = steps.flat(optax.tree_utils.tree_get(done[0][0].opt_state, "mu"))
    first = reference_optim.clipped(expected[0][1], 0.1)
    steps.assert_gradients(ours, {name: (1 - 0.8) * g for name, g in first.items()})


def test_parameters_after_one_and_three_steps(made, expected):
    _, _, done, _, _ = made
    for step, most in ((0, 0.0), (2, 0.01)):
        params, grads, _ = expected[step]
        steps.assert_params(steps.flat(done[step][0].params), params, grads, 1e-2, most)


def test_averages_follow_at_once(made):
    state, _, done, _, _ = made
    average = steps.flat(state.ema_params)
    for after, _, _ in done:
        params = steps.flat(after.params)
        average = {name: 0.75 * x + 0.25 * params[name] for name, x in average.items()}
        for name, leaf in steps.flat(after.ema_params).items():
            np.testing.assert_allclose(leaf, average[name], rtol=1e-5, atol=1e-6)
    assert int(done[-1][0].step) == 3


def test_draws_have_keys_of_their_own_and_the_rates_of_the_config(made):
    _, batch, done, _, _ = made
    steps.assert_distinct_keys(done)
    hidden, shared = (BATCH, TOKENS + 1, 16), (TOKENS + 1, TOKENS + 1)
    for _, _, draws in done:
        sites = [d[1] for d in draws if d[0] == "keep_mask"]
        assert [(s[0], tuple(s[1])) for s in sites] == [
            (RATES[0], hidden),
            (RATES[1], shared),
            (RATES[0], hidden),
            (RATES[0], hidden),
        ]
        class_B, mask_BL, kept = inputs_of(batch, draws)
        assert [d[1] for d in draws if d[0] == "random_mask"] == [(BATCH, TOKENS, 0.5, "linear")]
        assert 0 < (class_B == MASK).sum() < BATCH
        assert mask_BL.sum(1).min() > 0.5 * TOKENS
        for keep, rate in zip(kept, (0.25, 0.5, 0.25, 0.25), strict=True):
            assert abs((~keep).mean() - rate) < 5 * (rate / keep.size) ** 0.5
    masks = [inputs_of(batch, draws)[1] for _, _, draws in done]
    assert (masks[0] != masks[1]).any() and (masks[1] != masks[2]).any()
    # A linear schedule masks all numbers from half on alike: 12.5 of 16 on average.
    counts = np.concatenate([mask.sum(1) for mask in masks])
    assert abs(counts.mean() - 12.5) < 5 * 2.3 / len(counts) ** 0.5


def test_validation_loss_is_of_the_averages_without_dropout(made):
    _, batch, done, predicted, draws = made
    assert [d[0] for d in draws] == ["random_mask"]
    mask_BL, class_B = draws[0][3], batch["label"] + CODES
    averages = steps.nested(steps.flat(done[-1][0].ema_params))
    _, values = reference("loss")(averages, batch["tokens"], class_B, mask_BL, None)
    for name, value in values.items():
        np.testing.assert_allclose(predicted[name], value, rtol=1e-4, err_msg=name)
