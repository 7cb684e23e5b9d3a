"""What XLA is given with the programs of training and prediction."""

import jax


def compiler_options() -> dict[str, bool]:
    """Options for `jax.jit` on the devices at hand.

    On a GPU all matrix products go to cuBLAS, which adds biases and residuals as it writes, and
    computes GELU in float32 there (`models.layers.gelu`). With Triton's products to choose from,
    XLA leaves those to kernels of their own.
    """
    return {"xla_gpu_enable_triton_gemm": False} if jax.default_backend() == "gpu" else {}
