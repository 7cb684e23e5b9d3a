"""Several training processes on the GPUs of one machine: which one each sees, and its memory."""

import os
import pathlib


def visible() -> list[str]:
    """The GPUs that this process may use, by CUDA's names; found without starting JAX."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    devices = [p.name.removeprefix("nvidia") for p in pathlib.Path("/dev").glob("nvidia[0-9]*")]
    return sorted(devices, key=int)


def environment(gpu: str, share: float, processes: int = 1) -> dict[str, str]:
    """What the environment of a process must say that shares a machine with others.

    JAX takes three quarters of a GPU's memory: those on one GPU get their shares of that. The rest
    is for what CUDA takes outside of it, in each process: up to seven ran on an H200
    (launches.jsonl below experiments/results).

    Args:
      gpu: the one that it sees; "" for none.
      share: of the GPU, 1 for all of it.
      processes: that share the machine's cores. NumPy and OpenCV would start a thread for each
        core in each of them.
    """
    own = {}
    if processes > 1:
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
        own |= dict.fromkeys(names, threads)
    if gpu:
        own["CUDA_VISIBLE_DEVICES"] = gpu
        if share < 1:
            own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 * share:.3f}"
    return own
