"""Optimisers and schedules from plain values, moving averages, gradient accumulation."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from fsq_jax.runtime.user_error import UserError

PyTree = Any


def make_schedule(
    learning_rate: float, *, total_steps: int, warmup_steps: int = 0, schedule: str = "constant"
) -> optax.Schedule:
    """Step -> learning rate: linear warm-up, then "constant", or "cosine" to zero at the end."""
    if warmup_steps >= total_steps and warmup_steps:
        raise UserError(f"{warmup_steps=} leaves nothing of {total_steps=} to train on.")
    if schedule == "constant":
        if not warmup_steps:
            return optax.constant_schedule(learning_rate)
        return optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
    if schedule == "cosine":
        if not warmup_steps:
            return optax.cosine_decay_schedule(learning_rate, total_steps)
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, total_steps)
    raise UserError(f"schedule={schedule!r} is unknown; there are 'constant' and 'cosine'.")


def kernels(params: PyTree) -> PyTree:
    """True for each array named "kernel": all that weight decay is meant for."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def make_optimizer(
    learning_rate: float,
    *,
    total_steps: int,
    name: str = "adam",
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    warmup_steps: int = 0,
    schedule: str = "constant",
    rate_multipliers: Mapping[str, float] | Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """An optimiser with weight decay on kernels alone.

    name: "adam" is AdamW. "adafactor" is big_vision's variant, UViM's optimiser: `b2` caps the
        decay of the second moments (see `scale_by_adafactor`), and the weight decay is absolute:
        each step takes weight_decay x schedule off a kernel, whatever the learning rate.
    clip_norm: gradients are clipped by their global norm first; 0 leaves them alone.
    rate_multipliers: {regex: factor} of the learning rate of parameters whose whole path, such as
        "encoder/Dense_0/kernel", fits; the first that fits counts. Or pairs of the two.
    Raises UserError for an unknown name, and on parameters that some regex does not fit at all.
    """
    schedule_of = functools.partial(
        make_schedule, total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule
    )
    multiply = [scale_by_path(rate_multipliers)] if rate_multipliers else []
    if name == "adam":
        rate = schedule_of(learning_rate)
        adam = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=kernels)
        steps = [adam, *multiply]
    elif name == "adafactor":
        steps = [
            scale_by_adafactor(b1, b2),
            optax.scale(learning_rate),
            *multiply,
            optax.add_decayed_weights(weight_decay, kernels),
            optax.scale_by_schedule(schedule_of(1.0)),
            optax.scale(-1.0),
        ]
    else:
        raise UserError(f"{name=} is no optimizer; there are 'adam' and 'adafactor'.")
    if clip_norm > 0:
        steps.insert(0, optax.clip_by_global_norm(clip_norm))
    return optax.chain(*steps) if len(steps) > 1 else steps[0]


def scale_by_adafactor(momentum: float, decay_cap: float) -> optax.GradientTransformation:
    """big_vision's Adafactor (Zhai et al. 2021): gradients over their root mean squares, averaged.

    Second moments are factored where two dimensions are 32 or more, and decay by 1 - t^-0.8 but
    at most `decay_cap`; updates are not clipped. Their average starts at zero, is not corrected
    for that, and is kept in bfloat16.
    """

    def decay(step, exponent):
        return jnp.minimum(decay_cap, 1.0 - (step + 1.0) ** -exponent)

    return optax.chain(
        _without_placeholders(
            optax.scale_by_factored_rms(
                decay_rate=0.8, min_dim_size_to_factor=32, epsilon=1e-30, decay_rate_fn=decay
            )
        ),
        optax.ema(momentum, debias=False, accumulator_dtype=jnp.bfloat16),
    )


def _without_placeholders(factored: optax.GradientTransformation) -> optax.GradientTransformation:
    """Factored second moments whose state holds those alone that a parameter has.

    optax keeps an array of one zero in the place of rows and columns, or of the whole. A step
    would write each of them anew, some 500 of UViM's, in a copy of its own.
    """
    is_gone = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731

    def init(params):
        return drop(factored.init(params))

    def update(updates, state, params=None):
        put = lambda x: jnp.zeros(1) if is_gone(x) else x  # noqa: E731
        state = jax.tree.map(put, state, is_leaf=is_gone)
        updates, state = factored.update(updates, state, params)
        return updates, drop(state)

    def drop(state):
        # Rows and columns are of 32 numbers and more, if they are there.
        has = jax.tree.map(lambda row: row.size > 1, state.v_row)
        keep = lambda has, x: x if has else optax.MaskedNode()  # noqa: E731
        return state._replace(
            v_row=jax.tree.map(keep, has, state.v_row),
            v_col=jax.tree.map(keep, has, state.v_col),
            v=jax.tree.map(lambda has, x: keep(not has, x), has, state.v),
        )

    return optax.GradientTransformation(init, update)


def scale_by_path(
    factors: Mapping[str, float] | Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
    """Updates times the factor of the first regex that fits a parameter's whole path, or times 1.

    Raises UserError, on parameters, for a regex that fits none of their paths.
    """
    factors = dict(factors)
    patterns = [re.compile(regex) for regex in factors]
    scales = {str(i): optax.scale(factor) for i, factor in enumerate(factors.values())}

    def labels(params):
        """The number of the regex that fits each parameter, "" where none does."""
        flat = traverse_util.flatten_dict(params, sep="/")
        fits = {
            name: next((str(i) for i, p in enumerate(patterns) if p.fullmatch(name)), "")
            for name in flat
        }
        for regex, pattern in zip(factors, patterns, strict=True):
            if not any(pattern.fullmatch(name) for name in flat):
                raise UserError(
                    f"The rate multiplier of {regex!r} fits no parameter, such as {min(flat)!r}."
                )
        return traverse_util.unflatten_dict(fits, sep="/")

    return optax.partition(scales | {"": optax.identity()}, labels)


def accumulate(grad_fn: Callable, num_microbatches: int) -> Callable:
    """A `grad_fn` that walks through its batch in microbatches and puts together what comes out.

    Args:
      grad_fn: (params, batch, key) -> (grads, sums, {name: scalar}), where the loss is a mean over
        the batch, and `sums` is what the update needs to know of all its examples, such as how
        many chose each word of a codebook. It changes nothing: what moves by a step (optimisers,
        moving averages, codebooks) is moved once, by whoever calls this.
      num_microbatches: must divide the batch on each device; 1 returns `grad_fn` as it is.

    Returns:
      A function of the same signature: gradients and scalars are means over the microbatches,
      `sums` are summed. Memory is that of one microbatch, and the result is that of the whole
      batch, but for what a microbatch draws from its key and for statistics that a loss takes over
      a batch.
    """
    if num_microbatches == 1:
        return grad_fn
    grad_fn = jax.jit(grad_fn, inline=True)  # traced once, for its shapes and for the loop

    def split(x):
        # Rows are dealt out in turn, so that each device keeps its own and nothing moves.
        return x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)

    def accumulated(params, batch, key):
        def body(carry, microbatch):
            totals, i = carry
            found = grad_fn(params, microbatch, jax.random.fold_in(key, i))
            return (jax.tree.map(jnp.add, totals, found), i + 1), None

        microbatches = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x: x[0], microbatches)
        shapes = jax.eval_shape(grad_fn, params, first, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        ((grads, sums, metrics), _), _ = jax.lax.scan(body, (zeros, 0), microbatches)
        mean = functools.partial(jax.tree.map, lambda total: total / num_microbatches)
        return mean(grads), sums, mean(metrics)

    return accumulated
