"""Masked generation (MaskGIT): how much to mask, parallel decoding, guidance, editing.

A sampler takes the model as a function, `logits_fn`: tokens_BL -> logits_BLK over indices only.
Tokens: indices 0..K-1, class c is K + c, the mask is K + num_classes.

Shapes: B batch  L tokens, the class first  S image tokens, L - 1  K codebook size  T steps
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fsq_jax.runtime.user_error import UserError

LogitsFn = Callable[[jax.Array], jax.Array]


# How much stays masked.


def mask_ratio(schedule: str, ratio, num_tokens: int = 256):
    """The share that is masked when `ratio` of the way is done, in [1e-6, 1], falling.

    schedule: "cosine", "linear" (or "uniform"), "square", "cubic", "sqrt" or "powX" for any X
    (1 - ratio^X), "arccos", "log" and "exp"; the last two depend on `num_tokens`.
    ratio: in [0, 1]; the maths is float32, NumPy's for NumPy and Python numbers.
    Raises UserError for an unknown schedule.
    """
    xp = jnp if isinstance(ratio, jax.Array) else np
    ratio = xp.asarray(ratio, np.float32)
    schedule = {"uniform": "linear", "square": "pow2", "cubic": "pow3", "sqrt": "pow0.5"}.get(
        schedule, schedule
    )
    bits = np.float32(np.log2(max(num_tokens, 2)))
    if schedule == "cosine":
        masked = xp.cos(np.float32(np.pi / 2) * ratio)
    elif schedule == "linear":
        masked = 1 - ratio
    elif schedule == "arccos":
        masked = xp.arccos(ratio) / np.float32(np.pi / 2)
    elif schedule == "log":
        masked = -xp.log2(xp.maximum(ratio, np.float32(1e-9))) / bits
    elif schedule == "exp":
        masked = 1 - xp.exp2(-bits * (1 - ratio))
    else:
        masked = 1 - ratio ** np.float32(_exponent(schedule))
    return xp.clip(masked, np.float32(1e-6), np.float32(1))


def _exponent(schedule: str) -> float:
    try:
        exponent = float(schedule.removeprefix("pow"))
    except ValueError:
        exponent = 0.0
    if not schedule.startswith("pow") or exponent <= 0:
        raise UserError(
            "A mask schedule is cosine, linear, uniform, square, cubic, sqrt, arccos, log, exp or "
            f"powX with X > 0, got {schedule!r}."
        )
    return exponent


def random_mask(
    key: jax.Array,
    batch: int,
    num_tokens: int,
    min_ratio: float = 0.45,
    schedule: str = "cosine",
) -> jax.Array:
    """What to mask in a training step, bool [batch, num_tokens]: True is masked.

    Every row draws its own r uniformly from [r_min, 1] and masks exactly
    ceil(mask_ratio(1 - r) * S) tokens, more than `min_ratio` of them (FSQ paper, A.4.2). For the
    cosine that is ceil(cos(pi/2 (1 - r)) * S) with r_min = 1 - 2 arccos(min_ratio) / pi. The
    paper leaves open whether r below r_min is clipped or redrawn; it is redrawn here, so
    that no share of the batch sits at the bound.
    Raises UserError unless 0 <= min_ratio < 1.
    """
    if not 0 <= min_ratio < 1:
        raise UserError(f"min_ratio is in [0, 1), got {min_ratio}.")
    key_ratio, key_order = jax.random.split(key)
    done_B = jax.random.uniform(key_ratio, (batch,)) * _latest(schedule, min_ratio, num_tokens)
    share_B = mask_ratio(schedule, done_B, num_tokens)
    least = int(np.floor(min_ratio * num_tokens)) + 1
    count_B = jnp.clip(jnp.ceil(share_B * num_tokens), least, num_tokens)
    # Ranks, not a threshold: two equal draws would mask one token too many.
    order_BS = jnp.argsort(jax.random.uniform(key_order, (batch, num_tokens)), axis=1)
    return jnp.argsort(order_BS, axis=1) < count_B[:, None]


def _latest(schedule, min_ratio, num_tokens):
    """The largest ratio at which more than min_ratio is masked: 1 - r_min, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if mask_ratio(schedule, middle, num_tokens) > min_ratio:
            low = middle
        else:
            high = middle
    return np.float32(low)


# What is given.


def initial_tokens(labels_B, num_tokens: int, codebook_size: int, num_classes: int) -> jax.Array:
    """The class tokens followed by masks, int32 [B, 1 + num_tokens]. Labels: 0..num_classes-1.

    Raises UserError for a label outside that range, where labels are values and not traced.
    """
    if not isinstance(labels_B, Tracer):
        labels = np.asarray(labels_B)
        if labels.size and not (0 <= labels.min() and labels.max() < num_classes):
            raise UserError(
                f"Labels are in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}."
            )
    class_B1 = jnp.asarray(labels_B, jnp.int32)[:, None] + codebook_size
    masks_BS = jnp.full((class_B1.shape[0], num_tokens), codebook_size + num_classes, jnp.int32)
    return jnp.concatenate([class_B1, masks_BS], axis=1)


def with_known(tokens_BL: jax.Array, known_tokens_BS, known_BS) -> jax.Array:
    """tokens_BL with the image's own tokens where known_BS is True: decoding fills in the rest.

    With another class in tokens_BL this is class-conditional editing.
    """
    image_BS = jnp.where(known_BS, known_tokens_BS, tokens_BL[:, 1:])
    return jnp.concatenate([tokens_BL[:, :1], image_BS.astype(tokens_BL.dtype)], axis=1)


