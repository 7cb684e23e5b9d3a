"""Where arrays live: one mesh axis, data parallelism or FSDP, and the way to the host and back.

The mesh has a single axis, "data", over all devices of all hosts: batches are split along it, and
under FSDP large parameters (with their optimiser state and moving averages) are too. XLA inserts
the collectives, so models and stages never mention devices.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fsq_jax.runtime.user_error import UserError

PyTree = Any

# Without a heartbeat for so long a process is lost; in a training `liveness` notices sooner.
HEARTBEAT_SECONDS = 30


def initialize_distributed() -> None:
    """Joins the other hosts' processes where a cluster is around; does nothing on a single host.

    Slurm, Open MPI and TPU pods are detected by JAX. Anywhere else, set JAX_COORDINATOR_ADDRESS
    (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        missing = [n for n in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if n not in os.environ]
        if missing:
            raise UserError(f"JAX_COORDINATOR_ADDRESS={address} is set, but not {missing}.")
        jax.distributed.initialize(
            address,
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    elif (
        int(os.environ.get("SLURM_NTASKS", 1)) > 1
        and "SLURM_PROCID" in os.environ
        or int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def make_mesh(num_devices: int | None = None) -> Mesh:
    """The mesh over all devices (or the first `num_devices`), with its one axis "data".

    Several processes give the same number of devices each.
    """
    check_precision()
    devices = jax.devices()
    if num_devices is not None and jax.process_count() > 1:
        each = num_devices // jax.process_count()
        devices = [
            d for i in range(jax.process_count()) for d in jax.local_devices(process_index=i)[:each]
        ]
    return mesh_of(devices[:num_devices])


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices, which need not be here if programs are only compiled."""
    # Auto, since under Explicit (JAX's default) convolutions refuse FSDP-sharded kernels.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def training_mesh(batch_size: int, accumulate: int = 1, idle_devices: bool = False) -> Mesh:
    """The mesh of a training run.

    Args:
      batch_size: rows of a batch over all devices.
      accumulate: microbatches of it.
      idle_devices: whether some devices may stay idle, where the batch can't be cut over all.

    Raises:
      UserError: where the batch can't be cut evenly over the devices.
    """
    if not idle_devices:
        check_batch_size(batch_size, accumulate)
    some = most_devices(batch_size, accumulate)
    return make_mesh() if some == jax.device_count() else make_mesh(some)


def most_devices(batch_size: int, accumulate: int = 1) -> int:
    """The largest number of devices, as many of each process, that a batch can be cut over.

    Raises:
      UserError: where it can't even be cut over the processes.
    """
    processes = jax.process_count()
    for each in range(jax.local_device_count(), 0, -1):
        if batch_size > 0 and batch_size % (each * processes * accumulate) == 0:
            return each * processes
    raise UserError(f"{batch_size=} is not a multiple of {processes} processes x {accumulate=}.")


def padded(batch_size: int, mesh: Mesh) -> int:
    """Rows of a batch that is filled up until it can be cut evenly over the mesh."""
    if batch_size < 1:
        raise UserError(f"{batch_size=} must be at least 1.")
    return -(-batch_size // mesh.size) * mesh.size


def check_precision() -> None:
    """Raises a UserError where JAX computes in 64 bits, which no model here is made for."""
    if jax.config.read("jax_enable_x64"):
        raise UserError(
            "JAX_ENABLE_X64 is set, and the networks here are of 32 bits and less; unset it."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def split_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P("data"))


def state_shardings(shapes: PyTree, mesh: Mesh, *, fsdp: bool, min_size: int = 2**18) -> PyTree:
    """A sharding for each leaf: replicated, or under FSDP cut along its largest divisible axis.

    Args:
      shapes: tree of arrays or `ShapeDtypeStruct`s, from `jax.eval_shape`.
      mesh: from `make_mesh`.
      fsdp: cut large arrays over the mesh; otherwise everything is replicated.
      min_size: arrays with fewer elements stay replicated: cutting them saves nothing, and each
        cut costs a collective.
    """
    num_devices = mesh.size

    def shard(leaf) -> NamedSharding:
        divisible = [axis for axis, n in enumerate(leaf.shape) if n % num_devices == 0]
        if not fsdp or num_devices == 1 or leaf.size < min_size or not divisible:
            return replicated(mesh)
        # Of equal axes the last one: output channels, along which convolutions gather best.
        largest = max(divisible, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, P(*(None,) * largest, "data"))

    return jax.tree.map(shard, shapes)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch on the mesh, from this host's rows of it."""
    sharding = split_batch(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Host arrays, the same in every process, laid out as `shardings` (one, or a tree of them)."""

    def place(leaf, where):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: place(leaf, shardings), tree)
    return jax.tree.map(place, tree, shardings)


def to_host(tree: PyTree) -> PyTree:
    """NumPy arrays with the global values, the same in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def check_batch_size(batch_size: int, accumulate: int = 1) -> None:
    """Raises a UserError where the batch can't be cut evenly over devices and microbatches."""
    devices = jax.device_count()
    if batch_size < 1 or accumulate < 1:
        raise UserError(f"{batch_size=} and {accumulate=} must be at least 1.")
    if batch_size % (devices * accumulate):
        raise UserError(
            f"{batch_size=} is not a multiple of {devices} devices x {accumulate=}; the nearest "
            f"that is: {max(1, round(batch_size / (devices * accumulate))) * devices * accumulate}."
        )
