"""What a training step costs: FLOPs, the share of the devices' peak that it reaches, memory."""

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import jax

from fsq_jax import stages
from fsq_jax.runs import startup
from fsq_jax.runtime import compiler, sharding
from fsq_jax.runtime.progress import log
from fsq_jax.stages.blank import blank_batch

# Dense bfloat16 products of a device by JAX's name of its kind, FLOP/s of data sheets: what model
# FLOPs utilisation (MFU) is a share of, whatever a run computes in.
PEAK_FLOPS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
}


class Utilization:
    """The share of its devices' peak that a training reaches (MFU).

    The FLOPs of a step are those of `training_flops`. They are counted once, in a thread, from the
    first call on: by then the step is compiled, and the training need not wait for the count.

    Args:
      config: resolved.
      batch: arrays or shapes, all rows of a step.
      mesh: the devices that train.
    """

    def __init__(self, config, batch, mesh: jax.sharding.Mesh):
        self._config = config
        self._batch = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in batch.items()}
        self._peak = mesh.size * PEAK_FLOPS.get(mesh.devices.flat[0].device_kind, 0.0)
        self._flops, self._thread = 0.0, None

    def __call__(self, steps_per_second: float) -> float | None:
        """The share; None on devices whose peak isn't known, and until the FLOPs are counted."""
        if self._peak and self._thread is None:
            self._thread = threading.Thread(target=self._count, daemon=True)
            self._thread.start()
        return self._flops * steps_per_second / self._peak if self._flops else None

    def _count(self) -> None:
        try:
            self._flops = training_flops(self._config, self._batch)
        except Exception as error:  # a number less in the log must not end a training
            log(f"The FLOPs of a step could not be counted, so that no MFU is shown: {error}")


def shapes_of(config):
    """(stage, its state, a batch of images and labels), all without values."""
    stage = stages.make(config, **stages.frozen_shapes(config))
    batch = jax.eval_shape(lambda: blank_batch(config, config.batch_size))
    return stage, startup.abstract_state(config, stage, batch).replace(frozen=stage.frozen), batch


def training_flops(config, batch) -> float:
    """Floating-point operations of one update, as XLA counts them in the program that it is given.

    The program is the plain one: nothing is recomputed, and no kernel is a black box. What XLA
    merges later (the discriminator's second pass over the same images) is counted twice. It is made
    for the CPU, wherever this runs: XLA counts nothing in a GPU's.
    """
    plain = config.copy_and_resolve_references()
    plain.accumulate = 1
    plain.model.remat = "none" if isinstance(plain.model.remat, str) else False
    if "attention" in plain.model:
        plain.model.attention = "xla"
    stage = stages.make(plain, **stages.frozen_shapes(plain))
    state = startup.abstract_state(plain, stage, batch).replace(frozen=stage.frozen)
    key = jax.eval_shape(lambda: jax.random.key(plain.seed))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        costs = jax.jit(stage.update).lower(state, batch, key).cost_analysis()
    return float((costs or {})["flops"])


def compile_step(config, batch, devices: Sequence[Any]) -> jax.stages.Compiled:
    """The step of a training, compiled for devices that need not be here. Nothing is run.

    Args:
      config: of any stage, with its numbers of classes.
      batch: shapes of all rows of a step.
      devices: all that train, such as `absent_gpus.h100(2)`.
    """
    mesh, absent = sharding.mesh_of(devices), devices[0] not in jax.devices()
    with compiler.made_for(devices[0]) if absent else contextlib.nullcontext():
        stage = stages.make(config, **stages.frozen_shapes(config))
        state = startup.abstract_state(config, stage, batch).replace(frozen=stage.frozen)
        key = jax.eval_shape(lambda: jax.random.key(config.seed))
        shardings = sharding.state_shardings(state, mesh, fsdp=config.fsdp)
        rows = {name: sharding.split_batch(mesh) for name in batch}
        placed = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            (state, batch, key),
            (shardings, rows, sharding.replicated(mesh)),
        )
        return startup.compiled_update(config, stage, mesh, shardings).lower(*placed).compile()


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """The most memory of a device that a compiled step takes, its state and its batch included."""
    memory: Any = compiled.memory_analysis()
    both = memory.argument_size_in_bytes + memory.output_size_in_bytes  # one where donated
    return both - memory.alias_size_in_bytes + memory.temp_size_in_bytes
