"""Losses of the tokenizer, the masked transformer and UViM's tasks, one float32 value per example.

The caller takes the mean over the batch, once, and applies the weights. Only `cross_entropy` gives
a value for each id, since tasks differ in which of them count.

    B batch  L tokens  V rows of the vocabulary
"""

import jax
import jax.numpy as jnp
from flax import struct

from fsq_jax.runtime import compiler


def _mean_per_example(x):
    return x.reshape(x.shape[0], -1).mean(-1)


def squared_error(images_BHWC: jax.Array, reconstruction_BHWC: jax.Array) -> jax.Array:
    """Returns the mean squared error over the pixels of each image, [B]."""
    difference = images_BHWC.astype(jnp.float32) - reconstruction_BHWC.astype(jnp.float32)
    return _mean_per_example(jnp.square(difference))


def perceptual_distance(features_real: jax.Array, features_fake: jax.Array) -> jax.Array:
    """Returns the mean squared error over the features of each image, [B].

    The features are those of a frozen network, [B, ...]; MaskGIT takes the last map of a ResNet-50
    (`fsq_jax.features.network.load_perceptual`).
    """
    return squared_error(features_real, features_fake)


def generator_loss(fake_logits_B: jax.Array) -> jax.Array:
    """Returns the non-saturating loss softplus(-D(fake)) of the generator, [B]."""
    return jax.nn.softplus(-fake_logits_B.astype(jnp.float32))


def discriminator_loss(real_logits_B: jax.Array, fake_logits_B: jax.Array) -> jax.Array:
    """Returns softplus(-D(real)) + softplus(D(fake)), [B]."""
    real, fake = real_logits_B.astype(jnp.float32), fake_logits_B.astype(jnp.float32)
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def r1_penalty(gradient_BHWC: jax.Array) -> jax.Array:
    """Returns the squared norm of D's gradient at each real image, [B].

    As MaskGIT has it: the sum over pixels of (d D / d x)^2 without the factor 1/2 of Mescheder
    et al. (2018), its weight (10) applied by the caller.
    """
    gradient = gradient_BHWC.astype(jnp.float32)
    return jnp.square(gradient).reshape(gradient.shape[0], -1).sum(-1)


@struct.dataclass
class LecamState:
    """Running means of the discriminator's logits on real and on fake images, float32 scalars."""

    real: jax.Array
    fake: jax.Array


def lecam_init() -> LecamState:
    """Returns the state before the first step: both means 0."""
    return LecamState(real=jnp.zeros((), jnp.float32), fake=jnp.zeros((), jnp.float32))


def lecam(real_logits_B: jax.Array, fake_logits_B: jax.Array, state: LecamState) -> jax.Array:
    """Returns the LeCam regulariser of each example, [B].

    Tseng et al. (2021), with the rectification of their code: relu(D(real) - mean_fake)^2 +
    relu(mean_real - D(fake))^2, of the means before this step (see `lecam_after_step`).
    """
    real, fake = real_logits_B.astype(jnp.float32), fake_logits_B.astype(jnp.float32)
    penalty = jnp.square(jax.nn.relu(real - state.fake))
    return penalty + jnp.square(jax.nn.relu(state.real - fake))


def lecam_after_step(
    state: LecamState, real_logit: jax.Array, fake_logit: jax.Array, decay: float = 0.999
) -> LecamState:
    """Returns decay * mean + (1 - decay) * logit of both sides.

    Args:
      state: the means before the step.
      real_logit, fake_logit: scalars, the step's own means over its whole batch.
      decay: once per step, whatever the number of its microbatches.
    """
    batch = LecamState(real=real_logit, fake=fake_logit)
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state, batch)


def masked_cross_entropy(
    logits_BLV: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Returns the cross-entropy of each example in nats, averaged over its masked tokens, [B].

    The target distribution is (1 - s) one_hot + s / V with s = label_smoothing, over all V columns
    of the logits. Only tokens where `mask_BL` is true count, and only their targets are read; an
    example without any gives 0. MaskGIT: s = 0.1.
    """
    logits = logits_BLV.astype(jnp.float32)
    targets = jnp.where(mask_BL, targets_BL, 0)
    # A select rather than a gather, whose gradient would be a scatter into all of [B,L,V].
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.where(is_target, logits, 0.0).sum(-1)
    expected_logit = (1 - label_smoothing) * target_logit + label_smoothing * logits.mean(-1)
    loss_BL = jax.nn.logsumexp(logits, axis=-1) - expected_logit
    count_B = jnp.maximum(mask_BL.sum(-1), 1)
    return jnp.where(mask_BL, loss_BL, 0.0).sum(-1) / count_B


def cross_entropy(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns -log p of each id, float32 of the ids' shape, of logits with one more axis of C.

    Ids outside [0, C) cost 0, as an all-zero one-hot does.
    """
    logits = logits.astype(jnp.float32)
    # A select rather than a gather, as above.
    is_target = jnp.arange(logits.shape[-1]) == ids[..., None]
    target_logit = jnp.where(is_target, logits, 0.0).sum(-1)
    has_target = (ids >= 0) & (ids < logits.shape[-1])
    return jnp.where(has_target, log_sum_exp(logits) - target_logit, 0.0)


def log_sum_exp(x: jax.Array) -> jax.Array:
    """log sum exp(x) over the last axis; float32. On a GPU x is read once, rather than twice."""
    if compiler.device().platform == "gpu":
        return online_log_sum_exp(x)
    return jax.nn.logsumexp(x, axis=-1)


@jax.custom_vjp
def online_log_sum_exp(x: jax.Array) -> jax.Array:
    """`jax.nn.logsumexp` over the last axis, in one pass.

    Among the changes from 1,088 to 942 ms a step of UViM's stage I: uvim_base_step.jsonl in
    experiments/results/speed/h100.
    """
    return _online_fwd(x)[0]


def _online_fwd(x):
    def joined(one, other):
        largest = jnp.maximum(one[0], other[0])
        sums = [total * jnp.exp(maximum - largest) for maximum, total in (one, other)]
        return largest, sums[0] + sums[1]

    start = jnp.finfo(x.dtype).min, jnp.zeros((), x.dtype)
    largest, total = jax.lax.reduce((x, jnp.ones_like(x)), start, joined, (x.ndim - 1,))
    return jnp.log(total) + largest, (x, largest, total)


def _online_bwd(residuals, grad):
    x, largest, total = residuals
    return ((grad / total)[..., None] * jnp.exp(x - largest[..., None]),)


online_log_sum_exp.defvjp(_online_fwd, _online_bwd)
