"""Random draws of one program made together, so that a large model is initialised in seconds.

A model draws every parameter with a key of its own: hundreds of random generators, which XLA writes
out round by round, merges into kernels of thousands of instructions, and takes long to compile.
Draws of one shape differ in nothing but their keys, and so do the steps that derive the keys: they
are made here by one generator each, mapped over the keys. What is drawn stays the same.

For an H100 the initial values of the paper's masked transformer take 69 seconds of a processor to
compile as they are, and 7 with this; with the rbg generator 61, with the compiler's least effort 71
(experiments/results/speed/init_compile.jsonl).
"""

import collections
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend import core

from fsq_jax.runtime.compiler import no_garbage_collection

_PICKS = ("slice", "dynamic_slice", "gather", "squeeze", "reshape", "unstack")  # key of keys


def batch_random_init(function: Callable) -> Callable:
    """`function` with its draws of equal kind and shape made at once; to be called under jit.

    It takes and returns trees of arrays. Draws whose keys depend on anything but keys, arguments
    and constants are left where they are.
    """

    def batched(*args):
        with no_garbage_collection():
            closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        program, values = closed.jaxpr, jax.tree.leaves(args)
        known = dict(zip(program.constvars, closed.consts, strict=True))
        known |= dict(zip(program.invars, values, strict=True))
        drawn = _draw(program.eqns, known)
        rest = program.replace(
            invars=[*program.invars, *drawn],
            eqns=[eqn for eqn in program.eqns if not drawn.keys() & eqn.outvars],
        )
        rest = core.jaxpr_as_fun(closed.replace(jaxpr=rest, consts=closed.consts))
        return jax.tree.unflatten(jax.tree.structure(shapes), rest(*values, *drawn.values()))

    return batched


def _draw(eqns, known) -> dict:
    """{variable: value} of all equations that draw from keys or derive keys from keys."""
    drawn, waiting = {}, [eqn for eqn in eqns if _takes_keys(eqn)]
    while True:
        have = known | drawn
        groups = collections.defaultdict(list)
        for eqn in waiting:
            if all(isinstance(v, core.Literal) or v in have for v in eqn.invars):
                groups[_kind(eqn)].append(eqn)
        if not groups:
            return drawn
        for group in groups.values():
            inputs = [
                [v.val if isinstance(v, core.Literal) else have[v] for v in eqn.invars]
                for eqn in group
            ]
            for eqn, outputs in zip(group, _evaluate(group[0], inputs), strict=True):
                drawn |= zip(eqn.outvars, outputs, strict=True)
        waiting = [eqn for eqn in waiting if eqn.outvars[0] not in drawn]


def _is_jit(eqn) -> bool:
    return eqn.primitive.name in ("jit", "pjit")


def _takes_keys(eqn) -> bool:
    """Whether an equation makes draws or keys from keys."""
    name = eqn.primitive.name
    known = name.startswith("random_") or name in _PICKS or _is_jit(eqn)
    return known and any(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in eqn.invars)


def _kind(eqn) -> tuple:
    """Equal for equations that differ in nothing but the values they take."""
    what = id(eqn.params["jaxpr"]) if _is_jit(eqn) else str(eqn.params)
    return eqn.primitive, what, *(str(v.aval) for v in eqn.invars)


def _evaluate(eqn, inputs: list[list]) -> list[list]:
    """What the equation puts out for each list of inputs."""

    def evaluate(*values):
        if _is_jit(eqn):
            return core.jaxpr_as_fun(eqn.params["jaxpr"])(*values)
        outputs = eqn.primitive.bind(*values, **eqn.params)
        return outputs if eqn.primitive.multiple_results else [outputs]

    if len(inputs) == 1:
        return [evaluate(*inputs[0])]
    columns = list(zip(*inputs, strict=True))
    shared = [_equal(column) for column in columns]
    stacked = [c[0] if s else jnp.stack(c) for c, s in zip(columns, shared, strict=True)]
    outputs = jax.vmap(evaluate, in_axes=[None if s else 0 for s in shared])(*stacked)
    # Without the barrier XLA gives each of them its own copy of the generator again.
    outputs = jax.lax.optimization_barrier(outputs)
    return [[output[i] for output in outputs] for i in range(len(inputs))]


def _equal(values) -> bool:
    """Whether values are one array, or equal literals."""
    literal = not any(isinstance(value, jax.Array) for value in values)
    return all(v is values[0] or (literal and v == values[0]) for v in values)
