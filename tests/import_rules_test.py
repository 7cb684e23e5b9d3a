"""The package's layers: a module imports only from those below its own."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "fsq_jax"

# From the bottom to the top; modules of one layer may import each other.
LAYERS = [
    {"runtime"},
    {"data", "quantizers", "sampling", "formats", "launcher"},
    {"features", "models", "metrics"},
    {"scoring", "pretrained", "tasks"},
    {"evaluators", "stages"},
    {"runs"},
    {"reports"},
    {
        "train",
        "evaluate",
        "sample",
        "encode",
        "describe",
        "prepare",
        "score",
        "reference",
        "export",
        "compare",
        "sweep",
        "demo",
    },
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
FLAX_MODULES = ("flax.linen", "flax.nnx")


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "nnx"):
        allowed = {"quantizers"}  # what users import needs nothing else
        assert {layer(n) for n in imported(path) if n.startswith("fsq_jax.")} <= allowed
        return
    for name in imported(path):
        if name.startswith("fsq_jax."):
            assert LEVEL[layer(name)] <= LEVEL[own], f"{own} imports {name}"
            programs = LAYERS[-1]
            assert not (layer(name) in programs and layer(name) != own), f"{own} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_models_and_quantizers_know_flax_modules(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own not in ("models", "features", "quantizers", "nnx"):
        assert not {n for n in imported(path) if n.startswith(FLAX_MODULES)}


def test_only_checkpoint_knows_orbax():
    knowing = {p.name for p in MODULES if any(n.startswith("orbax") for n in imported(p))}
    assert knowing == {"checkpoint.py"}


def test_data_is_numpy_only():
    for path in (PACKAGE / "data").glob("*.py"):
        assert not {n for n in imported(path) if n.split(".")[0] in ("jax", "flax")}, path


def test_quantizer_stands_alone():
    names = {n.split(".")[0] for n in imported(PACKAGE / "quantizers" / "fsq.py")}
    assert names - {"jax", "flax"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            limit = 120 if node.name == "train" else 60
            assert node.end_lineno - node.lineno < limit, node.name
