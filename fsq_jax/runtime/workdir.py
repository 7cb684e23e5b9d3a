"""The plain files in a run's folder that programs read back: config.json and results.json.

    WORKDIR/config.json     the resolved config
    WORKDIR/results.json    {metric: {"value", "protocol", "step", "overrides", "variants"}}

A result is identified by its metric, its protocol, its step and what was put over the config to
get it ("overrides", left out where that is nothing); only the same measurement made again replaces
it. What stands under the metric's name is the run's own result: without overrides rather than
with, of the latest step, the last one written. All others follow in its "variants" (left out where
there are none), the oldest step first: a sweep of guidances is the result and its variants.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from flax import traverse_util

from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.user_error import UserError

# Overrides that change where or how fast something is measured, and not what.
_NO_SETTING = ("data.data_dir", "data.workers", "data.cache")


def save_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Writes WORKDIR/config.json."""
    write_json(os.path.join(workdir, "config.json"), config.to_dict())


def load_config(workdir: str) -> ml_collections.ConfigDict:
    """The resolved config of a run; a UserError that says so where there is no run."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        raise UserError(f"{workdir!r} is not a run of fsq_jax: it holds no config.json.")
    with open(path) as file:
        return parse_config(file.read(), path)


def parse_config(text: str, path: str) -> ml_collections.ConfigDict:
    """The config in a JSON text that stands in `path`; a UserError where it is none."""
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not readable as JSON ({error}).") from error
    if not isinstance(config, dict) or "stage" not in config:
        raise UserError(f"{path} is not a config of fsq_jax: it names no stage.")
    return ml_collections.ConfigDict(_tuples(config))


def differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple]:
    """{dotted key: (our value, their value)} of all in which two configs differ."""
    plain = (_tuples(json.loads(json.dumps(dict(config)))) for config in (ours, theirs))
    flat = [traverse_util.flatten_dict(config, sep=".") for config in plain]
    names = flat[0].keys() | flat[1].keys()
    pairs = {n: (flat[0].get(n, "absent"), flat[1].get(n, "absent")) for n in sorted(names)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def load_results(workdir: str) -> dict[str, dict]:
    """What WORKDIR/results.json holds; {} where nothing was evaluated yet."""
    return read_results(os.path.join(workdir, "results.json"))


def save_results(workdir: str, results: Mapping[str, Mapping]) -> None:
    """Takes results into WORKDIR/results.json, beside those of other settings and steps."""
    merge_results(os.path.join(workdir, "results.json"), results)


def read_results(path: str) -> dict[str, dict]:
    """What a file of results holds; {} where there is none."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def merge_results(path: str, results: Mapping[str, Mapping]) -> None:
    """Takes results into a file of results; of the same measurement the new one stays."""
    there = read_results(path)
    for metric in results:
        measured = {_identity(r): r for r in every_result(there, metric)}
        for new in every_result(results, metric):
            measured.pop(_identity(new), None)
            measured[_identity(new)] = new
        *variants, own = sorted(measured.values(), key=_rank)  # of equals the last one written
        there[metric] = own | ({"variants": variants} if variants else {})
    write_json(path, there)


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
    """The results, with what was put over the config to get them, as far as that is a setting."""
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
