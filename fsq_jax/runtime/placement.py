"""Where a model's arrays live on a mesh that it knows from these arrays alone.

Models never mention devices: outside a mesh, and on one device, all of this does nothing.
"""

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
