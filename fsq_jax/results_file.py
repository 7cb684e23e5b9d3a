"""WORKDIR/results.json: {metric: {"value", "protocol", "step"}} of a run's evaluations."""

import json
import os
from collections.abc import Mapping


def values(results: Mapping[str, Mapping]) -> dict[str, float]:
    """{metric: value}, without protocols."""
    return {name: result["value"] for name, result in results.items()}


def load(workdir: str) -> dict[str, dict]:
    """What results.json holds; {} where nothing was evaluated yet."""
    path = os.path.join(workdir, "results.json")
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def evaluated(workdir: str, step: int) -> bool:
    """Whether results.json holds an evaluation of this step."""
    return any(result["step"] == step for result in load(workdir).values())


def save(workdir: str, results: Mapping[str, Mapping]) -> None:
    """Takes results into WORKDIR/results.json, over older values of the same metrics."""
    path = os.path.join(workdir, "results.json")
    merged = load(workdir) | dict(results)
    with open(path + ".tmp", "w") as file:
        json.dump(merged, file, indent=2)
    os.replace(path + ".tmp", path)
