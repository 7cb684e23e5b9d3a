"""Updates of UViM's stage I against a float64 reference: codebook, dropped codes, Adafactor."""

import jax
import numpy as np
import pytest

from tests import tiny
from tests.stages import reference_steps as steps
from tests.stages import reference_uvim, uvim_updates

WORDS = 16


@pytest.fixture(scope="module")
def made():
    """Stage I with a running codebook: (first state, its steps, the reference's)."""
    config = tiny.label_coder(
        uvim_updates.OPTIM
        | {
            "quantizer.commitment_weight": 0.3,
            "quantizer.momentum": 0.9,
        },
        quantizer="vq_ema",
    )
    rng = np.random.default_rng(7)
    stage, batch = tiny.stage_of_shapes(config), uvim_updates.batch_of(rng)
    state = steps.first_state(stage, batch)
    book = {
        "counts": np.full(WORDS, 2.0, np.float32),
        "dictionary": rng.standard_normal((WORDS, WORDS)).astype(np.float32),
    }
    state = state.replace(model_state={"codebook_state": {"quantizer": book}})
    with pytest.MonkeyPatch.context() as patch:
        done = steps.run(stage, state, batch, steps.Draws(patch))
        predicted = jax.device_get(jax.jit(stage.predict["indices"])(done[-1][0], batch, None))
        loss = reference_uvim.make_base_loss(2, 2, uvim_updates.BINS, 0.3)
        gradients = steps.in_float64(jax.grad(loss, has_aux=True))
        bins = reference_uvim.bins_of(
            batch["depth"].astype(np.float64), uvim_updates.BINS, 0.001, 10.0
        )
        patches = reference_uvim.in_patches(bins, 2)
        params, optimizer = steps.flat(state.params), uvim_updates.adafactor(lambda name: 1.0)
        counts, sums, results = book["counts"], book["dictionary"], []
        for step, (_, _, draws) in enumerate(done):
            (keep,) = [d[3] for d in draws if d[0] == "kept_codes"]
            grads, values = gradients(steps.nested(params), sums, batch["image"], patches, keep)
            grads = steps.flat(grads)
            counts, sums = reference_uvim.moved_codebook(
                counts, sums, values["indices"], values["z"], 0.9
            )
            params = optimizer.update(params, grads, uvim_updates.RATE, uvim_updates.rate(step))
            results.append((params, grads, values, counts, sums))
        # What evaluation encodes: averaged weights, the codebook as it is now, no code dropped.
        averages = steps.nested(steps.flat(done[-1][0].ema_params))
        book = done[-1][0].model_state["codebook_state"]["quantizer"]
        _, final = gradients(
            averages,
            book["dictionary"],
            batch["image"],
            patches,
            np.ones((uvim_updates.BATCH, 4), bool),
        )
    return state, done, results, predicted["indices"], final["indices"]


def test_losses_and_gradients(made):
    _, done, results, _, _ = made
    for (_, metrics, _), (_, grads, values, *_) in zip(done, results, strict=True):
        for name in ("loss", "task", "quantizer/commitment_loss"):
            assert metrics[name] == pytest.approx(values[name], rel=1e-2), name
        assert metrics["loss"] > metrics["task"] + 0.2 * metrics["quantizer/commitment_loss"]
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-2)
    for name in ("loss", "task", "gradient_norm"):  # the first step tells no rounding of states
        theirs = results[0][2].get(name, np.sqrt(sum((g**2).sum() for g in results[0][1].values())))
        assert done[0][1][name] == pytest.approx(theirs, rel=1e-4), name


def test_the_codebook_moves_with_every_step(made):
    _, done, results, *_ = made
    for (after, _, _), (_, _, _, counts, sums) in zip(done, results, strict=True):
        book = after.model_state["codebook_state"]["quantizer"]
        np.testing.assert_allclose(book["counts"], counts, rtol=1e-5)
        np.testing.assert_allclose(book["dictionary"], sums, atol=2e-2)
    first = done[0][0].model_state["codebook_state"]["quantizer"]
    np.testing.assert_allclose(first["dictionary"], results[0][4], atol=1e-4)


def test_codes_are_dropped_anew_at_every_step(made):
    _, done, *_ = made
    steps.assert_distinct_keys(done)
    kept = [d[3] for _, _, draws in done for d in draws if d[0] == "kept_codes"]
    assert len(kept) == 3 and all(keep.shape == (uvim_updates.BATCH, 4) for keep in kept)
    assert (kept[0] != kept[1]).any() and (kept[1] != kept[2]).any()


def test_evaluation_encodes_with_the_averages_and_drops_nothing(made):
    _, _, _, indices, expected = made
    np.testing.assert_array_equal(indices, expected)


def test_parameters_after_one_and_three_steps(made):
    uvim_updates.assert_parameters(*made[1:3])


def test_averages_follow_at_once(made):
    uvim_updates.assert_averages(*made[:2])


def test_first_gradients(made):
    uvim_updates.assert_first_gradients(*made[1:3])
