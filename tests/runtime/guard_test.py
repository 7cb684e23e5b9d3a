"""A run whose numbers have gone wrong is stopped by what its config says."""

import pytest

from fsq_jax.runtime.guard import Guard, GuardError


def test_by_default_nothing_is_beyond_a_limit():
    Guard().check(1, {"loss": 1e30, "real_logit": 1e9, "fake_logit": -1e9})


def test_a_loss_that_stays_above_its_limit():
    guard = Guard(max_loss=2.0, patience=3)
    for step, loss in enumerate((3.0, 3.0, 1.0, 3.0, 3.0)):
        guard.check(step, {"loss": loss})
    with pytest.raises(GuardError) as error:
        guard.check(5, {"loss": 3.5})
    assert str(error.value).startswith(
        "Step 5: loss = 3.5 is above guard.max_loss=2 for 3 steps in a row. Checkpoints of earlier "
        "steps are kept, for --config.init_from=WORKDIR. A lower learning rate"
    )


def test_a_discriminator_that_wins():
    guard = Guard(max_logit_gap=10.0)
    guard.check(1, {"loss": 1.0, "real_logit": 4.0, "fake_logit": -5.0})
    with pytest.raises(GuardError, match="Step 2: real_logit - fake_logit = 11 is above guard.max"):
        guard.check(2, {"loss": 1.0, "real_logit": 5.0, "fake_logit": -6.0})


def test_limits_are_checked():
    with pytest.raises(ValueError, match="max_loss=-1"):
        Guard(max_loss=-1)
    with pytest.raises(ValueError, match="patience=0"):
        Guard(patience=0)
