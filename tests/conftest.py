"""Eight simulated devices on the CPU, set before JAX starts."""

import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with reference checkpoints and data that stands beside some checkouts."""
    folder = pathlib.Path(os.environ.get("FSQ_JAX_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set FSQ_JAX_SHARED to the folder with oracles/ and data/")
    return folder
