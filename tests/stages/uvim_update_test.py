"""Updates of UViM's two stages, with its Adafactor, against a float64 reference."""

import jax
import numpy as np
import optax
import pytest

from tests import tiny
from tests.stages import reference_optim, reference_uvim
from tests.stages import reference_steps as steps

BATCH, BINS, WORDS = 8, 16, 16
RATE, DECAY, STEPS, CAP = 2e-2, 0.02, 10, 0.5
OPTIM = {
    "optim.learning_rate": RATE,
    "optim.b1": 0.75,
    "optim.b2": CAP,
    "optim.weight_decay": DECAY,
    "optim.clip_norm": 0.5,
    "optim.schedule": "cosine",
    "steps": STEPS,
    "ema_decay": 0.75,
    "model.width": 32,
    "model.mlp_dim": 64,
    "model.encoder_depth": 1,
    "model.decoder_depth": 1,
}


def batch_of(rng):
    depth = rng.uniform(0, 11, (BATCH, 8, 8)).astype(np.float32)
    return {
        "image": rng.random((BATCH, 8, 8, 3), np.float32),
        "depth": depth,
        "label": np.zeros(BATCH, np.int32),
    }


def adafactor(multiplier):
    return reference_optim.Adafactor(0.75, CAP, DECAY, 0.5, multiplier)


def rate(step):
    return reference_optim.cosine(step, STEPS)


@pytest.fixture(scope="module")
def base(compiled):
    """Stage I with a running codebook: (first state, its steps, the reference's)."""
    config = tiny.label_coder(
        OPTIM
        | {
            "quantizer.commitment_weight": 0.3,
            "quantizer.momentum": 0.9,
        },
        quantizer="vq_ema",
    )
    rng = np.random.default_rng(7)
    stage, batch = tiny.stage_of_shapes(config), batch_of(rng)
    state = steps.first_state(stage, batch)
    book = {
        "counts": np.full(WORDS, 2.0, np.float32),
        "dictionary": rng.standard_normal((WORDS, WORDS)).astype(np.float32),
    }
    state = state.replace(model_state={"codebook_state": {"quantizer": book}})
    with pytest.MonkeyPatch.context() as patch, tiny.quick_compile(compiled):
        done = steps.run(stage, state, batch, steps.Draws(patch))
        predicted = jax.device_get(jax.jit(stage.predict["indices"])(done[-1][0], batch, None))
        loss = reference_uvim.make_base_loss(2, 2, BINS, 0.3)
        gradients = steps.in_float64(jax.grad(loss, has_aux=True))
        bins = reference_uvim.bins_of(batch["depth"].astype(np.float64), BINS, 0.001, 10.0)
        patches = reference_uvim.in_patches(bins, 2)
        params, optimizer = steps.flat(state.params), adafactor(lambda name: 1.0)
        counts, sums, results = book["counts"], book["dictionary"], []
        for step, (_, _, draws) in enumerate(done):
            (keep,) = [d[3] for d in draws if d[0] == "kept_codes"]
            grads, values = gradients(steps.nested(params), sums, batch["image"], patches, keep)
            grads = steps.flat(grads)
            counts, sums = reference_uvim.moved_codebook(
                counts, sums, values["indices"], values["z"], 0.9
            )
            params = optimizer.update(params, grads, RATE, rate(step))
            results.append((params, grads, values, counts, sums))
        # What evaluation encodes: averaged weights, the codebook as it is now, no code dropped.
        averages = steps.nested(steps.flat(done[-1][0].ema_params))
        book = done[-1][0].model_state["codebook_state"]["quantizer"]
        _, final = gradients(
            averages, book["dictionary"], batch["image"], patches, np.ones((BATCH, 4), bool)
        )
    return state, done, results, predicted["indices"], final["indices"]


@pytest.fixture(scope="module")
def lm(compiled):
    """Stage II on given codes: (first state, its steps, the reference's, losses predicted)."""
    config = tiny.code_model("", OPTIM | {"optim.rate_multipliers": (("encoder/.*", 0.1),)})
    rng = np.random.default_rng(8)
    stage, batch = tiny.stage_of_shapes(config), batch_of(rng)
    batch["tokens"] = rng.integers(0, 12, (BATCH, 4)).astype(np.int32)
    state = steps.first_state(stage, batch)
    with pytest.MonkeyPatch.context() as patch, tiny.quick_compile(compiled):
        done = steps.run(stage, state, batch, steps.Draws(patch))
        loss = jax.jit(stage.predict["loss"])
        predicted = jax.device_get(loss(done[-1][0], batch, None))
        gradients = steps.in_float64(jax.grad(reference_uvim.lm_loss, has_aux=True))
        optimizer = adafactor(lambda name: 0.1 if name.startswith("encoder/") else 1.0)
        params, results = steps.flat(state.params), []
        for step in range(len(done)):
            grads, values = gradients(steps.nested(params), batch["image"], batch["tokens"])
            grads = steps.flat(grads)
            params = optimizer.update(params, grads, RATE, rate(step))
            results.append((params, grads, values))
        averages = steps.nested(steps.flat(done[-1][0].ema_params))
        _, final = gradients(averages, batch["image"], batch["tokens"])
    return state, done, results, predicted, final


