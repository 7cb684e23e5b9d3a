"""Updates of UViM's stage II against a float64 reference: rates by path, Adafactor."""

import jax
import numpy as np
import pytest

from tests import tiny
from tests.stages import reference_steps as steps
from tests.stages import reference_uvim, uvim_updates


@pytest.fixture(scope="module")
def made():
    """Stage II on given codes: (first state, its steps, the reference's, losses predicted)."""
    config = tiny.code_model(
        "", uvim_updates.OPTIM | {"optim.rate_multipliers": (("encoder/.*", 0.1),)}
    )
    rng = np.random.default_rng(8)
    stage, batch = tiny.stage_of_shapes(config), uvim_updates.batch_of(rng)
    batch["tokens"] = rng.integers(0, 12, (uvim_updates.BATCH, 4)).astype(np.int32)
    state = steps.first_state(stage, batch)
    with pytest.MonkeyPatch.context() as patch:
        done = steps.run(stage, state, batch, steps.Draws(patch))
        loss = jax.jit(stage.predict["loss"])
        predicted = jax.device_get(loss(done[-1][0], batch, None))
        gradients = steps.in_float64(jax.grad(reference_uvim.lm_loss, has_aux=True))
        optimizer = uvim_updates.adafactor(lambda name: 0.1 if name.startswith("encoder/") else 1.0)
        params, results = steps.flat(state.params), []
        for step in range(len(done)):
            grads, values = gradients(steps.nested(params), batch["image"], batch["tokens"])
            grads = steps.flat(grads)
            params = optimizer.update(params, grads, uvim_updates.RATE, uvim_updates.rate(step))
            results.append((params, grads, values))
        averages = steps.nested(steps.flat(done[-1][0].ema_params))
        _, final = gradients(averages, batch["image"], batch["tokens"])
    return state, done, results, predicted, final


def test_losses_and_gradients(made):
    _, done, results, predicted, final = made
    for step, ((_, metrics, _), (_, grads, values)) in enumerate(zip(done, results, strict=True)):
        for name, value in values.items():
            assert metrics[name] == pytest.approx(
                value.mean(),
                rel=5e-3 if step else 1e-4,
                abs=0.05 * (step > 0 and name == "accuracy"),
            ), name
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=5e-3 if step else 1e-4)
    for name, value in final.items():
        np.testing.assert_allclose(predicted[name], value, rtol=1e-4)


def test_parameters_after_one_and_three_steps(made):
    uvim_updates.assert_parameters(*made[1:3])


def test_averages_follow_at_once(made):
    uvim_updates.assert_averages(*made[:2])


def test_first_gradients(made):
    uvim_updates.assert_first_gradients(*made[1:3])
