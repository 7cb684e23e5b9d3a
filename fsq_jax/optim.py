"""Optimisers and schedules from plain values, moving averages, gradient accumulation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


def make_schedule(
    learning_rate: float, *, total_steps: int, warmup_steps: int = 0, schedule: str = "constant"
) -> optax.Schedule:
    """Step -> learning rate: linear warm-up, then "constant", or "cosine" to zero at the end."""
    if warmup_steps >= total_steps and warmup_steps:
        raise ValueError(f"{warmup_steps=} leaves nothing of {total_steps=} to train on.")
    if schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps)
    else:
        raise ValueError(f"{schedule=} is unknown; there are 'constant' and 'cosine'.")
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps]) if warmup_steps else after


def kernels(params: PyTree) -> PyTree:
    """True for each array named "kernel": all that weight decay is meant for."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def make_optimizer(
    learning_rate: float,
    *,
    total_steps: int,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    warmup_steps: int = 0,
    schedule: str = "constant",
) -> optax.GradientTransformation:
    """AdamW with decay on kernels alone, behind a clip by global norm where `clip_norm` > 0."""
    rate = make_schedule(
        learning_rate, total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule
    )
    adam = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=kernels)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam) if clip_norm > 0 else adam


def moving_average(average: PyTree, params: PyTree, decay: float) -> PyTree:
    """decay * average + (1 - decay) * params."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def accumulate(grad_fn: Callable, num_microbatches: int) -> Callable:
    """A `grad_fn` that walks through its batch in microbatches and averages what comes out.

    Args:
      grad_fn: (params, carry, batch, key) -> (grads, carry, {name: scalar}), where the loss is a
        mean over the batch. `carry` is passed on from one microbatch to the next (model state).
      num_microbatches: must divide the batch on each device; 1 returns `grad_fn` as it is.

    Returns:
      A function of the same signature. Memory is that of one microbatch, and the result is that
      of the whole batch, but for statistics that the loss takes over a batch.
    """
    if num_microbatches == 1:
        return grad_fn

    def split(x):
        # Rows are dealt out in turn, so that each device keeps its own and nothing moves.
        return x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)

    def accumulated(params, carry, batch, key):
        def body(totals, microbatch):
            grads, carry, metrics, i = totals
            new_grads, carry, new_metrics = grad_fn(
                params, carry, microbatch, jax.random.fold_in(key, i)
            )
            add = lambda total, new: total + new / num_microbatches  # noqa: E731
            return (
                jax.tree.map(add, grads, new_grads),
                carry,
                jax.tree.map(add, metrics, new_metrics),
                i + 1,
            ), None

        microbatches = jax.tree.map(split, batch)
        shapes = jax.eval_shape(grad_fn, params, carry, jax.tree.map(lambda x: x[0], microbatches),
                                key)
        zeros = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)  # noqa: E731
        start = (zeros(shapes[0]), carry, zeros(shapes[2]), 0)
        (grads, carry, metrics, _), _ = jax.lax.scan(body, start, microbatches)
        return grads, carry, metrics

    return accumulated
