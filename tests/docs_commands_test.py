"""Every command in the README, in docs/ and in CONTRIBUTING could be run as it stands.

Its module is there, the module (or what it asks for its flags) defines each flag, and --config with
its overrides is a config. Nothing is started: flags are read off the source.
"""

import ast
import functools
import pathlib
import re
import shlex

import pytest
from flax import traverse_util
from ml_collections import config_dict

from configs import maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm
from fsq_jax.runs.config import override_config, parse_overrides
from fsq_jax.runtime import cli
from tests import tiny

PAGES = [
    tiny.ROOT / "README.md",
    tiny.ROOT / "CONTRIBUTING.md",
    *sorted((tiny.ROOT / "docs").glob("*.md")),
]
CONFIGS = {
    module.__name__.split(".")[-1]: module
    for module in (maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm)
}
# Functions that define flags of a command's own, and where.
DEFINE_FLAGS = dict.fromkeys(
    ("launcher.define_flags", "launcher.program"), "experiments/launcher.py"
)
_FENCED = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_COMMAND = re.compile(r"(?:python3?|srun python3?) -m ((?:fsq_jax|experiments|tests)\.\S+)(.*)")


def code(page: pathlib.Path) -> list[str]:
    """Lines of shell, and pieces of code within a sentence."""
    text = page.read_text()
    blocks = [block.replace("\\\n", " ") for block in _FENCED.findall(text)]
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    pieces = [piece.replace("\n", " ") for piece in _INLINE.findall(plain)]
    return [line for block in blocks for line in block.splitlines()] + pieces


def commands(page: pathlib.Path) -> list[tuple[str, list[str]]]:
    """(module, arguments) of each command of a page."""
    found = []
    for line in code(page):
        for part in re.split(r"&&|;|\s\|\s", line):
            if match := _COMMAND.search(part):
                arguments = shlex.split(match[2], comments=True)
                found.append((match[1], [a for a in arguments if a != "..."]))
            elif "scripts/" in part and "--config" in part:  # which hand all flags to training
                arguments = shlex.split(part, comments=True)
                found.append(("fsq_jax.train", [a for a in arguments if "--con" in a]))
    return found


def file_of(module: str) -> pathlib.Path:
    path = tiny.ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def flags_of(path: pathlib.Path) -> frozenset[str]:
    """The flags that a file defines, and those of the files that it has define some more."""
    known = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in DEFINE_FLAGS:
            known |= flags_of(tiny.ROOT / DEFINE_FLAGS[called])
        if called.endswith("define_config_flag"):
            known.add("config")
        defines = ".DEFINE_" in called or called.endswith(".add_argument")
        if defines and isinstance(node.args[0], ast.Constant):
            known.add(str(node.args[0].value).lstrip("-"))
    return frozenset(known)


def config_of(text: str) -> config_dict.ConfigDict:
    """What --config=TEXT would give."""
    path, _, arguments = cli.config_path(text).partition(":")
    return CONFIGS[pathlib.Path(path).stem].get_config(arguments)


def test_commands_are_found():
    found = {module for page in PAGES for module, _ in commands(page)}
    assert {"fsq_jax.train", "fsq_jax.sample", "experiments.quickstart"} <= found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_could_be_run(page):
    for module, arguments in commands(page):
        assert file_of(module).is_file(), module
        config, overrides = None, []
        flags = [a for a in arguments[: (arguments + ["--"]).index("--")] if a.startswith("--")]
        for flag in flags:
            name, _, value = flag[2:].partition("=")
            if name.startswith("config."):
                overrides.append(flag.removeprefix("--config."))
                continue
            known = flags_of(file_of(module))
            assert name in known or name.removeprefix("no") in known, f"{module} {flag}"
            if name == "config" and "NAME" not in value:
                config = config_of(value)
        assert config is not None or not overrides, f"{module} {arguments}"
        if config is not None:
            override_config(config, parse_overrides(overrides))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_overrides_that_a_page_names_are_of_a_config(page):
    known = set()
    for module in CONFIGS.values():
        for task in module.ARGUMENTS.get("task", [""]):
            values = module.get_config(f"scale=smoke,task={task}" if task else "").to_dict()
            known |= set(traverse_util.flatten_dict(values, sep="."))
    for piece in code(page):
        for key in re.findall(r"--config\.([\w.]+)", piece):
            assert key in known or key == "KEY", f"{page.name}: --config.{key}"
