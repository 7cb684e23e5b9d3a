"""Calls of Flax modules as one program each: operation by operation, every shape costs a dozen."""

import jax

init = jax.jit(lambda module, *inputs: module.init(jax.random.key(0), *inputs), static_argnums=0)
apply = jax.jit(
    lambda module, variables, *inputs, **options: module.apply(variables, *inputs, **options),
    static_argnums=0,
    static_argnames=("train", "mutable", "method", "causal"),
)
