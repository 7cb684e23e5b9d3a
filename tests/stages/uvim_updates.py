"""What the updates of UViM's two stages share: settings, made-up data, and how they are judged."""

import numpy as np
import optax

from tests.stages import reference_optim
from tests.stages import reference_steps as steps

BATCH, BINS = 8, 16
RATE, DECAY, STEPS, CAP = 2e-2, 0.02, 10, 0.5
OPTIM = {
    "optim.name": "adafactor",
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


def assert_parameters(done, results):
    """After one and after three steps."""
    for step, most in ((0, 0.0), (2, 0.03)):
        params, grads, *_ = results[step]
        # A first step is a quarter of the rate; averages are rounded to 8 bits from then on.
        ours = steps.flat(done[step][0].params)
        steps.assert_params(ours, params, grads, RATE / 10, most, share=0.05)


def assert_averages(state, done):
    """Of the parameters of each step, none behind."""
    average = steps.flat(state.ema_params)
    for after, _, _ in done:
        params = steps.flat(after.params)
        average = {name: 0.75 * x + 0.25 * params[name] for name, x in average.items()}
        for name, leaf in steps.flat(after.ema_params).items():
            np.testing.assert_allclose(leaf, average[name], rtol=1e-5, atol=1e-6)


def assert_first_gradients(done, results):
    """The second moments of a first step, where they are not factored, are its squared gradient."""
    grads = reference_optim.clipped(results[0][1], 0.5)
    ours = steps.flat(optax.tree_utils.tree_get(done[0][0].opt_state, "v"))
    whole = [name for name, g in grads.items() if ours[name].shape == g.shape]
    assert 0 < len(whole) < len(grads)
    for name in whole:
        g = grads[name]
        atol = 1e-3 * (g**2).max() + 1e-12
        np.testing.assert_allclose(ours[name], g**2, rtol=0, atol=atol, err_msg=name)
