"""Where a model's arrays live on a mesh that it knows from these arrays alone.

Models never mention devices: outside a mesh, and on one device, all of this does nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def mesh_of_rows(x: jax.Array) -> Any:
    """The mesh that x is on, where its first axis can be cut over more than one device; or None, as
    where x is a device's part already, inside a `shard_map`."""
    mesh = jax.typeof(x).sharding.mesh
    uncut = mesh.empty or mesh.size == 1 or mesh.manual_axes
    return None if uncut or x.shape[0] % mesh.size else mesh


def split_by_example(x: jax.Array) -> jax.Array:
    """x, and its gradient, cut along the first axis alone where it is on a mesh.

    For activations in a model: under FSDP XLA would else cut some of them along their width, and
    send activations around rather than weights, which are smaller.
    """
    mesh = mesh_of_rows(x)
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(mesh.axis_names)))


def whole(x: jax.Array) -> jax.Array:
    """x on every device of the mesh that it is on, if it is on one: a weight that FSDP has cut, for
    operations in which XLA would else leave it cut and send activations around."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def automatic(rows: int | None = None) -> Callable:
    """Decorates a function of arrays and constants, so that the compiler chooses how arrays in it
    are cut on meshes of explicit axes, which `jax.make_mesh` makes by default, as on other meshes.

    rows: number of the argument whose rows are those of the result, and cut as they are; without,
      the result is whole on every device. The mesh is that of this argument, or of the first.
    """

    def decorate(function):
        @functools.wraps(function)
        def wrapped(*args):
            cut = jax.typeof(args[rows or 0]).sharding
            if not cut.mesh.explicit_axes:
                return function(*args)
            arrays = {i: a for i, a in enumerate(args) if isinstance(a, jax.Array)}

            def of_arrays(arrays):
                return function(*(arrays.get(i, a) for i, a in enumerate(args)))

            out = NamedSharding(cut.mesh, P() if rows is None else P(cut.spec[0]))
            return jax.sharding.auto_axes(of_arrays, out_sharding=out)(arrays)

        return wrapped

    return decorate