def test_losses_and_gradients_of_stage_1(base):
    _, done, results, _, _ = base
    for (_, metrics, _), (_, grads, values, *_) in zip(done, results, strict=True):
        for name in ("loss", "task", "quantizer/commitment_loss"):
            assert metrics[name] == pytest.approx(values[name], rel=2e-3), name
        assert metrics["loss"] > metrics["task"] + 0.2 * metrics["quantizer/commitment_loss"]
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=2e-3)
    for name in ("loss", "task", "gradient_norm"):  # the first step tells no rounding of states
        theirs = results[0][2].get(name, np.sqrt(sum((g**2).sum() for g in results[0][1].values())))
        assert done[0][1][name] == pytest.approx(theirs, rel=1e-4), name


@pytest.mark.parametrize("stage", ["base", "lm"])
def test_parameters_after_one_and_three_steps(stage, request):
    _, done, results, *_ = request.getfixturevalue(stage)
    for step, most in ((0, 0.0), (2, 0.03)):
        params, grads, *_ = results[step]
        # A first step is a quarter of the rate; averages are rounded to 8 bits from then on.
        steps.assert_params(
            steps.flat(done[step][0].params), params, grads, RATE / 10, most, share=0.05
        )


@pytest.mark.parametrize("stage", ["base", "lm"])
def test_averages_follow_at_once(stage, request):
    state, done, *_ = request.getfixturevalue(stage)
    average = steps.flat(state.ema_params)
    for after, _, _ in done:
        params = steps.flat(after.params)
        average = {name: 0.75 * x + 0.25 * params[name] for name, x in average.items()}
        for name, leaf in steps.flat(after.ema_params).items():
            np.testing.assert_allclose(leaf, average[name], rtol=1e-5, atol=1e-6)


def test_the_codebook_moves_with_every_step(base):
    _, done, results, *_ = base
    for (after, _, _), (_, _, _, counts, sums) in zip(done, results, strict=True):
        book = after.model_state["codebook_state"]["quantizer"]
        np.testing.assert_allclose(book["counts"], counts, rtol=1e-5)
        np.testing.assert_allclose(book["dictionary"], sums, atol=2e-2)
    first = done[0][0].model_state["codebook_state"]["quantizer"]
    np.testing.assert_allclose(first["dictionary"], results[0][4], atol=1e-4)


def test_codes_are_dropped_anew_at_every_step(base):
    _, done, *_ = base
    steps.assert_distinct_keys(done)
    kept = [d[3] for _, _, draws in done for d in draws if d[0] == "kept_codes"]
    assert len(kept) == 3 and all(keep.shape == (BATCH, 4) for keep in kept)
    assert (kept[0] != kept[1]).any() and (kept[1] != kept[2]).any()


def test_evaluation_encodes_with_the_averages_and_drops_nothing(base):
    _, _, _, indices, expected = base
    np.testing.assert_array_equal(indices, expected)


def test_losses_and_gradients_of_stage_2(lm):
    _, done, results, predicted, final = lm
    for step, ((_, metrics, _), (_, grads, values)) in enumerate(zip(done, results, strict=True)):
        for name, value in values.items():
            assert metrics[name] == pytest.approx(value.mean(), rel=2e-3 if step else 1e-4), name
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=2e-3 if step else 1e-4)
    for name, value in final.items():
        np.testing.assert_allclose(predicted[name], value, rtol=1e-4)


@pytest.mark.parametrize("stage", ["base", "lm"])
def test_first_gradients(stage, request):
    """The factored second moments of the first step are means of its squared gradient."""
    _, done, results, *_ = request.getfixturevalue(stage)
    grads = reference_optim.clipped(results[0][1], 0.5)
    ours = steps.flat(optax.tree_utils.tree_get(done[0][0].opt_state, "v"))
    compared = 0
    for name, g in grads.items():
        if ours[name].shape == g.shape:  # is not factored
            atol = 1e-3 * (g**2).max() + 1e-12
            np.testing.assert_allclose(ours[name], g**2, rtol=0, atol=atol, err_msg=name)
            compared += 1
    assert 0 < compared < len(grads)