def guided(logits_fn: LogitsFn, guidance, null_token: int) -> LogitsFn:
    """logits_fn with classifier-free guidance: l + guidance * (l - l_null) (FSQ paper, 4.3).

    l_null are the logits with `null_token` (the mask, as in training) in place of the class.
    Both come from one call on a doubled batch. A Python guidance of 0 returns logits_fn itself; an
    array [B] is a value for each example.
    """
    if isinstance(guidance, int | float) and guidance == 0:
        return logits_fn
    if jnp.ndim(guidance):
        guidance = jnp.reshape(guidance, (-1, 1, 1))

    def guided_logits(tokens_BL):
        batch = tokens_BL.shape[0]
        null_BL = tokens_BL.at[:, 0].set(null_token)
        # Side by side in the batch, not one half after the other: a shard keeps its pairs.
        pairs_PL = jnp.stack([tokens_BL, null_BL], axis=1).reshape(2 * batch, -1)
        logits_PLK = logits_fn(pairs_PL)
        logits_B2LK = logits_PLK.reshape(batch, 2, *logits_PLK.shape[1:])
        logits_BLK, null_BLK = logits_B2LK[:, 0], logits_B2LK[:, 1]
        return logits_BLK + guidance * (logits_BLK - null_BLK)

    return guided_logits


# Decoding.


def decode(
    logits_fn: LogitsFn,
    tokens_BL: jax.Array,
    key: jax.Array,
    *,
    mask_id: int,
    num_steps: int = 12,
    schedule: str = "cosine",
    choice_temperature: float | jax.Array = 4.5,
    temperature: float = 1.0,
    return_steps: bool = False,
):
    """The tokens with every mask filled in, int32 [B, L]; tokens that are no mask never change.

    Each step samples all masked tokens at once from softmax(logits / temperature), then masks
    again the ones it is least sure of: log p + choice_temperature * (1 - ratio) * Gumbel noise.
    How many is floor(N * mask_ratio), N an example's masks at the start, at least 1 and fewer
    than before. What the last step sampled is returned. The loop is one `lax.scan`; wrap the
    call in `jax.jit`. The result is a function of the key, however the batch is sharded.
    `choice_temperature` may be an array [B], a value for each example.

    With return_steps: (tokens_BL, sampled_TBL, masked_TBL), what each step sampled and what it
    masked again (the last step's is not acted on).
    Raises UserError for num_steps < 1, temperature <= 0 or an unknown schedule.
    """
    if num_steps < 1 or temperature <= 0:
        raise UserError(f"{num_steps=} must be at least 1 and {temperature=} above 0.")
    tokens_BL = jnp.asarray(tokens_BL, jnp.int32)
    start_B = jnp.sum(tokens_BL == mask_id, axis=1)
    # In NumPy: a device's cosine may round the other way, and floor() would show it.
    ratio_T = np.arange(1, num_steps + 1, dtype=np.float32) / np.float32(num_steps)
    share_T = mask_ratio(schedule, ratio_T, tokens_BL.shape[1] - 1)
    noise_TB1 = jnp.float32(choice_temperature).reshape(-1, 1) * (1 - ratio_T)[:, None, None]

    def step(carry, now):
        tokens_BL, _ = carry
        index, share, noise_B1 = now
        key_token, key_choice = jax.random.split(jax.random.fold_in(key, index))
        masked_BL = tokens_BL == mask_id
        logits_BLK = logits_fn(tokens_BL).astype(jnp.float32) / temperature
        sampled_BL, log_p_BL = _sample(key_token, logits_BLK)
        sampled_BL = jnp.where(masked_BL, sampled_BL, tokens_BL)
        confidence_BL = log_p_BL + noise_B1 * jax.random.gumbel(key_choice, tokens_BL.shape)
        confidence_BL = jnp.where(masked_BL, confidence_BL, jnp.inf)
        count_B = jnp.floor(start_B * share).astype(jnp.int32)
        count_B = jnp.maximum(1, jnp.minimum(masked_BL.sum(axis=1) - 1, count_B))
        again_BL = _lowest(confidence_BL, count_B)
        steps = (sampled_BL, again_BL) if return_steps else None
        return (jnp.where(again_BL, mask_id, sampled_BL), sampled_BL), steps

    steps_T = (np.arange(num_steps), share_T, noise_TB1)
    (_, sampled_BL), steps = jax.lax.scan(step, (tokens_BL, tokens_BL), steps_T)
    return (sampled_BL, *steps) if steps is not None else sampled_BL


def _sample(key, logits_BLK):
    """A token for every position and the log of its probability, both [B, L]."""
    sampled_BL = jax.random.categorical(key, logits_BLK)
    picked_BL = jnp.take_along_axis(logits_BLK, sampled_BL[..., None], axis=-1)[..., 0]
    log_p_BL = picked_BL - jax.nn.logsumexp(logits_BLK, axis=-1)
    return sampled_BL.astype(jnp.int32), log_p_BL


def _lowest(values_BL, count_B):
    """Whether a value is strictly below the one with `count` smaller ones in its row, [B, L]."""
    count_B = jnp.minimum(count_B, values_BL.shape[1] - 1)
    bound_B1 = jnp.take_along_axis(jnp.sort(values_BL, axis=1), count_B[:, None], axis=1)
    return values_BL < bound_B1
