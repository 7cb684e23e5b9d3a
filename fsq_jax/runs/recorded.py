"""The config that a run or an export brings, held against one of its stage from `configs/`."""

from collections.abc import Mapping
from typing import Any

from configs import maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm
from fsq_jax.quantizers import QUANTIZERS
from fsq_jax.runtime.user_error import UserError

_CONFIGS = {
    "maskgit_tokenizer": maskgit_tokenizer,
    "maskgit_transformer": maskgit_transformer,
    "uvim_base": uvim_base,
    "uvim_lm": uvim_lm,
}
# What no prediction reads, and what older runs may lack.
_OPTIONAL = ("wandb", "guard", "idle_devices", "best", "best_mode", "evals", "data.skip_damaged")
_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a list",
    dict: "an object",
}


def check(config, path: str) -> None:
    """Raises a UserError where the config in `path` lacks what others of its stage have, or has
    something of another type, with the key. An unknown stage is left to `stages.make`."""
    if config.stage not in _CONFIGS:
        return
    found = config.to_dict()
    _section(found, "evals", path)  # whose evaluators are checked where they are run
    own = _section(found, "stage_1", path) if "stage_1" in found else found
    kinds = {"quantizer": _name(own, "quantizer", path)}
    if config.stage.startswith("uvim"):
        kinds["task"] = _name(found, "task", path)
    try:
        argument = ",".join(f"{name}={value}" for name, value in kinds.items())
        like = _CONFIGS[config.stage].get_config(f"scale=smoke,{argument}").to_dict()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _check(found, like, path, "")


def _section(config: Mapping, name: str, path: str) -> Mapping:
    if not isinstance(config.get(name), Mapping):
        raise UserError(f"{path} is not a whole config: {name} is no object.")
    return config[name]


def _name(config: Mapping, section: str, path: str) -> str:
    """What a section says that it is of: "fsq", "depth"."""
    name = _section(config, section, path).get("name")
    if not isinstance(name, str):
        raise UserError(f"{path} is not a whole config: {section} has no name.")
    return name


def _check(found: Mapping, like: Mapping, path: str, prefix: str) -> None:
    for name, example in like.items():
        key = f"{prefix}{name}"
        if key in _OPTIONAL:
            continue
        if name not in found:
            if prefix.endswith("quantizer.") and hasattr(QUANTIZERS[found["name"]], name):
                continue  # an option that came later, whose default is what there was before
            raise UserError(f"{path} is not a whole config: it lacks {key}.")
        if not _is_like(found[name], example):
            word = _WORDS[dict if isinstance(example, Mapping) else type(example)]
            raise UserError(f"{path}: {key} is {str(found[name])[:80]!r}; expected {word}.")
        if isinstance(example, Mapping):
            _check(found[name], example, path, f"{key}.")


def _is_like(value: Any, example: Any) -> bool:
    """Whether a value is of an example's type, and a list's items of the type of its first."""
    if isinstance(example, tuple):
        return isinstance(value, tuple) and all(_is_like(v, e) for v in value for e in example[:1])
    if isinstance(value, bool) or isinstance(example, bool):
        return type(value) is type(example)
    if isinstance(example, float):
        return isinstance(value, (int, float))
    return isinstance(value, Mapping if isinstance(example, Mapping) else type(example))
