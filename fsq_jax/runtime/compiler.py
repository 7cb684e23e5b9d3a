"""What XLA is given with the programs of training and prediction, and for which devices."""

import contextlib
import contextvars
import gc
from collections.abc import Iterator, Mapping
from typing import Any

import jax

_absent: contextvars.ContextVar[Any] = contextvars.ContextVar("absent", default=None)


def device() -> Any:
    """The device that programs are made for: the first one here, or that of `made_for`."""
    return _absent.get() or jax.local_devices()[0]


@contextlib.contextmanager
def made_for(absent: Any) -> Iterator[None]:
    """Makes programs for a device that isn't here, such as one of `absent_gpus.h100`."""
    token = _absent.set(absent)
    try:
        yield
    finally:
        _absent.reset(token)


def compiler_options(of_gpu: Mapping[str, int] | None = None) -> dict[str, bool | int]:
    """Options for `jax.jit` on the devices at hand, or for those of `made_for`.

    `of_gpu`: those that a program has of its own on a GPU, such as `Stage.gpu_options`.

    On a GPU all matrix products go to cuBLAS, which adds biases and residuals as it writes, and
    computes GELU in float32 there (`models.layers.gelu`). With Triton's products to choose from,
    XLA leaves those to kernels of their own. Where the GPU isn't here nothing can be tried out.
    """
    if device().platform != "gpu":
        return {}
    options = {"xla_gpu_enable_triton_gemm": False, **(of_gpu or {})}
    return options | ({"xla_gpu_autotune_level": 0} if _absent.get() else {})


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For the body of a large function that JAX traces: nothing is collected meanwhile.

    A program's millions of small objects stay, and Python looks through them again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
