"""The contest of a tokenizer and its discriminator: GAN losses, R1 and LeCam.

Both sides are summed into one loss, of which each network feels its own side alone
(`models.discriminator.logits_twice`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsq_jax.metrics import losses
from fsq_jax.models.discriminator import logits_and_slopes, logits_twice
from fsq_jax.stages import optim


def make_optimizer(config) -> optax.GradientTransformation:
    """The discriminator's: the values of `config.discriminator_optim` over those of `optim`."""
    optimizer = optim.make_optimizer(
        total_steps=config.steps, **{**config.optim, **config.discriminator_optim}
    )
    start = config.loss.discriminator_start
    if not start:
        return optimizer
    # Left alone until its start rather than fed zeros: Adam would count those steps, and take a
    # first real one that is ten times too long.
    return optax.conditionally_mask(optimizer, lambda step: step >= start)


def contest(weights, discriminator, params, images, reconstruction, lecam, step):
    """(loss of both sides, {metric: scalar}); the state of LeCam is moved by `lecam_after_step`.

    Args:
      weights: `config.loss`.
      discriminator, params: the module and its parameters.
      images, reconstruction: [B,H,W,3] in [0, 1].
      lecam: averages of the logits before this step, a `LecamState`.
      step: updates made so far.
    """
    real_side: Any = _real_side(weights, discriminator, params, images, step)
    fake_side: Any = logits_twice(discriminator, params, reconstruction)
    (real, r1_B), (fake, fooled) = real_side, fake_side
    generator = losses.generator_loss(fooled).mean()
    critic = losses.discriminator_loss(real, fake).mean()
    r1 = weights.r1 * weights.r1_every * r1_B.mean()
    lecam_B = losses.lecam(real, fake, lecam)

    # Before its start step a network's share is nothing.
    generator_on = jnp.float32(step >= weights.adversarial_start)
    critic_on = jnp.float32(step >= weights.discriminator_start)
    total = weights.adversarial * generator_on * generator + critic_on * (
        critic + r1 + weights.lecam * lecam_B.mean()
    )
    metrics = {
        "adversarial": generator,
        "discriminator": critic,
        "r1": r1,
        "lecam": lecam_B.mean(),
        "real_logit": real.mean(),
        "fake_logit": fake.mean(),
    }
    return total, metrics


def _real_side(weights, discriminator, params, images, step):
    """(logits, R1's squared norms) of real images; the latter at every `r1_every`-th step, else 0
    (StyleGAN2's lazy regularisation)."""

    def plain():
        return discriminator.apply({"params": params}, images), jnp.zeros(len(images))

    def with_r1():
        return logits_and_slopes(discriminator, params, images)

    if weights.r1 == 0:
        return plain()
    if weights.r1_every == 1:
        return with_r1()
    return jax.lax.cond(step % weights.r1_every == 0, with_r1, plain)
