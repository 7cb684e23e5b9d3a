"""Several training processes on the GPUs of one machine: which one each sees, and its memory."""

import os
import pathlib


def visible() -> list[str]:
    """The GPUs that this process may use, by CUDA's names; found without starting JAX."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    devices = [p.name.removeprefix("nvidia") for p in pathlib.Path("/dev").glob("nvidia[0-9]*")]
    return sorted(devices, key=int)


def environment(index: int, processes: int) -> dict[str, str]:
    """What the environment of process `index` of `processes` that run at once must say.

    Processes are dealt out over the GPUs. JAX takes three quarters of a GPU's memory for itself
    unless told that there are others, so those on one GPU get equal shares of 85 % of it: CUDA
    itself takes half a gigabyte for each.
    """
    names = visible()
    if not names:
        return {}
    own = {"CUDA_VISIBLE_DEVICES": names[index % len(names)]}
    neighbours = -(-processes // len(names))
    if neighbours > 1:
        own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.85 / neighbours:.3f}"
    return own
