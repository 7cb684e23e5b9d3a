"""Random draws of one program made together, so that a large model is compiled in seconds.

A model draws every parameter with a key of its own: hundreds of random generators, which XLA writes
out round by round and compiles one by one. Stage II of UViM took minutes to initialise on a GPU.
Draws of one shape differ in nothing but their keys, and so do the steps that derive the keys: they
are made here by one generator each, mapped over the keys. Not one bit of what is drawn changes.
"""

import collections
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend import core


def together(function: Callable) -> Callable:
    """`function` with its draws of equal kind and shape made at once; to be called under jit.

    It takes and returns trees of arrays. Draws whose keys depend on anything but keys, arguments
    and constants are left where they are.
    """

    def drawn_together(*args):
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

    return drawn_together


def _draw(eqns, known) -> dict:
    """{variable: value} of all equations that draw from keys or derive keys from keys."""
    drawn, waiting = {}, [eqn for eqn in eqns if _takes_key(eqn)]
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
            values = _evaluate(group[0], inputs)
            drawn |= {eqn.outvars[0]: v for eqn, v in zip(group, values, strict=True)}
        waiting = [eqn for eqn in waiting if eqn.outvars[0] not in drawn]


def _takes_key(eqn) -> bool:
    """Whether an equation is one of jax.random: a generator's step, or a jitted function of a key."""
    known = eqn.primitive.name.startswith("random_") or "jaxpr" in eqn.params
    return (
        known
        and len(eqn.outvars) == 1
        and any(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in eqn.invars)
    )


def _kind(eqn) -> tuple:
    """Equal for equations that differ in nothing but the values they take."""
    what = id(eqn.params["jaxpr"]) if "jaxpr" in eqn.params else str(eqn.params)
    return eqn.primitive, what, *(str(v.aval) for v in eqn.invars)


def _evaluate(eqn, inputs: list[list]) -> list:
    """What the equation gives for each list of inputs."""

    def evaluate(*values):
        if "jaxpr" in eqn.params:
            return core.jaxpr_as_fun(eqn.params["jaxpr"])(*values)[0]
        return eqn.primitive.bind(*values, **eqn.params)

    if len(inputs) == 1:
        return [evaluate(*inputs[0])]
    columns = list(zip(*inputs, strict=True))
    shared = [_equal(column) for column in columns]
    stacked = [c[0] if s else jnp.stack(c) for c, s in zip(columns, shared, strict=True)]
    values = jax.vmap(evaluate, in_axes=[None if s else 0 for s in shared])(*stacked)
    # Without the barrier XLA gives each of them its own copy of the generator again.
    values = jax.lax.optimization_barrier(values)
    return [values[i] for i in range(len(inputs))]


def _equal(values) -> bool:
    """Whether values are one array, or equal literals."""
    literal = not any(isinstance(value, jax.Array) for value in values)
    return all(v is values[0] or (literal and v == values[0]) for v in values)
