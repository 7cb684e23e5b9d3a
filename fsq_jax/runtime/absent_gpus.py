"""GPUs that aren't here, for programs that are only compiled: what memory they would take."""

import importlib.util
from typing import Any

from jax.experimental import topologies

from fsq_jax.runtime.user_error import UserError

# XLA's description of an "NVIDIA H100 80GB HBM3".
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def can_compile() -> bool:
    """Whether JAX's CUDA plugin, which brings the compiler, is installed."""
    packages = ("jax_plugins", "jax_plugins.xla_cuda13")
    return all(importlib.util.find_spec(name) for name in packages)  # the second raises alone


def h100(count: int = 1) -> list[Any]:
    """So many H100 of one host, to compile for.

    Raises:
      UserError: JAX's CUDA plugin, which brings the compiler, is not installed.
    """
    if not can_compile():
        raise UserError(
            "Compiling for an H100 needs JAX's CUDA plugin, but no GPU: pip install 'jax[cuda13]'."
        )
    described = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=_H100, topology=f"1x1x{count}"
    )
    return described.devices
