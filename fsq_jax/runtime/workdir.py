"""The plain files in a run's folder that programs read back: config.json and results.json.

    WORKDIR/config.json     the resolved config
    WORKDIR/results.json    {metric: {"value", "protocol", "step", "overrides", "variants"}}

A result is identified by its metric, its protocol, its step and the config values that were
overridden ("overrides", left out where there are none); only the same measurement, repeated,
replaces it. What stands under the metric's name is the run's own result: without overrides rather
than with, of the latest step, the last one written. All others follow in its "variants" (left out
where there are none), the oldest step first: a sweep of guidances is the result and its variants.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from flax import traverse_util

from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import rename_aside, write_json
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError

_MAX_CONFIG = 4 << 20  # bytes
# What is read of any run's config; `runs.recorded` looks at all that its stage needs.
_CONFIG = {"stage": str, "steps?": int, "batch_size?": int, "evals?": {...: dict}, "wandb?": dict}
_RESULT = {"value": float, "protocol": dict, "step": int, "overrides?": dict}
RESULTS = {...: _RESULT | {"variants?": [_RESULT]}}  # see `bounded.read_json`
# Overrides that change where or how fast something is measured, and not what.
_NO_SETTING = ("data.data_dir", "data.workers", "data.cache")


def save_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Writes WORKDIR/config.json."""
    write_json(os.path.join(workdir, "config.json"), config.to_dict())


def load_config(workdir: str) -> ml_collections.ConfigDict:
    """The resolved config of a run; a UserError that says so where there is no run."""
    path = os.path.join(workdir, "config.json")
    if not os.path.lexists(path):
        raise UserError(f"{workdir!r} is not a run of fsq_jax: it holds no config.json.")
    return parse_config(bounded.read_bytes(path, _MAX_CONFIG), path)


def parse_config(text: bytes | str, path: str) -> ml_collections.ConfigDict:
    """The config in a JSON text that stands in `path`; a UserError where it is none."""
    config = bounded.parse_json(text, path)
    if not isinstance(config, dict) or not isinstance(config.get("stage"), str):
        raise UserError(f"{path} is not a config of fsq_jax: it names no stage.")
    bounded.check(config, _CONFIG, path)
    _check_names(config, path)
    return ml_collections.ConfigDict(_tuples(config))


def _check_names(config: Any, path: str) -> None:
    """Raises a UserError for a key that a `ConfigDict` can't have, or that hides what it can do."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if not name.isidentifier() or hasattr(ml_collections.ConfigDict, name):
            raise UserError(f"{path} is not a config of fsq_jax: {name[:80]!r} names no setting.")
        _check_names(value, path)


def differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple]:
    """{dotted key: (our value, their value)} of all in which two configs differ."""
    plain = (_tuples(json.loads(json.dumps(dict(config)))) for config in (ours, theirs))
    flat = [traverse_util.flatten_dict(config, sep=".") for config in plain]
    names = flat[0].keys() | flat[1].keys()
    pairs = {n: (flat[0].get(n, "absent"), flat[1].get(n, "absent")) for n in sorted(names)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def load_results(workdir: str) -> dict[str, dict]:
    """What WORKDIR/results.json holds; {} where nothing was evaluated yet.

    Raises:
      UserError: it is damaged.
    """
    path = os.path.join(workdir, "results.json")
    return bounded.read_json(path, RESULTS) if os.path.lexists(path) else {}


def save_results(workdir: str, results: Mapping[str, Mapping]) -> None:
    """Takes results into WORKDIR/results.json, beside those of other settings and steps.

    A file that is damaged is kept under another name, with a line in the log.
    """
    path = os.path.join(workdir, "results.json")
    try:
        older = load_results(workdir)
    except UserError as error:
        older, aside = {}, rename_aside(path)
        log(f"{error} It is kept as {aside}, and {path} holds the new results alone.")
    write_json(path, merged(older, results))


def merged(older: Mapping[str, Mapping], newer: Mapping[str, Mapping]) -> dict[str, dict]:
    """Both results; of the same measurement the newer one stays."""
    both = {metric: dict(result) for metric, result in older.items()}
    for metric in newer:
        measured = {_identity(r): r for r in every_result(older, metric)}
        for new in every_result(newer, metric):
            measured.pop(_identity(new), None)
            measured[_identity(new)] = new
        *variants, own = sorted(measured.values(), key=_rank)  # of equals the last one written
        both[metric] = own | ({"variants": variants} if variants else {})
    return both


def every_result(results: Mapping[str, Mapping], metric: str) -> Iterator[dict]:
    """All results of a metric, its variants first and the run's own last; none for no such
    metric."""
    if metric in results:
        yield from (dict(variant) for variant in results[metric].get("variants", ()))
        yield {name: value for name, value in results[metric].items() if name != "variants"}


def of_step(results: Mapping[str, Mapping], step: int) -> dict[str, dict]:
    """{metric: the run's own result} of one step: those that were measured without overrides."""
    found = {}
    for metric in results:
        for result in every_result(results, metric):
            if result["step"] == step and not result.get("overrides"):
                found[metric] = result
    return found


def is_evaluated(workdir: str, step: int) -> bool:
    """Whether results.json holds an evaluation of this step with the run's own settings."""
    return bool(of_step(load_results(workdir), step))


def with_overrides(results: Mapping[str, Mapping], overrides: Mapping) -> dict[str, dict]:
    """The results, with the overrides of their measurement, as far as these are settings."""
    settings = {name: value for name, value in overrides.items() if name not in _NO_SETTING}
    extra = {"overrides": settings} if settings else {}
    return {metric: dict(result) | extra for metric, result in results.items()}


def metric_values(results: Mapping[str, Mapping]) -> dict[str, float]:
    """{metric: value} of the run's own results, without protocols."""
    return {name: result["value"] for name, result in results.items()}


def _identity(result: Mapping) -> str:
    parts = [result["protocol"], result["step"], result.get("overrides", {})]
    return json.dumps(parts, sort_keys=True)


def _rank(result: Mapping) -> tuple:
    return not result.get("overrides"), result["step"]


def _tuples(value):
    """JSON's lists as tuples, which is what configs hold."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
